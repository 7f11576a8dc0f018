// What the 32 threads of a warp do together: votes, shuffles, reductions, matrix products on
// tensor cores, and the asynchronous copies of a thread.
//
// A lane leaves a request on its own stack and waits. The last lane of the mask to arrive serves
// the requests of all, so that nothing a lane reads can be overwritten by one that runs ahead.
#pragma once
#include <cmath>

#include "fibers.hpp"

namespace emulator {

enum Operation : uint8_t {
    SYNC_WARP = 1,
    SHUFFLE = 2, // plus the size of the value, as lanes must agree on it
    VOTE = 16,
    REDUCE = 32, // plus kind and size
    MMA = 64,
    LDMATRIX = 65,
    LDMATRIX_TRANS = 66,
};

// The lanes of `mask` that exist in a block whose size is no multiple of 32.
inline uint32_t existing_lanes(const Fiber& fiber, uint32_t mask) {
    unsigned lanes = block->n_threads - (fiber.linear & ~31u);
    return lanes >= 32 ? mask : mask & ((1u << lanes) - 1);
}

// All lanes of `mask` must come with the same mask and operation. `serve(requests, present)` runs
// once, when all are there.
template <class Request, class Serve>
inline void collective(uint32_t mask, unsigned operation, Request& request, Serve serve) {
    Fiber& me = self();
    Warp& warp = warp_of(me);
    unsigned lane = lane_of(me);
    if (!(mask >> lane & 1)) die("the calling lane is not in its own mask");
    warp.masks[lane] = mask;
    warp.operations[lane] = uint8_t(operation);
    warp.requests[lane] = &request;
    uint32_t present = existing_lanes(me, mask);
    warp.waiting |= 1u << lane;
    if ((warp.waiting & present) != present) {
        set_waiting(me, AT_COLLECTIVE);
        return wait();
    }
    for (unsigned l = 0; l < 32; l++) {
        if (!(present >> l & 1)) continue;
        if (warp.masks[l] != mask) die("lanes meet with different masks");
        if (warp.operations[l] != operation) die("lanes of a warp meet in different collectives");
    }
    serve(reinterpret_cast<Request**>(warp.requests), present);
    warp.waiting &= ~present;
    for (unsigned l = 0; l < 32; l++)
        if (present >> l & 1 && l != lane) set_ready(block->fibers[(me.linear & ~31u) + l]);
}

inline void sync_warp(uint32_t mask) {
    char nothing = 0;
    collective(mask, SYNC_WARP, nothing, [](char**, uint32_t) {});
}

template <class T> inline T shuffle(uint32_t mask, T value, unsigned source) {
    struct Request {
        T value, result;
        unsigned source;
    } request{value, value, source};
    collective(mask, SHUFFLE + sizeof(T), request, [](Request** lanes, uint32_t present) {
        for (unsigned l = 0; l < 32; l++) {
            if (!(present >> l & 1)) continue;
            if (!(present >> lanes[l]->source & 1)) die("a shuffle reads a lane outside the mask");
            lanes[l]->result = lanes[lanes[l]->source]->value;
        }
    });
    return request.result;
}

// The lanes of the mask whose predicate holds.
inline uint32_t ballot(uint32_t mask, bool predicate) {
    struct Request {
        bool predicate;
        uint32_t result;
    } request{predicate, 0};
    collective(mask, VOTE, request, [](Request** lanes, uint32_t present) {
        uint32_t votes = 0;
        for (unsigned l = 0; l < 32; l++)
            if (present >> l & 1 && lanes[l]->predicate) votes |= 1u << l;
        for (unsigned l = 0; l < 32; l++)
            if (present >> l & 1) lanes[l]->result = votes;
    });
    return request.result;
}

// What five rounds of `value = combine(value, shuffle_xor(value, distance))` with distances 16, 8,
// 4, 2, 1 give, in one meeting of the lanes instead of five.
template <unsigned KIND, class T, class Combine> inline T reduce_warp(T value, Combine combine) {
    struct Request {
        T value;
    } request{value};
    auto serve = [&](Request** lanes, uint32_t present) {
        if (present != ~0u) die("a reduction over a warp that is not full");
        T values[2][32];
        for (unsigned l = 0; l < 32; l++) values[0][l] = lanes[l]->value;
        unsigned from = 0;
        for (unsigned distance = 16; distance; distance >>= 1, from ^= 1)
            for (unsigned l = 0; l < 32; l++)
                values[from ^ 1][l] = combine(values[from][l], values[from][l ^ distance]);
        for (unsigned l = 0; l < 32; l++) lanes[l]->value = values[from][l];
    };
    collective(~0u, REDUCE + KIND * 9 + sizeof(T), request, serve);
    return request.value;
}

// ---- tensor cores ----

inline float low_bf16(uint32_t word) {
    word <<= 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

inline float high_bf16(uint32_t word) {
    word &= 0xFFFF0000u;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

struct MmaRequest {
    float* d;
    const uint32_t *a, *b;
};

// D += A B with A [16, 16] and B [16, 8]. In the fragments of the PTX ISA lane 4 g + t holds of A
// the rows g and g + 8 and the columns 2 t, 2 t + 1 (and those + 8), of B the column g and the
// rows 2 t, 2 t + 1 (and those + 8), of D the rows g and g + 8 and the columns 2 t, 2 t + 1.
inline void serve_mma_16816(MmaRequest** lanes, uint32_t) {
    // Four columns at a time, in a vector that every x86-64 has.
    typedef float Columns __attribute__((vector_size(16)));
    float a[16][16];
    union {
        float numbers[16][8];
        Columns columns[16][2];
    } b, d;
    for (unsigned lane = 0; lane < 32; lane++) {
        const MmaRequest& request = *lanes[lane];
        unsigned g = lane >> 2, t = lane & 3;
        for (unsigned i = 0; i < 4; i++) {
            float* at = &a[g + (i & 1) * 8][t * 2 + (i >> 1) * 8];
            at[0] = low_bf16(request.a[i]);
            at[1] = high_bf16(request.a[i]);
        }
        for (unsigned i = 0; i < 2; i++) {
            b.numbers[t * 2 + i * 8][g] = low_bf16(request.b[i]);
            b.numbers[t * 2 + i * 8 + 1][g] = high_bf16(request.b[i]);
        }
    }
    for (unsigned row = 0; row < 16; row++) {
        Columns left = {}, right = {};
        for (unsigned k = 0; k < 16; k++) {
            left += a[row][k] * b.columns[k][0];
            right += a[row][k] * b.columns[k][1];
        }
        d.columns[row][0] = left;
        d.columns[row][1] = right;
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        unsigned g = lane >> 2, t = lane & 3;
        for (unsigned i = 0; i < 4; i++)
            lanes[lane]->d[i] += d.numbers[g + (i >> 1) * 8][t * 2 + (i & 1)];
    }
}

inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MmaRequest request{d, a, b};
    collective(~0u, MMA, request, serve_mma_16816);
}

struct LdmatrixRequest {
    const char* row;
    uint32_t* result;
};

// Four 8x8 matrices of 16-bit numbers; lane 8 j + i brings the address of row i of matrix j. Lane l
// gets of each matrix the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, or, transposed, of
// column l / 4.
template <bool TRANS> inline void ldmatrix_x4(uint32_t (&result)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) & 15) die("a row of ldmatrix that is not aligned to 16");
    if (!is_shared(row, 16)) die("a row of ldmatrix outside shared memory");
    LdmatrixRequest request{static_cast<const char*>(row), result};
    auto serve = [](LdmatrixRequest** lanes, uint32_t) {
        for (unsigned lane = 0; lane < 32; lane++)
            for (unsigned j = 0; j < 4; j++) {
                unsigned along = lane / 4, pair = lane % 4 * 2;
                uint16_t two[2];
                for (unsigned i = 0; i < 2; i++) {
                    unsigned r = TRANS ? pair + i : along, c = TRANS ? along : pair + i;
                    std::memcpy(&two[i], lanes[j * 8 + r]->row + c * 2, 2);
                }
                lanes[lane]->result[j] = two[0] | uint32_t(two[1]) << 16;
            }
    };
    collective(~0u, TRANS ? LDMATRIX_TRANS : LDMATRIX, request, serve);
}

