// my_plugin: a trainer for ForgeLM, against forgelm_plugin.h alone.
//
// As it comes, it is the negative log-likelihood of the trained tokens, L = -sum(logp). Yours goes
// into `loss`; what records it learns from, and what the host prepares for it, into `described`.
// A body goes through `forgelm::guard`: what it throws becomes a status.
#include "forgelm_plugin.h"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>

namespace {

template <class T> T *first(const forgelm_tensor &tensor) {
    return reinterpret_cast<T *>(static_cast<char *>(tensor.data) + tensor.byte_offset);
}

// Loss and gradient of one micro-batch: R scored rows, of which some are trained.
// Sums only: the host divides once, by the terms of the whole step.
forgelm_status loss(const forgelm_trainer *, const forgelm_scored *scored, forgelm_loss *out,
                    forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        const auto *logp = first<const float>(*scored->logp);
        const auto *trained = first<const std::uint8_t>(*scored->trained);
        auto *dlogp = first<float>(*out->dlogp);
        double total = 0.0;
        std::uint64_t n_terms = 0;
        for (std::int64_t row = 0; row < scored->logp->shape[0]; ++row) {
            dlogp[row] = trained[row] ? -1.0F : 0.0F; // dL/dlogp; 0 where not trained
            if (trained[row]) {
                total -= static_cast<double>(logp[row]);
                n_terms += 1;
            }
        }
        out->loss_sum = total;
        out->n_terms = n_terms;
        // A number of yours in metrics.jsonl: its sum and its terms.
        constexpr std::string_view name = "my_plugin/nll";
        out->metric(out->metric_ctx, {name.data(), name.size()}, total, n_terms);
        return FORGELM_OK;
    });
}

void destroy(const forgelm_trainer *) noexcept {}

// It has no options and so no state: one instance serves all. A trainer with options makes
// an instance in `create`, keeps them behind `plugin_data`, and deletes it in `destroy`.
const forgelm_trainer instance = {sizeof instance, 0, nullptr, destroy, loss, nullptr};

const forgelm_trainer_descriptor described = {
    sizeof(forgelm_trainer_descriptor),
    FORGELM_RECORDS_TEXT,
    FORGELM_TRAINER_NEEDS_DROPOUT,
    0,
    "my_plugin",
    "negative log-likelihood of the trained tokens",
    "Radford et al. 2018, eq. 1",
    nullptr,
};

forgelm_status create(const forgelm_trainer_factory *, const forgelm_host *, std::uint32_t index,
                      forgelm_str options_json,
                      const forgelm_trainer **out, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        if (index != 0) {
            throw std::invalid_argument("no trainer has this index");
        }
        if (std::string_view(options_json.ptr, options_json.len) != "{}") {
            throw std::invalid_argument("my_plugin has no options");
        }
        *out = &instance;
        return FORGELM_OK;
    });
}

std::uint32_t count(const forgelm_trainer_factory *) noexcept { return 1; }

const forgelm_trainer_descriptor *descriptor(const forgelm_trainer_factory *,
                                            std::uint32_t index) noexcept {
    return index == 0 ? &described : nullptr;
}

const forgelm_trainer_factory factory = {sizeof factory, 0, count, descriptor, create};

const void *get_factory(const char *id) noexcept {
    return std::string_view(id) == FORGELM_TRAINER_FACTORY ? &factory : nullptr;
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
