// CUDA's language and built-in functions for a plain C++17 compiler, so that a kernel runs on the
// CPU: what `device.cuh` includes where it is not compiled for a device.
//
// Start reading in fibers.hpp (threads and barriers), then warp.hpp (collectives), launch.hpp.
// What no emulation shows: bank conflicts, occupancy, the order of memory between blocks, speed.
#pragma once
#include "launch.hpp"
#include "warp.hpp"

// ---- the language ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__ static const
#define __align__(bytes) alignas(bytes)
#define __shared__ static thread_local

#define threadIdx (::emulator::self().thread)
#define blockIdx (::emulator::block->index)
#define blockDim (::emulator::block->launch->block)
#define gridDim (::emulator::block->launch->grid)
constexpr int warpSize = 32;

#define EMULATOR_JOIN_EXPANDED(a, b) a##b
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_EXPANDED(a, b)
#define KERNEL(threads, ...)                                                                     \
    static const ::emulator::LaunchBounds EMULATOR_JOIN(emulator_bounds_, __COUNTER__)(threads); \
    extern "C"
#define REGISTER(kernel)                                                                      \
    static const ::emulator::Registration emulator_registered_##kernel(                       \
        #kernel, &::emulator::Call<decltype(&kernel)>::run<&kernel>,                          \
        ::emulator::Call<decltype(&kernel)>::sizes, ::emulator::Call<decltype(&kernel)>::n);
#define SHARED(type, name) type* name = reinterpret_cast<type*>(::emulator::block->shared)

// ---- vector types ----

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- barriers, shuffles, votes ----

inline void __syncthreads(int line = __builtin_LINE()) { emulator::block_barrier(line); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::sync_warp(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned emulator_lane() { return emulator::lane_of(emulator::self()); }

template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned segment = emulator_lane() & ~unsigned(width - 1);
    return emulator::shuffle(mask, value, segment | (unsigned(source) & unsigned(width - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    unsigned lane = emulator_lane(), source = lane ^ unsigned(lanes);
    // A lane of a later segment cannot be read, one of an earlier segment can.
    if (source >= (lane & ~unsigned(width - 1)) + unsigned(width)) source = lane;
    return emulator::shuffle(mask, value, source);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    unsigned lane = emulator_lane();
    bool inside = lane % unsigned(width) + distance < unsigned(width);
    return emulator::shuffle(mask, value, inside ? lane + distance : lane);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    unsigned lane = emulator_lane();
    bool inside = lane % unsigned(width) >= distance;
    return emulator::shuffle(mask, value, inside ? lane - distance : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emulator::ballot(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// ---- atomics: of integers only, as the order of additions of floats would not be fixed ----

inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* p, unsigned v) {
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline unsigned atomicOr(unsigned* p, unsigned v) {
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <class T> inline T emulator_atomic_choice(T* p, T v, bool want_larger) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while ((want_larger ? old < v : v < old) &&
           !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
inline int atomicMax(int* p, int v) { return emulator_atomic_choice(p, v, true); }
inline unsigned atomicMax(unsigned* p, unsigned v) { return emulator_atomic_choice(p, v, true); }
inline int atomicMin(int* p, int v) { return emulator_atomic_choice(p, v, false); }
inline unsigned atomicMin(unsigned* p, unsigned v) { return emulator_atomic_choice(p, v, false); }

// ---- bits ----

template <class To, class From> inline To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are of one size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned u) { return emulator_bits<float>(u); }
inline unsigned __float_as_uint(float f) { return emulator_bits<unsigned>(f); }
inline float __int_as_float(int i) { return emulator_bits<float>(i); }
inline int __float_as_int(float f) { return emulator_bits<int>(f); }
inline double __longlong_as_double(long long i) { return emulator_bits<double>(i); }
inline long long __double_as_longlong(double d) { return emulator_bits<long long>(d); }
inline int __popc(unsigned u) { return __builtin_popcount(u); }
inline int __popcll(unsigned long long u) { return __builtin_popcountll(u); }
inline int __clz(int i) { return i ? __builtin_clz(unsigned(i)) : 32; }
inline int __clzll(long long i) { return i ? __builtin_clzll((unsigned long long)i) : 64; }
inline int __ffs(int i) { return __builtin_ffs(i); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
template <class T> inline T __ldg(const T* p) { return *p; }

// ---- arithmetic that is rounded as it is written ----

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline int __float2int_rn(float a) { return int(std::rint(a)); }
inline int __float2int_rz(float a) { return int(a); }
inline int __double2int_rn(double a) { return int(std::rint(a)); }
inline float __double2float_rn(double a) { return float(a); }
inline float __int2float_rn(int a) { return float(a); }

// expf, logf, tanhf, sqrtf, fabsf, fmaxf, rint and their like are those of <cmath>.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
using std::isfinite;
using std::isinf;
using std::isnan;
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}
