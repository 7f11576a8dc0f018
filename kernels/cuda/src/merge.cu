// Merge methods over arrays on the device: the elementwise forms of plugins/merge_method, and the
// sums over a tensor that they need. The formulas are those of that crate, in f64 where they are,
// every product and sum rounded on its own, so that merged weights are equal to the last bit.
//
// `inputs` holds the address of each model's array [n], `base` the base model's.
#include "device.cuh"

namespace forgelm {
namespace {

constexpr int THREADS = 256;

using Inputs = const float* const*;

DEVICE int64_t element() {
    return static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
}

DEVICE double multiply_add(double sum, double a, double b) {
    return __dadd_rn(sum, __dmul_rn(a, b));
}

} // namespace
} // namespace forgelm

using namespace forgelm;

// `out = sum_i shares[i] * inputs[i]`. Shapes: `out` [n] written, `shares` [models].
KERNEL(THREADS)
void merge_linear(float* out, Inputs inputs, const double* shares, int n_models, int64_t n) {
    const int64_t i = element();
    if (i >= n) return;
    double sum = 0.0;
    for (int model = 0; model < n_models; model++) {
        sum = multiply_add(sum, shares[model], inputs[model][i]);
    }
    out[i] = static_cast<float>(sum);
}
REGISTER(merge_linear)

// `out = a first + b second`, around the base if there is one.
KERNEL(THREADS)
void merge_slerp(
    float* out, const float* first, const float* second, const float* base, double a, double b,
    int64_t n) {
    const int64_t i = element();
    if (i >= n) return;
    const double x = first[i];
    const double y = second[i];
    if (base == nullptr) {
        out[i] = static_cast<float>(__dadd_rn(__dmul_rn(a, x), __dmul_rn(b, y)));
        return;
    }
    const double origin = base[i];
    const double nearer = multiply_add(origin, a, x - origin);
    out[i] = static_cast<float>(multiply_add(nearer, b, y - origin));
}
REGISTER(merge_slerp)

namespace forgelm {
namespace {

constexpr int BINS_MAX = 2048;
// Elements of a block of `merge_ties_count`.
constexpr int COUNT_BLOCK = 65536;

// Magnitudes of f32 in the order of the numbers.
DEVICE uint32_t magnitude(float change) { return __float_as_uint(change) & 0x7fffffffu; }

DEVICE float trimmed(float change, uint32_t threshold) {
    return magnitude(change) >= threshold ? change : 0.0f;
}

} // namespace
} // namespace forgelm

// Counts the magnitudes of changes by `bits` of their bits above `shift`; with `prefixes`, those
// only whose bits above these are their model's prefix. Grid: x = blocks of 65,536 elements, y =
// models. Counts are whole numbers, so that the order in which they are added does not matter.
// Shapes: `counts` [models, 2^bits] added to, `prefixes` [models].
KERNEL(THREADS)
void merge_ties_count(
    unsigned long long* counts, Inputs inputs, const float* base, const uint32_t* prefixes,
    int shift, int bits, int64_t n) {
    __shared__ uint32_t shared[BINS_MAX];
    const int n_bins = 1 << bits;
    for (int bin = threadIdx.x; bin < n_bins; bin += THREADS) shared[bin] = 0;
    __syncthreads();
    const float* input = inputs[blockIdx.y];
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * COUNT_BLOCK;
    const int64_t end = begin + COUNT_BLOCK < n ? begin + COUNT_BLOCK : n;
    for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
        const uint32_t bits_of = magnitude(input[i] - base[i]);
        if (prefixes != nullptr && bits_of >> (shift + bits) != prefixes[blockIdx.y]) continue;
        atomicAdd(&shared[bits_of >> shift & (n_bins - 1)], 1u);
    }
    __syncthreads();
    unsigned long long* own = counts + static_cast<int64_t>(blockIdx.y) * n_bins;
    for (int bin = threadIdx.x; bin < n_bins; bin += THREADS) {
        if (shared[bin] > 0) atomicAdd(&own[bin], static_cast<unsigned long long>(shared[bin]));
    }
}
REGISTER(merge_ties_count)

// Trims changes below their model's threshold, elects a sign for every element, and adds the mean
// of the changes that have it to the base. With `votes` every model has one vote, else the sign is
// that of the weighted sum. Shapes: `out` [n] written; `thresholds`, `shares` [models].
KERNEL(THREADS)
void merge_ties(
    float* out, Inputs inputs, const float* base, const uint32_t* thresholds,
    const double* shares, int n_models, int votes, int64_t n) {
    const int64_t i = element();
    if (i >= n) return;
    double election = 0.0;
    for (int model = 0; model < n_models; model++) {
        const float change = trimmed(inputs[model][i] - base[i], thresholds[model]);
        const double vote = (change > 0.0f ? 1.0 : 0.0) - (change < 0.0f ? 1.0 : 0.0);
        election += votes ? vote : __dmul_rn(shares[model], static_cast<double>(change));
    }
    const double elected = election >= 0.0 ? 1.0 : -1.0;
    double sum = 0.0;
    double weight = 0.0;
    for (int model = 0; model < n_models; model++) {
        const double change = trimmed(inputs[model][i] - base[i], thresholds[model]);
        if (!(change * elected > 0.0)) continue;
        sum = multiply_add(sum, shares[model], change);
        weight += shares[model];
    }
    // Shares that cancel (negative weights) leave the sum as it is.
    const double mean = weight > 0.0 ? sum / (weight > 1e-12 ? weight : 1e-12) : sum;
    out[i] = static_cast<float>(base[i] + mean);
}
REGISTER(merge_ties)

// Drops changes at random and adds the rest, each times its model's factor, to the base. Four
// elements a thread: those of one block of random words. `start` is the place of the first element
// in its tensor. Shapes: `out` [n] written, `factors` [models].
KERNEL(THREADS)
void merge_dare(
    float* out, Inputs inputs, const float* base, const double* factors, int n_models,
    uint32_t key_low, uint32_t key_high, int64_t kept_below, int64_t start, int64_t n) {
    const int64_t block = start / 4 + element();
    const int64_t first = block * 4 - start;
    if (first >= n) return;
    double sums[4] = {};
    for (int model = 0; model < n_models && kept_below > 0; model++) {
        const Philox random = philox4x32(
            static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
            static_cast<uint32_t>(model), 0, key_low, key_high);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t i = first + j;
            if (i < 0 || i >= n || static_cast<int64_t>(random.words[j]) >= kept_below) continue;
            const float change = inputs[model][i] - base[i];
            sums[j] = multiply_add(sums[j], change, factors[model]);
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int64_t i = first + j;
        if (i >= 0 && i < n) out[i] = static_cast<float>(base[i] + sums[j]);
    }
}
REGISTER(merge_dare)
