// AdamW with moments in 8 bits: Dettmers et al. 2021, arXiv:2110.02861, section 2.
//
// A block of threads takes blocks of 256 elements, a thread one of each.
//
// Numerics: as `adamw`, element by element in f32. The largest size of a block does not depend on
// an order. A code is found by comparison with the middles of neighboring numbers, rounded to f32.
#include "device.cuh"

namespace forgelm {
namespace {

constexpr int BLOCK = 256;

struct Factors {
    float beta1, rest1, beta2, rest2, grad_scale, decay, step_size, correction2, eps;
};

// A map of 256 ascending numbers, and the middles between neighbors.
struct Map {
    float numbers[BLOCK];
    float middles[BLOCK];

    // By all threads of the block; a barrier must follow.
    DEVICE void load(const float* from) {
        const int i = threadIdx.x;
        numbers[i] = from[i];
        middles[i] = i < BLOCK - 1 ? 0.5f * (from[i] + from[i + 1]) : from[i];
    }

    // Place of the number nearest to x, the lower of two equally near: the number of middles below.
    DEVICE int nearest(float x) const {
        int below = 0;
#pragma unroll
    for (int step = BLOCK / 2; step > 0; step /= 2) {
            if (middles[below + step - 1] < x) below += step;
        }
        return below;
    }
};

// Stores one moment of each thread; returns the largest size.
DEVICE void write_moment(
    uint8_t* codes, float* absmax, int64_t block, const Map& map, float value, bool is_inside
) {
    // What is not a number does not count, and gets the code 0 of its map.
    const float largest = block_max(value == value ? fabsf(value) : 0.0f);
    const float part = largest > 0.0f ? value / largest : 0.0f;
    if (is_inside) codes[block * BLOCK + threadIdx.x] = uint8_t(map.nearest(part));
    if (threadIdx.x == 0) absmax[block] = largest;
}

} // namespace
} // namespace forgelm

using namespace forgelm;

// Shapes: `m_map` (signed) and `v_map` (unsigned) [256], `m_codes` and `v_codes` [n], `m_absmax`
// and `v_absmax` [ceil(n / 256)].
KERNEL(256) void adamw_8bit_step(
    float* param, uint8_t* m_codes, float* m_absmax, uint8_t* v_codes, float* v_absmax,
    const float* grad, const float* m_map, const float* v_map, int64_t n, int blocks_each,
    float beta1, float rest1, float beta2, float rest2, float grad_scale, float decay,
    float step_size, float correction2, float eps
) {
    __shared__ Map maps[2];
    maps[0].load(m_map);
    maps[1].load(v_map);
    __syncthreads();
    const int64_t n_blocks = (n + BLOCK - 1) / BLOCK;
    const int64_t begin = int64_t(blockIdx.x) * blocks_each;
    const int64_t end = min(n_blocks, begin + blocks_each);
    for (int64_t block = begin; block < end; block++) {
        const int64_t at = block * BLOCK + threadIdx.x;
        const bool is_inside = at < n;
        float m_value = 0.0f, v_value = 0.0f;
        if (is_inside) {
            const float g = grad[at] * grad_scale;
            m_value = beta1 * (maps[0].numbers[m_codes[at]] * m_absmax[block]) + rest1 * g;
            v_value = beta2 * (maps[1].numbers[v_codes[at]] * v_absmax[block]) + rest2 * (g * g);
            const float root = sqrtf(v_value * correction2) + eps;
            param[at] = decay * param[at] + step_size * (m_value / root);
        }
        // Every thread has read the scales before thread 0 replaces them: `block_max` has barriers.
        write_moment(m_codes, m_absmax, block, maps[0], m_value, is_inside);
        write_moment(v_codes, v_absmax, block, maps[1], v_value, is_inside);
    }
}
REGISTER(adamw_8bit_step)
