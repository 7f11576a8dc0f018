/* An evaluator that uses every service, or does one thing wrong, chosen by a macro when it is
 * compiled. */
#define _GNU_SOURCE
#include "forgelm_plugin.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef EVALUATE
#define EVALUATE asks_everything
#endif
#ifndef FEATURES
#define FEATURES NULL
#endif

static const forgelm_host *the_host;

static forgelm_str text(const char *words) {
    forgelm_str view = {words, strlen(words)};
    return view;
}

/* A text in the making: enough room for what a tiny model says. */
typedef struct buffer {
    char bytes[1 << 16];
    size_t len;
} buffer;

static void append(void *ctx, forgelm_str words) {
    buffer *to = ctx;
    if (words.len < sizeof to->bytes - to->len) {
        memcpy(to->bytes + to->len, words.ptr, words.len);
        to->len += words.len;
    }
}

static forgelm_writer into(buffer *to) {
    forgelm_writer writer = {to, append};
    to->len = 0;
    return writer;
}

/* The sum of the bytes, which a report can hold whatever they are. */
static unsigned sum_of(const buffer *of) {
    unsigned sum = 0;
    for (size_t i = 0; i < of->len; ++i) {
        sum = sum * 31 + (unsigned char)of->bytes[i];
    }
    return sum;
}

static const forgelm_score *score_of(const forgelm_host *host) {
    return host->get_extension(host, FORGELM_SCORE);
}

static const forgelm_generate *generate_of(const forgelm_host *host) {
    return host->get_extension(host, FORGELM_GENERATE);
}

static const forgelm_held_out *held_out_of(const forgelm_host *host) {
    return host->get_extension(host, FORGELM_HELD_OUT);
}

static buffer prompt_text, completion_text, answer_texts[2];
static char report_text[1 << 12];

/* Every function of every service once, and what each refuses. */
forgelm_status asks_everything(const forgelm_evaluator *evaluator, const forgelm_host *host,
                               const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator;
    const forgelm_score *score = score_of(host);
    const forgelm_generate *generate = generate_of(host);
    const forgelm_held_out *held_out = held_out_of(host);
    if (!score || !generate || !held_out) {
        err->code = FORGELM_E_UNIMPLEMENTED;
        return FORGELM_E_UNIMPLEMENTED;
    }
    forgelm_text_pair pairs[2] = {{text("The sky is"), text(" blue.")}, {text(""), text("Fire")}};
    double sums[2], record_sum;
    uint64_t counts[2], record_count, n_records = held_out->count(held_out);
    forgelm_status status = score->score(score, pairs, 2, sums, counts, err);
    if (status == FORGELM_OK) {
        status = held_out->score(held_out, n_records - 1, 1, &record_sum, &record_count, err);
    }
    forgelm_writer to_prompt = into(&prompt_text), to_completion = into(&completion_text);
    if (status == FORGELM_OK) {
        status = held_out->text(held_out, 0, &to_prompt, &to_completion, err);
    }
    forgelm_writer answers[2] = {into(&answer_texts[0]), into(&answer_texts[1])};
    forgelm_str prompts[2] = {text("What is it?"), text("And why?")};
    if (status == FORGELM_OK) {
        forgelm_str options = text("{\"max_new_tokens\": 6, \"temperature\": 0.8, \"seed\": 3, "
                                   "\"chat\": true}");
        status = generate->generate(generate, prompts, 2, options, answers, err);
    }
    if (status != FORGELM_OK) {
        return status;
    }
    /* What cannot be done has a status of its own, and ends nothing. */
    forgelm_plugin_error refused = {0};
    refused.struct_size = sizeof refused;
    forgelm_text_pair nothing = {text("words"), text("")};
    int refusals[4];
    refusals[0] = score->score(score, &nothing, 1, sums + 1, counts + 1, &refused);
    refusals[1] = held_out->score(held_out, n_records, 1, &record_sum, &record_count, &refused);
    refusals[2] = held_out->text(held_out, n_records, &to_prompt, &to_completion, &refused);
    refusals[3] = generate->generate(generate, prompts, 1, text("{\"top_k\": 3}"), answers, &refused);
    snprintf(report_text, sizeof report_text,
             "{\"logp_sum\": %.17g, \"n_tokens\": %d, \"n_records\": %d, \"record_sum\": %.17g, "
             "\"record_tokens\": %d, \"prompt\": %u, \"completion\": %u, \"answers\": [%u, %u], "
             "\"refusals\": [%d, %d, %d, %d], \"refused\": %d}",
             sums[0], (int)counts[0], (int)n_records, record_sum, (int)record_count,
             sum_of(&prompt_text), sum_of(&completion_text), sum_of(&answer_texts[0]),
             sum_of(&answer_texts[1]), refusals[0], refusals[1], refusals[2], refusals[3],
             (int)(refused.message_len > 0));
    report->write(report->ctx, text(report_text));
    return FORGELM_OK;
}

