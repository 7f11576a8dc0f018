// Addition: `y += x`, in f32. A thread has a chunk of 8 neighboring elements.
#include "chunk.cuh"

namespace forgelm {
namespace {

template <bool WIDE, class Y, class X> DEVICE void add_to(Y* y, const X* x, int64_t n) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at >= n) return;
    float xs[8];
    load_chunk<WIDE>(xs, x + at, n - at);
    put_chunk<WIDE>(y + at, xs, n - at, true);
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define ADD(suffix, wide, Y, X)                                                                    \
    KERNEL(256) void add_##suffix(Y* y, const X* x, int64_t n) { add_to<wide>(y, x, n); }          \
    REGISTER(add_##suffix)

// Formats of y and of x.
ADD(f32_f32, false, float, float)
ADD(f32_f32_vec, true, float, float)
ADD(f32_bf16, false, float, bf16)
ADD(f32_bf16_vec, true, float, bf16)
ADD(bf16_f32, false, bf16, float)
ADD(bf16_f32_vec, true, bf16, float)
ADD(bf16_bf16, false, bf16, bf16)
ADD(bf16_bf16_vec, true, bf16, bf16)
