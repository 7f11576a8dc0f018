// RMSNorm over the last axis: kernels/api/src/ops.rs has shapes and formulas.
//
// A row belongs to a block of 256 threads or, in the `narrow` kernels, to a warp. A thread has
// chunks of 8 neighboring columns, as far apart as all threads of the row together are wide. In the
// `vec` kernels the first HELD chunks stay in registers; what lies beyond is read again.
//
// Numerics: f32. A thread adds its terms in order, then threads are added as `row_sum` says. The
// `vec` kernels differ only in how they load and store, so their bits are those of the others.
#include "chunk.cuh"

namespace forgelm {
namespace {

constexpr int BLOCK_THREADS = 256;
constexpr int CHUNK = 8;
constexpr int HELD = 4;

// Chunks that a thread keeps.
template <bool WIDE> constexpr int KEPT = WIDE ? HELD : 0;

// The row of this thread and its first column.
template <int THREADS> struct Place {
    int64_t row;
    int first;

    DEVICE Place() {
        row = int64_t(blockIdx.x) * (BLOCK_THREADS / THREADS) + threadIdx.x / THREADS;
        first = threadIdx.x % THREADS * CHUNK;
    }
};

// Sum over the threads of a row, for all of them.
template <int THREADS> DEVICE float row_sum(float value) {
    if constexpr (THREADS == 32) {
        return warp_sum(value);
    } else {
        return block_sum(value);
    }
}

// `y = x * inv_rms * weight`.
template <int THREADS, bool WIDE, class X, class Y>
DEVICE void norm_row(
    Y* y, float* inv_rms, const X* x, const float* weight, int64_t n_rows, int n, float eps
) {
    constexpr int STRIDE = THREADS * CHUNK;
    const Place<THREADS> place;
    // Whole warps leave here, and only in the narrow kernels, which have no barrier.
    if (place.row >= n_rows) return;
    x += place.row * n;
    y += place.row * n;

    float held[HELD][CHUNK];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT<WIDE>; k++) {
        const int c = place.first + k * STRIDE;
        if (c >= n) break;
        load_chunk<WIDE>(held[k], x + c, n - c);
        for (int i = 0; i < CHUNK; i++) sum += held[k][i] * held[k][i];
    }
#pragma unroll 1
    for (int c = place.first + KEPT<WIDE> * STRIDE; c < n; c += STRIDE) {
        float values[CHUNK];
        load_chunk<WIDE>(values, x + c, n - c);
        for (int i = 0; i < CHUNK; i++) sum += values[i] * values[i];
    }

    const float inv = 1.0f / sqrtf(row_sum<THREADS>(sum) / float(n) + eps);
    if (place.first == 0) inv_rms[place.row] = inv;

    auto write_y = [&](float (&values)[CHUNK], int c) {
        float weights[CHUNK];
        load_chunk<WIDE>(weights, weight + c, n - c);
        for (int i = 0; i < CHUNK; i++) values[i] = values[i] * inv * weights[i];
        store_chunk<WIDE>(y + c, values, n - c);
    };
#pragma unroll
    for (int k = 0; k < KEPT<WIDE>; k++) {
        const int c = place.first + k * STRIDE;
        if (c >= n) break;
        write_y(held[k], c);
    }
#pragma unroll 1
    for (int c = place.first + KEPT<WIDE> * STRIDE; c < n; c += STRIDE) {
        float values[CHUNK];
        load_chunk<WIDE>(values, x + c, n - c);
        write_y(values, c);
    }
}

// With g = dy * weight and s = inv_rms: `dx = s * (g - x * s^2 * mean(g * x))`.
template <int THREADS, bool WIDE, class X, class Y>
DEVICE void norm_row_backward(
    X* dx, const Y* dy, const X* x, const float* inv_rms, const float* weight, int64_t n_rows,
    int n, int add
) {
    constexpr int STRIDE = THREADS * CHUNK;
    const Place<THREADS> place;
    if (place.row >= n_rows) return;
    dx += place.row * n;
    dy += place.row * n;
    x += place.row * n;
    const float inv = inv_rms[place.row];

    auto load = [&](float (&values)[CHUNK], float (&g)[CHUNK], int c) {
        float weights[CHUNK];
        load_chunk<WIDE>(values, x + c, n - c);
        load_chunk<WIDE>(g, dy + c, n - c);
        load_chunk<WIDE>(weights, weight + c, n - c);
        for (int i = 0; i < CHUNK; i++) g[i] *= weights[i];
    };
    float held_x[HELD][CHUNK];
    float held_g[HELD][CHUNK];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT<WIDE>; k++) {
        const int c = place.first + k * STRIDE;
        if (c >= n) break;
        load(held_x[k], held_g[k], c);
        for (int i = 0; i < CHUNK; i++) sum += held_g[k][i] * held_x[k][i];
    }
#pragma unroll 1
    for (int c = place.first + KEPT<WIDE> * STRIDE; c < n; c += STRIDE) {
        float values[CHUNK], g[CHUNK];
        load(values, g, c);
        for (int i = 0; i < CHUNK; i++) sum += g[i] * values[i];
    }

