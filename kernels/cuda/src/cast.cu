// Copies from one format to another, and what fills or scales an array.
//
// A thread has a chunk of 8 neighboring elements.
#include "chunk.cuh"

namespace forgelm {
namespace {

constexpr int BLOCK_ELEMENTS = 16384;
constexpr float E4M3_MAX = 448.0f;

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

// Largest sizes of fixed blocks. Shapes: `partials` [ceil(n / 16384)] written.
template <bool WIDE, class E> DEVICE void amax_partials(float* partials, const E* x, int64_t n) {
    const int64_t begin = int64_t(blockIdx.x) * BLOCK_ELEMENTS;
    const int64_t end = min(n, begin + BLOCK_ELEMENTS);
    float largest = 0.0f;
    for (int64_t at = begin + int64_t(threadIdx.x) * 8; at < end; at += 256 * 8) {
        float values[8];
        load_chunk<WIDE>(values, x + at, n - at);
        for (int i = 0; i < 8; i++) largest = Larger()(fabsf(values[i]), largest);
    }
    largest = block_max(largest);
    if (threadIdx.x == 0) partials[blockIdx.x] = largest;
}

// `y = x * 448 / amax`, so that the largest becomes the largest number of the format.
template <bool WIDE, class E>
DEVICE void to_fp8(uint8_t* y, const E* x, const float* amax, int64_t n) {
    const int64_t at = first_of_thread();
    if (at >= n) return;
    const float factor = *amax > 0.0f ? E4M3_MAX / *amax : 1.0f;
    float values[8];
    load_chunk<WIDE>(values, x + at, n - at);
    for (int i = 0; i < 8; i++) {
        if (i < n - at) y[at + i] = float_to_e4m3(values[i] * factor);
    }
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
    KERNEL(256) void cast_amax_partials_##suffix(float* partials, const E* x, int64_t n) {         \
        amax_partials<wide>(partials, x, n);                                                       \
    }                                                                                              \
    REGISTER(cast_amax_partials_##suffix)                                                          \
    KERNEL(256) void cast_fp8_##suffix(uint8_t* y, const E* x, const float* amax, int64_t n) {     \
        to_fp8<wide>(y, x, amax, n);                                                               \
    }                                                                                              \
    REGISTER(cast_fp8_##suffix)

// Formats of x and of y; what stays in its format is copied by the driver.
CAST(f32_bf16, false, float, bf16)
CAST(f32_bf16_vec, true, float, bf16)
CAST(bf16_f32, false, bf16, float)
CAST(bf16_f32_vec, true, bf16, float)

WITHIN(f32, false, float)
WITHIN(f32_vec, true, float)
WITHIN(bf16, false, bf16)
WITHIN(bf16_vec, true, bf16)

// One block. Shapes: `amax` [1] written, `partials` [n].
KERNEL(256) void cast_amax_total(float* amax, const float* partials, int64_t n) {
    float largest = 0.0f;
    for (int64_t i = threadIdx.x; i < n; i += 256) largest = Larger()(partials[i], largest);
    largest = block_max(largest);
    if (threadIdx.x == 0) *amax = largest;
}
REGISTER(cast_amax_total)
