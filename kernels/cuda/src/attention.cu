// Causal attention within segments on tensor cores: of bfloat16, all sums f32.
//
// Papers: Dao 2023, arXiv:2307.08691 (blocks with a running maximum, and the gradient from `lse`);
// Ainslie et al. 2023 (grouped heads).
//
// Layout: q, out and their gradients [T, H * D], k and v [T, H_kv * D], lse and delta [T, H] f32.
// Results may be stored as f32 too. D is a multiple of 8 and at most WIDTH, the columns of a tile
// in shared memory; columns from D on are zero there. Addresses are 16-byte aligned. What does not
// fit this is done by attention_plain.cu.
//
// Four warps a block. A warp owns rows of the tile whose results the block writes and keeps their
// sums in registers; the other factor passes by in shared memory. Scores become the left factor of
// the second product without leaving the registers, because the layout of an accumulator of
// mma.m16n8k16 is that of its left factor.
//
// Nothing is added across blocks. Backward therefore walks twice: once a tile of keys, which adds
// up dk and dv over all queries (of all heads of the group) that see it, and once a tile of
// queries, which adds up dq. That costs seven products where one walk with atomic additions to dq
// costs five, and gives the same bits every time.
#include "attention.cuh"

namespace forgelm {
namespace {

constexpr int THREADS = 128;

// Columns from one row of a tile to the next. Eight more than are used, so that the eight rows
// that one ldmatrix reads fall on different banks.
template <int WIDTH>
constexpr int STRIDE = WIDTH + 8;

// How products of queries and keys become scores, in units whose exp2 is the exp of the score:
// `factor` times the product, and `cap` times the tanh of that where there is a cap.
struct Scoring {
    float factor, cap;

    DEVICE explicit Scoring(const AttentionShape& shape)
        : factor(shape.soft_cap > 0 ? shape.scale / shape.soft_cap : shape.scale * LOG2_E),
          cap(shape.soft_cap * LOG2_E) {}

    DEVICE bool has_cap() const { return cap > 0; }

    // 1 - 2 / (e^2x + 1): off by about 1e-7, which is nothing beside bfloat16 factors.
    DEVICE static float tanh(float x) {
        return 1 - 2 * reciprocal_approx(exp2_approx(x * (2 * LOG2_E)) + 1);
    }
};

// Calls `visit` with the indices of all numbers of a tile of accumulators. What `visit` does is
// unrolled, so a condition that all share belongs around the call.
template <int ROW_TILES, int N, class Visit>
DEVICE void for_each(Visit visit) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) visit(m, n, i);
}

// Row and column of an accumulator in its tile.
DEVICE int row_in_tile(int m, int i) { return m * 16 + i / 2 * 8 + lane_index() / 4; }
DEVICE int column_in_tile(int n, int i) { return n * 8 + lane_index() % 4 * 2 + i % 2; }

// Starts copying rows [first, first + ROWS) of a head to a tile; rows from `end` on become zero.
template <int WIDTH, int ROWS>
DEVICE void load_rows(
    bf16* tile, const bf16* head, int row_length, int first, int end, int head_dim
) {
    constexpr int CHUNKS = WIDTH / 8;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        bool exists = first + row < end && column < head_dim;
        const bf16* from = exists ? head + int64_t(first + row) * row_length + column : head;
        cp_async_16(tile + row * STRIDE<WIDTH> + column, from, exists);
    }
}

// The 16 x 16 numbers at `corner` as a left factor.
template <int WIDTH>
DEVICE void load_left(uint32_t (&fragment)[4], const bf16* corner) {
    int lane = lane_index();
    ldmatrix_x4<false>(fragment, corner + lane % 16 * STRIDE<WIDTH> + lane / 16 * 8);
}

