// What the files of attention share: how a kernel is told its sizes and its part of the work.
#pragma once
#include "device.cuh"

namespace forgelm {

// What attention is told besides its inputs: see `AttentionShape` in kernels/api/src/ops.rs.
struct AttentionShape {
    int n_heads, n_kv_heads, head_dim;
    float scale;
    int window;      // a query sees this many keys, itself included; 2^30 if all
    float soft_cap;  // 0 without one

    // Whether the query at `position` of a segment sees the key at another.
    DEVICE bool sees(int position, int key) const {
        int distance = position - key;
        return distance >= 0 && distance < window;
    }
};

#define ATTENTION_SHAPE_ARGUMENTS \
    int n_heads, int n_kv_heads, int head_dim, float scale, int window, float soft_cap
#define ATTENTION_SHAPE \
    (AttentionShape{n_heads, n_kv_heads, head_dim, scale, window, soft_cap})

// 1 / x with a relative error of about 2^-23. Division proper calls a function for odd cases, which
// costs registers that kernels on tensor cores do not have.
DEVICE float reciprocal_approx(float x) {
#if FORGELM_ON_DEVICE
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1 / x;
#endif
}

// Rows that a block owns: four numbers each, as the launch code lists them.
struct AttentionTile {
    int first, end;  // rows [first, end) of the matrix that the block writes
    int bound;       // first key of the segment, or for a tile of keys the end of the segment
    int diagonal;    // a query at row r stands at the key of row r + diagonal

    DEVICE AttentionTile(const int32_t* tiles, int index) {
        const int32_t* tile = tiles + 4 * int64_t(index);
        first = tile[0];
        end = tile[1];
        bound = tile[2];
        diagonal = tile[3];
    }
};

}  // namespace forgelm
