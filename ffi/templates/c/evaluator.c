/* my_plugin: an evaluator for ForgeLM, against forgelm_plugin.h alone.
 *
 * As it comes, it is the mean log-probability of a token over some texts. Yours goes into
 * `evaluate`; the texts are in `texts`. It sees the model through services of the host alone:
 * forgelm.score/1, and forgelm.generate/1 for answers. */
#include "forgelm_plugin.h"

#include <stdio.h>
#include <string.h>

/* What comes first, and what is scored. */
static const char *const texts[][2] = {
    {"The sky is", " blue."},
    {"Two and two are", " four."},
    {"Fire is", " hot."},
};
enum { N_TEXTS = sizeof texts / sizeof texts[0] };

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

static forgelm_str str(const char *text) {
    forgelm_str borrowed = {text, strlen(text)};
    return borrowed;
}

/* Judges the model behind the services of this host; the report is one JSON object. */
static forgelm_status evaluate(const forgelm_evaluator *evaluator, const forgelm_host *host,
                               const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator;
    const forgelm_score *service = host->get_extension(host, FORGELM_SCORE);
    if (service == NULL || !FORGELM_HAS(service, score)) {
        return fail(err, FORGELM_E_UNIMPLEMENTED, "my_plugin needs forgelm.score/1");
    }
    forgelm_text_pair pairs[N_TEXTS];
    for (size_t i = 0; i < N_TEXTS; ++i) {
        pairs[i].prompt = str(texts[i][0]);
        pairs[i].completion = str(texts[i][1]);
    }
    double sums[N_TEXTS];
    uint64_t n_tokens[N_TEXTS];
    forgelm_status status = service->score(service, pairs, N_TEXTS, sums, n_tokens, err);
    if (status != FORGELM_OK) {
        return status;
    }
    double sum = 0.0;
    uint64_t n = 0;
    for (size_t i = 0; i < N_TEXTS; ++i) {
        sum += sums[i];
        n += n_tokens[i];
    }
    char text[128];
    double mean = n > 0 ? sum / (double)n : 0.0;
    snprintf(text, sizeof text, "{\"mean_logp\": %.17g, \"n_tokens\": %llu}", mean,
             (unsigned long long)n);
    report->write(report->ctx, str(text));
    return FORGELM_OK;
}

static void destroy(const forgelm_evaluator *evaluator) { (void)evaluator; }

/* It has no options and so no state: one instance serves all. An evaluator with options allocates
 * an instance in `create`, keeps them behind `plugin_data`, and frees it in `destroy`. */
static const forgelm_evaluator instance = {sizeof instance, 0, NULL, destroy, evaluate, NULL};

static const forgelm_evaluator_descriptor descriptors[] = {
    {sizeof(forgelm_evaluator_descriptor), 0, "my_plugin",
     "mean log-probability of a token of some texts", "Jelinek et al. 1977", NULL},
};

static forgelm_status create(const forgelm_evaluator_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_evaluator **out, forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    if (index != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "no evaluator has this index");
    }
    if (options_json.len != 2 || memcmp(options_json.ptr, "{}", 2) != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "my_plugin has no options");
    }
    *out = &instance;
    return FORGELM_OK;
}

static uint32_t count(const forgelm_evaluator_factory *factory) {
    (void)factory;
    return sizeof descriptors / sizeof descriptors[0];
}

static const forgelm_evaluator_descriptor *descriptor(const forgelm_evaluator_factory *factory,
                                                      uint32_t index) {
    return index < count(factory) ? &descriptors[index] : NULL;
}

static const forgelm_evaluator_factory factory = {sizeof factory, 0, count, descriptor, create};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_EVALUATOR_FACTORY) == 0 ? &factory : NULL;
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