// sums[i][j] += left row i . right row j, over all columns of the tiles.
//
// `left` is the first of 16 * ROW_TILES rows of this warp, `right` the first of 8 * N rows.
template <int WIDTH, int ROW_TILES, int N>
DEVICE void add_dots(
    float (&sums)[ROW_TILES][N][4], const bf16* left, const bf16* right
) {
    int lane = lane_index();
    // Matrices 0 and 1 are the halves of the columns of eight rows, 2 and 3 of the next eight.
    right += (lane / 16 * 8 + lane % 8) * STRIDE<WIDTH> + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < WIDTH; k += 16) {
        uint32_t a[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
            load_left<WIDTH>(a[m], left + m * 16 * STRIDE<WIDTH> + k);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix_x4<false>(b, right + n * 8 * STRIDE<WIDTH> + k);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                mma_16816(sums[m][n], a[m], {b[0], b[1]});
                mma_16816(sums[m][n + 1], a[m], {b[2], b[3]});
            }
        }
    }
}

// Accumulators as a left factor, rounded to bfloat16.
template <int ROW_TILES, int N>
DEVICE void pack_left(
    uint32_t (&fragments)[ROW_TILES][N / 2][4], const float (&sums)[ROW_TILES][N][4]
) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int k = 0; k < N / 2; k++) {
            fragments[m][k][0] = pack_bf16(sums[m][2 * k][0], sums[m][2 * k][1]);
            fragments[m][k][1] = pack_bf16(sums[m][2 * k][2], sums[m][2 * k][3]);
            fragments[m][k][2] = pack_bf16(sums[m][2 * k + 1][0], sums[m][2 * k + 1][1]);
            fragments[m][k][3] = pack_bf16(sums[m][2 * k + 1][2], sums[m][2 * k + 1][3]);
        }
}

// sums[i] += sum_j weights[i][j] * (row j of the tile), over 16 * N rows.
template <int WIDTH, int ROW_TILES, int N>
DEVICE void add_weighted_rows(
    float (&sums)[ROW_TILES][WIDTH / 8][4],
    const uint32_t (&weights)[ROW_TILES][N][4],
    const bf16* rows
) {
    int lane = lane_index();
    rows += lane % 16 * STRIDE<WIDTH> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < N; k++)
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4<true>(b, rows + k * 16 * STRIDE<WIDTH> + n * 8);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                mma_16816(sums[m][n], weights[m][k], {b[0], b[1]});
                mma_16816(sums[m][n + 1], weights[m][k], {b[2], b[3]});
            }
        }
}

template <int A, int B, int C>
DEVICE void set_zero(float (&sums)[A][B][C]) {
#pragma unroll
    for (int a = 0; a < A; a++)
#pragma unroll
        for (int b = 0; b < B; b++)
#pragma unroll
            for (int c = 0; c < C; c++) sums[a][b][c] = 0;
}

// A matrix of heads that a kernel writes: bfloat16, or f32 where that is how it is stored.
struct Result {
    void* numbers;
    int is_f32;
};

// Writes the rows of this warp, `factors[m][half]` times the sums, to rows [first, end) of a head.
//
// In bfloat16 they pass through `staging`, rows of a tile that no other warp reads, so that a store
// takes 16 bytes of each of 32 lanes.
template <int WIDTH, int ROW_TILES>
DEVICE void store_rows(
    const Result& result,
    int n_heads,
    int head,
    int first,
    int end,
    int head_dim,
    const float (&sums)[ROW_TILES][WIDTH / 8][4],
    const float (&factors)[ROW_TILES][2],
    bf16* staging
) {
    constexpr int CHUNKS = WIDTH / 8;
    int lane = lane_index(), row_length = n_heads * head_dim;
    if (result.is_f32) {
        float* to = static_cast<float*>(result.numbers) + head * head_dim;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < CHUNKS; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int64_t row = first + row_in_tile(m, i);
                    int column = column_in_tile(n, i);
                    if (row >= end || column >= head_dim) continue;
                    to[row * row_length + column] = sums[m][n][i] * factors[m][i / 2];
                }
        return;
    }
    __syncwarp();
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int n = 0; n < CHUNKS; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                bf16* to = staging + row_in_tile(m, i) * STRIDE<WIDTH> + column_in_tile(n, i);
                float factor = factors[m][i / 2];
                uint32_t pair = pack_bf16(sums[m][n][i] * factor, sums[m][n][i + 1] * factor);
                *reinterpret_cast<uint32_t*>(to) = pair;
            }
    __syncwarp();
    bf16* to = static_cast<bf16*>(result.numbers) + head * head_dim;
    for (int i = lane; i < ROW_TILES * 16 * CHUNKS; i += WARP) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        if (first + row < end && column < head_dim) {
            int64_t at = int64_t(first + row) * row_length + column;
            store_16(to + at, load_16(staging + row * STRIDE<WIDTH> + column));
        }
    }
}

