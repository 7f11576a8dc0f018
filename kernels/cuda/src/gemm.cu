// Dense products `c = alpha op(a) op(b)` (+ c), of bfloat16 on tensor cores and of f32 by plain
// multiply-adds: what is used where cuBLASLt is not installed, and what it is measured against.
//
// c is [M, N], row-major with `ldc` elements from row to row, in f32 or bfloat16. A factor lies
// either along the sum (its neighbors are terms of one sum) or across it (its neighbors belong to
// different sums): a [M, K] and b [N, K] lie along it, a [K, M] and b [K, N] across. So the layouts
// of `GemmLayout` are nn = (along, across), nt = (along, along), tn = (across, across).
//
// Grid: x = tiles of c; z = parts of the sum, each `k_part` terms long. With more than one part
// each writes its sums to its own [M, N] of `partials`, and `gemm_combine` adds them in order.
//
// Numerics: sums in f32, in the order of k within a part. The cut follows from the sizes alone.
#include "device.cuh"

namespace forgelm {
namespace {

// Where a product is written.
struct Destination {
    void* address;
    int64_t ld;
    int m, n;
    float alpha;
    bool is_bf16;
    bool adds;
    // Two neighbors may be written as one word.
    bool has_pairs;
};

DEVICE Destination destination(
    void* c, int is_bf16, int64_t ldc, int m, int n, float alpha, int adds, float* partials) {
    if (partials != nullptr) {
        float* part = partials + static_cast<int64_t>(blockIdx.z) * m * n;
        return {part, n, m, n, 1.0f, false, false, n % 2 == 0};
    }
    const uint64_t word = is_bf16 ? 4 : 8;
    const bool has_pairs = ldc % 2 == 0 && reinterpret_cast<uint64_t>(c) % word == 0;
    return {c, ldc, m, n, alpha, is_bf16 != 0, adds != 0, has_pairs};
}

template <class E>
DEVICE void put(const Destination& to, int64_t at, float sum) {
    E* c = static_cast<E*>(to.address) + at;
    float value = to.alpha * sum;
    if (to.adds) value += load(c);
    store(c, value);
}

DEVICE void put(const Destination& to, int64_t at, float sum) {
    if (to.is_bf16) {
        put<bf16>(to, at, sum);
    } else {
        put<float>(to, at, sum);
    }
}

// Two neighbors of a row. `column` is even.
DEVICE void put_pair(
    const Destination& to, int row, int column, float first, float second) {
    if (row >= to.m || column >= to.n) return;
    const int64_t at = row * to.ld + column;
    if (!to.has_pairs || column + 1 >= to.n) {
        put(to, at, first);
        if (column + 1 < to.n) put(to, at + 1, second);
        return;
    }
    first *= to.alpha;
    second *= to.alpha;
    if (to.is_bf16) {
        uint32_t* pair = reinterpret_cast<uint32_t*>(static_cast<bf16*>(to.address) + at);
        if (to.adds) {
            first += low_float(*pair);
            second += high_float(*pair);
        }
        *pair = pack_bf16(first, second);
    } else {
        float2* pair = reinterpret_cast<float2*>(static_cast<float*>(to.address) + at);
        if (to.adds) {
            const float2 before = *pair;
            first += before.x;
            second += before.y;
        }
        *pair = make_float2(first, second);
    }
}

// The tile of c of this block. Blocks that run at the same time share rows of a and of b: they go
// down bands of eight tiles.
DEVICE int2 tile_of_block(int n_tiles_m, int n_tiles_n) {
    const int band_height = 8;
    const int per_band = band_height * n_tiles_n;
    const int tile = static_cast<int>(blockIdx.x);
    const int first = tile / per_band * band_height;
    const int height = min(band_height, n_tiles_m - first);
    const int within = tile % per_band;
    return make_int2(first + within % height, within / height);
}

// ---------------------------------------------------------------- bfloat16 on tensor cores

// How a factor lies in memory, and how its tile lies in shared memory.
enum class Lies { Along, Across };

// Terms of a sum that are brought in at a time.
constexpr int DEPTH = 32;

// Place of eight neighbors in a tile. A row along the sum has 4 such groups, one across it TILE / 8.
// The groups of a row change places with the row, so that the eight rows that a matrix load asks
// for at once lie in different banks.
template <int TILE, Lies LIES>
DEVICE int place(int row, int group) {
    if (LIES == Lies::Along) return row * DEPTH + ((group ^ (row >> 1 & 3)) << 3);
    return row * TILE + ((group ^ (row & 7)) << 3);
}

// What a block reads of a factor: rows (or columns) `first..limit`, terms `k..k_end`.
struct Source {
    const bf16* address;
    int64_t ld;
    int first, limit;
    int k_end;
};

// Eight neighbors that may lie anywhere, and zeros where the factor has ended.
DEVICE Bytes16 gather_8(const bf16* from, int n_there) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t low = 2 * i < n_there ? from[2 * i].bits : 0;
        const uint32_t high = 2 * i + 1 < n_there ? from[2 * i + 1].bits : 0;
        words[i] = low | high << 16;
    }
    return Bytes16{{words[0], words[1], words[2], words[3]}};
}

