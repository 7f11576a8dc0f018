// Rows of numbers in fewer bytes and back, in the formats and with the bits of
// core/tensor/src/rows.rs. A row of four-bit codes has two codes a byte, the earlier one in the
// upper half, then an f32 for each 64 numbers; a row of eight bits a signed byte a number, then an
// f32. Rows lie end to end, so that a scale lies at any byte.
#include "device.cuh"

namespace forgelm {
namespace {

constexpr int THREADS = 256;
// Numbers that share a scale in four bits.
constexpr int FOUR_BIT_BLOCK = 64;
// What a scale is divided by at least: a block of zeros has codes too.
constexpr float SCALE_MIN = 1e-38f;

DEVICE int64_t block_row(int n_cols, int64_t block, int& column) {
    const int per_row = (n_cols + FOUR_BIT_BLOCK - 1) / FOUR_BIT_BLOCK;
    column = static_cast<int>(block % per_row) * FOUR_BIT_BLOCK;
    return block / per_row;
}

// Bytes of codes of a row, and of the whole row.
DEVICE int64_t code_bytes(int n_cols) { return (n_cols + 1) / 2; }
DEVICE int64_t four_bit_row(int n_cols) {
    return code_bytes(n_cols) + 4 * ((n_cols + FOUR_BIT_BLOCK - 1) / FOUR_BIT_BLOCK);
}

DEVICE void store_scale(uint8_t* to, float scale) {
    const uint32_t bits = __float_as_uint(scale);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = static_cast<uint8_t>(bits >> (8 * i));
}

DEVICE float load_scale(const uint8_t* from) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) bits |= static_cast<uint32_t>(from[i]) << (8 * i);
    return __uint_as_float(bits);
}

// A number's magnitude; one that is not finite is counted.
DEVICE float checked_magnitude(float value, uint32_t* n_bad) {
    const float magnitude = fabsf(value);
    if (!(magnitude <= FLOAT_MAX)) atomicAdd(n_bad, 1u);
    return magnitude;
}

// The code of the nearest of the sixteen values: as many of the middles between them are smaller.
DEVICE uint32_t nearest_code(float x, const float* middles, const uint32_t* order) {
    int place = 0;
#pragma unroll
    for (int i = 0; i < 15; i++) place += x > middles[i] ? 1 : 0;
    return order[place];
}

} // namespace
} // namespace forgelm

using namespace forgelm;

// A warp for each block of 64 numbers, two numbers a lane. Shapes: `bytes` [R, four_bit_row]
// written, `rows` [R, C], `middles` [15] ascending, `order` [16] codes by ascending value; `n_bad`
// is added to.
KERNEL(THREADS)
void quantize_four_bit(
    uint8_t* bytes, const float* rows, const float* middles, const uint32_t* order,
    uint32_t* n_bad, int64_t n_rows, int n_cols) {
    int column;
    const int64_t block = static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + warp_index();
    const int64_t row = block_row(n_cols, block, column);
    if (row >= n_rows) return;
    const int first = column + 2 * lane_index();
    float values[2] = {};
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (first + i >= n_cols) continue;
        values[i] = rows[row * n_cols + first + i];
        largest = fmaxf(largest, checked_magnitude(values[i], n_bad));
    }
    // Whole blocks are multiplied by the inverse, a short last one is divided, as elsewhere.
    const bool is_whole = column + FOUR_BIT_BLOCK <= n_cols;
    float scale = warp_max(largest);
    if (!is_whole) scale = fmaxf(scale, SCALE_MIN);
    const float inverse = __fdiv_rn(1.0f, fmaxf(scale, SCALE_MIN));
    uint32_t codes[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float share =
            is_whole ? __fmul_rn(values[i], inverse) : __fdiv_rn(values[i], scale);
        codes[i] = nearest_code(fminf(fmaxf(share, -1.0f), 1.0f), middles, order);
    }
    uint8_t* own = bytes + row * four_bit_row(n_cols);
    if (first < n_cols) own[first / 2] = static_cast<uint8_t>(codes[0] << 4 | codes[1]);
    if (lane_index() == 0) {
        store_scale(own + code_bytes(n_cols) + column / FOUR_BIT_BLOCK * 4, scale);
    }
}
REGISTER(quantize_four_bit)

// A thread a number. Shapes: `rows` [R, C] written, `values` [16] by code.
KERNEL(THREADS)
void quantize_four_bit_back(
    float* rows, const uint8_t* bytes, const float* values, int64_t n_rows, int n_cols) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    const int64_t row = i / n_cols;
    if (row >= n_rows) return;
    const int column = static_cast<int>(i % n_cols);
    const uint8_t* own = bytes + row * four_bit_row(n_cols);
    const uint32_t byte = own[column / 2];
    const uint32_t code = column % 2 == 0 ? byte >> 4 : byte & 15u;
    const float scale = load_scale(own + code_bytes(n_cols) + column / FOUR_BIT_BLOCK * 4);
    rows[i] = __fmul_rn(values[code], scale);
}
REGISTER(quantize_four_bit_back)

// A block of threads for each row. Shapes: `bytes` [R, C + 4] written, `rows` [R, C]; `n_bad` is
// added to.
KERNEL(THREADS)
void quantize_int8(uint8_t* bytes, const float* rows, uint32_t* n_bad, int n_cols) {
    const float* values = rows + static_cast<int64_t>(blockIdx.x) * n_cols;
    uint8_t* own = bytes + static_cast<int64_t>(blockIdx.x) * (n_cols + 4);
    float largest = 0.0f;
    for (int i = threadIdx.x; i < n_cols; i += THREADS) {
        largest = fmaxf(largest, checked_magnitude(values[i], n_bad));
    }
    const float scale = __fdiv_rn(block_max(largest), 127.0f);
    for (int i = threadIdx.x; i < n_cols; i += THREADS) {
        float code = 0.0f;
        // Halves go away from zero.
        if (scale > 0.0f) code = roundf(__fdiv_rn(values[i], scale));
        code = fminf(fmaxf(code, -127.0f), 127.0f);
        own[i] = static_cast<uint8_t>(static_cast<int8_t>(code));
    }
    if (threadIdx.x == 0) store_scale(own + n_cols, scale);
}
REGISTER(quantize_int8)

// A thread a number. Shapes: `rows` [R, C] written.
KERNEL(THREADS)
void quantize_int8_back(float* rows, const uint8_t* bytes, int64_t n_rows, int n_cols) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    const int64_t row = i / n_cols;
    if (row >= n_rows) return;
    const uint8_t* own = bytes + row * (n_cols + 4);
    const float code = static_cast<float>(static_cast<int8_t>(own[i % n_cols]));
    rows[i] = __fmul_rn(code, load_scale(own + n_cols));
}
REGISTER(quantize_int8_back)
