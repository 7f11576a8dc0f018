// Causal attention within segments without tensor cores: f32 throughout, any head size D, any
// alignment. It is the path of f32 storage, where results must be exact to f32, and of what
// attention.cu refuses in bfloat16.
//
// Layout: q, out and their gradients [T, H * D], k and v [T, H_kv * D], lse and delta [T, H] f32.
//
// A block of 256 threads writes 64 rows and up to 128 columns of one head. It forms 64 x 64 dots at
// a time, over all of D in pieces, and adds rows of the other factor, weighted by what became of
// the dots. Heads wider than 128 are written by several blocks, each of which forms all dots again:
// that keeps sums in registers for every D.
//
// Order of additions: keys (or queries of one head after another) in the order of their rows; D in
// order within a dot.
#include "attention.cuh"

namespace forgelm {
namespace {

constexpr int SIDE = 64;      // rows and columns of a tile of dots
constexpr int COLUMNS = 128;  // of a head that a block writes
constexpr int DEPTH = 32;     // columns of both factors in shared memory at a time
// Rows of the staging areas are one longer than used, so that reading a column meets no bank twice.
constexpr int DEPTH_STRIDE = DEPTH + 1;
constexpr int SIDE_STRIDE = SIDE + 1;

// The part of the work that a block does: a tile of rows, and which columns of which head.
struct Part : AttentionTile {
    int head, column;

    DEVICE Part(const int32_t* tiles, int n_heads, int head_dim)
        : AttentionTile(tiles, int(blockIdx.x) / n_pieces(head_dim) / n_heads),
          head(int(blockIdx.x) / n_pieces(head_dim) % n_heads),
          column(int(blockIdx.x) % n_pieces(head_dim) * COLUMNS) {}

    DEVICE static int n_pieces(int head_dim) { return (head_dim + COLUMNS - 1) / COLUMNS; }
};

// One head of a matrix of heads; rows from `end` on count as zeros.
template <class E>
struct Rows {
    const E* head;
    int64_t length;
    int head_dim, end;

    DEVICE Rows(
        const E* matrix, int n_heads, int head_index, int head_dim, int end
    )
        : head(matrix + int64_t(head_index) * head_dim),
          length(int64_t(n_heads) * head_dim),
          head_dim(head_dim),
          end(end) {}

    DEVICE float at(int row, int column) const {
        bool exists = row < end && column < head_dim;
        return exists ? load(head + row * length + column) : 0;
    }
};

// Shared memory of all kernels here.
struct Shared {
    float left[SIDE * DEPTH_STRIDE];
    float right[SIDE * DEPTH_STRIDE];
    float weights[SIDE * SIDE_STRIDE];
};

// Of a tile, thread (y, x) of 16 x 16 has the rows 4 y + i and the columns x + 16 j.
DEVICE int thread_y() { return threadIdx.x / 16; }
DEVICE int thread_x() { return threadIdx.x % 16; }

// dots[i][j] = (row of `left` from `first_left` on) . (row of `right` from `first_right` on).
template <class E>
DEVICE void form_dots(
    float (&dots)[4][4],
    const Rows<E>& left,
    int first_left,
    const Rows<E>& right,
    int first_right,
    Shared& shared
) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) dots[i][j] = 0;
    for (int depth = 0; depth < left.head_dim; depth += DEPTH) {
        __syncthreads();
#pragma unroll 2
        for (int i = threadIdx.x; i < SIDE * DEPTH; i += 256) {
            int row = i / DEPTH, column = i % DEPTH;
            int to = row * DEPTH_STRIDE + column;
            shared.left[to] = left.at(first_left + row, depth + column);
            shared.right[to] = right.at(first_right + row, depth + column);
        }
        __syncthreads();
        const float* a = shared.left + 4 * thread_y() * DEPTH_STRIDE;
        const float* b = shared.right + thread_x() * DEPTH_STRIDE;
#pragma unroll 2
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    dots[i][j] += a[i * DEPTH_STRIDE + k] * b[16 * j * DEPTH_STRIDE + k];
                }
    }
}

