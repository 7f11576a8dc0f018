/* my_plugin: a quantizer for ForgeLM, against forgelm_plugin.h alone.
 *
 * As it comes, a row is one scale and one signed byte a number: x = scale * code / 127. Yours goes
 * into `bytes_per_row`, `quantize` and `dequantize`. A row must not depend on the others. */
#include "forgelm_plugin.h"

#include <math.h>
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

/* Bytes of the scale in front of the codes of a row. */
enum { SCALE = sizeof(float) };

static forgelm_status bytes_per_row(const forgelm_quantizer *quantizer, size_t n_cols, size_t *out,
                                    forgelm_plugin_error *err) {
    (void)quantizer;
    if (n_cols == 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "a row of no numbers");
    }
    *out = SCALE + n_cols;
    return FORGELM_OK;
}

/* rows [R, C] read, bytes [R, bytes per row] written. */
static forgelm_status quantize(const forgelm_quantizer *quantizer, const forgelm_tensor *rows,
                               const forgelm_tensor *bytes, forgelm_plugin_error *err) {
    (void)quantizer;
    (void)err;
    size_t n_rows = (size_t)rows->shape[0], n_cols = (size_t)rows->shape[1];
    for (size_t r = 0; r < n_rows; ++r) {
        const float *row = (const float *)first(rows) + r * n_cols;
        uint8_t *to = (uint8_t *)first(bytes) + r * (SCALE + n_cols);
        float scale = 0.0f;
        for (size_t i = 0; i < n_cols; ++i) {
            scale = fmaxf(scale, fabsf(row[i]));
        }
        memcpy(to, &scale, SCALE);
        for (size_t i = 0; i < n_cols; ++i) {
            float code = scale > 0.0f ? roundf(row[i] / scale * 127.0f) : 0.0f;
            to[SCALE + i] = (uint8_t)(int8_t)code;
        }
    }
    return FORGELM_OK;
}

/* bytes [R, bytes per row] read, rows [R, C] written. */
static forgelm_status dequantize(const forgelm_quantizer *quantizer, const forgelm_tensor *bytes,
                                 const forgelm_tensor *rows, forgelm_plugin_error *err) {
    (void)quantizer;
    (void)err;
    size_t n_rows = (size_t)rows->shape[0], n_cols = (size_t)rows->shape[1];
    for (size_t r = 0; r < n_rows; ++r) {
        float *row = (float *)first(rows) + r * n_cols;
        const uint8_t *from = (const uint8_t *)first(bytes) + r * (SCALE + n_cols);
        float scale;
        memcpy(&scale, from, SCALE);
        for (size_t i = 0; i < n_cols; ++i) {
            row[i] = scale * (float)(int8_t)from[SCALE + i] / 127.0f;
        }
    }
    return FORGELM_OK;
}

static void destroy(const forgelm_quantizer *quantizer) { (void)quantizer; }

/* It has no options and so no state: one instance serves all. A quantizer with options allocates an
 * instance in `create`, keeps them behind `plugin_data`, and frees it in `destroy`. */
static const forgelm_quantizer instance = {
    sizeof instance, 0, NULL, destroy, bytes_per_row, quantize, dequantize, NULL,
};

static const forgelm_quantizer_descriptor descriptors[] = {
    {sizeof(forgelm_quantizer_descriptor), 0, "my_plugin",
     "one signed byte a number, one scale a row",
     "Dettmers et al. 2022, arXiv:2208.07339, sec. 2.1", NULL},
};

static forgelm_status create(const forgelm_quantizer_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_quantizer **out, forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    if (index != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "no quantizer has this index");
    }
    if (options_json.len != 2 || memcmp(options_json.ptr, "{}", 2) != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "my_plugin has no options");
    }
    *out = &instance;
    return FORGELM_OK;
}

static uint32_t count(const forgelm_quantizer_factory *factory) {
    (void)factory;
    return sizeof descriptors / sizeof descriptors[0];
}

static const forgelm_quantizer_descriptor *descriptor(const forgelm_quantizer_factory *factory,
                                                      uint32_t index) {
    return index < count(factory) ? &descriptors[index] : NULL;
}

static const forgelm_quantizer_factory factory = {sizeof factory, 0, count, descriptor, create};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_QUANTIZER_FACTORY) == 0 ? &factory : NULL;
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
