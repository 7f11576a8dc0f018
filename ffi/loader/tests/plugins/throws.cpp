// A trainer in C++ whose loss throws: the guard of the header makes a status of it.
#include "forgelm_plugin.h"

#include <cstring>
#include <stdexcept>

namespace {

forgelm_status loss(const forgelm_trainer *, const forgelm_scored *, forgelm_loss *,
                    forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, []() -> forgelm_status {
        throw std::runtime_error("thrown in step 1");
    });
}

void destroy(const forgelm_trainer *) noexcept {}

const forgelm_trainer instance = {sizeof instance, 0, nullptr, destroy, loss, nullptr};

forgelm_status create(const forgelm_trainer_factory *, const forgelm_host *, std::uint32_t,
                      forgelm_str options_json, const forgelm_trainer **out,
                      forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&]() -> forgelm_status {
        if (options_json.len != 2) {
            throw std::invalid_argument("throws has no options");
        }
        *out = &instance;
        return FORGELM_OK;
    });
}

const forgelm_trainer_descriptor trainer = {
    sizeof trainer, FORGELM_RECORDS_TEXT, 0, 0, "throws", "throws an exception", "none", nullptr,
};

std::uint32_t count(const forgelm_trainer_factory *) noexcept { return 1; }

const forgelm_trainer_descriptor *descriptor(const forgelm_trainer_factory *,
                                             std::uint32_t) noexcept {
    return &trainer;
}

const forgelm_trainer_factory factory = {sizeof factory, 0, count, descriptor, create};

const void *get_factory(const char *id) noexcept {
    return std::strcmp(id, FORGELM_TRAINER_FACTORY) == 0 ? &factory : nullptr;
}

} // namespace

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    FORGELM_PLUGIN_MAGIC, FORGELM_PLUGIN_ABI_MAJOR, FORGELM_PLUGIN_ABI_MINOR,
    sizeof(forgelm_entry), 0, FORGELM_PLUGIN_LAYOUT_HASH, "throws", "0.1.0", nullptr, nullptr,
    get_factory,
};