// sums[i][j] += sum over 64 rows r of `rows` of weights[4 y + i][r] * rows[r][x + 16 j].
template <class E>
DEVICE void add_weighted_rows(
    float (&sums)[4][8],
    const float (&weights)[4][4],
    const Rows<E>& rows,
    int first,
    int first_column,
    Shared& shared
) {
    constexpr int PIECE = 32;
    static_assert(PIECE * COLUMNS <= 2 * SIDE * DEPTH_STRIDE, "a piece of rows fits the staging");
    float* staging = shared.left;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int at = (4 * thread_y() + i) * SIDE_STRIDE + thread_x() + 16 * j;
            shared.weights[at] = weights[i][j];
        }
    for (int piece = 0; piece < SIDE; piece += PIECE) {
        __syncthreads();
#pragma unroll 2
        for (int i = threadIdx.x; i < PIECE * COLUMNS; i += 256) {
            int row = first + piece + i / COLUMNS;
            staging[i] = rows.at(row, first_column + i % COLUMNS);
        }
        __syncthreads();
        const float* weight = shared.weights + 4 * thread_y() * SIDE_STRIDE + piece;
#pragma unroll 2
        for (int k = 0; k < PIECE; k++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float value = staging[k * COLUMNS + thread_x() + 16 * j];
#pragma unroll
                for (int i = 0; i < 4; i++) sums[i][j] += weight[i * SIDE_STRIDE + k] * value;
            }
    }
}

// Writes rows of the block, each times its factor.
template <class E>
DEVICE void store_rows(
    E* matrix,
    int n_heads,
    const Part& part,
    int head_dim,
    const float (&sums)[4][8],
    const float (&factors)[4]
) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = part.first + 4 * thread_y() + i;
        if (row >= part.end) continue;
        E* to = matrix + (int64_t(row) * n_heads + part.head) * head_dim;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int column = part.column + thread_x() + 16 * j;
            if (column < head_dim) store(to + column, sums[i][j] * factors[i]);
        }
    }
}

// The score of a product of a query and a key, scaled and capped.
DEVICE float score_of(float product, const AttentionShape& shape) {
    float score = product * shape.scale;
    return shape.soft_cap > 0 ? shape.soft_cap * tanhf(score / shape.soft_cap) : score;
}

// Of a score by the scaled product.
DEVICE float slope_of(float score, const AttentionShape& shape) {
    if (shape.soft_cap == 0) return 1;
    float tanh = score / shape.soft_cap;
    return 1 - tanh * tanh;
}

// Over the 16 threads that share a row; every one of them gets the result.
DEVICE float row_max(float value) {
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

DEVICE float row_sum(float value) {
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    return value;
}

// One tile of 64 queries of one head.
template <class E>
DEVICE void forward(
    E* out, float* lse, const E* q, const E* k, const E* v, const int32_t* tiles,
    const AttentionShape& shape
) {
    __shared__ Shared shared;
    Part part(tiles, shape.n_heads, shape.head_dim);
    int kv_head = part.head / (shape.n_heads / shape.n_kv_heads);
    int key_end = part.end + part.diagonal;
    Rows<E> queries(q, shape.n_heads, part.head, shape.head_dim, part.end);
    Rows<E> keys(k, shape.n_kv_heads, kv_head, shape.head_dim, key_end);
    Rows<E> values(v, shape.n_kv_heads, kv_head, shape.head_dim, key_end);

    float largest[4], denominator[4], sums[4][8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        largest[i] = -infinity();
        denominator[i] = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0;
    }
    int first_key = max(part.bound, part.first + part.diagonal - shape.window + 1);
    for (int key = first_key; key < key_end; key += SIDE) {
        float scores[4][4];
        form_dots(scores, queries, part.first, keys, key, shared);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int position = part.first + part.diagonal + 4 * thread_y() + i;
            float before = largest[i], now = before;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                bool is_seen = shape.sees(position, key + thread_x() + 16 * j);
                scores[i][j] = is_seen ? score_of(scores[i][j], shape) : -infinity();
                now = fmaxf(now, scores[i][j]);
            }
            now = row_max(now);
            // A row may have seen nothing yet: -inf - -inf would be no number.
            float base = now == -infinity() ? 0 : now;
            float correction = expf(before - base), sum = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                scores[i][j] = expf(scores[i][j] - base);
                sum += scores[i][j];
            }
            largest[i] = now;
            denominator[i] = denominator[i] * correction + row_sum(sum);
#pragma unroll
            for (int j = 0; j < 8; j++) sums[i][j] *= correction;
        }
        add_weighted_rows(sums, scores, values, key, part.column, shared);
    }

    float inverse[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        inverse[i] = 1 / denominator[i];
        int row = part.first + 4 * thread_y() + i;
        if (lse != nullptr && part.column == 0 && thread_x() == 0 && row < part.end) {
            int64_t at = int64_t(row) * shape.n_heads + part.head;
            lse[at] = largest[i] + logf(denominator[i]);
        }
    }
    store_rows(out, shape.n_heads, part, shape.head_dim, sums, inverse);
}