// The softmax of rows whose scores arrive a few keys at a time.
template <int ROW_TILES>
struct RunningSoftmax {
    float largest[ROW_TILES][2];  // of the scores so far, in units of log2
    float sum[ROW_TILES][2];      // of exp2(score - largest), of the columns of this lane

    DEVICE RunningSoftmax() {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                largest[m][half] = -infinity();
                sum[m][half] = 0;
            }
    }

    // Turns scores to exp2(score - largest) and brings `out` to the new largest.
    template <int N, int COLUMNS>
    DEVICE void add(
        float (&scores)[ROW_TILES][N][4], float (&out)[ROW_TILES][COLUMNS][4]
    ) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float before = largest[m][half], now = before;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    float pair = fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]);
                    now = fmaxf(now, pair);
                }
                // A row lies in the four lanes of a quad.
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
                largest[m][half] = now;
                // A row may have seen nothing yet: -inf - -inf would be no number.
                float base = now == -infinity() ? 0 : now;
                // After the first tiles the largest of a row seldom changes.
                if (__any_sync(ALL_LANES, now != before)) {
                    float correction = exp2_approx(before - base);
                    sum[m][half] *= correction;
#pragma unroll
                    for (int n = 0; n < COLUMNS; n++) {
                        out[m][n][2 * half] *= correction;
                        out[m][n][2 * half + 1] *= correction;
                    }
                }
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        scores[m][n][i] = exp2_approx(scores[m][n][i] - base);
                        sum[m][half] += scores[m][n][i];
                    }
            }
    }

    // Adds up the sums of the lanes of a row.
    DEVICE void finish() {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                sum[m][half] += __shfl_xor_sync(ALL_LANES, sum[m][half], 1);
                sum[m][half] += __shfl_xor_sync(ALL_LANES, sum[m][half], 2);
            }
    }
};

// Products to scores; those of keys that a query does not see to -inf.
//
// `position` is that of the first of the rows of this warp, `key` the first of the columns.
template <int ROW_TILES, int N>
DEVICE void score_and_mask(
    float (&scores)[ROW_TILES][N][4],
    int position,
    int key,
    const AttentionShape& shape,
    const Scoring& scoring
) {
    for_each<ROW_TILES, N>([&](int m, int n, int i) { scores[m][n][i] *= scoring.factor; });
    if (scoring.has_cap()) {
        for_each<ROW_TILES, N>([&](int m, int n, int i) {
            scores[m][n][i] = scoring.cap * Scoring::tanh(scores[m][n][i]);
        });
    }
    int last_position = position + ROW_TILES * 16 - 1, last_key = key + N * 8 - 1;
    if (shape.sees(position, last_key) && shape.sees(last_position, key)) return;
    for_each<ROW_TILES, N>([&](int m, int n, int i) {
        bool is_seen = shape.sees(position + row_in_tile(m, i), key + column_in_tile(n, i));
        if (!is_seen) scores[m][n][i] = -infinity();
    });
}

