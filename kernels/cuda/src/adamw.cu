// AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.
//
// Numerics: corrections come in f64 from the host and are rounded once; elements are f32.
#include "device.cuh"

namespace forgelm {

// A parameter, its moments and its gradient, of equal lengths.
struct AdamwTensor {
    float* param;
    float* m;
    float* v;
    const float* grad;
    int64_t n;
    // Blocks of threads before those of this tensor.
    int64_t first_block;
};

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

// One block's elements of a tensor. The choice between the two ways of loading is made here and not
// by the launch code, because tensors of one launch may differ in it; results do not.
DEVICE void step_block(const AdamwTensor& tensor, int64_t block, const Factors& factors) {
    const int64_t begin = block * BLOCK_ELEMENTS;
    const int64_t end = min(tensor.n, begin + BLOCK_ELEMENTS);
    const uint64_t addresses =
        uint64_t(tensor.param) | uint64_t(tensor.m) | uint64_t(tensor.v) | uint64_t(tensor.grad);
    int64_t rest = begin;
    if (addresses % 16 == 0) {
        rest = begin + (end - begin) / 4 * 4;
        for (int64_t at = begin + int64_t(threadIdx.x) * 4; at < rest; at += 256 * 4) {
            float param[4], m[4], v[4], grad[4];
            load_vector(tensor.param + at, param);
            load_vector(tensor.m + at, m);
            load_vector(tensor.v + at, v);
            load_vector(tensor.grad + at, grad);
            for (int i = 0; i < 4; i++) step_element(param[i], m[i], v[i], grad[i], factors);
            store_vector(tensor.param + at, param);
            store_vector(tensor.m + at, m);
            store_vector(tensor.v + at, v);
        }
    }
    for (int64_t at = rest + threadIdx.x; at < end; at += 256) {
        step_element(tensor.param[at], tensor.m[at], tensor.v[at], tensor.grad[at], factors);
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
    step_block(AdamwTensor{param, m, v, grad, n, 0}, blockIdx.x, factors);
}
REGISTER(adamw_step)

// Many parameters in one launch. Shapes: `tensors` [n_tensors], by ascending `first_block`.
KERNEL(256) void adamw_step_many(
    const AdamwTensor* tensors, int n_tensors, float beta1, float rest1, float beta2, float rest2,
    float grad_scale, float decay, float step_size, float correction2, float eps
) {
    const Factors factors{
        beta1, rest1, beta2, rest2, grad_scale, decay, step_size, correction2, eps};
    // The last tensor that begins at or before this block.
    int low = 0, high = n_tensors;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (tensors[middle].first_block <= int64_t(blockIdx.x)) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const AdamwTensor tensor = tensors[low];
    step_block(tensor, int64_t(blockIdx.x) - tensor.first_block, factors);
}
REGISTER(adamw_step_many)