// What backward reads.
template <class E>
struct Given {
    const E *dout, *q, *k, *v;
    const float *lse, *delta;
};

// From the dots of a query with a key and of its `dout` with the value to the probability and the
// gradient of the scaled product.
DEVICE void differentiate(
    float& probability, float& gradient, float lse, float delta, bool is_seen,
    const AttentionShape& shape
) {
    float score = score_of(probability, shape);
    probability = is_seen ? expf(score - lse) : 0;
    gradient = probability * (gradient - delta) * slope_of(score, shape);
}

// dk and dv of one tile of 64 keys, over all heads of the group in order and all queries that see
// any of them.
template <class E>
DEVICE void backward_keys(
    E* dk, E* dv, const Given<E>& given, const int32_t* tiles, const AttentionShape& shape
) {
    __shared__ Shared shared;
    Part part(tiles, shape.n_kv_heads, shape.head_dim);
    int group = shape.n_heads / shape.n_kv_heads, d = shape.head_dim;
    int query_end = min(part.bound, part.end - 1 + shape.window);
    Rows<E> keys(given.k, shape.n_kv_heads, part.head, d, part.end);
    Rows<E> values(given.v, shape.n_kv_heads, part.head, d, part.end);

    float dk_sums[4][8], dv_sums[4][8];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) dk_sums[i][j] = dv_sums[i][j] = 0;
    for (int head = part.head * group; head < (part.head + 1) * group; head++) {
        Rows<E> queries(given.q, shape.n_heads, head, d, query_end);
        Rows<E> douts(given.dout, shape.n_heads, head, d, query_end);
        for (int query = part.first; query < query_end; query += SIDE) {
            float p[4][4], ds[4][4];
            form_dots(p, keys, part.first, queries, query, shared);
            form_dots(ds, values, part.first, douts, query, shared);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int row = query + thread_x() + 16 * j;
                bool exists = row < query_end;
                int64_t at = int64_t(exists ? row : query) * shape.n_heads + head;
                float lse = given.lse[at], delta = given.delta[at];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int key = part.first + 4 * thread_y() + i;
                    bool is_seen = exists && shape.sees(row, key);
                    differentiate(p[i][j], ds[i][j], lse, delta, is_seen, shape);
                }
            }
            add_weighted_rows(dv_sums, p, douts, query, part.column, shared);
            add_weighted_rows(dk_sums, ds, queries, query, part.column, shared);
        }
    }
    float scale = shape.scale;
    store_rows(dk, shape.n_kv_heads, part, d, dk_sums, {scale, scale, scale, scale});
    store_rows(dv, shape.n_kv_heads, part, d, dv_sums, {1, 1, 1, 1});
}