// One tile of 64 * ROW_TILES queries of one head.
template <int WIDTH, int ROW_TILES>
DEVICE void forward(
    const Result& out,
    float* lse,
    const bf16* q,
    const bf16* k,
    const bf16* v,
    const int32_t* tiles,
    const AttentionShape& shape
) {
    constexpr int KEYS = 64, WARP_ROWS = 16 * ROW_TILES, ROWS = 4 * WARP_ROWS;
    SHARED(char, shared);
    bf16* q_tile = reinterpret_cast<bf16*>(shared);
    bf16* k_tile = q_tile + ROWS * STRIDE<WIDTH>;
    bf16* v_tile = k_tile + KEYS * STRIDE<WIDTH>;

    // Heads of one group are neighbors: they read the same keys at about the same time.
    int head = blockIdx.x % shape.n_heads;
    int kv_head = head / (shape.n_heads / shape.n_kv_heads);
    AttentionTile tile(tiles, blockIdx.x / shape.n_heads);
    int d = shape.head_dim;
    int q_length = shape.n_heads * d, kv_length = shape.n_kv_heads * d;
    k += kv_head * d;
    v += kv_head * d;

    int key_end = tile.end + tile.diagonal;
    int first_key = max(tile.bound, tile.first + tile.diagonal - shape.window + 1);
    bf16* warp_q = q_tile + warp_index() * WARP_ROWS * STRIDE<WIDTH>;
    int first_row = tile.first + warp_index() * WARP_ROWS;
    int position = first_row + tile.diagonal;
    Scoring scoring(shape);

    load_rows<WIDTH, ROWS>(q_tile, q + head * d, q_length, tile.first, tile.end, d);
    load_rows<WIDTH, KEYS>(k_tile, k, kv_length, first_key, key_end, d);
    cp_async_commit();

    RunningSoftmax<ROW_TILES> softmax;
    float sums[ROW_TILES][WIDTH / 8][4];
    set_zero(sums);
    for (int key = first_key; key < key_end; key += KEYS) {
        // The keys have landed, and every warp is done with the values before.
        cp_async_wait<0>();
        __syncthreads();
        load_rows<WIDTH, KEYS>(v_tile, v, kv_length, key, key_end, d);
        cp_async_commit();

        bool sees_any = key < position + WARP_ROWS && key + KEYS > position - shape.window + 1;
        uint32_t weights[ROW_TILES][KEYS / 16][4];
        if (sees_any) {
            float scores[ROW_TILES][KEYS / 8][4];
            set_zero(scores);
            add_dots<WIDTH>(scores, warp_q, k_tile);
            score_and_mask(scores, position, key, shape, scoring);
            softmax.add(scores, sums);
            pack_left(weights, scores);
        }

        // The values have landed, and every warp is done with the keys.
        cp_async_wait<0>();
        __syncthreads();
        if (key + KEYS < key_end) {
            load_rows<WIDTH, KEYS>(k_tile, k, kv_length, key + KEYS, key_end, d);
            cp_async_commit();
        }
        if (sees_any) add_weighted_rows<WIDTH>(sums, weights, v_tile);
    }

    softmax.finish();
    float inverse[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            inverse[m][half] = 1 / softmax.sum[m][half];
            int row = first_row + m * 16 + half * 8 + lane_index() / 4;
            if (lse != nullptr && lane_index() % 4 == 0 && row < tile.end) {
                float log_sum = softmax.largest[m][half] * LN_2 + logf(softmax.sum[m][half]);
                lse[int64_t(row) * shape.n_heads + head] = log_sum;
            }
        }
    store_rows<WIDTH>(out, shape.n_heads, head, first_row, tile.end, d, sums, inverse, warp_q);
}

// What backward reads.
struct Given {
    const bf16 *dout, *q, *k, *v;
    const float *lse, *delta;
};

// lse in units of log2 and delta of a query. A row that does not exist gets lse = inf, so that all
// its probabilities are 0.
DEVICE float2 row_constants(const Given& given, int row, int end, int head, int n_heads) {
    if (row >= end) return make_float2(infinity(), 0);
    int64_t at = int64_t(row) * n_heads + head;
    return make_float2(given.lse[at] * LOG2_E, given.delta[at]);
}