/* What a thread of its own is told by each service: the statuses, and how many records there are. */
typedef struct elsewhere {
    const forgelm_host *host;
    long long found[5];
    size_t n_words;
} elsewhere;

static void *asks_elsewhere(void *ctx) {
    elsewhere *here = ctx;
    const forgelm_score *score = score_of(here->host);
    const forgelm_generate *generate = generate_of(here->host);
    const forgelm_held_out *held_out = held_out_of(here->host);
    forgelm_plugin_error err = {0};
    err.struct_size = sizeof err;
    forgelm_text_pair pair = {text("The sky is"), text(" blue.")};
    forgelm_str prompt = text("What is it?");
    forgelm_writer to_prompt = into(&prompt_text), to_completion = into(&completion_text);
    forgelm_writer answer = into(&answer_texts[0]);
    double sum;
    uint64_t count;
    here->found[0] = score->score(score, &pair, 1, &sum, &count, &err);
    here->found[1] = generate->generate(generate, &prompt, 1, text("{}"), &answer, &err);
    here->found[2] = held_out->score(held_out, 0, 1, &sum, &count, &err);
    here->found[3] = held_out->text(held_out, 0, &to_prompt, &to_completion, &err);
    here->found[4] = (long long)held_out->count(held_out);
    here->n_words = err.message_len + answer_texts[0].len + prompt_text.len + completion_text.len;
    return NULL;
}

