// The one header that a kernel includes. The same kernel is compiled three ways:
//
// - by NVRTC and by nvcc for a device: then this header includes nothing else, so that NVRTC needs
//   no path at run time;
// - by a plain C++17 compiler for the CPU, through kernels/emulator/include/emulator.hpp.
//
// What it offers: numbers and their storage (`bf16`, `load`, `store`, 16-byte accesses), sums and
// maxima over warps and blocks in an order fixed by sizes, random bits, and what only tensor
// cores and asynchronous copies can do. Everything is in namespace `forgelm`.
//
// A kernel is an entry point `KERNEL(threads) void name(..) { .. }` outside the namespace, where
// `threads` is the most that a block of it may have, followed by `REGISTER(name)`. Kernels and
// registrations come in the same order. Blocks have whole warps wherever one of the collective
// functions below is called.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define FORGELM_ON_DEVICE 1
#else
#define FORGELM_ON_DEVICE 0
#endif

#if FORGELM_ON_DEVICE
#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif
// The most threads of a block, and where registers are short how many blocks a multiprocessor must
// have room for: fewer than the compiler would choose leave more registers to each thread.
#define KERNEL(...) extern "C" __global__ __launch_bounds__(__VA_ARGS__)
#define REGISTER(kernel)
// Dynamic shared memory of the launch as an array of `type`.
#define SHARED(type, name)                                             \
    extern __shared__ __align__(128) unsigned char forgelm_shared[]; \
    type* name = reinterpret_cast<type*>(forgelm_shared)
#else
#include "emulator.hpp"
#endif

#define DEVICE __device__ __forceinline__

namespace forgelm {

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr float FLOAT_MAX = 3.402823466e+38f;
constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.69314718055994531f;

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
DEVICE int lane_index() { return int(threadIdx.x) & 31; }
DEVICE int warp_index() { return int(threadIdx.x) >> 5; }

template <class A, class B> struct Same {
    static constexpr bool value = false;
};
template <class A> struct Same<A, A> {
    static constexpr bool value = true;
};

// ---- numbers ----

// Storage of a brain float; arithmetic is always in float.
struct bf16 {
    uint16_t bits;
};

// Two floats to the nearest brain floats, of two equally near the even one; `low` is in the low 16
// bits, thus first in memory.
DEVICE uint32_t pack_bf16(float low, float high) {
#if FORGELM_ON_DEVICE
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    auto nearest = [](float value) -> uint32_t {
        uint32_t bits = __float_as_uint(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu; // what the instruction makes of NaN
        return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    };
    return nearest(low) | nearest(high) << 16;
#endif
}

DEVICE float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float high_float(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }
DEVICE bf16 to_bf16(float value) { return bf16{uint16_t(pack_bf16(value, 0.0f) & 0xffffu)}; }

// A float as `E` stores it.
template <class E> DEVICE E to_storage(float value) {
    if constexpr (Same<E, bf16>::value)
        return to_bf16(value);
    else
        return value;
}

// One number, in memory that need only be aligned as `E` is.
template <class E> DEVICE float load(const E* p) { return to_float(*p); }
template <class E> DEVICE void store(E* p, float value) { *p = to_storage<E>(value); }

// The nearest IEEE half of a float (of two equally near the even one), and back.
DEVICE uint16_t float_to_f16(float value) {
#if FORGELM_ON_DEVICE
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return uint16_t(0x7fffu);
    if (bits >= 0x477ff000u) return uint16_t(sign | 0x7c00u); // rounds to 2^16 or more
    if (bits < 0x38800000u) // a multiple of 2^-24: the sum leaves just those bits
        return uint16_t(sign | (__float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000u));
    bits += 0xfffu + (bits >> 13 & 1u);
    return uint16_t(sign | (bits - 0x38000000u) >> 13);
#endif
}

DEVICE float f16_to_float(uint16_t half) {
#if FORGELM_ON_DEVICE
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    uint32_t sign = uint32_t(half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest < 0x400u) { // a multiple of 2^-24
        float magnitude = float(rest) * 5.9604644775390625e-8f;
        return __uint_as_float(sign | __float_as_uint(magnitude));
    }
    return __uint_as_float(sign | ((rest << 13) + 0x38000000u));
#endif
}

// 2^x with a relative error of about 2^-22; results below 2^-126 are 0.
DEVICE float exp2_approx(float x) {
#if FORGELM_ON_DEVICE
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// ---- 16 bytes at once ----

// How many numbers of `E` are in 16 bytes: 8 of bf16, 4 of float.
template <class E> constexpr int VECTOR = int(16 / sizeof(E));

struct __align__(16) Bytes16 {
    uint32_t words[4];
};

DEVICE Bytes16 load_16(const void* p) {
#if !FORGELM_ON_DEVICE
    if (reinterpret_cast<uintptr_t>(p) & 15) emulator::die("a 16-byte load that is not aligned");
#endif
    uint4 raw = *reinterpret_cast<const uint4*>(p);
    return Bytes16{{raw.x, raw.y, raw.z, raw.w}};
}

DEVICE void store_16(void* p, const Bytes16& v) {
#if !FORGELM_ON_DEVICE
    if (reinterpret_cast<uintptr_t>(p) & 15) emulator::die("a 16-byte store that is not aligned");
#endif
    *reinterpret_cast<uint4*>(p) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]);
}

DEVICE void unpack(const Bytes16& bytes, float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = low_float(bytes.words[i]);
        values[2 * i + 1] = high_float(bytes.words[i]);
    }
}

