// Rows of a table, and the gradient of the table.
#include "chunk.cuh"

namespace forgelm {
namespace {

// `y[t] = table[tokens[t]]`. A thread has a chunk of 8 columns of a row.
template <bool WIDE, class W, class Y>
DEVICE void embedding_forward(Y* y, const uint32_t* tokens, const W* table, int64_t n_rows, int n) {
    const int64_t chunk = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int a_row = (n + 7) / 8;
    const int64_t row = chunk / a_row;
    const int c = int(chunk - row * a_row) * 8;
    if (row >= n_rows) return;
    float values[8];
    load_chunk<WIDE>(values, table + int64_t(tokens[row]) * n + c, n - c);
    store_chunk<WIDE>(y + row * n + c, values, n - c);
}

// `dtable[token] += dy[t]` for the rows of one token, in order: a run. A block has 256 columns of a
// run, a thread one of them.
//
// Shapes: `order` [T] rows of dy, those of a token together and ascending; `starts` [R + 1] places
// in `order` where runs begin; `tokens` [R].
template <class E>
DEVICE void embedding_backward(
    float* dtable, const E* dy, const uint32_t* order, const uint32_t* starts,
    const uint32_t* tokens, int n
) {
    const int n_tiles = (n + int(blockDim.x) - 1) / int(blockDim.x);
    const int run = int(blockIdx.x) / n_tiles;
    const int c = int(blockIdx.x) % n_tiles * int(blockDim.x) + int(threadIdx.x);
    if (c >= n) return;
    float* target = dtable + int64_t(tokens[run]) * n + c;
    float sum = *target;
    const uint32_t end = starts[run + 1];
#pragma unroll 8
    for (uint32_t i = starts[run]; i < end; i++) {
        sum += load(dy + int64_t(order[i]) * n + c);
    }
    *target = sum;
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define FORWARD(suffix, wide, W, Y)                                                                \
    KERNEL(256) void embedding_forward_##suffix(                                                   \
        Y* y, const uint32_t* tokens, const W* table, int64_t n_rows, int n                        \
    ) {                                                                                            \
        embedding_forward<wide>(y, tokens, table, n_rows, n);                                      \
    }                                                                                              \
    REGISTER(embedding_forward_##suffix)

#define BACKWARD(suffix, E)                                                                        \
    KERNEL(256) void embedding_backward_##suffix(                                                  \
        float* dtable, const E* dy, const uint32_t* order, const uint32_t* starts,                 \
        const uint32_t* tokens, int n                                                              \
    ) {                                                                                            \
        embedding_backward(dtable, dy, order, starts, tokens, n);                                  \
    }                                                                                              \
    REGISTER(embedding_backward_##suffix)

// Formats of the table and of y.
FORWARD(f32_f32, false, float, float)
FORWARD(f32_f32_vec, true, float, float)
FORWARD(f32_bf16, false, float, bf16)
FORWARD(f32_bf16_vec, true, float, bf16)
FORWARD(bf16_f32, false, bf16, float)
FORWARD(bf16_f32_vec, true, bf16, float)
FORWARD(bf16_bf16, false, bf16, bf16)
FORWARD(bf16_bf16_vec, true, bf16, bf16)

BACKWARD(f32, float)
BACKWARD(bf16, bf16)
