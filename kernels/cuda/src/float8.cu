// Floats of eight bits, times the scales of their blocks, to the format of weights.
//
// A thread has a chunk of 8 neighboring elements of a row: 8 bytes of codes, at once where WIDE is
// set. Both formats become floats by way of IEEE halves, which every device converts; the
// instructions for pairs of eight-bit floats came with compute capability 8.9.
#include "chunk.cuh"

namespace forgelm {
namespace {

// E4M3 has no infinity. Its exponent and fraction fall into those of a half whose exponent is 8 too
// low, denormals into denormals.
struct E4m3 {
    static DEVICE float value(uint32_t code) {
        if ((code & 0x7fu) == 0x7fu) return __uint_as_float(0x7fffffffu);
        return f16_to_float(uint16_t((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * 256.0f;
    }
};

// E5M2 is the upper half of a half.
struct E5m2 {
    static DEVICE float value(uint32_t code) { return f16_to_float(uint16_t(code << 8)); }
};

// Rows `first_row` and so on of a matrix whose scales are all there.
//
// Shapes: `y`, `codes` [n_rows, n]; `scales` [.., scales_per_row].
struct Blocks {
    const float* scales;
    int64_t first_row;
    int block_rows, block_cols, scales_per_row;
};

template <class F, bool WIDE, class E>
DEVICE void cast(E* y, const uint8_t* codes, const Blocks& blocks, int64_t n_rows, int n) {
    const int64_t chunk = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int a_row = (n + 7) / 8;
    const int64_t row = chunk / a_row;
    const int c = int(chunk - row * a_row) * 8;
    if (row >= n_rows) return;

    const uint8_t* from = codes + row * n + c;
    uint32_t words[2] = {};
    if constexpr (WIDE) {
        const uint2 both = *reinterpret_cast<const uint2*>(from);
        words[0] = both.x;
        words[1] = both.y;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (c + i < n) words[i / 4] |= uint32_t(from[i]) << (i % 4 * 8);
        }
    }
    const int64_t block_row = (blocks.first_row + row) / blocks.block_rows;
    const float* scale = blocks.scales + block_row * blocks.scales_per_row + c / blocks.block_cols;
    int left = blocks.block_cols - c % blocks.block_cols; // elements of this block
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (left == 0 && c + i < n) {
            scale++;
            left = blocks.block_cols;
        }
        left--;
        values[i] = F::value(words[i / 4] >> (i % 4 * 8) & 0xffu) * *scale;
    }
    store_chunk<WIDE>(y + row * n + c, values, n - c);
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define CAST(suffix, wide, F, E)                                                                   \
    KERNEL(256) void float8_##suffix(                                                              \
        E* y, const uint8_t* codes, const float* scales, int64_t first_row, int64_t n_rows, int n, \
        int block_rows, int block_cols, int scales_per_row                                         \
    ) {                                                                                            \
        const Blocks blocks{scales, first_row, block_rows, block_cols, scales_per_row};            \
        cast<F, wide>(y, codes, blocks, n_rows, n);                                                \
    }                                                                                              \
    REGISTER(float8_##suffix)

// Format of the codes and of y.
CAST(e4m3_f32, false, E4m3, float)
CAST(e4m3_f32_vec, true, E4m3, float)
CAST(e4m3_bf16, false, E4m3, bf16)
CAST(e4m3_bf16_vec, true, E4m3, bf16)
CAST(e5m2_f32, false, E5m2, float)
CAST(e5m2_f32_vec, true, E5m2, float)
CAST(e5m2_bf16, false, E5m2, bf16)
CAST(e5m2_bf16_vec, true, E5m2, bf16)