// Turns products to probabilities `p`, and products of `dout` and values to gradients `ds` of the
// scaled products of queries and keys.
//
// `constants(m, n, i)` are the [`row_constants`] of the query of an accumulator; `is_seen(m, n, i)`
// says whether it sees the key, which is asked only if not all do.
template <int ROW_TILES, int N, class Constants, class IsSeen>
DEVICE void differentiate(
    float (&p)[ROW_TILES][N][4],
    float (&ds)[ROW_TILES][N][4],
    const Scoring& scoring,
    Constants constants,
    bool all_are_seen,
    IsSeen is_seen
) {
    for_each<ROW_TILES, N>([&](int m, int n, int i) { ds[m][n][i] -= constants(m, n, i).y; });
    float factor = scoring.factor;
    if (scoring.has_cap()) {
        for_each<ROW_TILES, N>([&](int m, int n, int i) {
            float tanh = Scoring::tanh(p[m][n][i] * factor);
            p[m][n][i] = scoring.cap * tanh;
            ds[m][n][i] *= 1 - tanh * tanh;
        });
        factor = 1;
    }
    for_each<ROW_TILES, N>([&](int m, int n, int i) {
        p[m][n][i] = exp2_approx(p[m][n][i] * factor - constants(m, n, i).x);
        ds[m][n][i] *= p[m][n][i];
    });
    if (all_are_seen) return;
    for_each<ROW_TILES, N>([&](int m, int n, int i) {
        if (!is_seen(m, n, i)) p[m][n][i] = ds[m][n][i] = 0;
    });
}