/* The same on a thread of its own and then on the caller's. */
forgelm_status asks_on_a_thread(const forgelm_evaluator *evaluator, const forgelm_host *host,
                                const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator, (void)err;
    elsewhere other = {.host = host}, here = {.host = host};
    pthread_t thread;
    if (pthread_create(&thread, NULL, asks_elsewhere, &other) != 0) {
        return FORGELM_E_INTERNAL;
    }
    pthread_join(thread, NULL);
    asks_elsewhere(&here);
    snprintf(report_text, sizeof report_text,
             "{\"other\": [%lld, %lld, %lld, %lld, %lld], \"here\": [%lld, %lld, %lld, %lld], "
             "\"is_told\": %s}",
             other.found[0], other.found[1], other.found[2], other.found[3], other.found[4],
             here.found[0], here.found[1], here.found[2], here.found[3],
             other.n_words > 0 ? "true" : "false");
    report->write(report->ctx, text(report_text));
    return FORGELM_OK;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* One call that keeps the host busy for longer than a second and a half. */
forgelm_status keeps_the_host_busy(const forgelm_evaluator *evaluator, const forgelm_host *host,
                                   const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator;
    const forgelm_generate *generate = generate_of(host);
    enum { MOST = 256 };
    static forgelm_str prompts[MOST];
    static forgelm_writer answers[MOST];
    static buffer answer;
    for (int i = 0; i < MOST; ++i) {
        prompts[i] = text("Why is it so that nobody answers what everybody asks?");
        answers[i] = into(&answer);
    }
    double longest = 0.0;
    for (size_t n = 16; n <= MOST && longest < 1.5; n *= 2) {
        double start = seconds();
        forgelm_status status = generate->generate(
            generate, prompts, n, text("{\"max_new_tokens\": 4096, \"temperature\": 2}"), answers, err);
        if (status != FORGELM_OK) {
            return status;
        }
        longest = seconds() - start;
    }
    report->write(report->ctx, longest >= 1.5 ? text("{\"was_busy\": true}") : text("{}"));
    return FORGELM_OK;
}

forgelm_status crashes(const forgelm_evaluator *evaluator, const forgelm_host *host,
                       const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator, (void)host, (void)report, (void)err;
    *(volatile int *)NULL = 1;
    return FORGELM_OK;
}

/* Asks for a service without looking whether it is there. */
forgelm_status trusts_the_host(const forgelm_evaluator *evaluator, const forgelm_host *host,
                               const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator;
    const forgelm_held_out *held_out = held_out_of(host);
    double sum;
    uint64_t count;
    forgelm_status status = held_out->score(held_out, 0, 1, &sum, &count, err);
    report->write(report->ctx, text("{\"n\": 1}"));
    return status;
}

/* Says that it panicked where a service is missing. */
forgelm_status panics_without(const forgelm_evaluator *evaluator, const forgelm_host *host,
                              const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator, (void)err;
    report->write(report->ctx, text("{\"n\": 1}"));
    return held_out_of(host) == NULL ? FORGELM_E_PANIC : FORGELM_OK;
}

/* Fails for good where a service was missing once. */
forgelm_status bears_a_grudge(const forgelm_evaluator *evaluator, const forgelm_host *host,
                              const forgelm_writer *report, forgelm_plugin_error *err) {
    static int n_missing;
    (void)evaluator, (void)err;
    n_missing += held_out_of(host) == NULL;
    report->write(report->ctx, text("{\"n\": 1}"));
    return n_missing > 0 ? FORGELM_E_UNIMPLEMENTED : FORGELM_OK;
}

/* After one question, so that it stops in the middle of a talk. */
forgelm_status hangs(const forgelm_evaluator *evaluator, const forgelm_host *host,
                     const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator, (void)report, (void)err;
    const forgelm_held_out *held_out = held_out_of(host);
    held_out->text(held_out, 0, report, report, err);
    for (;;) {
        pause();
    }
}

forgelm_status reports_nan(const forgelm_evaluator *evaluator, const forgelm_host *host,
                           const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator, (void)host, (void)err;
    report->write(report->ctx, text("{\"loss\": NaN}"));
    return FORGELM_OK;
}

forgelm_status reports_null(const forgelm_evaluator *evaluator, const forgelm_host *host,
                            const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator, (void)host, (void)err;
    report->write(report->ctx, text("{\"scores\": {\"first\": null}}"));
    return FORGELM_OK;
}

/* Asks for scores without end, and hands on the status that ends it. */
forgelm_status asks_without_end(const forgelm_evaluator *evaluator, const forgelm_host *host,
                                const forgelm_writer *report, forgelm_plugin_error *err) {
    (void)evaluator, (void)report;
    const forgelm_held_out *held_out = held_out_of(host);
    forgelm_status status = FORGELM_OK;
    while (status == FORGELM_OK) {
        double sum;
        uint64_t count;
        status = held_out->score(held_out, 0, 1, &sum, &count, err);
    }
    forgelm_str line = text(status == FORGELM_E_CANCELLED ? "cancelled" : "another status");
    the_host->log(the_host, FORGELM_LOG_INFO, text("judge"), line);
    return status;
}

static void destroy(const forgelm_evaluator *evaluator) { (void)evaluator; }

static const forgelm_evaluator instance = {
    .struct_size = sizeof(forgelm_evaluator),
    .destroy = destroy,
    .evaluate = EVALUATE,
};

static forgelm_status create(const forgelm_evaluator_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_evaluator **out, forgelm_plugin_error *err) {
    (void)factory, (void)host, (void)index, (void)options_json, (void)err;
    *out = &instance;
    return FORGELM_OK;
}

static uint32_t count(const forgelm_evaluator_factory *factory) {
    (void)factory;
    return 1;
}

static const forgelm_evaluator_descriptor the_descriptor = {
    .struct_size = sizeof(forgelm_evaluator_descriptor),
    .name = "judge",
    .summary = "a test's",
    .source = "none",
    .features = FEATURES,
};

static const forgelm_evaluator_descriptor *descriptor(const forgelm_evaluator_factory *factory,
                                                      uint32_t index) {
    (void)factory;
    return index == 0 ? &the_descriptor : NULL;
}

static const forgelm_evaluator_factory factory = {
    .struct_size = sizeof(forgelm_evaluator_factory),
    .count = count,
    .descriptor = descriptor,
    .create = create,
};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_EVALUATOR_FACTORY) == 0 ? &factory : NULL;
}

static forgelm_status init(const forgelm_host *host, forgelm_str plugin_dir,
                           forgelm_plugin_error *err) {
    (void)plugin_dir, (void)err;
    the_host = host;
    return FORGELM_OK;
}

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    .magic = FORGELM_PLUGIN_MAGIC,
    .abi_major = FORGELM_PLUGIN_ABI_MAJOR,
    .abi_minor = FORGELM_PLUGIN_ABI_MINOR,
    .struct_size = sizeof(forgelm_entry),
    .layout_hash = FORGELM_PLUGIN_LAYOUT_HASH,
    .name = "judge",
    .version = "0.1.0",
    .init = init,
    .get_factory = get_factory,
};
