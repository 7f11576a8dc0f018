/* Two trainers as a plugin in C, against forgelm_plugin.h alone:
 *
 *   ipo_c   identity preference optimization (Azar et al. 2023, arXiv:2310.12036, eq. 17):
 *           L = (d_c / n_c - d_r / n_r - 1 / (2 beta))^2 with d = log pi - log pi_ref
 *   nll_c   the negative log-likelihood of the trained tokens, as `sft` has it
 *
 * Build: cc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -Wl,-z,defs -Wl,-z,nodelete \
 *           -I ffi/include ffi/examples/trainers.c -o trainers.so
 * Use:   plugins: {paths: [trainers.so], trainer: ipo_c, trainer_options: [beta=0.2]} */
#include "forgelm_plugin.h"

#include <stdlib.h>
#include <string.h>

typedef struct trainer {
    forgelm_trainer table; /* first: a pointer to one is a pointer to the other */
    const forgelm_host *host;
    double beta;
} trainer;

static forgelm_status fail(forgelm_plugin_error *err, forgelm_status code, const char *message) {
    if (err != NULL) {
        size_t n = strlen(message);
        if (n > sizeof err->message) {
            n = sizeof err->message;
        }
        memcpy(err->message, message, n);
        err->message_len = (uint32_t)n;
        err->code = code;
    }
    return code;
}

static const void *first(const forgelm_tensor *tensor) {
    return (const char *)tensor->data + tensor->byte_offset;
}

/* Sum of the values of the trained rows of a sequence, in order, and how many rows those are. */
static double sum(const forgelm_scored *scored, const forgelm_sequence *of, const float *values,
                  double *n_trained) {
    const uint8_t *trained = first(scored->trained);
    double total = 0.0;
    *n_trained = 0.0;
    for (size_t row = of->start; row < of->start + of->len; ++row) {
        if (trained[row]) {
            total += (double)values[row];
            *n_trained += 1.0;
        }
    }
    return total;
}

static void spread(const forgelm_scored *scored, const forgelm_sequence *of, float *dlogp,
                   double derivative) {
    const uint8_t *trained = first(scored->trained);
    for (size_t row = of->start; row < of->start + of->len; ++row) {
        dlogp[row] = trained[row] ? (float)derivative : 0.0f;
    }
}

static forgelm_status ipo_loss(const forgelm_trainer *table, const forgelm_scored *scored,
                               forgelm_loss *out, forgelm_plugin_error *err) {
    const trainer *self = (const trainer *)table;
    if (scored->ref_logp == NULL || scored->n_sequences % 2 != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "ipo_c needs pairs and a reference");
    }
    const float *logp = first(scored->logp), *reference = first(scored->ref_logp);
    float *dlogp = (float *)((char *)out->dlogp->data + out->dlogp->byte_offset);
    double total = 0.0;
    for (size_t i = 0; i < scored->n_sequences; i += 2) {
        if (self->host->is_cancelled(self->host)) {
            return fail(err, FORGELM_E_CANCELLED, "stopped as asked");
        }
        const forgelm_sequence *chosen = &scored->sequences[i], *rejected = chosen + 1;
        double n_c, n_r;
        double d_c = sum(scored, chosen, logp, &n_c) - sum(scored, chosen, reference, &n_c);
        double d_r = sum(scored, rejected, logp, &n_r) - sum(scored, rejected, reference, &n_r);
        n_c = n_c > 0.0 ? n_c : 1.0;
        n_r = n_r > 0.0 ? n_r : 1.0;
        double distance = d_c / n_c - d_r / n_r - 1.0 / (2.0 * self->beta);
        total += distance * distance;
        spread(scored, chosen, dlogp, 2.0 * distance / n_c);
        spread(scored, rejected, dlogp, -2.0 * distance / n_r);
        forgelm_str name = {"rewards/margins", 15};
        out->metric(out->metric_ctx, name, self->beta * (d_c - d_r), 1);
    }
    out->loss_sum = total;
    out->n_terms = scored->n_sequences / 2;
    return FORGELM_OK;
}

static forgelm_status nll_loss(const forgelm_trainer *table, const forgelm_scored *scored,
                               forgelm_loss *out, forgelm_plugin_error *err) {
    (void)table;
    (void)err;
    const float *logp = first(scored->logp);
    const uint8_t *trained = first(scored->trained);
    float *dlogp = (float *)((char *)out->dlogp->data + out->dlogp->byte_offset);
    double total = 0.0;
    uint64_t n_terms = 0;
    for (int64_t row = 0; row < scored->logp->shape[0]; ++row) {
        dlogp[row] = trained[row] ? -1.0f : 0.0f;
        if (trained[row]) {
            total -= (double)logp[row];
            n_terms += 1;
        }
    }
    out->loss_sum = total;
    out->n_terms = n_terms;
    return FORGELM_OK;
}

/* Reads {} or {"beta": NUMBER}. A plugin with more options takes a JSON library. */
static int read_beta(forgelm_str json, double *beta) {
    char text[128];
    if (json.len >= sizeof text) {
        return 0;
    }
    memcpy(text, json.ptr, json.len);
    text[json.len] = '\0';
    if (strcmp(text, "{}") == 0) {
        return 1;
    }
    const char *key = "{\"beta\":";
    if (strncmp(text, key, strlen(key)) != 0) {
        return 0;
    }
    char *end = NULL;
    *beta = strtod(text + strlen(key), &end);
    return end != NULL && strcmp(end, "}") == 0 && *beta > 0.0;
}

static void destroy(const forgelm_trainer *table) { free((void *)(uintptr_t)table); }

static forgelm_status create(const forgelm_trainer_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_trainer **out, forgelm_plugin_error *err) {
    (void)factory;
    double beta = 0.1;
    if (index > 1 || !read_beta(options_json, &beta)) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT,
                    "the only option is `beta`, a number above 0");
    }
    trainer *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return fail(err, FORGELM_E_OUT_OF_MEMORY, "out of memory");
    }
    self->table.struct_size = sizeof self->table;
    self->table.plugin_data = self;
    self->table.destroy = destroy;
    self->table.loss = index == 0 ? ipo_loss : nll_loss;
    self->host = host;
    self->beta = beta;
    forgelm_str target = {"trainers.c", 10}, message = {"a trainer in C", 14};
    host->log(host, FORGELM_LOG_INFO, target, message);
    *out = &self->table;
    return FORGELM_OK;
}

static const forgelm_trainer_descriptor descriptors[] = {
    {sizeof(forgelm_trainer_descriptor), FORGELM_RECORDS_PREFERENCE,
     FORGELM_TRAINER_NEEDS_REFERENCE, 0, "ipo_c", "identity preference optimization, in C",
     "Azar et al. 2023, arXiv:2310.12036, eq. 17", NULL},
    {sizeof(forgelm_trainer_descriptor), FORGELM_RECORDS_TEXT, FORGELM_TRAINER_NEEDS_DROPOUT, 0,
     "nll_c", "negative log-likelihood of the trained tokens, in C", "Radford et al. 2018, eq. 1",
     NULL},
};

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
    "example-trainers",
    "1.0.0",
    NULL,
    NULL,
    get_factory,
};