// dk and dv of one tile of 64 * KEY_TILES keys: over all heads of the group in order, all tiles of
// QUERIES queries that see any of them. A warp owns keys and forms scores with keys as rows.
template <int WIDTH, int KEY_TILES, int QUERIES, bool WANT_DK, bool WANT_DV>
DEVICE void backward_keys(
    const Result& dk,
    const Result& dv,
    const Given& given,
    const int32_t* tiles,
    const AttentionShape& shape
) {
    constexpr int WARP_KEYS = 16 * KEY_TILES, KEYS = 4 * WARP_KEYS;
    constexpr int QUERY_TILE = QUERIES * STRIDE<WIDTH>;
    SHARED(char, shared);
    bf16* k_tile = reinterpret_cast<bf16*>(shared);
    bf16* v_tile = k_tile + KEYS * STRIDE<WIDTH>;
    // Two of each: one is read while the other fills.
    bf16* q_tiles = WANT_DK ? v_tile + KEYS * STRIDE<WIDTH> : v_tile;
    bf16* dout_tiles = q_tiles + 2 * QUERY_TILE;

    int kv_head = blockIdx.x % shape.n_kv_heads;
    int group = shape.n_heads / shape.n_kv_heads;
    AttentionTile tile(tiles, blockIdx.x / shape.n_kv_heads);
    int segment_end = tile.bound;
    int d = shape.head_dim;
    int q_length = shape.n_heads * d, kv_length = shape.n_kv_heads * d;
    int query_end = min(segment_end, tile.end - 1 + shape.window);
    int first_key = tile.first + warp_index() * WARP_KEYS;
    int tile_row = warp_index() * WARP_KEYS * STRIDE<WIDTH>;
    Scoring scoring(shape);

    auto load_queries = [&](int buffer, int head, int query) {
        const bf16* q = given.q + head * d;
        const bf16* dout = given.dout + head * d;
        bf16* to = q_tiles + buffer * QUERY_TILE;
        load_rows<WIDTH, QUERIES>(to, q, q_length, query, query_end, d);
        to = dout_tiles + buffer * QUERY_TILE;
        load_rows<WIDTH, QUERIES>(to, dout, q_length, query, query_end, d);
    };
    // The constants of a query lie in the unused columns behind it.
    auto constants_of = [&](int buffer, int query) {
        bf16* row = q_tiles + buffer * QUERY_TILE + query * STRIDE<WIDTH>;
        return reinterpret_cast<float2*>(row + WIDTH);
    };

    int head = kv_head * group, query = tile.first, buffer = 0;
    load_rows<WIDTH, KEYS>(k_tile, given.k + kv_head * d, kv_length, tile.first, tile.end, d);
    if (WANT_DK) {
        load_rows<WIDTH, KEYS>(v_tile, given.v + kv_head * d, kv_length, tile.first, tile.end, d);
    }
    load_queries(0, head, query);
    cp_async_commit();
    if (threadIdx.x < QUERIES) {
        int row = query + threadIdx.x;
        *constants_of(0, threadIdx.x) = row_constants(given, row, query_end, head, shape.n_heads);
    }

    float dk_sums[WANT_DK ? KEY_TILES : 1][WIDTH / 8][4];
    float dv_sums[WANT_DV ? KEY_TILES : 1][WIDTH / 8][4];
    set_zero(dk_sums);
    set_zero(dv_sums);
    while (head < (kv_head + 1) * group) {
        // What was asked for has landed, and every warp is done with the other buffer.
        cp_async_wait<0>();
        __syncthreads();
        int next_head = head, next_query = query + QUERIES;
        if (next_query >= query_end) {
            next_head = head + 1;
            next_query = tile.first;
        }
        bool has_next = next_head < (kv_head + 1) * group;
        float2 next_constants = make_float2(0, 0);
        if (has_next) {
            load_queries(1 - buffer, next_head, next_query);
            cp_async_commit();
            if (threadIdx.x < QUERIES) {
                int row = next_query + threadIdx.x;
                next_constants = row_constants(given, row, query_end, next_head, shape.n_heads);
            }
        }

        bool is_seen = query + QUERIES > first_key
            && query < first_key + WARP_KEYS - 1 + shape.window;
        if (is_seen) {
            const bf16* q_tile = q_tiles + buffer * QUERY_TILE;
            const bf16* dout_tile = dout_tiles + buffer * QUERY_TILE;
            // Scores, which become probabilities, and the gradient of the probabilities, which
            // becomes that of the scores.
            float p[KEY_TILES][QUERIES / 8][4];
            // (Where only dv is wanted they are 0 and cost nothing.)
            float ds[KEY_TILES][QUERIES / 8][4];
            set_zero(p);
            set_zero(ds);
            add_dots<WIDTH>(p, k_tile + tile_row, q_tile);
            if constexpr (WANT_DK) add_dots<WIDTH>(ds, v_tile + tile_row, dout_tile);
            bool all_are_seen = shape.sees(query, first_key + WARP_KEYS - 1)
                && shape.sees(query + QUERIES - 1, first_key);
            auto constants = [&](int, int n, int i) {
                return *constants_of(buffer, column_in_tile(n, i));
            };
            differentiate(p, ds, scoring, constants, all_are_seen, [&](int m, int n, int i) {
                return shape.sees(query + column_in_tile(n, i), first_key + row_in_tile(m, i));
            });
            uint32_t weights[KEY_TILES][QUERIES / 16][4];
            if constexpr (WANT_DV) {
                pack_left(weights, p);
                add_weighted_rows<WIDTH>(dv_sums, weights, dout_tile);
            }
            if constexpr (WANT_DK) {
                pack_left(weights, ds);
                add_weighted_rows<WIDTH>(dk_sums, weights, q_tile);
            }
        }
        if (has_next && threadIdx.x < QUERIES) {
            *constants_of(1 - buffer, threadIdx.x) = next_constants;
        }
        head = next_head;
        query = next_query;
        buffer = 1 - buffer;
    }

    float scales[KEY_TILES][2], ones[KEY_TILES][2];
#pragma unroll
    for (int m = 0; m < KEY_TILES; m++) {
        scales[m][0] = scales[m][1] = shape.scale;
        ones[m][0] = ones[m][1] = 1;
    }
    int n = shape.n_kv_heads;
    bf16* staging = k_tile + tile_row;
    if constexpr (WANT_DK) {
        store_rows<WIDTH>(dk, n, kv_head, first_key, tile.end, d, dk_sums, scales, staging);
    }
    if constexpr (WANT_DV) {
        store_rows<WIDTH>(dv, n, kv_head, first_key, tile.end, d, dv_sums, ones, staging);
    }
}

