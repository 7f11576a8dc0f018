// Copies from one format to another, and what fills, scales or caps an array.
//
// A thread has a chunk of 8 neighboring elements.
#include "chunk.cuh"

namespace forgelm {
namespace {

DEVICE int64_t first_of_thread() {
    return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
}

template <bool WIDE, class X, class Y> DEVICE void cast(Y* y, const X* x, int64_t n) {
    const int64_t at = first_of_thread();
    if (at >= n) return;
    float values[8];
    load_chunk<WIDE>(values, x + at, n - at);
    store_chunk<WIDE>(y + at, values, n - at);
}

template <bool WIDE, class E> DEVICE void fill(E* y, float value, int64_t n) {
    const int64_t at = first_of_thread();
    if (at >= n) return;
    float values[8];
    for (int i = 0; i < 8; i++) values[i] = value;
    store_chunk<WIDE>(y + at, values, n - at);
}

template <bool WIDE, class E> DEVICE void scale(E* y, float factor, int64_t n) {
    const int64_t at = first_of_thread();
    if (at >= n) return;
    float values[8];
    load_chunk<WIDE>(values, y + at, n - at);
    for (int i = 0; i < 8; i++) values[i] *= factor;
    store_chunk<WIDE>(y + at, values, n - at);
}

template <bool WIDE, class E> DEVICE void soft_cap(E* y, float cap, int64_t n) {
    const int64_t at = first_of_thread();
    if (at >= n) return;
    float values[8];
    load_chunk<WIDE>(values, y + at, n - at);
    for (int i = 0; i < 8; i++) values[i] = cap * tanhf(values[i] / cap);
    store_chunk<WIDE>(y + at, values, n - at);
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define CAST(suffix, wide, X, Y)                                                                   \
    KERNEL(256) void cast_##suffix(Y* y, const X* x, int64_t n) { cast<wide>(y, x, n); }           \
    REGISTER(cast_##suffix)

#define WITHIN(suffix, wide, E)                                                                    \
    KERNEL(256) void cast_fill_##suffix(E* y, float value, int64_t n) {                            \
        fill<wide>(y, value, n);                                                                   \
    }                                                                                              \
    REGISTER(cast_fill_##suffix)                                                                   \
    KERNEL(256) void cast_scale_##suffix(E* y, float factor, int64_t n) {                          \
        scale<wide>(y, factor, n);                                                                 \
    }                                                                                              \
    REGISTER(cast_scale_##suffix)                                                                  \
    KERNEL(256) void cast_soft_cap_##suffix(E* y, float cap, int64_t n) {                          \
        soft_cap<wide>(y, cap, n);                                                                 \
    }                                                                                              \
    REGISTER(cast_soft_cap_##suffix)

// Formats of x and of y; what stays in its format is copied by the driver.
CAST(f32_bf16, false, float, bf16)
CAST(f32_bf16_vec, true, float, bf16)
CAST(bf16_f32, false, bf16, float)
CAST(bf16_f32_vec, true, bf16, float)

WITHIN(f32, false, float)
WITHIN(f32_vec, true, float)
WITHIN(bf16, false, bf16)
WITHIN(bf16_vec, true, bf16)
