// Sum of squares in f64: of fixed blocks of 16,384 elements, which are then added by one block.
//
// Numerics: f64. A thread adds every 256th chunk of 4 elements, threads are added by `block_sum`.
#include "chunk.cuh"

namespace forgelm {
namespace {

constexpr int BLOCK_ELEMENTS = 16384;

// Shapes: `partials` [ceil(n / 16384)] written.
template <bool WIDE> DEVICE void partials_of(double* partials, const float* x, int64_t n) {
    const int64_t begin = int64_t(blockIdx.x) * BLOCK_ELEMENTS;
    const int64_t end = min(n, begin + BLOCK_ELEMENTS);
    double sum = 0.0;
    for (int64_t at = begin + int64_t(threadIdx.x) * 8; at < end; at += 256 * 8) {
        float values[8];
        load_chunk<WIDE>(values, x + at, n - at);
        for (int i = 0; i < 8; i++) sum += double(values[i]) * double(values[i]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

} // namespace
} // namespace forgelm

using namespace forgelm;

KERNEL(256) void sum_of_squares_partials_f32(double* partials, const float* x, int64_t n) {
    partials_of<false>(partials, x, n);
}
REGISTER(sum_of_squares_partials_f32)

KERNEL(256) void sum_of_squares_partials_f32_vec(double* partials, const float* x, int64_t n) {
    partials_of<true>(partials, x, n);
}
REGISTER(sum_of_squares_partials_f32_vec)

// One block. Shapes: `sum` [1] written.
KERNEL(256) void sum_of_squares_total(double* sum, const double* partials, int64_t n) {
    double total = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += 256) total += partials[i];
    total = block_sum(total);
    if (threadIdx.x == 0) *sum = total;
}
REGISTER(sum_of_squares_total)