DEVICE Bytes16 pack(const float (&values)[8]) {
    Bytes16 bytes;
#pragma unroll
    for (int i = 0; i < 4; i++) bytes.words[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
    return bytes;
}

// N numbers from an address that is aligned to 16 bytes; N is a multiple of `VECTOR<E>`.
template <int N> DEVICE void load_vector(const bf16* p, float (&values)[N]) {
    static_assert(N % 8 == 0, "whole 16 bytes");
#pragma unroll
    for (int i = 0; i < N; i += 8) {
        float eight[8];
        unpack(load_16(p + i), eight);
#pragma unroll
        for (int j = 0; j < 8; j++) values[i + j] = eight[j];
    }
}

template <int N> DEVICE void load_vector(const float* p, float (&values)[N]) {
    static_assert(N % 4 == 0, "whole 16 bytes");
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        Bytes16 bytes = load_16(p + i);
#pragma unroll
        for (int j = 0; j < 4; j++) values[i + j] = __uint_as_float(bytes.words[j]);
    }
}

template <int N> DEVICE void store_vector(bf16* p, const float (&values)[N]) {
    static_assert(N % 8 == 0, "whole 16 bytes");
#pragma unroll
    for (int i = 0; i < N; i += 8) {
        Bytes16 bytes;
#pragma unroll
        for (int j = 0; j < 4; j++)
            bytes.words[j] = pack_bf16(values[i + 2 * j], values[i + 2 * j + 1]);
        store_16(p + i, bytes);
    }
}

template <int N> DEVICE void store_vector(float* p, const float (&values)[N]) {
    static_assert(N % 4 == 0, "whole 16 bytes");
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        Bytes16 bytes;
#pragma unroll
        for (int j = 0; j < 4; j++) bytes.words[j] = __float_as_uint(values[i + j]);
        store_16(p + i, bytes);
    }
}

// ---- over a warp, over a block ----

struct Add {
    template <class T> DEVICE T operator()(T a, T b) const { return a + b; }
};

// A NaN does not get lost.
struct Larger {
    template <class T> DEVICE T operator()(T a, T b) const { return a > b || a != a ? a : b; }
};

