/* my_plugin: a trainer for ForgeLM, against forgelm_plugin.h alone.
 *
 * As it comes, it is the negative log-likelihood of the trained tokens, L = -sum(logp). Yours goes
 * into `loss`; what records it learns from and what the host prepares, into `descriptors`. */
#include "forgelm_plugin.h"

#include <string.h>

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

static void *first(const forgelm_tensor *tensor) {
    return (char *)tensor->data + tensor->byte_offset;
}

/* Loss and gradient of one micro-batch: R scored rows, of which some are trained.
 * Sums only: the host divides once, by the terms of the whole step. */
static forgelm_status loss(const forgelm_trainer *trainer, const forgelm_scored *scored,
                           forgelm_loss *out, forgelm_plugin_error *err) {
    (void)trainer;
    (void)err;
    const float *logp = first(scored->logp);
    const uint8_t *trained = first(scored->trained);
    float *dlogp = first(out->dlogp);
    double total = 0.0;
    uint64_t n_terms = 0;
    for (int64_t row = 0; row < scored->logp->shape[0]; ++row) {
        dlogp[row] = trained[row] ? -1.0f : 0.0f; /* dL/dlogp; 0 where not trained */
        if (trained[row]) {
            total -= (double)logp[row];
            n_terms += 1;
        }
    }
    out->loss_sum = total;
    out->n_terms = n_terms;
    /* A number of yours in metrics.jsonl: its sum and its terms. */
    forgelm_str name = {"my_plugin/nll", sizeof "my_plugin/nll" - 1};
    out->metric(out->metric_ctx, name, total, n_terms);
    return FORGELM_OK;
}

static void destroy(const forgelm_trainer *trainer) { (void)trainer; }

/* It has no options and so no state: one instance serves all. A trainer with options allocates an
 * instance in `create`, keeps them behind `plugin_data`, and frees it in `destroy`. */
static const forgelm_trainer instance = {sizeof instance, 0, NULL, destroy, loss, NULL};

static const forgelm_trainer_descriptor descriptors[] = {
    {sizeof(forgelm_trainer_descriptor), FORGELM_RECORDS_TEXT, FORGELM_TRAINER_NEEDS_DROPOUT, 0,
     "my_plugin", "negative log-likelihood of the trained tokens", "Radford et al. 2018, eq. 1",
     NULL},
};

static forgelm_status create(const forgelm_trainer_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_trainer **out, forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    if (index != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "no trainer has this index");
    }
    if (options_json.len != 2 || memcmp(options_json.ptr, "{}", 2) != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "my_plugin has no options");
    }
    *out = &instance;
    return FORGELM_OK;
}

static uint32_t count(const forgelm_trainer_factory *factory) {
    (void)factory;
    return sizeof descriptors / sizeof descriptors[0];
}

static const forgelm_trainer_descriptor *descriptor(const forgelm_trainer_factory *factory,
                                                    uint32_t index) {
    return index < count(factory) ? &descriptors[index] : NULL;
}

static const forgelm_trainer_factory factory = {sizeof factory, 0, count, descriptor, create};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_TRAINER_FACTORY) == 0 ? &factory : NULL;
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
