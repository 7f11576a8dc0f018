// AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.
//
// Numerics: corrections come in f64 from the host and are rounded once; elements are f32.
#include "device.cuh"

namespace forgelm {

namespace {

constexpr int BLOCK_ELEMENTS = 8192;

struct Factors {
    float beta1, rest1, beta2, rest2;
    float grad_scale;
    // `1 - lr * weight_decay`.
    float decay;
    // `-lr / (1 - beta1^step)`.
    float step_size;
    // `1 / (1 - beta2^step)`.
    float correction2;
    float eps;
};

DEVICE void step_element(float& param, float& m, float& v, float grad, const Factors& factors) {
    const float g = grad * factors.grad_scale;
    m = factors.beta1 * m + factors.rest1 * g;
    v = factors.beta2 * v + factors.rest2 * (g * g);
    const float root = sqrtf(v * factors.correction2) + factors.eps;
    param = factors.decay * param + factors.step_size * (m / root);
}

// One block's elements.
DEVICE void step_block(
    float* param, float* m, float* v, const float* grad, int64_t n, const Factors& factors
) {
    const int64_t begin = int64_t(blockIdx.x) * BLOCK_ELEMENTS;
    const int64_t end = min(n, begin + BLOCK_ELEMENTS);
    const uint64_t addresses = uint64_t(param) | uint64_t(m) | uint64_t(v) | uint64_t(grad);
    int64_t rest = begin;
    if (addresses % 16 == 0) {
        rest = begin + (end - begin) / 4 * 4;
        for (int64_t at = begin + int64_t(threadIdx.x) * 4; at < rest; at += 256 * 4) {
            float params[4], ms[4], vs[4], grads[4];
            load_vector(param + at, params);
            load_vector(m + at, ms);
            load_vector(v + at, vs);
            load_vector(grad + at, grads);
            for (int i = 0; i < 4; i++) step_element(params[i], ms[i], vs[i], grads[i], factors);
            store_vector(param + at, params);
            store_vector(m + at, ms);
            store_vector(v + at, vs);
        }
    }
    for (int64_t at = rest + threadIdx.x; at < end; at += 256) {
        step_element(param[at], m[at], v[at], grad[at], factors);
    }
}

} // namespace
} // namespace forgelm

using namespace forgelm;

KERNEL(256) void adamw_step(
    float* param, float* m, float* v, const float* grad, int64_t n, float beta1, float rest1,
    float beta2, float rest2, float grad_scale, float decay, float step_size, float correction2,
    float eps
) {
    const Factors factors{
        beta1, rest1, beta2, rest2, grad_scale, decay, step_size, correction2, eps};
    step_block(param, m, v, grad, n, factors);
}
REGISTER(adamw_step)
