// A merge method as a plugin in C++, against forgelm_plugin.h alone:
//
//   mean_cpp   the weighted mean of the inputs (Wortsman et al. 2022, arXiv:2203.05482, sec. 2)
//
// Build: c++ -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wl,-z,defs -Wl,-z,nodelete
//            -I ffi/include ffi/examples/merge_mean.cpp -o merge_mean.so
#include "forgelm_plugin.h"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace {

struct Mean {
    forgelm_merge_method table{};
    std::vector<double> weights;
    const forgelm_kernels *kernels = nullptr; // the host's, if it offers them
};

// One piece in the hands of several threads.
struct Job {
    const Mean &self;
    const forgelm_merge_piece &piece;
    float *result;
};

// Elements that a thread works on together.
constexpr std::size_t together = 4096;

const float *first(const forgelm_tensor &tensor) {
    return reinterpret_cast<const float *>(static_cast<const char *>(tensor.data) +
                                           tensor.byte_offset);
}

void destroy(const forgelm_merge_method *table) noexcept {
    delete static_cast<Mean *>(table->plugin_data);
}

forgelm_status mean_of(void *ctx, std::size_t begin, std::size_t end) noexcept {
    const auto &job = *static_cast<const Job *>(ctx);
    for (std::size_t i = begin; i < end; ++i) {
        double sum = 0.0;
        for (std::size_t k = 0; k < job.piece.n_inputs; ++k) {
            sum += job.self.weights[k] * static_cast<double>(first(job.piece.inputs[k])[i]);
        }
        job.result[i] = static_cast<float>(sum);
    }
    return FORGELM_OK;
}

forgelm_status merge(const forgelm_merge_method *table, const forgelm_merge_piece *piece,
                     const forgelm_tensor *out, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        const auto &self = *static_cast<const Mean *>(table->plugin_data);
        if (piece->n_inputs != self.weights.size()) {
            throw std::invalid_argument("not as many inputs as weights");
        }
        Job job{self, *piece, const_cast<float *>(first(*out))};
        const auto n = static_cast<std::size_t>(out->shape[0]);
        if (self.kernels != nullptr && FORGELM_HAS(self.kernels, parallel_for)) {
            const forgelm_work work{&job, mean_of};
            return self.kernels->parallel_for(self.kernels, n, together, &work, err);
        }
        return mean_of(&job, 0, n);
    });
}

forgelm_status create(const forgelm_merge_method_factory *, const forgelm_host *host,
                      std::uint32_t, forgelm_str options_json, const double *weights, std::size_t n_weights,
                      const forgelm_merge_method **out, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        if (std::string_view(options_json.ptr, options_json.len) != "{}") {
            throw std::invalid_argument("mean_cpp has no options");
        }
        double sum = 0.0;
        for (std::size_t k = 0; k < n_weights; ++k) {
            sum += weights[k];
        }
        if (!(sum > 0.0)) {
            throw std::invalid_argument("the weights must add up to more than 0");
        }
        auto self = std::make_unique<Mean>();
        for (std::size_t k = 0; k < n_weights; ++k) {
            self->weights.push_back(weights[k] / sum);
        }
        self->kernels =
            static_cast<const forgelm_kernels *>(host->get_extension(host, FORGELM_KERNELS));
        self->table.struct_size = sizeof(forgelm_merge_method);
        self->table.plugin_data = self.get();
        self->table.destroy = destroy;
        self->table.merge = merge;
        *out = &self.release()->table;
        return FORGELM_OK;
    });
}

const forgelm_merge_method_descriptor mean = {
    sizeof(forgelm_merge_method_descriptor),
    FORGELM_MERGE_SCOPE_ELEMENTS,
    1,
    64,
    "mean_cpp",
    "weighted mean of the tensors, in C++",
    "Wortsman et al. 2022, arXiv:2203.05482, sec. 2",
    nullptr,
};

std::uint32_t count(const forgelm_merge_method_factory *) noexcept { return 1; }

const forgelm_merge_method_descriptor *descriptor(const forgelm_merge_method_factory *,
                                                  std::uint32_t index) noexcept {
    return index == 0 ? &mean : nullptr;
}

const forgelm_merge_method_factory factory = {sizeof factory, 0, count, descriptor, create};

const void *get_factory(const char *id) noexcept {
    return std::strcmp(id, FORGELM_MERGE_METHOD_FACTORY) == 0 ? &factory : nullptr;
}

} // namespace

FORGELM_PLUGIN_EXPORT const forgelm_entry forgelm_plugin_entry = {
    FORGELM_PLUGIN_MAGIC,
    FORGELM_PLUGIN_ABI_MAJOR,
    FORGELM_PLUGIN_ABI_MINOR,
    sizeof(forgelm_entry),
    0,
    FORGELM_PLUGIN_LAYOUT_HASH,
    "example-merge-mean",
    "1.0.0",
    nullptr,
    nullptr,
    get_factory,
};