// Brings the terms from k on of a factor to shared memory. With VECTORS every group of eight is
// whole and aligned, and is copied without waiting.
template <int TILE, Lies LIES, bool VECTORS, int THREADS>
DEVICE void bring(bf16* tile, const Source& source, int k) {
    constexpr int GROUPS = LIES == Lies::Along ? DEPTH / 8 : TILE / 8;
#pragma unroll
    for (int i = 0; i < TILE * DEPTH / 8 / THREADS; i++) {
        const int index = static_cast<int>(threadIdx.x) + i * THREADS;
        const int row = index / GROUPS;
        const int group = index % GROUPS;
        const bool is_along = LIES == Lies::Along;
        const int line = is_along ? source.first + row : k + row;
        const int column = is_along ? k + group * 8 : source.first + group * 8;
        const int n_lines = is_along ? source.limit : source.k_end;
        const int n_columns = is_along ? source.k_end : source.limit;
        const bool is_there = line < n_lines && column < n_columns;
        const bf16* from = source.address + (is_there ? line * source.ld + column : 0);
        bf16* to = tile + place<TILE, LIES>(row, group);
        if (VECTORS) {
            cp_async_16(to, from, is_there);
        } else {
            store_16(to, gather_8(from, is_there ? n_columns - column : 0));
        }
    }
}

template <Lies A, Lies B, int TILE, int WARPS_M, int WARPS_N, int STAGES, bool VECTORS>
DEVICE void product_bf16(
    const Destination& to, const bf16* a, const bf16* b, int64_t lda, int64_t ldb, int k,
    int k_part) {
    constexpr int THREADS = WARPS_M * WARPS_N * 32;
    // Rows and columns of a warp, in tiles of the tensor core.
    constexpr int ROWS = TILE / WARPS_M / 16;
    constexpr int COLUMNS = TILE / WARPS_N / 8;
    constexpr int TILE_SIZE = TILE * DEPTH;
    SHARED(char, memory);
    bf16* tiles = reinterpret_cast<bf16*>(memory);

    const int2 at = tile_of_block((to.m + TILE - 1) / TILE, (to.n + TILE - 1) / TILE);
    const int k_first = static_cast<int>(blockIdx.z) * k_part;
    const int k_end = min(k, k_first + k_part);
    const int n_steps = (k_end - k_first + DEPTH - 1) / DEPTH;
    const Source from_a{a, lda, at.x * TILE, to.m, k_end};
    const Source from_b{b, ldb, at.y * TILE, to.n, k_end};
    auto bring_step = [&](int step) {
        if (step < n_steps) {
            bf16* stage = tiles + step % STAGES * 2 * TILE_SIZE;
            bring<TILE, A, VECTORS, THREADS>(stage, from_a, k_first + step * DEPTH);
            bring<TILE, B, VECTORS, THREADS>(stage + TILE_SIZE, from_b, k_first + step * DEPTH);
        }
        // Also an empty group counts: the wait below is for a number of groups.
        cp_async_commit();
    };

    const int warp = warp_index();
    const int lane = lane_index();
    const int warp_row = warp / WARPS_N * (TILE / WARPS_M);
    const int warp_column = warp % WARPS_N * (TILE / WARPS_N);
    float sums[ROWS][COLUMNS][4] = {};

#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) bring_step(step);
    for (int step = 0; step < n_steps; step++) {
        cp_async_wait<STAGES - 2>();
        // This step has landed for everyone, and everyone is done with the stage that comes next.
        __syncthreads();
        bring_step(step + STAGES - 1);
        const bf16* tile_a = tiles + step % STAGES * 2 * TILE_SIZE;
        const bf16* tile_b = tile_a + TILE_SIZE;
#pragma unroll
        for (int half = 0; half < DEPTH / 16; half++) {
            uint32_t left[ROWS][4];
            uint32_t right[COLUMNS][2];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int row = warp_row + i * 16;
                if (A == Lies::Along) {
                    ldmatrix_x4<false>(
                        left[i], tile_a + place<TILE, A>(row + lane % 16, half * 2 + lane / 16));
                } else {
                    ldmatrix_x4<true>(
                        left[i], tile_a + place<TILE, A>(half * 16 + lane % 8 + lane / 16 * 8,
                                                         row / 8 + lane / 8 % 2));
                }
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j += 2) {
                const int column = warp_column + j * 8;
                uint32_t two[4];
                if (B == Lies::Along) {
                    ldmatrix_x4<false>(
                        two, tile_b + place<TILE, B>(column + lane % 8 + lane / 16 * 8,
                                                     half * 2 + lane / 8 % 2));
                } else {
                    ldmatrix_x4<true>(
                        two, tile_b + place<TILE, B>(half * 16 + lane % 16,
                                                     column / 8 + lane / 16));
                }
                right[j][0] = two[0];
                right[j][1] = two[1];
                right[j + 1][0] = two[2];
                right[j + 1][1] = two[3];
            }
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) mma_16816(sums[i][j], left[i], right[j]);
            }
        }
    }
    cp_async_wait<0>();

    const int row0 = at.x * TILE + warp_row + lane / 4;
    const int column0 = at.y * TILE + warp_column + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const float(&sum)[4] = sums[i][j];
            put_pair(to, row0 + i * 16, column0 + j * 8, sum[0], sum[1]);
            put_pair(to, row0 + i * 16 + 8, column0 + j * 8, sum[2], sum[3]);
        }
    }
}

