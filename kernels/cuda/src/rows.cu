// Ops over the rows of a row-major matrix: moving them, a factor for each, softmax, and the gate of
// an expert that every row passes through.
//
// Where each element is on its own, a thread has a chunk of 8 columns of a row. Where a row is
// summed over, it belongs to a warp.
//
// Numerics: f32. A lane adds its chunks in order, lanes are added by `warp_sum`.
#include "chunk.cuh"

namespace forgelm {
namespace {

// Where a thread's 8 columns lie in a matrix of `n` columns.
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

// The row of a warp.
DEVICE int64_t row_of_warp() {
    return int64_t(blockIdx.x) * (blockDim.x / WARP) + warp_index();
}

// `y[r] = x[rows[r]]`.
template <bool WIDE, class X, class Y>
DEVICE void gather(Y* y, const X* x, const uint32_t* rows, int64_t n_rows, int n) {
    const Chunk at(n);
    if (at.row >= n_rows) return;
    float values[8];
    load_chunk<WIDE>(values, x + int64_t(rows[at.row]) * n + at.c, n - at.c);
    store_chunk<WIDE>(y + at.row * n + at.c, values, n - at.c);
}

// `y[rows[r]] += x[r]`; the rows are distinct.
template <bool WIDE, class X, class Y>
DEVICE void scatter(Y* y, const X* x, const uint32_t* rows, int64_t n_rows, int n) {
    const Chunk at(n);
    if (at.row >= n_rows) return;
    float values[8];
    load_chunk<WIDE>(values, x + at.row * n + at.c, n - at.c);
    put_chunk<WIDE>(y + int64_t(rows[at.row]) * n + at.c, values, n - at.c, true);
}

// `x[r] *= factors[r]`.
template <bool WIDE, class E>
DEVICE void scale(E* x, const float* factors, int64_t n_rows, int n) {
    const Chunk at(n);
    if (at.row >= n_rows) return;
    E* target = x + at.row * n + at.c;
    float values[8];
    load_chunk<WIDE>(values, target, n - at.c);
    for (int i = 0; i < 8; i++) values[i] *= factors[at.row];
    store_chunk<WIDE>(target, values, n - at.c);
}

// A range of columns of one matrix to a range of columns of another; both pointers are at the first
// column of the range.
template <bool WIDE, class X, class Y>
DEVICE void copy_columns(Y* y, const X* x, int64_t n_rows, int n, int y_width, int x_width) {
    const Chunk at(n);
    if (at.row >= n_rows) return;
    float values[8];
    load_chunk<WIDE>(values, x + at.row * x_width + at.c, n - at.c);
    store_chunk<WIDE>(y + at.row * y_width + at.c, values, n - at.c);
}

// `a . b` of a row, for all lanes of its warp.
template <bool WIDE, class A, class B> DEVICE float dot(const A* a, const B* b, int n) {
    float sum = 0.0f;
    for (int c = lane_index() * 8; c < n; c += WARP * 8) {
        float as[8], bs[8];
        load_chunk<WIDE>(as, a + c, n - c);
        load_chunk<WIDE>(bs, b + c, n - c);
        for (int i = 0; i < 8; i++) sum += as[i] * bs[i];
    }
    return warp_sum(sum);
}

// `sums[r] = a[r] . b[r]`.
template <bool WIDE, class E>
DEVICE void dots(float* sums, const E* a, const E* b, int64_t n_rows, int n) {
    const int64_t row = row_of_warp();
    if (row >= n_rows) return;
    const float sum = dot<WIDE>(a + row * n, b + row * n, n);
    if (lane_index() == 0) sums[row] = sum;
}

// Softmax of each row, in place. The exponentials are computed twice, so that a format of 16 bits
// rounds results only.
template <class E> DEVICE void softmax(E* x, int64_t n_rows, int n) {
    const int64_t row = row_of_warp();
    if (row >= n_rows) return;
    x += row * n;
    const int lane = lane_index();
    float largest = -infinity();
    for (int c = lane; c < n; c += WARP) largest = fmaxf(largest, load(x + c));
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int c = lane; c < n; c += WARP) sum += expf(load(x + c) - largest);
    sum = warp_sum(sum);
    for (int c = lane; c < n; c += WARP) store(x + c, expf(load(x + c) - largest) / sum);
}

DEVICE float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// `h[r] *= sigmoid(scores[r])`.
template <bool WIDE, class E, class S>
DEVICE void gate_forward(E* h, const S* scores, int64_t n_rows, int n) {
    const Chunk at(n);
    if (at.row >= n_rows) return;
    E* target = h + at.row * n + at.c;
    const float factor = sigmoid(load(scores + at.row));
    float values[8];
    load_chunk<WIDE>(values, target, n - at.c);
    for (int i = 0; i < 8; i++) values[i] *= factor;
    store_chunk<WIDE>(target, values, n - at.c);
}

// With s = sigmoid(scores[r]): `dh[r] *= s`, and `scores[r] = (dh[r] . h[r]) * s * (1 - s)` with dh
// as it was.
template <bool WIDE, class E, class S>
DEVICE void gate_backward(E* dh, S* scores, const E* h, int64_t n_rows, int n) {
    const int64_t row = row_of_warp();
    if (row >= n_rows) return;
    dh += row * n;
    const float factor = sigmoid(load(scores + row));
    const float dfactor = dot<WIDE>(dh, h + row * n, n);
    // A lane changes only what it has read itself.
    for (int c = lane_index() * 8; c < n; c += WARP * 8) {
        float values[8];
        load_chunk<WIDE>(values, dh + c, n - c);
        for (int i = 0; i < 8; i++) values[i] *= factor;
        store_chunk<WIDE>(dh + c, values, n - c);
    }
    // Behind the sum over the warp, before which every lane has read the score.
    if (lane_index() == 0) store(scores + row, dfactor * factor * (1.0f - factor));
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define MOVES(suffix, wide, X, Y)                                                                  \
    KERNEL(256) void rows_gather_##suffix(                                                         \
        Y* y, const X* x, const uint32_t* rows, int64_t n_rows, int n                              \
    ) {                                                                                            \
        gather<wide>(y, x, rows, n_rows, n);                                                       \
    }                                                                                              \
    REGISTER(rows_gather_##suffix)                                                                 \
    KERNEL(256) void rows_scatter_##suffix(                                                        \
        Y* y, const X* x, const uint32_t* rows, int64_t n_rows, int n                              \
    ) {                                                                                            \
        scatter<wide>(y, x, rows, n_rows, n);                                                      \
    }                                                                                              \
    REGISTER(rows_scatter_##suffix)                                                                \
    KERNEL(256) void rows_copy_columns_##suffix(                                                   \
        Y* y, const X* x, int64_t n_rows, int n, int y_width, int x_width                          \
    ) {                                                                                            \
        copy_columns<wide>(y, x, n_rows, n, y_width, x_width);                                     \
    }                                                                                              \
    REGISTER(rows_copy_columns_##suffix)

#define WITHIN(suffix, wide, E)                                                                    \
    KERNEL(256) void rows_scale_##suffix(E* x, const float* factors, int64_t n_rows, int n) {      \
        scale<wide>(x, factors, n_rows, n);                                                        \
    }                                                                                              \
    REGISTER(rows_scale_##suffix)                                                                  \
    KERNEL(256) void rows_dots_##suffix(                                                           \
        float* sums, const E* a, const E* b, int64_t n_rows, int n                                 \
    ) {                                                                                            \
        dots<wide>(sums, a, b, n_rows, n);                                                         \
    }                                                                                              \
    REGISTER(rows_dots_##suffix)

#define GATES(suffix, wide, E, S)                                                                  \
    KERNEL(256) void rows_gate_forward_##suffix(E* h, const S* scores, int64_t n_rows, int n) {    \
        gate_forward<wide>(h, scores, n_rows, n);                                                  \
    }                                                                                              \
    REGISTER(rows_gate_forward_##suffix)                                                           \
    KERNEL(256) void rows_gate_backward_##suffix(                                                  \
        E* dh, S* scores, const E* h, int64_t n_rows, int n                                        \
    ) {                                                                                            \
        gate_backward<wide>(dh, scores, h, n_rows, n);                                             \
    }                                                                                              \
    REGISTER(rows_gate_backward_##suffix)

#define SOFTMAX(suffix, E)                                                                         \
    KERNEL(256) void rows_softmax_##suffix(E* x, int64_t n_rows, int n) { softmax(x, n_rows, n); } \
    REGISTER(rows_softmax_##suffix)

// Formats of x and of y.
MOVES(f32_f32, false, float, float)
MOVES(f32_f32_vec, true, float, float)
MOVES(f32_bf16, false, float, bf16)
MOVES(f32_bf16_vec, true, float, bf16)
MOVES(bf16_f32, false, bf16, float)
MOVES(bf16_f32_vec, true, bf16, float)
MOVES(bf16_bf16, false, bf16, bf16)
MOVES(bf16_bf16_vec, true, bf16, bf16)

WITHIN(f32, false, float)
WITHIN(f32_vec, true, float)
WITHIN(bf16, false, bf16)
WITHIN(bf16_vec, true, bf16)

// Formats of h and of the scores.
GATES(f32_f32, false, float, float)
GATES(f32_f32_vec, true, float, float)
GATES(bf16_f32, false, bf16, float)
GATES(bf16_f32_vec, true, bf16, float)
GATES(bf16_bf16, false, bf16, bf16)
GATES(bf16_bf16_vec, true, bf16, bf16)

SOFTMAX(f32, float)
SOFTMAX(bf16, bf16)
