// Attention of a few new positions over all that are cached: the work of generating text.
//
// Method: Dao, Haziza, Massa, Sizov 2023, "Flash-Decoding": keys are split over blocks, each block
// leaves its part of the softmax, and a second kernel combines the parts in the order of the keys.
//
// Layout: q and out [n, H * D], k and v [P, H_kv * D]; query i stands at position P - n + i. Row
// i * H + h is query i of head h. Partial results, f32, for each split and row: what is largest of
// the scores, the sum of exp(score - largest), and the weighted sum of values [D].
//
// The time is that of reading k and v once, so a block serves ROWS rows that share a key head, and
// no number of a key or a value passes through shared memory: two threads read a key, and as many
// as a value has vectors read a value. A vector is 16 bytes, or one number where addresses or sizes
// are odd; then a block writes the first 256 columns of a head and others the rest, each with all
// scores.
#include "attention.cuh"

namespace forgelm {
namespace {

constexpr int THREADS = 256;
constexpr int KEYS = 128;  // of a tile
constexpr int ROWS = 8;    // as many as a block has warps
// Weights of a key are read four at a time, and a warp walks down a column of them.
constexpr int WEIGHT_STRIDE = ROWS + 4;

// How the keys are split, as the launch code has chosen from the sizes.
struct Split {
    int n_queries, n_keys;    // n and P
    int first_key;            // that any query sees
    int n_splits, split_len;  // the last split may be shorter
};

template <class E, int N>
DEVICE void load_numbers(const E* p, float (&values)[N]) {
    if constexpr (N == 1)
        values[0] = load(p);
    else
        load_vector(p, values);
}

// One split of up to ROWS rows of one key head. Blocks: pieces of columns within splits within key
// heads within groups of rows.
template <class E, int N>
DEVICE void attend(
    float* partial_out,
    float* partial_largest,
    float* partial_sum,
    const E* q,
    const E* k,
    const E* v,
    const Split& split,
    const AttentionShape& shape
) {
    __align__(16) __shared__ float weights[KEYS * WEIGHT_STRIDE];  // scores first
    __shared__ float largest[ROWS], sum[ROWS], correction[ROWS];
    __shared__ float columns[THREADS * N];  // of one row, a part for each group of threads
    SHARED(float, queries);                 // [ROWS, D]

    int d = shape.head_dim;
    int n_vectors = d / N;
    int n_pieces = (n_vectors + THREADS - 1) / THREADS;
    int index = blockIdx.x;
    int piece = index % n_pieces;
    index /= n_pieces;
    int split_index = index % split.n_splits;
    index /= split.n_splits;
    int kv_head = index % shape.n_kv_heads;
    int group = shape.n_heads / shape.n_kv_heads;
    int first_row = index / shape.n_kv_heads * ROWS;  // of the rows of this key head
    int n_rows = min(ROWS, split.n_queries * group - first_row);

    int key_begin = split.first_key + split_index * split.split_len;
    int key_end = min(key_begin + split.split_len, split.n_keys);
    int64_t kv_length = int64_t(shape.n_kv_heads) * d;
    k += int64_t(kv_head) * d;
    v += int64_t(kv_head) * d;
    auto row_of = [&](int r) {
        int query = (first_row + r) / group, head = kv_head * group + (first_row + r) % group;
        return int64_t(query) * shape.n_heads + head;
    };

    for (int i = threadIdx.x; i < ROWS * d; i += THREADS) {
        int r = i / d;
        queries[i] = r < n_rows ? load(q + row_of(r) * d + i % d) : 0;
    }
    if (threadIdx.x < ROWS) {
        largest[threadIdx.x] = -infinity();
        sum[threadIdx.x] = 0;
    }
    __syncthreads();

    // Threads of a group own a vector each, the groups take turns with the keys.
    int piece_vectors = min(n_vectors - piece * THREADS, THREADS);
    int n_groups = THREADS / piece_vectors;
    int vector = piece * THREADS + threadIdx.x % piece_vectors;
    int group_index = threadIdx.x / piece_vectors;
    bool has_vector = group_index < n_groups;
    float out[ROWS][N];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < N; i++) out[r][i] = 0;