// -------------------------------------------------------------------- f32, without tensor cores

constexpr int TILE_F32 = 64;
constexpr int DEPTH_F32 = 16;
// Keeps rows 16-byte aligned and spreads the columns of a turned tile over banks.
constexpr int STRIDE_F32 = TILE_F32 + 4;

// The four elements of a factor's tile that a thread brings in.
template <Lies LIES>
struct PartF32 {
    const float* address;
    int64_t ld;
    int first, limit;
    int k_end;
    float values[4];

    DEVICE int2 place(int i) const {
        const int index = static_cast<int>(threadIdx.x) + i * 256;
        if (LIES == Lies::Along) return make_int2(index / DEPTH_F32, index % DEPTH_F32);
        return make_int2(index % TILE_F32, index / TILE_F32);
    }

    DEVICE void read(int k) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int2 at = place(i);
            const int free = first + at.x;
            const int term = k + at.y;
            const int64_t index = LIES == Lies::Along ? free * ld + term : term * ld + free;
            values[i] = free < limit && term < k_end ? address[index] : 0.0f;
        }
    }

    DEVICE void write(float* tile) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int2 at = place(i);
            tile[at.y * STRIDE_F32 + at.x] = values[i];
        }
    }
};

template <Lies A, Lies B>
DEVICE void product_f32(
    const Destination& to, const float* a, const float* b, int64_t lda, int64_t ldb, int k,
    int k_part) {
    // In fours, so that they are aligned to them.
    __shared__ float4 memory[2][DEPTH_F32 * STRIDE_F32 / 4];
    float* tile_a = reinterpret_cast<float*>(memory[0]);
    float* tile_b = reinterpret_cast<float*>(memory[1]);
    const int2 at =
        tile_of_block((to.m + TILE_F32 - 1) / TILE_F32, (to.n + TILE_F32 - 1) / TILE_F32);
    const int k_first = static_cast<int>(blockIdx.z) * k_part;
    const int k_end = min(k, k_first + k_part);
    PartF32<A> part_a{a, lda, at.x * TILE_F32, to.m, k_end, {}};
    PartF32<B> part_b{b, ldb, at.y * TILE_F32, to.n, k_end, {}};
    const int row = static_cast<int>(threadIdx.x) / 16 * 4;
    const int column = static_cast<int>(threadIdx.x) % 16 * 4;
    float sums[4][4] = {};

    part_a.read(k_first);
    part_b.read(k_first);
    for (int step = k_first; step < k_end; step += DEPTH_F32) {
        part_a.write(tile_a);
        part_b.write(tile_b);
        __syncthreads();
        part_a.read(step + DEPTH_F32);
        part_b.read(step + DEPTH_F32);
#pragma unroll
        for (int i = 0; i < DEPTH_F32; i++) {
            const float4 left = *reinterpret_cast<const float4*>(tile_a + i * STRIDE_F32 + row);
            const float4 right = *reinterpret_cast<const float4*>(tile_b + i * STRIDE_F32 + column);
            const float rows[4] = {left.x, left.y, left.z, left.w};
            const float columns[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
            for (int r = 0; r < 4; r++) {
#pragma unroll
                for (int c = 0; c < 4; c++) sums[r][c] += rows[r] * columns[c];
            }
        }
        // Before the tiles are written again.
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const int to_row = at.x * TILE_F32 + row + r;
        const int to_column = at.y * TILE_F32 + column;
        put_pair(to, to_row, to_column, sums[r][0], sums[r][1]);
        put_pair(to, to_row, to_column + 2, sums[r][2], sums[r][3]);
    }
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define GEMM_BF16(name, a_lies, b_lies, tile, warps_m, warps_n, stages, vectors)                   \
    KERNEL(warps_m* warps_n * 32)                                                                  \
    void gemm_bf16_##name(                                                                         \
        void* c, const bf16* a, const bf16* b, float* partials, int64_t ldc, int64_t lda,          \
        int64_t ldb, int m, int n, int k, int k_part, int is_bf16, float alpha, int adds) {        \
        const Destination to = destination(c, is_bf16, ldc, m, n, alpha, adds, partials);          \
        product_bf16<Lies::a_lies, Lies::b_lies, tile, warps_m, warps_n, stages, vectors>(         \
            to, a, b, lda, ldb, k, k_part);                                                        \
    }                                                                                              \
    REGISTER(gemm_bf16_##name)

// `_128` and `_64` are sides of tiles; `_any` takes every address and row length.
#define GEMM_BF16_LAYOUT(layout, a_lies, b_lies)                                                   \
    GEMM_BF16(layout##_128, a_lies, b_lies, 128, 2, 4, 3, true)                                    \
    GEMM_BF16(layout##_64, a_lies, b_lies, 64, 2, 2, 4, true)                                      \
    GEMM_BF16(layout##_any, a_lies, b_lies, 64, 2, 2, 2, false)

GEMM_BF16_LAYOUT(nn, Along, Across)
GEMM_BF16_LAYOUT(nt, Along, Along)
GEMM_BF16_LAYOUT(tn, Across, Across)

#define GEMM_F32(layout, a_lies, b_lies)                                                           \
    KERNEL(256)                                                                                    \
    void gemm_f32_##layout(                                                                        \
        void* c, const float* a, const float* b, float* partials, int64_t ldc, int64_t lda,        \
        int64_t ldb, int m, int n, int k, int k_part, int is_bf16, float alpha, int adds) {        \
        const Destination to = destination(c, is_bf16, ldc, m, n, alpha, adds, partials);          \
        product_f32<Lies::a_lies, Lies::b_lies>(to, a, b, lda, ldb, k, k_part);                    \
    }                                                                                              \
    REGISTER(gemm_f32_##layout)

GEMM_F32(nn, Along, Across)
GEMM_F32(nt, Along, Along)
GEMM_F32(tn, Across, Across)

// Adds the parts of a product in order. One thread an element.
KERNEL(256)
void gemm_combine(
    void* c, const float* partials, int64_t ldc, int m, int n, int n_parts, int is_bf16,
    float alpha, int adds) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    const int64_t size = static_cast<int64_t>(m) * n;
    if (index >= size) return;
    float sum = 0.0f;
    for (int part = 0; part < n_parts; part++) sum += partials[part * size + index];
    const Destination to{c, ldc, m, n, alpha, is_bf16 != 0, adds != 0, false};
    put(to, index / n * ldc + index % n, sum);
}
REGISTER(gemm_combine)