    const float along_x = -inv * inv * (row_sum<THREADS>(sum) / float(n));

    auto write_dx = [&](const float (&values)[CHUNK], const float (&g)[CHUNK], int c) {
        float result[CHUNK];
        for (int i = 0; i < CHUNK; i++) result[i] = inv * (g[i] + values[i] * along_x);
        put_chunk<WIDE>(dx + c, result, n - c, add);
    };
#pragma unroll
    for (int k = 0; k < KEPT<WIDE>; k++) {
        const int c = place.first + k * STRIDE;
        if (c >= n) break;
        write_dx(held_x[k], held_g[k], c);
    }
#pragma unroll 1
    for (int c = place.first + KEPT<WIDE> * STRIDE; c < n; c += STRIDE) {
        float values[CHUNK], g[CHUNK];
        load(values, g, c);
        write_dx(values, g, c);
    }
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define FORWARD(name, threads, wide, X, Y)                                                         \
    KERNEL(256, 4) void name(                                                                      \
        Y* y, float* inv_rms, const X* x, const float* weight, int64_t n_rows, int n, float eps    \
    ) {                                                                                            \
        norm_row<threads, wide>(y, inv_rms, x, weight, n_rows, n, eps);                            \
    }                                                                                              \
    REGISTER(name)

#define BACKWARD(name, threads, wide, X, Y)                                                        \
    KERNEL(256) void name(                                                                         \
        X* dx, const Y* dy, const X* x, const float* inv_rms, const float* weight, int64_t n_rows, \
        int n, int add                                                                             \
    ) {                                                                                            \
        norm_row_backward<threads, wide>(dx, dy, x, inv_rms, weight, n_rows, n, add);              \
    }                                                                                              \
    REGISTER(name)

// Formats of x (and dx) and of y (and dy).
#define EACH_WIDTH(kernel, name, formats, ...)                                                     \
    kernel(name##_##formats, 256, false, __VA_ARGS__)                                              \
    kernel(name##_##formats##_vec, 256, true, __VA_ARGS__)                                         \
    kernel(name##_narrow_##formats, 32, false, __VA_ARGS__)                                        \
    kernel(name##_narrow_##formats##_vec, 32, true, __VA_ARGS__)

EACH_WIDTH(FORWARD, rms_norm_forward, f32_f32, float, float)
EACH_WIDTH(FORWARD, rms_norm_forward, f32_bf16, float, bf16)
EACH_WIDTH(FORWARD, rms_norm_forward, bf16_bf16, bf16, bf16)

EACH_WIDTH(BACKWARD, rms_norm_backward, f32_f32, float, float)
EACH_WIDTH(BACKWARD, rms_norm_backward, f32_bf16, float, bf16)
EACH_WIDTH(BACKWARD, rms_norm_backward, bf16_bf16, bf16, bf16)