// ---- asynchronous copies ----

inline void land(const PendingCopy& copy) {
    if (copy.source)
        std::memcpy(copy.destination, copy.source, 16);
    else
        std::memset(copy.destination, 0, 16);
}

inline void copy_async_16(void* destination, const void* source, bool predicate) {
    if (!predicate) source = nullptr;
    if ((reinterpret_cast<uintptr_t>(destination) | reinterpret_cast<uintptr_t>(source)) & 15)
        die("a cp.async that is not aligned to 16");
    if (!is_shared(destination, 16)) die("a cp.async to outside shared memory");
    PendingCopy copy{destination, source};
    if (block->launch->async_copies == LAND_AT_ISSUE)
        land(copy);
    else
        self().copies.push_back(copy);
}

inline void commit_copies() {
    Fiber& me = self();
    me.groups.push_back(me.copies.size());
}

// Lands all groups but the newest `n_left`.
inline void wait_copies(size_t n_left) {
    Fiber& me = self();
    if (me.groups.size() <= n_left) return;
    size_t n_groups = me.groups.size() - n_left;
    size_t n_copies = me.groups[n_groups - 1];
    for (size_t i = 0; i < n_copies; i++) land(me.copies[i]);
    me.copies.erase(me.copies.begin(), me.copies.begin() + n_copies);
    me.groups.erase(me.groups.begin(), me.groups.begin() + n_groups);
    for (size_t& group : me.groups) group -= n_copies;
}

} // namespace emulator
