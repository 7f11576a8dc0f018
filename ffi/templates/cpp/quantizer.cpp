// my_plugin: a quantizer for ForgeLM, against forgelm_plugin.h alone.
//
// As it comes, a row is one scale and one signed byte a number: x = scale * code / 127. Yours goes
// into `bytes_per_row`, `quantize` and `dequantize`. A row must not depend on the others.
// A body goes through `forgelm::guard`: what it throws becomes a status.
#include "forgelm_plugin.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string_view>

namespace {

template <class T> T *first(const forgelm_tensor &tensor) {
    return reinterpret_cast<T *>(static_cast<char *>(tensor.data) + tensor.byte_offset);
}

// Bytes of the scale in front of the codes of a row.
constexpr std::size_t SCALE = sizeof(float);

forgelm_status bytes_per_row(const forgelm_quantizer *, std::size_t n_cols, std::size_t *out,
                             forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        if (n_cols == 0) {
            throw std::invalid_argument("a row of no numbers");
        }
        *out = SCALE + n_cols;
        return FORGELM_OK;
    });
}

// rows [R, C] read, bytes [R, bytes per row] written.
forgelm_status quantize(const forgelm_quantizer *, const forgelm_tensor *rows,
                        const forgelm_tensor *bytes, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        const auto n_rows = static_cast<std::size_t>(rows->shape[0]);
        const auto n_cols = static_cast<std::size_t>(rows->shape[1]);
        for (std::size_t r = 0; r < n_rows; ++r) {
            const auto *row = first<const float>(*rows) + r * n_cols;
            auto *to = first<std::uint8_t>(*bytes) + r * (SCALE + n_cols);
            float scale = 0.0F;
            for (std::size_t i = 0; i < n_cols; ++i) {
                scale = std::max(scale, std::fabs(row[i]));
            }
            std::memcpy(to, &scale, SCALE);
            for (std::size_t i = 0; i < n_cols; ++i) {
                const float code = scale > 0.0F ? std::round(row[i] / scale * 127.0F) : 0.0F;
                to[SCALE + i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(code));
            }
        }
        return FORGELM_OK;
    });
}

// bytes [R, bytes per row] read, rows [R, C] written.
forgelm_status dequantize(const forgelm_quantizer *, const forgelm_tensor *bytes,
                          const forgelm_tensor *rows, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        const auto n_rows = static_cast<std::size_t>(rows->shape[0]);
        const auto n_cols = static_cast<std::size_t>(rows->shape[1]);
        for (std::size_t r = 0; r < n_rows; ++r) {
            auto *row = first<float>(*rows) + r * n_cols;
            const auto *from = first<const std::uint8_t>(*bytes) + r * (SCALE + n_cols);
            float scale = 0.0F;
            std::memcpy(&scale, from, SCALE);
            for (std::size_t i = 0; i < n_cols; ++i) {
                const auto code = static_cast<std::int8_t>(from[SCALE + i]);
                row[i] = scale * static_cast<float>(code) / 127.0F;
            }
        }
        return FORGELM_OK;
    });
}

void destroy(const forgelm_quantizer *) noexcept {}

// It has no options and so no state: one instance serves all. A quantizer with options makes an
// instance in `create`, keeps them behind `plugin_data`, and deletes it in `destroy`.
const forgelm_quantizer instance = {
    sizeof instance, 0, nullptr, destroy, bytes_per_row, quantize, dequantize, nullptr,
};

const forgelm_quantizer_descriptor described = {
    sizeof(forgelm_quantizer_descriptor),
    0,
    "my_plugin",
    "one signed byte a number, one scale a row",
    "Dettmers et al. 2022, arXiv:2208.07339, sec. 2.1",
    nullptr,
};

forgelm_status create(const forgelm_quantizer_factory *, const forgelm_host *, std::uint32_t index,
                      forgelm_str options_json,
                      const forgelm_quantizer **out, forgelm_plugin_error *err) noexcept {
    return forgelm::guard(err, [&] {
        if (index != 0) {
            throw std::invalid_argument("no quantizer has this index");
        }
        if (std::string_view(options_json.ptr, options_json.len) != "{}") {
            throw std::invalid_argument("my_plugin has no options");
        }
        *out = &instance;
        return FORGELM_OK;
    });
}

std::uint32_t count(const forgelm_quantizer_factory *) noexcept { return 1; }

const forgelm_quantizer_descriptor *descriptor(const forgelm_quantizer_factory *,
                                            std::uint32_t index) noexcept {
    return index == 0 ? &described : nullptr;
}

const forgelm_quantizer_factory factory = {sizeof factory, 0, count, descriptor, create};

const void *get_factory(const char *id) noexcept {
    return std::string_view(id) == FORGELM_QUANTIZER_FACTORY ? &factory : nullptr;
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
