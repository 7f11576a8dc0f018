// Dropout whose mask is a function of numbers: kernels/api/src/ops.rs defines it at `Dropout`.
//
// A thread has a chunk of 8 columns of a row, which are the bits of two counters.
#include "chunk.cuh"

namespace forgelm {
namespace {

struct Mask {
    uint32_t key0, key1;
    // What has fewer bits than this becomes zero.
    uint32_t threshold;
    // On what is kept.
    float factor;
};

// Shapes: `row_keys` [T, 2], the low half first.
template <bool WIDE, class X, class Y>
DEVICE void dropout(
    Y* y, const X* x, const uint32_t* row_keys, int64_t n_rows, int n, const Mask& mask, int add
) {
    const int64_t chunk = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int a_row = (n + 7) / 8;
    const int64_t row = chunk / a_row;
    const int c = int(chunk - row * a_row) * 8;
    if (row >= n_rows) return;
    float values[8];
    load_chunk<WIDE>(values, x + row * n + c, n - c);
    for (int half = 0; half < 2; half++) {
        const uint32_t counter = uint32_t(c) / 4 + half;
        const Philox bits = philox4x32(
            row_keys[2 * row], row_keys[2 * row + 1], counter, 0, mask.key0, mask.key1);
        for (int i = 0; i < 4; i++) {
            float& value = values[4 * half + i];
            value = bits.words[i] >= mask.threshold ? value * mask.factor : 0.0f;
        }
    }
    put_chunk<WIDE>(y + row * n + c, values, n - c, add);
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define DROPOUT(suffix, wide, X, Y)                                                                \
    KERNEL(256) void dropout_##suffix(                                                             \
        Y* y, const X* x, const uint32_t* row_keys, int64_t n_rows, int n, uint32_t key0,          \
        uint32_t key1, uint32_t threshold, float factor, int add                                   \
    ) {                                                                                            \
        dropout<wide>(y, x, row_keys, n_rows, n, Mask{key0, key1, threshold, factor}, add);        \
    }                                                                                              \
    REGISTER(dropout_##suffix)

// Formats of x and of y.
DROPOUT(f32_f32, false, float, float)
DROPOUT(f32_f32_vec, true, float, float)
DROPOUT(f32_bf16, false, float, bf16)
DROPOUT(f32_bf16_vec, true, float, bf16)
DROPOUT(bf16_f32, false, bf16, float)
DROPOUT(bf16_f32_vec, true, bf16, float)
DROPOUT(bf16_bf16, false, bf16, bf16)
DROPOUT(bf16_bf16_vec, true, bf16, bf16)
