// Ops over the columns of a row-major matrix [T, N]: a bias, a factor for each column, and the sums
// over rows that are their gradients.
//
// Numerics of the sums: f32. A block sums 64 rows of 256 columns: 32 threads abreast have 8
// neighboring columns each, and 8 lines of them take every eighth row; lines are added in order.
// The launch code applies it to its own results until one block of rows is left.
#include "chunk.cuh"

namespace forgelm {
namespace {

constexpr int BLOCK_ROWS = 64;
constexpr int BLOCK_COLUMNS = 256;
constexpr int LINES = 8;

// What is summed: a, times b where there is one, times a factor for each row where there are some.
template <class A, class B> struct Terms {
    const A* a;
    const B* b;
    const float* row_factors;

    template <bool WIDE> DEVICE void add_row(float (&sums)[8], int64_t row, int n, int c) const {
        float terms[8];
        load_chunk<WIDE>(terms, a + row * n + c, n - c);
        if (b) {
            float factors[8];
            load_chunk<WIDE>(factors, b + row * n + c, n - c);
            for (int i = 0; i < 8; i++) terms[i] *= factors[i];
        }
        const float factor = row_factors ? row_factors[row] : 1.0f;
        for (int i = 0; i < 8; i++) sums[i] += terms[i] * factor;
    }
};

// Shapes: `sums` [ceil(T / 64), N] written or, where that is one row, added to.
template <bool WIDE, class A, class B>
DEVICE void sum_rows(float* sums, const Terms<A, B>& terms, int64_t n_rows, int n, int add) {
    __shared__ float lines[LINES][BLOCK_COLUMNS];
    const int n_tiles = (n + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    const int64_t block = blockIdx.x / n_tiles;
    const int tile = blockIdx.x % n_tiles * BLOCK_COLUMNS;
    const int line = threadIdx.x / 32;
    const int column = threadIdx.x % 32 * 8;

    float line_sums[8] = {};
    if (tile + column < n) {
        const int64_t end = min(n_rows, (block + 1) * BLOCK_ROWS);
        for (int64_t row = block * BLOCK_ROWS + line; row < end; row += LINES) {
            terms.template add_row<WIDE>(line_sums, row, n, tile + column);
        }
    }
    for (int i = 0; i < 8; i++) lines[line][column + i] = line_sums[i];
    __syncthreads();

    const int c = tile + int(threadIdx.x);
    if (c >= n) return;
    float sum = 0.0f;
    for (int i = 0; i < LINES; i++) sum += lines[i][threadIdx.x];
    float* target = sums + block * n + c;
    *target = add ? *target + sum : sum;
}

// Where a thread's 8 columns lie in a matrix.
struct Chunk {
    int64_t row;
    int c;

    DEVICE explicit Chunk(int n) {
        const int64_t chunk = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
        const int a_row = (n + 7) / 8;
        row = chunk / a_row;
        c = int(chunk - row * a_row) * 8;
    }
};

template <bool WIDE, class E> DEVICE void add_bias(E* y, const float* bias, int64_t n_rows, int n) {
    const Chunk at(n);
    if (at.row >= n_rows) return;
    float values[8];
    load_chunk<WIDE>(values, bias + at.c, n - at.c);
    put_chunk<WIDE>(y + at.row * n + at.c, values, n - at.c, true);
}

template <bool WIDE, class E>
DEVICE void scale(E* y, const E* x, const float* factors, int64_t n_rows, int n, int add) {
    const Chunk at(n);
    if (at.row >= n_rows) return;
    const int64_t first = at.row * n + at.c;
    float values[8], scales[8];
    load_chunk<WIDE>(values, x + first, n - at.c);
    load_chunk<WIDE>(scales, factors + at.c, n - at.c);
    for (int i = 0; i < 8; i++) values[i] *= scales[i];
    put_chunk<WIDE>(y + first, values, n - at.c, add);
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define SUMS(suffix, wide, A)                                                                      \
    KERNEL(256) void columns_sums_##suffix(                                                        \
        float* sums, const A* a, int64_t n_rows, int n, int add                                    \
    ) {                                                                                            \
        const Terms<A, float> terms{a, nullptr, nullptr};                                          \
        sum_rows<wide>(sums, terms, n_rows, n, add);                                               \
    }                                                                                              \
    REGISTER(columns_sums_##suffix)

// `row_factors` may be null.
#define DOTS(suffix, wide, A, B)                                                                   \
    KERNEL(256) void columns_dots_##suffix(                                                        \
        float* sums, const A* a, const B* b, const float* row_factors, int64_t n_rows, int n,      \
        int add                                                                                    \
    ) {                                                                                            \
        const Terms<A, B> terms{a, b, row_factors};                                                \
        sum_rows<wide>(sums, terms, n_rows, n, add);                                               \
    }                                                                                              \
    REGISTER(columns_dots_##suffix)

#define ELEMENTWISE(suffix, wide, E)                                                               \
    KERNEL(256) void columns_add_bias_##suffix(E* y, const float* bias, int64_t n_rows, int n) {   \
        add_bias<wide>(y, bias, n_rows, n);                                                        \
    }                                                                                              \
    REGISTER(columns_add_bias_##suffix)                                                            \
    KERNEL(256) void columns_scale_##suffix(                                                       \
        E* y, const E* x, const float* factors, int64_t n_rows, int n, int add                     \
    ) {                                                                                            \
        scale<wide>(y, x, factors, n_rows, n, add);                                                \
    }                                                                                              \
    REGISTER(columns_scale_##suffix)

SUMS(f32, false, float)
SUMS(f32_vec, true, float)
SUMS(bf16, false, bf16)
SUMS(bf16_vec, true, bf16)

// Formats of a and of b.
DOTS(f32_f32, false, float, float)
DOTS(f32_f32_vec, true, float, float)
DOTS(bf16_f32, false, bf16, float)
DOTS(bf16_f32_vec, true, bf16, float)
DOTS(bf16_bf16, false, bf16, bf16)
DOTS(bf16_bf16_vec, true, bf16, bf16)

ELEMENTWISE(f32, false, float)
ELEMENTWISE(f32_vec, true, float)
ELEMENTWISE(bf16, false, bf16)
ELEMENTWISE(bf16_vec, true, bf16)