// dq of one tile of 64 queries of one head, over the keys that any of them sees.
template <class E>
DEVICE void backward_queries(
    E* dq, const Given<E>& given, const int32_t* tiles, const AttentionShape& shape
) {
    __shared__ Shared shared;
    Part part(tiles, shape.n_heads, shape.head_dim);
    int kv_head = part.head / (shape.n_heads / shape.n_kv_heads), d = shape.head_dim;
    Rows<E> queries(given.q, shape.n_heads, part.head, d, part.end);
    Rows<E> douts(given.dout, shape.n_heads, part.head, d, part.end);
    Rows<E> keys(given.k, shape.n_kv_heads, kv_head, d, part.end);
    Rows<E> values(given.v, shape.n_kv_heads, kv_head, d, part.end);

    float sums[4][8];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0;
    int first_key = max(part.bound, part.first - shape.window + 1);
    for (int key = first_key; key < part.end; key += SIDE) {
        float p[4][4], ds[4][4];
        form_dots(p, queries, part.first, keys, key, shared);
        form_dots(ds, douts, part.first, values, key, shared);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = part.first + 4 * thread_y() + i;
            bool exists = row < part.end;
            int64_t at = int64_t(exists ? row : part.first) * shape.n_heads;
            // Read again for each tile: to keep them takes registers that are needed elsewhere.
            float lse = given.lse[at + part.head], delta = given.delta[at + part.head];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                bool is_seen = exists && shape.sees(row, key + thread_x() + 16 * j);
                differentiate(p[i][j], ds[i][j], lse, delta, is_seen, shape);
            }
        }
        add_weighted_rows(sums, ds, keys, key, part.column, shared);
    }
    float scale = shape.scale;
    store_rows(dq, shape.n_heads, part, d, sums, {scale, scale, scale, scale});
}

// delta[row] = dout[row] . out[row] for each row of a head: a warp a row.
template <class E>
DEVICE void dot_rows(
    float* delta, const E* dout, const E* out, int64_t n_rows, int head_dim
) {
    int64_t row = int64_t(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= n_rows) return;
    int lane = threadIdx.x % 32;
    float sum = 0;
    for (int column = lane; column < head_dim; column += 32) {
        int64_t at = row * head_dim + column;
        sum += load(dout + at) * load(out + at);
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[row] = sum;
}

}  // namespace
}  // namespace forgelm

using namespace forgelm;

#define KERNELS_OF(NAME, E)                                                             \
    KERNEL(256) void attention_plain_forward_##NAME(                                    \
        E* out, float* lse, const E* q, const E* k, const E* v, const int32_t* tiles,   \
        ATTENTION_SHAPE_ARGUMENTS                                                       \
    ) {                                                                                 \
        forward(out, lse, q, k, v, tiles, ATTENTION_SHAPE);                             \
    }                                                                                   \
    REGISTER(attention_plain_forward_##NAME)                                            \
    KERNEL(256) void attention_plain_backward_dkdv_##NAME(                              \
        E* dk, E* dv, const E* dout, const E* q, const E* k, const E* v,                \
        const float* lse, const float* delta, const int32_t* tiles,                     \
        ATTENTION_SHAPE_ARGUMENTS                                                       \
    ) {                                                                                 \
        Given<E> given{dout, q, k, v, lse, delta};                                      \
        backward_keys(dk, dv, given, tiles, ATTENTION_SHAPE);                           \
    }                                                                                   \
    REGISTER(attention_plain_backward_dkdv_##NAME)                                      \
    KERNEL(256) void attention_plain_backward_dq_##NAME(                                \
        E* dq, const E* dout, const E* q, const E* k, const E* v, const float* lse,     \
        const float* delta, const int32_t* tiles, ATTENTION_SHAPE_ARGUMENTS             \
    ) {                                                                                 \
        Given<E> given{dout, q, k, v, lse, delta};                                      \
        backward_queries(dq, given, tiles, ATTENTION_SHAPE);                            \
    }                                                                                   \
    REGISTER(attention_plain_backward_dq_##NAME)                                        \
    KERNEL(256) void attention_plain_delta_##NAME(                                      \
        float* delta, const E* dout, const E* out, int64_t n_rows, int head_dim         \
    ) {                                                                                 \
        dot_rows(delta, dout, out, n_rows, head_dim);                                   \
    }                                                                                   \
    REGISTER(attention_plain_delta_##NAME)

KERNELS_OF(f32, float)
KERNELS_OF(bf16, bf16)
