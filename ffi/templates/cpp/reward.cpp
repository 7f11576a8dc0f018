// my_plugin: a reward for ForgeLM, against forgelm_plugin.h alone.
//
// As it comes, it is for short answers: 1 up to 100 bytes, and less for more, r = min(1, 100 / n).
// Yours goes into `reward_of`. What an answer earns must not depend on the answers beside it.
// A body goes through `forgelm::guard`: what it throws becomes a status.
#include "forgelm_plugin.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string_view>

namespace {

constexpr double LONG_ENOUGH = 100.0;

std::string_view view(forgelm_str text) { return {text.ptr, text.len}; }

// What an answer earns: any finite number, or nothing where there is nothing to say of it.
// The prompt and the columns of the record, a JSON object, are there too.
std::optional<double> reward_of(const forgelm_answer &answer) {
    const auto n_bytes = static_cast<double>(view(answer.completion).size());
    return n_bytes > LONG_ENOUGH ? LONG_ENOUGH / n_bytes : 1.0;
}

// Judges n answers to one prompt: rewards [n] written.
forgelm_status judge(const forgelm_reward *, const forgelm_answer *answers, std::size_t n,
                     double *rewards, std::uint8_t *is_silent,
                     forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        for (std::size_t i = 0; i < n; ++i) {
            const auto reward = reward_of(answers[i]);
            rewards[i] = reward.value_or(0.0);
            is_silent[i] = reward.has_value() ? 0 : 1;
        }
        return FORGELM_OK;
    });
}

void destroy(const forgelm_reward *) noexcept {}

// It has no options and so no state: one instance serves all. A reward with options makes
// an instance in `create`, keeps them behind `plugin_data`, and deletes it in `destroy`.
const forgelm_reward instance = {sizeof instance, 0, nullptr, destroy, judge, nullptr};

const forgelm_reward_descriptor described = {
    sizeof(forgelm_reward_descriptor),
    0,
    "my_plugin",
    "1 for short answers, less for long ones",
    "the template of ForgeLM",
    nullptr,
};

forgelm_status create(const forgelm_reward_factory *, const forgelm_host *, std::uint32_t index,
                      forgelm_str options_json,
                      const forgelm_reward **out, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        if (index != 0) {
            throw std::invalid_argument("no reward has this index");
        }
        if (std::string_view(options_json.ptr, options_json.len) != "{}") {
            throw std::invalid_argument("my_plugin has no options");
        }
        *out = &instance;
        return FORGELM_OK;
    });
}

std::uint32_t count(const forgelm_reward_factory *) noexcept { return 1; }

const forgelm_reward_descriptor *descriptor(const forgelm_reward_factory *,
                                            std::uint32_t index) noexcept {
    return index == 0 ? &described : nullptr;
}

const forgelm_reward_factory factory = {sizeof factory, 0, count, descriptor, create};

const void *get_factory(const char *id) noexcept {
    return std::string_view(id) == FORGELM_REWARD_FACTORY ? &factory : nullptr;
}

} // namespace

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    FORGELM_PLUGIN_MAGIC,
    FORGELM_PLUGIN_ABI_MAJOR,
    FORGELM_PLUGIN_ABI_MINOR,
    sizeof(forgelm_entry),
    0,
    FORGELM_PLUGIN_LAYOUT_HASH,
    "my_plugin", // the library
    "0.1.0",     // its version
    nullptr,
    nullptr,
    get_factory,
};
