// my_plugin: a merge method for ForgeLM, against forgelm_plugin.h alone.
//
// As it comes, it is the weighted mean of the models, y = sum(w x) / sum(w). Yours goes into
// `merge`. The result must not depend on how a tensor is cut into pieces, or on threads. A method
// that must know a whole tensor first (a norm, a threshold) has `passes`: see forgelm_plugin.h.
// A body goes through `forgelm::guard`: what it throws becomes a status.
#include "forgelm_plugin.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace {

struct Method {
    forgelm_merge_method table{};
    std::vector<double> weights; // their sum is 1
};

float *first(const forgelm_tensor &tensor) {
    return reinterpret_cast<float *>(static_cast<char *>(tensor.data) + tensor.byte_offset);
}

// Merges one piece: `out` and each input have the same n elements of one tensor.
forgelm_status merge(const forgelm_merge_method *table, const forgelm_merge_piece *piece,
                     const forgelm_tensor *out, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        const auto &self = *static_cast<const Method *>(table->plugin_data);
        if (piece->n_inputs != self.weights.size()) {
            throw std::invalid_argument("not as many inputs as weights");
        }
        float *result = first(*out);
        for (std::int64_t i = 0; i < out->shape[0]; ++i) {
            double sum = 0.0;
            for (std::size_t k = 0; k < piece->n_inputs; ++k) {
                sum += self.weights[k] * static_cast<double>(first(piece->inputs[k])[i]);
            }
            result[i] = static_cast<float>(sum);
        }
        return FORGELM_OK;
    });
}

void destroy(const forgelm_merge_method *table) noexcept {
    delete static_cast<Method *>(table->plugin_data);
}

const forgelm_merge_method_descriptor described = {
    sizeof(forgelm_merge_method_descriptor),
    FORGELM_MERGE_SCOPE_ELEMENTS,
    1,
    64,
    "my_plugin",
    "weighted mean of the tensors",
    "Wortsman et al. 2022, arXiv:2203.05482, sec. 2",
    nullptr,
};

forgelm_status create(const forgelm_merge_method_factory *, const forgelm_host *,
                      std::uint32_t index, forgelm_str options_json, const double *weights,
                      std::size_t n_weights, const forgelm_merge_method **out,
                      forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        if (index != 0) {
            throw std::invalid_argument("no merge method has this index");
        }
        if (std::string_view(options_json.ptr, options_json.len) != "{}") {
            throw std::invalid_argument("my_plugin has no options");
        }
        double sum = 0.0;
        for (std::size_t k = 0; k < n_weights; ++k) {
            sum += weights[k];
        }
        if (!(sum > 0.0)) {
            throw std::invalid_argument("the weights must add up to more than 0");
        }
        auto self = std::make_unique<Method>();
        for (std::size_t k = 0; k < n_weights; ++k) {
            self->weights.push_back(weights[k] / sum);
        }
        self->table.struct_size = sizeof self->table;
        self->table.plugin_data = self.get();
        self->table.destroy = destroy;
        self->table.merge = merge;
        *out = &self.release()->table;
        return FORGELM_OK;
    });
}

std::uint32_t count(const forgelm_merge_method_factory *) noexcept { return 1; }

const forgelm_merge_method_descriptor *descriptor(const forgelm_merge_method_factory *,
                                            std::uint32_t index) noexcept {
    return index == 0 ? &described : nullptr;
}

const forgelm_merge_method_factory factory = {sizeof factory, 0, count, descriptor, create};

const void *get_factory(const char *id) noexcept {
    return std::string_view(id) == FORGELM_MERGE_METHOD_FACTORY ? &factory : nullptr;
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
