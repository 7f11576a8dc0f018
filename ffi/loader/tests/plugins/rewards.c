/* Rewards of a test. `letters_c`: the share of small letters, times SIGN; with -DJUDGE=... it does one
 * thing wrong.
 * `gold_c`: reads the record, and has nothing to say where there is no gold_answer. */
#include "forgelm_plugin.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef JUDGE
#define JUDGE good
#endif
#ifndef SIGN
#define SIGN 1.0
#endif

typedef struct reward {
    forgelm_reward table; /* first: a pointer to one is a pointer to the other */
    uint64_t n_calls;
} reward;

static forgelm_status fail(forgelm_plugin_error *err, forgelm_status code, const char *message) {
    size_t n = strlen(message);
    memcpy(err->message, message, n);
    err->message_len = (uint32_t)n;
    err->code = code;
    return code;
}

enum kind { good, nan_value, unwritten, refuses, forgetful, by_place, crashes };

static double share_of_letters(const forgelm_answer *answer) {
    double n = 0.0;
    for (size_t i = 0; i < answer->completion.len; ++i) {
        char c = answer->completion.ptr[i];
        n += c >= 'a' && c <= 'z';
    }
    return answer->completion.len > 0 ? n / (double)answer->completion.len : 0.0;
}

static forgelm_status letters(const forgelm_reward *table, const forgelm_answer *answers,
                                size_t n, double *rewards, uint8_t *is_silent,
                                forgelm_plugin_error *err) {
    reward *self = table->plugin_data;
    enum kind kind = JUDGE;
    (void)is_silent;
    self->n_calls += 1;
    for (size_t i = 0; i < n; ++i) {
        double value = SIGN * share_of_letters(&answers[i]);
        switch (kind) {
        case good: rewards[i] = value; break;
        case nan_value: rewards[i] = i == 1 ? NAN : value; break;
        case unwritten: if (i + 1 < n) rewards[i] = value; break;
        case refuses: return fail(err, FORGELM_E_INTERNAL, "it broke");
        case forgetful: rewards[i] = value + (double)self->n_calls; break;
        case by_place: rewards[i] = value + (double)i; break;
        case crashes: abort();
        }
    }
    return FORGELM_OK;
}

static forgelm_status gold(const forgelm_reward *table, const forgelm_answer *answers, size_t n,
                           double *rewards, uint8_t *is_silent, forgelm_plugin_error *err) {
    (void)table;
    (void)err;
    for (size_t i = 0; i < n; ++i) {
        char record[256] = {0};
        size_t len = answers[i].record.len < 255 ? answers[i].record.len : 255;
        memcpy(record, answers[i].record.ptr, len);
        is_silent[i] = strstr(record, "\"gold_answer\"") == NULL;
        rewards[i] = is_silent[i] ? NAN : 1.0;
    }
    return FORGELM_OK;
}

static void destroy(const forgelm_reward *table) { free(table->plugin_data); }

static forgelm_status create(const forgelm_reward_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json, const forgelm_reward **out,
                             forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    if (options_json.len != 2) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "a reward in C has no options");
    }
    reward *self = calloc(1, sizeof *self);
    self->table.struct_size = sizeof self->table;
    self->table.plugin_data = self;
    self->table.destroy = destroy;
    self->table.judge = index == 0 ? letters : gold;
    *out = &self->table;
    return FORGELM_OK;
}

static const forgelm_reward_descriptor descriptors[] = {
    {sizeof(forgelm_reward_descriptor), 0, "letters_c", "small letters, in C", "a test", NULL},
    {sizeof(forgelm_reward_descriptor), 0, "gold_c", "records with an answer, in C", "a test", NULL},
};

static uint32_t count(const forgelm_reward_factory *factory) {
    (void)factory;
    return 2;
}

static const forgelm_reward_descriptor *descriptor(const forgelm_reward_factory *factory,
                                                   uint32_t index) {
    return index < count(factory) ? &descriptors[index] : NULL;
}

static const forgelm_reward_factory factory = {sizeof factory, 0, count, descriptor, create};

static const void *get_factory(const char *id) {
    return strcmp(id, FORGELM_REWARD_FACTORY) == 0 ? &factory : NULL;
}

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    FORGELM_PLUGIN_MAGIC,
    FORGELM_PLUGIN_ABI_MAJOR,
    FORGELM_PLUGIN_ABI_MINOR,
    sizeof(forgelm_entry),
    0,
    FORGELM_PLUGIN_LAYOUT_HASH,
    "rewards",
    "0.1.0",
    NULL,
    NULL,
    get_factory,
};