    for (int tile = key_begin; tile < key_end; tile += KEYS) {
        int key = tile + threadIdx.x / 2, half = threadIdx.x % 2;
        float dots[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) dots[r] = 0;
        if (key < key_end) {
            const E* numbers = k + key * kv_length;
            for (int at = half * N; at < d; at += 2 * N) {
                float values[N];
                load_numbers(numbers + at, values);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int i = 0; i < N; i++) dots[r] += queries[r * d + at + i] * values[i];
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float dot = dots[r] + __shfl_xor_sync(ALL_LANES, dots[r], 1);
            // Each of the two threads finishes half of the rows.
            if (r / (ROWS / 2) != half) continue;
            int position = split.n_keys - split.n_queries + (first_row + r) / group;
            float score = dot * shape.scale;
            if (shape.soft_cap > 0) score = shape.soft_cap * tanhf(score / shape.soft_cap);
            bool is_seen = key < key_end && shape.sees(position, key);
            weights[threadIdx.x / 2 * WEIGHT_STRIDE + r] = is_seen ? score : -infinity();
        }
        __syncthreads();

        // A warp a row.
        int row = warp_index();
        float before = largest[row], now = before;
        for (int i = lane_index(); i < KEYS; i += WARP) {
            now = fmaxf(now, weights[i * WEIGHT_STRIDE + row]);
        }
        now = warp_max(now);
        // A row may have seen nothing yet: -inf - -inf would be no number.
        float base = now == -infinity() ? 0 : now, tile_sum = 0;
        for (int i = lane_index(); i < KEYS; i += WARP) {
            float weight = expf(weights[i * WEIGHT_STRIDE + row] - base);
            weights[i * WEIGHT_STRIDE + row] = weight;
            tile_sum += weight;
        }
        tile_sum = warp_sum(tile_sum);
        if (lane_index() == 0) {
            correction[row] = expf(before - base);
            sum[row] = sum[row] * correction[row] + tile_sum;
            largest[row] = now;
        }
        __syncthreads();

#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < N; i++) out[r][i] *= correction[r];
        if (has_vector) {
            int n_keys = min(KEYS, key_end - tile);
#pragma unroll 1
            for (int i = group_index; i < n_keys; i += n_groups) {
                float values[N];
                load_numbers(v + (tile + i) * kv_length + int64_t(vector) * N, values);
                float row_weights[ROWS];
                load_vector(weights + i * WEIGHT_STRIDE, row_weights);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int j = 0; j < N; j++) out[r][j] += row_weights[r] * values[j];
            }
        }
        __syncthreads();
    }

    // Adds up the groups, a row at a time.
    int64_t all_rows = int64_t(split.n_queries) * shape.n_heads;
    int width = piece_vectors * N;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (has_vector) {
#pragma unroll
            for (int i = 0; i < N; i++) columns[threadIdx.x * N + i] = out[r][i];
        }
        __syncthreads();
        if (r < n_rows) {
            int64_t at = split_index * all_rows + row_of(r);
            for (int column = threadIdx.x; column < width; column += THREADS) {
                float total = 0;
                for (int g = 0; g < n_groups; g++) total += columns[g * width + column];
                partial_out[at * d + piece * THREADS * N + column] = total;
            }
            if (piece == 0 && threadIdx.x == 0) {
                partial_largest[at] = largest[r];
                partial_sum[at] = sum[r];
            }
        }
        __syncthreads();
    }
}

// One row from its parts: a block a row. `n_splits` floats of shared memory.
template <class E>
DEVICE void combine(
    E* out,
    const float* partial_out,
    const float* partial_largest,
    const float* partial_sum,
    int n_splits,
    int head_dim
) {
    SHARED(float, weights);
    int64_t row = blockIdx.x, n_rows = gridDim.x;
    float largest = -infinity();
    for (int i = 0; i < n_splits; i++) {
        largest = fmaxf(largest, partial_largest[i * n_rows + row]);
    }
    for (int i = threadIdx.x; i < n_splits; i += blockDim.x) {
        weights[i] = expf(partial_largest[i * n_rows + row] - largest);
    }
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < n_splits; i++) sum += weights[i] * partial_sum[i * n_rows + row];
    for (int column = threadIdx.x; column < head_dim; column += blockDim.x) {
        float total = 0;
        for (int i = 0; i < n_splits; i++) {
            total += weights[i] * partial_out[(i * n_rows + row) * head_dim + column];
        }
        store(out + row * head_dim + column, total / sum);
    }
}

}  // namespace
}  // namespace forgelm

using namespace forgelm;

#define ATTEND(NAME, E, N)                                                              \
    KERNEL(256) void attention_cached_##NAME(                                           \
        float* partial_out, float* partial_largest, float* partial_sum, const E* q,     \
        const E* k, const E* v, int n_queries, int n_keys, int first_key, int n_splits, \
        int split_len, ATTENTION_SHAPE_ARGUMENTS                                        \
    ) {                                                                                 \
        Split split{n_queries, n_keys, first_key, n_splits, split_len};                 \
        attend<E, N>(                                                                   \
            partial_out, partial_largest, partial_sum, q, k, v, split, ATTENTION_SHAPE  \
        );                                                                              \
    }                                                                                   \
    REGISTER(attention_cached_##NAME)

ATTEND(f32, float, 1)
ATTEND(f32_vec, float, 4)
ATTEND(bf16, bf16, 1)
ATTEND(bf16_vec, bf16, 8)

#define COMBINE(NAME, E)                                                                \
    KERNEL(128) void attention_cached_combine_##NAME(                                   \
        E* out, const float* partial_out, const float* partial_largest,                 \
        const float* partial_sum, int n_splits, int head_dim                            \
    ) {                                                                                 \
        combine(out, partial_out, partial_largest, partial_sum, n_splits, head_dim);    \
    }                                                                                   \
    REGISTER(attention_cached_combine_##NAME)

COMBINE(f32, float)
COMBINE(bf16, bf16)