// All 32 lanes get the result. Both partners of a round compute the same, so that every lane has
// the same bits; the order is that of the distances 16, 8, 4, 2, 1.
template <class Combine, class T> DEVICE T warp_reduce(T value) {
    Combine combine;
#if FORGELM_ON_DEVICE
#pragma unroll
    for (int distance = 16; distance; distance >>= 1)
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
#else
    return emulator::reduce_warp<Same<Combine, Add>::value>(value, combine);
#endif
}

template <class T> DEVICE T warp_sum(T value) { return warp_reduce<Add>(value); }
template <class T> DEVICE T warp_max(T value) { return warp_reduce<Larger>(value); }

// All threads of a one-dimensional block of whole warps call it and get the result: first over
// each warp, then over the warps in their order. It begins and ends with a barrier of its own, so
// that calls may follow each other.
template <class Combine, class T> DEVICE T block_reduce(T value) {
    __shared__ T partial[32];
    value = warp_reduce<Combine>(value);
    if (lane_index() == 0) partial[warp_index()] = value;
    __syncthreads();
    int n_warps = int(blockDim.x) / WARP;
    T result = partial[0];
    for (int i = 1; i < n_warps; i++) result = Combine()(result, partial[i]);
    __syncthreads();
    return result;
}

template <class T> DEVICE T block_sum(T value) { return block_reduce<Add>(value); }
template <class T> DEVICE T block_max(T value) { return block_reduce<Larger>(value); }

// ---- random bits ----

struct Philox {
    uint32_t words[4];
};

// Philox4x32-10 as kernels/api/src/philox.rs: Salmon, Moraes, Dror, Shaw 2011, sec. 3.3.
DEVICE Philox philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                         uint32_t k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = uint64_t(0xD2511F53u) * c0, product1 = uint64_t(0xCD9E8D57u) * c2;
        c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
        c1 = uint32_t(product1);
        c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
        c3 = uint32_t(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Philox{{c0, c1, c2, c3}};
}

// ---- tensor cores ----

// d += a b on a warp: A [16, 16] and B [16, 8] in bf16, D [16, 8] in float. With g = lane / 4 and
// t = lane % 4 a lane holds of
//   A: a[0] row g, columns 2t, 2t + 1; a[1] row g + 8; a[2], a[3] the same of columns + 8;
//   B: b[0] column g, rows 2t, 2t + 1; b[1] rows + 8;
//   D: d[0], d[1] row g, columns 2t, 2t + 1; d[2], d[3] row g + 8.
DEVICE void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if FORGELM_ON_DEVICE
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulator::mma_16816(d, a, b);
#endif
}

#if FORGELM_ON_DEVICE
DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
#endif

// Four 8x8 matrices of bf16 from shared memory: lane 8 j + i gives the address (aligned to 16
// bytes) of row i of matrix j. r[j] of lane l holds the numbers 2 (l % 4) and 2 (l % 4) + 1 of row
// l / 4 of matrix j; with TRANS of its column l / 4.
template <bool TRANS> DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#if FORGELM_ON_DEVICE
    if constexpr (TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row))
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row))
                     : "memory");
#else
    emulator::ldmatrix_x4<TRANS>(r, row);
#endif
}

// ---- asynchronous copies ----

// 16 bytes from global to shared memory, both aligned to 16; zeros where `predicate` does not hold
// (then nothing is read). They have landed after a wait of the thread that issued them, and other
// threads see them after a barrier behind that wait.
DEVICE void cp_async_16(void* destination, const void* source, bool predicate = true) {
#if FORGELM_ON_DEVICE
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared_address(destination)),
                 "l"(__cvta_generic_to_global(source)), "r"(predicate ? 16 : 0)
                 : "memory");
#else
    emulator::copy_async_16(destination, source, predicate);
#endif
}

// Closes a group of copies.
DEVICE void cp_async_commit() {
#if FORGELM_ON_DEVICE
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::commit_copies();
#endif
}

// Waits for all groups of this thread but the newest N.
template <int N> DEVICE void cp_async_wait() {
#if FORGELM_ON_DEVICE
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
    emulator::wait_copies(N);
#endif
}

} // namespace forgelm