// dq of one tile of 64 * ROW_TILES queries of one head, over the keys that any of them sees.
template <int WIDTH, int ROW_TILES, int KEYS>
DEVICE void backward_queries(
    const Result& dq, const Given& given, const int32_t* tiles, const AttentionShape& shape
) {
    constexpr int WARP_ROWS = 16 * ROW_TILES, ROWS = 4 * WARP_ROWS;
    constexpr int KEY_TILE = KEYS * STRIDE<WIDTH>;
    SHARED(char, shared);
    bf16* q_tile = reinterpret_cast<bf16*>(shared);
    bf16* dout_tile = q_tile + ROWS * STRIDE<WIDTH>;
    bf16* k_tiles = dout_tile + ROWS * STRIDE<WIDTH>;
    bf16* v_tiles = k_tiles + 2 * KEY_TILE;

    int head = blockIdx.x % shape.n_heads;
    int kv_head = head / (shape.n_heads / shape.n_kv_heads);
    AttentionTile tile(tiles, blockIdx.x / shape.n_heads);
    int d = shape.head_dim, lane = lane_index();
    int q_length = shape.n_heads * d, kv_length = shape.n_kv_heads * d;
    int first_key = max(tile.bound, tile.first - shape.window + 1);
    int first_row = tile.first + warp_index() * WARP_ROWS;
    int tile_row = warp_index() * WARP_ROWS * STRIDE<WIDTH>;
    Scoring scoring(shape);

    auto load_keys = [&](int buffer, int key) {
        const bf16* k = given.k + kv_head * d;
        const bf16* v = given.v + kv_head * d;
        load_rows<WIDTH, KEYS>(k_tiles + buffer * KEY_TILE, k, kv_length, key, tile.end, d);
        load_rows<WIDTH, KEYS>(v_tiles + buffer * KEY_TILE, v, kv_length, key, tile.end, d);
    };
    load_rows<WIDTH, ROWS>(q_tile, given.q + head * d, q_length, tile.first, tile.end, d);
    load_rows<WIDTH, ROWS>(dout_tile, given.dout + head * d, q_length, tile.first, tile.end, d);
    load_keys(0, first_key);
    cp_async_commit();
    float2 constants[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row + m * 16 + half * 8 + lane / 4;
            constants[m][half] = row_constants(given, row, tile.end, head, shape.n_heads);
        }

    float sums[ROW_TILES][WIDTH / 8][4];
    set_zero(sums);
    int buffer = 0;
    for (int key = first_key; key < tile.end; key += KEYS) {
        cp_async_wait<0>();
        __syncthreads();
        if (key + KEYS < tile.end) {
            load_keys(1 - buffer, key + KEYS);
            cp_async_commit();
        }
        bool sees_any = key < first_row + WARP_ROWS && key + KEYS > first_row - shape.window + 1;
        if (sees_any) {
            const bf16* k_tile = k_tiles + buffer * KEY_TILE;
            float p[ROW_TILES][KEYS / 8][4], ds[ROW_TILES][KEYS / 8][4];
            set_zero(p);
            set_zero(ds);
            add_dots<WIDTH>(p, q_tile + tile_row, k_tile);
            add_dots<WIDTH>(ds, dout_tile + tile_row, v_tiles + buffer * KEY_TILE);
            bool all_are_seen = shape.sees(first_row, key + KEYS - 1)
                && shape.sees(first_row + WARP_ROWS - 1, key);
            auto row = [&](int m, int, int i) { return constants[m][i / 2]; };
            differentiate(p, ds, scoring, row, all_are_seen, [&](int m, int n, int i) {
                return shape.sees(first_row + row_in_tile(m, i), key + column_in_tile(n, i));
            });
            uint32_t weights[ROW_TILES][KEYS / 16][4];
            pack_left(weights, ds);
            add_weighted_rows<WIDTH>(sums, weights, k_tile);
        }
        buffer = 1 - buffer;
    }

    float scales[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) scales[m][0] = scales[m][1] = shape.scale;
    bf16* staging = q_tile + tile_row;
    store_rows<WIDTH>(dq, shape.n_heads, head, first_row, tile.end, d, sums, scales, staging);
}

}  // namespace
}  // namespace forgelm

