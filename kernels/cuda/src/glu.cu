// Gated linear unit: `y = act(gate) * up`; kernels/api/src/ops.rs has the formulas.
//
// A thread has a chunk of 8 neighboring elements.
//
// Numerics: f32.
#include "chunk.cuh"

namespace forgelm {
namespace {

enum class Activation { SILU, GELU_TANH };

struct ValueAndSlope {
    float value, slope;
};

// `1 / (1 + exp(-x))` and what it lacks to 1, both without cancellation: the exponential is of a
// negative number, so it never overflows and `1 + e` never loses the smaller of the two.
struct Sigmoid {
    float value, rest;

    DEVICE explicit Sigmoid(float x) {
        const float e = expf(-fabsf(x));
        const float large = 1.0f / (1.0f + e);
        const float small = e * large;
        value = x >= 0.0f ? large : small;
        rest = x >= 0.0f ? small : large;
    }
};

template <Activation ACT> DEVICE ValueAndSlope activate(float x) {
    if constexpr (ACT == Activation::SILU) {
        const Sigmoid s(x);
        return {x * s.value, s.value * (1.0f + x * s.rest)};
    } else {
        constexpr float ROOT = 0.7978845608f;  // sqrt(2 / pi)
        constexpr float CUBE = 0.044715f;
        const float square = x * x;
        const float inner = ROOT * x * (1.0f + CUBE * square);
        // 0.5 (1 + tanh u) = sigmoid(2 u), and 1 - tanh(u)^2 = 4 sigmoid(2 u) (1 - sigmoid(2 u)).
        const Sigmoid s(2.0f * inner);
        const float rise = ROOT * (1.0f + 3.0f * CUBE * square);
        return {x * s.value, s.value + 2.0f * x * s.value * s.rest * rise};
    }
}

template <Activation ACT, bool WIDE, class E>
DEVICE void glu_forward(E* y, const E* gate, const E* up, int64_t n) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at >= n) return;
    float gates[8], ups[8];
    load_chunk<WIDE>(gates, gate + at, n - at);
    load_chunk<WIDE>(ups, up + at, n - at);
    for (int i = 0; i < 8; i++) ups[i] *= activate<ACT>(gates[i]).value;
    store_chunk<WIDE>(y + at, ups, n - at);
}

// In place: `gate` becomes dgate, `up` becomes dup.
template <Activation ACT, bool WIDE, class E>
DEVICE void glu_backward(E* gate, E* up, const E* dy, int64_t n) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at >= n) return;
    float gates[8], ups[8], dys[8];
    load_chunk<WIDE>(gates, gate + at, n - at);
    load_chunk<WIDE>(ups, up + at, n - at);
    load_chunk<WIDE>(dys, dy + at, n - at);
    for (int i = 0; i < 8; i++) {
        const ValueAndSlope act = activate<ACT>(gates[i]);
        gates[i] = dys[i] * ups[i] * act.slope;
        ups[i] = dys[i] * act.value;
    }
    store_chunk<WIDE>(gate + at, gates, n - at);
    store_chunk<WIDE>(up + at, ups, n - at);
}

} // namespace
} // namespace forgelm

using namespace forgelm;

#define KERNELS(act, ACT, suffix, wide, E)                                                         \
    KERNEL(256) void glu_forward_##act##_##suffix(E* y, const E* gate, const E* up, int64_t n) {   \
        glu_forward<Activation::ACT, wide>(y, gate, up, n);                                        \
    }                                                                                              \
    REGISTER(glu_forward_##act##_##suffix)                                                         \
    KERNEL(256) void glu_backward_##act##_##suffix(E* gate, E* up, const E* dy, int64_t n) {       \
        glu_backward<Activation::ACT, wide>(gate, up, dy, n);                                      \
    }                                                                                              \
    REGISTER(glu_backward_##act##_##suffix)

KERNELS(silu, SILU, f32, false, float)
KERNELS(silu, SILU, f32_vec, true, float)
KERNELS(silu, SILU, bf16, false, bf16)
KERNELS(silu, SILU, bf16_vec, true, bf16)
KERNELS(gelu_tanh, GELU_TANH, f32, false, float)
KERNELS(gelu_tanh, GELU_TANH, f32_vec, true, float)
KERNELS(gelu_tanh, GELU_TANH, bf16, false, bf16)
KERNELS(gelu_tanh, GELU_TANH, bf16_vec, true, bf16)
