/* my_plugin: a reward for ForgeLM, against forgelm_plugin.h alone.
 *
 * As it comes, it is for short answers: 1 up to 100 bytes, and less for more, r = min(1, 100 / n).
 * Yours goes into `reward_of`. What an answer earns must not depend on the answers beside it. */
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

static const double long_enough = 100.0;

/* What an answer earns: any finite number. Set *is_silent to 1 where there is nothing to say of it.
 * The prompt and the columns of the record, a JSON object, are there too. */
static double reward_of(const forgelm_answer *answer, uint8_t *is_silent) {
    *is_silent = 0;
    double n_bytes = (double)answer->completion.len;
    return n_bytes > long_enough ? long_enough / n_bytes : 1.0;
}

/* Judges n answers to one prompt: rewards [n] written. */
static forgelm_status judge(const forgelm_reward *reward, const forgelm_answer *answers, size_t n,
                            double *rewards, uint8_t *is_silent, forgelm_plugin_error *err) {
    (void)reward;
    (void)err;
    for (size_t i = 0; i < n; ++i) {
        rewards[i] = reward_of(&answers[i], &is_silent[i]);
    }
    return FORGELM_OK;
}

static void destroy(const forgelm_reward *reward) { (void)reward; }

/* It has no options and so no state: one instance serves all. A reward with options allocates an
 * instance in `create`, keeps them behind `plugin_data`, and frees it in `destroy`. */
static const forgelm_reward instance = {sizeof instance, 0, NULL, destroy, judge, NULL};

static const forgelm_reward_descriptor descriptors[] = {
    {sizeof(forgelm_reward_descriptor), 0, "my_plugin", "1 for short answers, less for long ones",
     "the template of ForgeLM", NULL},
};

static forgelm_status create(const forgelm_reward_factory *factory, const forgelm_host *host,
                             uint32_t index, forgelm_str options_json,
                             const forgelm_reward **out, forgelm_plugin_error *err) {
    (void)factory;
    (void)host;
    if (index != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "no reward has this index");
    }
    if (options_json.len != 2 || memcmp(options_json.ptr, "{}", 2) != 0) {
        return fail(err, FORGELM_E_INVALID_ARGUMENT, "my_plugin has no options");
    }
    *out = &instance;
    return FORGELM_OK;
}

static uint32_t count(const forgelm_reward_factory *factory) {
    (void)factory;
    return sizeof descriptors / sizeof descriptors[0];
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
    "my_plugin", /* the library */
    "0.1.0",     /* its version */
    NULL,
    NULL,
    get_factory,
};
