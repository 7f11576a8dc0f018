// Quantized weights that stay packed, unpacked for a product. kernels/api/src/blocks.rs defines
// them: `w = values[code] * scale[group] + min[group]`, each product and sum rounded on its own.
//
// What a matrix is made of is told by a description in device memory, written once when it is
// packed (frozen.rs lays it out field by field as here).
//
// Rows are `first_row..` or, with `rows`, those that it lists: a table's rows by token.
#include "device.cuh"

namespace forgelm {

// Not in the unnamed namespace, since kernels take them: the compiler names what is inner to a
// file by a kernel of it, and where all have inner types by the number of its process.

enum FactorKind : int32_t { NO_FACTOR = 0, F32 = 1, F16 = 2, NESTED = 3 };
enum Rounding : int32_t { EXACT = 0, TO_F16 = 1, TO_BF16 = 2 };

// Scales or mins of all groups, row by row.
struct Factors {
    // [N * G] of f32, of f16, or of bytes.
    const void* rows;
    // Nested: [256] by byte, and [N * G / outer_len].
    const float* values;
    const float* outer;
    int32_t kind;
    int32_t outer_len;
    float offset;
    int32_t has_offset;
};

struct Blocks {
    // [N, code_stride] bytes. Four-bit codes: the earlier column in the lower half.
    const uint8_t* codes;
    // [16] by four-bit code; without, codes are signed bytes.
    const float* values;
    Factors scale;
    Factors min;
    int64_t code_stride;
    int32_t n_columns;
    int32_t group_len;
    int32_t rounding;
    // The weights are then rounded to bfloat16, the format of the products.
    int32_t is_bf16;
};

namespace {

DEVICE float factor(const Factors& factors, uint32_t group) {
    if (factors.kind == F32) return static_cast<const float*>(factors.rows)[group];
    if (factors.kind == F16) return f16_to_float(static_cast<const uint16_t*>(factors.rows)[group]);
    const uint8_t byte = static_cast<const uint8_t*>(factors.rows)[group];
    const uint32_t outer = group / static_cast<uint32_t>(factors.outer_len);
    const float product = __fmul_rn(factors.values[byte], factors.outer[outer]);
    return factors.has_offset ? __fadd_rn(product, factors.offset) : product;
}

// The weights of one group.
struct Group {
    float scale;
    float min;
    bool has_min;
    int32_t rounding;
    bool is_bf16;

    DEVICE Group(const Blocks& blocks, uint32_t group)
        : scale(factor(blocks.scale, group)),
          min(0.0f),
          has_min(blocks.min.kind != NO_FACTOR),
          rounding(blocks.rounding),
          is_bf16(blocks.is_bf16 != 0) {
        if (has_min) min = factor(blocks.min, group);
    }

    DEVICE float weight(float value) const {
        float weight = __fmul_rn(value, scale);
        if (has_min) weight = __fadd_rn(weight, min);
        if (rounding == TO_F16) weight = f16_to_float(float_to_f16(weight));
        if (rounding == TO_BF16 || is_bf16) weight = to_float(to_bf16(weight));
        return weight;
    }
};

// The table of four-bit values in shared memory: sixteen words lie in sixteen banks.
DEVICE void read_values(float (&values)[16], const Blocks& blocks) {
    if (blocks.values != nullptr && threadIdx.x < 16) {
        values[threadIdx.x] = blocks.values[threadIdx.x];
    }
    __syncthreads();
}

DEVICE uint32_t row_at(const uint32_t* rows, uint32_t first_row, uint32_t i) {
    return rows != nullptr ? rows[i] : first_row + i;
}

// Eight weights a thread. K and the length of a group are multiples of eight.
template <class E>
DEVICE void unpack_eight(
    E* out, const Blocks& blocks, const uint32_t* rows, uint32_t first_row, uint32_t n_rows) {
    __shared__ float values[16];
    read_values(values, blocks);
    const uint32_t per_row = static_cast<uint32_t>(blocks.n_columns) / 8;
    const uint32_t index = blockIdx.x * 256 + threadIdx.x;
    if (index >= n_rows * per_row) return;
    const uint32_t row = row_at(rows, first_row, index / per_row);
    const uint32_t column = index % per_row * 8;
    const uint32_t groups = static_cast<uint32_t>(blocks.n_columns / blocks.group_len);
    const Group group(blocks, row * groups + column / static_cast<uint32_t>(blocks.group_len));
    const uint8_t* codes = blocks.codes + row * blocks.code_stride;
    float weights[8];
    if (blocks.values != nullptr) {
        const uint32_t word = *reinterpret_cast<const uint32_t*>(codes + column / 2);
#pragma unroll
        for (int i = 0; i < 8; i++) weights[i] = group.weight(values[word >> (4 * i) & 15]);
    } else {
        const uint2 words = *reinterpret_cast<const uint2*>(codes + column);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t word = i < 4 ? words.x : words.y;
            weights[i] = group.weight(static_cast<int8_t>(word >> (8 * (i % 4)) & 255));
        }
    }
    store_vector(out + static_cast<int64_t>(index) * 8, weights);
}

// One weight a thread: any K, any length of a group.
template <class E>
DEVICE void unpack_one(
    E* out, const Blocks& blocks, const uint32_t* rows, uint32_t first_row, uint32_t n_rows) {
    __shared__ float values[16];
    read_values(values, blocks);
    const uint32_t per_row = static_cast<uint32_t>(blocks.n_columns);
    const uint32_t index = blockIdx.x * 256 + threadIdx.x;
    if (index >= n_rows * per_row) return;
    const uint32_t row = row_at(rows, first_row, index / per_row);
    const uint32_t column = index % per_row;
    const uint32_t groups = static_cast<uint32_t>(blocks.n_columns / blocks.group_len);
    const Group group(blocks, row * groups + column / static_cast<uint32_t>(blocks.group_len));
    const uint8_t* codes = blocks.codes + row * blocks.code_stride;
    float value;
    if (blocks.values != nullptr) {
        value = values[codes[column / 2] >> (column % 2 * 4) & 15];
    } else {
        value = static_cast<int8_t>(codes[column]);
    }
    store(out + index, group.weight(value));
}

} // namespace
} // namespace forgelm

using namespace forgelm;

// Shapes: `out` [n_rows, K] written. n_rows * K is below 2^32.
#define BLOCKS_UNPACK(suffix, E, unpack)                                                           \
    KERNEL(256)                                                                                    \
    void blocks_unpack_##suffix(                                                                   \
        E* out, const Blocks* blocks, const uint32_t* rows, uint32_t first_row,                    \
        uint32_t n_rows) {                                                                         \
        unpack(out, *blocks, rows, first_row, n_rows);                                             \
    }                                                                                              \
    REGISTER(blocks_unpack_##suffix)

BLOCKS_UNPACK(f32, float, unpack_one)
BLOCKS_UNPACK(bf16, bf16, unpack_one)
BLOCKS_UNPACK(f32_vec, float, unpack_eight)
BLOCKS_UNPACK(bf16_vec, bf16, unpack_eight)