using namespace forgelm;

// Widths of tiles, and for each how many rows a warp owns and how many pass by at a time: as many
// as fit the registers (255 a thread, nothing spilled) and 99 KiB of shared memory, which every
// device since sm_80 gives a block. `attention.rs` has the same numbers in its list of variants.

#define FORWARD(WIDTH, ROW_TILES)                                                       \
    KERNEL(128) void attention_forward_bf16_##WIDTH(                                    \
        void* out, int is_f32, float* lse, const bf16* q, const bf16* k, const bf16* v, \
        const int32_t* tiles, ATTENTION_SHAPE_ARGUMENTS                                 \
    ) {                                                                                 \
        Result result{out, is_f32};                                                     \
        forward<WIDTH, ROW_TILES>(result, lse, q, k, v, tiles, ATTENTION_SHAPE);        \
    }                                                                                   \
    REGISTER(attention_forward_bf16_##WIDTH)

FORWARD(64, 2)
FORWARD(96, 2)
FORWARD(128, 2)
FORWARD(192, 1)
FORWARD(256, 1)

#define BACKWARD_KEYS(NAME, WIDTH, KEY_TILES, QUERIES, WANT_DK, WANT_DV)                \
    KERNEL(128) void attention_backward_##NAME##_bf16_##WIDTH(                          \
        void* dk, void* dv, int is_f32, const bf16* dout, const bf16* q, const bf16* k, \
        const bf16* v, const float* lse, const float* delta, const int32_t* tiles,      \
        ATTENTION_SHAPE_ARGUMENTS                                                       \
    ) {                                                                                 \
        Given given{dout, q, k, v, lse, delta};                                         \
        backward_keys<WIDTH, KEY_TILES, QUERIES, WANT_DK, WANT_DV>(                     \
            Result{dk, is_f32}, Result{dv, is_f32}, given, tiles, ATTENTION_SHAPE       \
        );                                                                              \
    }                                                                                   \
    REGISTER(attention_backward_##NAME##_bf16_##WIDTH)

BACKWARD_KEYS(dkdv, 64, 2, 32, true, true)
BACKWARD_KEYS(dkdv, 96, 1, 32, true, true)
BACKWARD_KEYS(dkdv, 128, 1, 32, true, true)
BACKWARD_KEYS(dkdv, 192, 1, 16, true, true)
// The sums of both do not fit the registers of four warps.
BACKWARD_KEYS(dk, 256, 1, 16, true, false)
BACKWARD_KEYS(dv, 256, 1, 16, false, true)

#define BACKWARD_QUERIES(WIDTH, ROW_TILES, KEYS)                                        \
    KERNEL(128) void attention_backward_dq_bf16_##WIDTH(                                \
        void* dq, int is_f32, const bf16* dout, const bf16* q, const bf16* k,           \
        const bf16* v, const float* lse, const float* delta, const int32_t* tiles,      \
        ATTENTION_SHAPE_ARGUMENTS                                                       \
    ) {                                                                                 \
        Given given{dout, q, k, v, lse, delta};                                         \
        Result result{dq, is_f32};                                                      \
        backward_queries<WIDTH, ROW_TILES, KEYS>(                                       \
            result, given, tiles, ATTENTION_SHAPE                                       \
        );                                                                              \
    }                                                                                   \
    REGISTER(attention_backward_dq_bf16_##WIDTH)

BACKWARD_QUERIES(64, 2, 32)
BACKWARD_QUERIES(96, 2, 32)
BACKWARD_QUERIES(128, 1, 32)
BACKWARD_QUERIES(192, 1, 16)
BACKWARD_QUERIES(256, 1, 16)
