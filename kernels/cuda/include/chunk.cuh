// Chunks of 8 neighboring numbers, 16 bytes at a time where WIDE is set: then the address is
// aligned to 16, and all 8 exist. Else one by one, and only the first `left` exist; those beyond
// are read as 0 and not stored.
#pragma once
#include "device.cuh"

namespace forgelm {

template <bool WIDE, class E> DEVICE void load_chunk(float (&values)[8], const E* p, int64_t left) {
    if constexpr (WIDE) {
        load_vector(p, values);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = i < left ? load(p + i) : 0.0f;
    }
}

template <bool WIDE, class E>
DEVICE void store_chunk(E* p, const float (&values)[8], int64_t left) {
    if constexpr (WIDE) {
        store_vector(p, values);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < left) store(p + i, values[i]);
        }
    }
}

// Stores or adds.
template <bool WIDE, class E>
DEVICE void put_chunk(E* p, const float (&values)[8], int64_t left, bool add) {
    float results[8];
#pragma unroll
    for (int i = 0; i < 8; i++) results[i] = values[i];
    if (add) {
        load_chunk<WIDE>(results, p, left);
#pragma unroll
        for (int i = 0; i < 8; i++) results[i] += values[i];
    }
    store_chunk<WIDE>(p, results, left);
}

} // namespace forgelm
