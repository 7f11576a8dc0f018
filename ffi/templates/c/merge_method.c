/* my_plugin: a merge method for ForgeLM, against forgelm_plugin.h alone.
 *
 * As it comes, it is the weighted mean of the models, y = sum(w x) / sum(w). Yours goes into
 * `merge`. The result must not depend on how a tensor is cut into pieces, or on threads. A method
 * that must know a whole tensor first (a norm, a threshold) has `passes`: see forgelm_plugin.h. */
#include "forgelm_plugin.h"

#include <stdlib.h>
#include <string.h>

typedef struct method {
    forgelm_merge_method table; /* first: a pointer to one is a pointer to the other */
    size_t n_inputs;
    double weights[]; /* [n_inputs], their sum is 1 */
} method;

static forgelm_status fail(forgelm_plugin_error *err, forgelm_status code, const char *message) {
    if (err != NULL) {
        size_t n = strlen(message);
        n = n < sizeof err->message ? n : sizeof err->message;
        memcpy(err->message, message, n);
        err->message_len = (uint32_t)n;
        err->code = code;
    }
    return code;
}

static float *first(const forgelm_tensor *tensor) {
    return (float *)((char *)tensor->data + tensor->byte_offset);
}

/* Merges one piece: `out` and each input have the same n elements of one tensor. */
static forgelm_status merge(const forgelm_merge_method *table, const forgelm_merge_piece *piece,
                            const forgelm_tensor *out, forgelm_plugin_error *err) {
    const method *self = (const method *)table;
    if (piece->n_inputs != self->n_inputs) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "not as many inputs as weights");
    }
    float *result = first(out);
    for (int64_t i = 0; i < out->shape[0]; ++i) {
        double sum = 0.0;
        for (size_t k = 0; k < piece->n_inputs; ++k) {
            sum += self->weights[k] * (double)first(&piece->inputs[k])[i];
        }
        result[i] = (float)sum;
    }
    return FORGELM_OK;
}

static void destroy(const forgelm_merge_method *table) { free((void *)(uintptr_t)table); }

static const forgelm_merge_method_descriptor descriptors[] = {
    {sizeof(forgelm_merge_method_descriptor), FORGELM_MERGE_SCOPE_ELEMENTS, 1, 64, "my_plugin",
     "weighted mean of the tensors", "Wortsman et al. 2022, arXiv:2203.05482, sec. 2", NULL},
};

static forgelm_status create(const forgelm_merge_method_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json, const double *weights,
                             size_t n_weights, const forgelm_merge_method **out,
                             forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    if (index != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "no merge method has this index");
    }
    if (options_json.len != 2 || memcmp(options_json.ptr, "{}", 2) != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "my_plugin has no options");
    }
    double sum = 0.0;
    for (size_t k = 0; k < n_weights; ++k) {
        sum += weights[k];
    }
    if (!(sum > 0.0)) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "the weights must add up to more than 0");
    }
    method *self = calloc(1, sizeof *self + n_weights * sizeof self->weights[0]);
    if (self == NULL) {
        return fail(err, FORGELM_E_OUT_OF_MEMORY, "out of memory");
    }
    self->table.struct_size = sizeof self->table;
    self->table.destroy = destroy;
    self->table.merge = merge;
    self->n_inputs = n_weights;
    for (size_t k = 0; k < n_weights; ++k) {
        self->weights[k] = weights[k] / sum;
    }
    *out = &self->table;
    return FORGELM_OK;
}

static uint32_t count(const forgelm_merge_method_factory *factory) {
    (void)factory;
    return sizeof descriptors / sizeof descriptors[0];
}

static const forgelm_merge_method_descriptor *
descriptor(const forgelm_merge_method_factory *factory, uint32_t index) {
    return index < count(factory) ? &descriptors[index] : NULL;
}

static const forgelm_merge_method_factory factory = {sizeof factory, 0, count, descriptor, create};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_MERGE_METHOD_FACTORY) == 0 ? &factory : NULL;
}

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    FORGELM_PLUGIN_MAGIC,
    FORGELM_PLUGIN_ABI_MAJOR,
    FORGELM_PLUGIN_ABI_MINOR,
    sizeof(forgelm_entry),
    0,
    FORGELM_PLUGIN_LAYOUT_HASH,
    "my_plugin", /* the library */
    "0.1.0",     /* its version */
    NULL,
    NULL,
    get_factory,
};
