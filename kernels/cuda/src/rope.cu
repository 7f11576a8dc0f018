// Rotary embedding in place, half-split (NeoX) layout, and the same fused with the norm of each
// head that Qwen3 and Gemma 3 put before it.
//
// Papers: Su et al. 2021, arXiv:2104.09864, eq. 34; Zhang and Sennrich 2019, arXiv:1910.07467.
//
// Layout: x [T, n_heads * D], cos and sin [T, R/2] f32. Element j of a head pairs with element
// j + R/2; what follows the first R stays as it is. The `_vec` variants need 16-byte aligned
// addresses, and D and R/2 that are multiples of the numbers in 16 bytes.
#include "device.cuh"

namespace forgelm {
namespace {

// `sign` is 1 to rotate forward, -1 backward. A block does `tokens_per_block` tokens, a thread N
// pairs at a time.
template <class E, int N>
DEVICE void rotate(
    E* x,
    const float* cos,
    const float* sin,
    int64_t n_tokens,
    int tokens_per_block,
    int n_heads,
    int head_dim,
    int half,
    float sign
) {
    int steps_per_head = half / N, steps_per_token = n_heads * steps_per_head;
    int64_t first_token = int64_t(blockIdx.x) * tokens_per_block;
    int n_here = int(min(int64_t(tokens_per_block), n_tokens - first_token));
    for (int i = threadIdx.x; i < n_here * steps_per_token; i += blockDim.x) {
        int64_t token = first_token + i / steps_per_token;
        int head = i % steps_per_token / steps_per_head;
        int j = i % steps_per_head * N;
        E* left = x + (token * n_heads + head) * head_dim + j;
        float a[N], b[N], c[N], s[N];
        if constexpr (N == 1) {
            a[0] = load(left);
            b[0] = load(left + half);
            c[0] = cos[token * half + j];
            s[0] = sin[token * half + j];
        } else {
            load_vector(left, a);
            load_vector(left + half, b);
            load_vector(cos + token * half + j, c);
            load_vector(sin + token * half + j, s);
        }
        float first[N], second[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            first[k] = a[k] * c[k] - b[k] * (sign * s[k]);
            second[k] = b[k] * c[k] + a[k] * (sign * s[k]);
        }
        if constexpr (N == 1) {
            store(left, first[0]);
            store(left + half, second[0]);
        } else {
            store_vector(left, first);
            store_vector(left + half, second);
        }
    }
}

// y = rope(x * inv_rms * weight) for each head; a warp a head. `y` may be `x`.
template <class E>
DEVICE void norm_and_rotate(
    E* y,
    float* inv_rms,
    const E* x,
    const float* weight,
    const float* cos,
    const float* sin,
    int64_t n_tokens,
    int n_heads,
    int head_dim,
    int half,
    float eps
) {
    int64_t row = int64_t(blockIdx.x) * (blockDim.x / WARP) + warp_index();
    if (row >= n_tokens * n_heads) return;
    int lane = lane_index();
    int64_t token = row / n_heads;
    x += row * head_dim;
    y += row * head_dim;
    float sum = 0;
    for (int j = lane; j < head_dim; j += WARP) {
        float value = load(x + j);
        sum += value * value;
    }
    float inverse = 1 / sqrtf(warp_sum(sum) / float(head_dim) + eps);
    if (lane == 0) inv_rms[row] = inverse;
    for (int j = lane; j < half; j += WARP) {
        float a = load(x + j) * inverse * weight[j];
        float b = load(x + j + half) * inverse * weight[j + half];
        float c = cos[token * half + j], s = sin[token * half + j];
        store(y + j, a * c - b * s);
        store(y + j + half, b * c + a * s);
    }
    for (int j = 2 * half + lane; j < head_dim; j += WARP) {
        store(y + j, load(x + j) * inverse * weight[j]);
    }
}

}  // namespace
}  // namespace forgelm

using namespace forgelm;

#define ROPE(NAME, E, N)                                                                \
    KERNEL(256) void rope_##NAME(                                                       \
        E* x, const float* cos, const float* sin, int64_t n_tokens, int tokens_per_block,\
        int n_heads, int head_dim, int half, float sign                                 \
    ) {                                                                                 \
        rotate<E, N>(                                                                   \
            x, cos, sin, n_tokens, tokens_per_block, n_heads, head_dim, half, sign      \
        );                                                                              \
    }                                                                                   \
    REGISTER(rope_##NAME)

ROPE(f32, float, 1)
ROPE(f32_vec, float, 4)
ROPE(bf16, bf16, 1)
ROPE(bf16_vec, bf16, 8)

#define QK_NORM_ROPE(NAME, E)                                                           \
    KERNEL(256) void rope_qk_norm_forward_##NAME(                                       \
        E* y, float* inv_rms, const E* x, const float* weight, const float* cos,        \
        const float* sin, int64_t n_tokens, int n_heads, int head_dim, int half,        \
        float eps                                                                       \
    ) {                                                                                 \
        norm_and_rotate(                                                                \
            y, inv_rms, x, weight, cos, sin, n_tokens, n_heads, head_dim, half, eps     \
        );                                                                              \
    }                                                                                   \
    REGISTER(rope_qk_norm_forward_##NAME)

QK_NORM_ROPE(f32, float)
QK_NORM_ROPE(bf16, bf16)
