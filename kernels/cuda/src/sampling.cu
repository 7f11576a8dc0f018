// From logits to tokens, a block of threads a row. core/generate/src/sampler.rs says what is meant:
// temperature, then top-k, then top-p, then min-p; a number in [0, 1) then falls on one of the
// candidates that are left, taken in the order of their ids.
//
// Weights e^((logit - top) / temperature) are whole numbers of 2^-40 here. Whole numbers may be
// added in any order, so that histograms by atomics give the same sums every time; what is smaller
// than 2^-40 of the largest is never drawn.
#include "device.cuh"

namespace forgelm {
namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int BINS = 4096;
constexpr uint32_t NONE = 0xffffffffu;

struct Shared {
    unsigned long long bins[BINS];
    unsigned long long sums[WARPS];
};

struct Row {
    const float* logits;
    int n;
    float top;
    float inverse_temperature;

    // Larger numbers have larger keys; minus zero comes before zero.
    DEVICE uint32_t key(int i) const {
        const uint32_t bits = __float_as_uint(logits[i]);
        return bits >> 31 ? ~bits : bits | 0x80000000u;
    }

    // The chance of a token, as a part of the largest.
    DEVICE float weight(int i) const {
        const float logit = logits[i];
        return logit == top ? 1.0f : expf((logit - top) * inverse_temperature);
    }

    DEVICE uint64_t mass(int i) const {
        return static_cast<uint64_t>(weight(i) * 0x1p40f);
    }

    // Coarse order from the top. Logits crowd in a few exponents, so that bins by their leading bits
    // would be few and contended; steps of the same size are not.
    DEVICE int coarse_bin(int i) const {
        return static_cast<int>(fminf((top - logits[i]) * 64.0f, BINS - 1.0f));
    }
};

DEVICE uint64_t warp_sum_whole(uint64_t value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(value), step);
    }
    return value;
}

// Every thread gets the sum.
template <class F>
DEVICE uint64_t sum_over(Shared& shared, int n, F value) {
    uint64_t sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += value(i);
    sum = warp_sum_whole(sum);
    if (threadIdx.x % 32 == 0) shared.sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int warp = 0; warp < WARPS; warp++) sum += shared.sums[warp];
    __syncthreads();
    return sum;
}

struct Found {
    int index;
    // What was left of the target before this index.
    uint64_t left;
};

// The first index up to which values add up to more than `target`; all of them must. Each round
// narrows the range to the part of one warp.
template <class F>
DEVICE Found walk(Shared& shared, int n, uint64_t target, F value) {
    const int warp = warp_index();
    const int lane = lane_index();
    int begin = 0;
    int end = n;
    while (end - begin > WARPS) {
        const int part = (end - begin + WARPS - 1) / WARPS;
        const int part_end = min(end, begin + (warp + 1) * part);
        uint64_t sum = 0;
        for (int i = begin + warp * part + lane; i < part_end; i += 32) sum += value(i);
        sum = warp_sum_whole(sum);
        if (lane == 0) shared.sums[warp] = sum;
        __syncthreads();
        int chosen = 0;
        while (chosen < WARPS - 1 && shared.sums[chosen] <= target) {
            target -= shared.sums[chosen++];
        }
        __syncthreads();
        begin += chosen * part;
        end = min(end, begin + part);
    }
    while (begin < end - 1) {
        const uint64_t here = value(begin);
        if (here > target) break;
        target -= here;
        begin++;
    }
    return {begin, target};
}

struct Boundary {
    uint32_t key;
    // What is left of the limit after all larger keys.
    uint64_t left;
};

// The key at which amounts, added from the largest key down, exceed `limit`.
template <class F>
DEVICE Boundary select(
    Shared& shared, const Row& row, uint64_t limit, F amount) {
    int coarse = 0;
    uint32_t prefix = 0;
#pragma unroll 1
    for (int level = 0; level < 4; level++) {
        // First the coarse order, then 32 bits of the key from the top: 11, 11, 10.
        const int bits = level < 3 ? 11 : 10;
        const int shift = level == 1 ? 21 : level == 2 ? 10 : 0;
        const int last = (1 << bits) - 1;
        for (int i = threadIdx.x; i < BINS; i += THREADS) shared.bins[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.n; i += THREADS) {
            int bin = row.coarse_bin(i);
            if (level > 0) {
                const uint32_t key = row.key(i);
                const bool is_within = level == 1 || key >> (shift + bits) == prefix;
                if (bin != coarse || !is_within) continue;
                bin = last - static_cast<int>(key >> shift & last);
            }
            const uint64_t more = amount(i);
            if (more > 0) atomicAdd(&shared.bins[bin], static_cast<unsigned long long>(more));
        }
        __syncthreads();
        const Found found =
            walk(shared, BINS, limit, [&](int i) -> uint64_t { return shared.bins[i]; });
        __syncthreads();
        limit = found.left;
        if (level == 0) {
            coarse = found.index;
        } else {
            prefix = prefix << bits | static_cast<uint32_t>(last - found.index);
        }
    }
    return {prefix, limit};
}

// A float times a whole number, rounded down.
DEVICE uint64_t part_of(float part, uint64_t whole) {
    return static_cast<uint64_t>(static_cast<double>(part) * static_cast<double>(whole));
}

struct Settings {
    int top_k;
    float top_p;
};

// Which token; `top` is the largest logit, and no logit is NaN.
DEVICE uint32_t draw(
    Shared& shared, const Row& row, const Settings& settings, const float* uniforms) {
    uint32_t least = 0;
    if (settings.top_k > 0 && settings.top_k < row.n) {
        const uint64_t limit = static_cast<uint64_t>(settings.top_k - 1);
        least = select(shared, row, limit, [](int) -> uint64_t { return 1; }).key;
        // Zero and minus zero are equal logits.
        if (least == 0x80000000u) least = 0x7fffffffu;
    }
    auto is_among_k = [&](int i) { return row.key(i) >= least; };
    // Of the tokens at the edge of the nucleus, the last that is in it.
    uint32_t last_at_edge = NONE;
    if (settings.top_p < 1.0f) {
        auto mass = [&](int i) -> uint64_t { return is_among_k(i) ? row.mass(i) : 0; };
        const uint64_t limit = part_of(settings.top_p, sum_over(shared, row.n, mass));
        const Boundary edge = select(shared, row, limit, mass);
        // Each at the edge stays while those before it are within the limit.
        auto mass_at_edge = [&](int i) -> uint64_t {
            return row.key(i) == edge.key ? row.mass(i) : 0;
        };
        last_at_edge = static_cast<uint32_t>(walk(shared, row.n, edge.left, mass_at_edge).index);
        least = edge.key;
    }
    auto mass = [&](int i) -> uint64_t {
        const uint32_t key = row.key(i);
        if (key < least || (key == least && static_cast<uint32_t>(i) > last_at_edge)) return 0;
        return row.mass(i);
    };
    const uint64_t total = sum_over(shared, row.n, mass);
    // Read here, so that no register holds it until now.
    const uint64_t target = part_of(uniforms[blockIdx.x], total);
    return static_cast<uint32_t>(
        walk(shared, row.n, target < total ? target : total - 1, mass).index);
}

// The first index for which a statement is true, or NONE.
template <class F>
DEVICE uint32_t first_index(uint32_t& shared_first, int n, F is_true) {
    if (threadIdx.x == 0) shared_first = NONE;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += THREADS) {
        if (!is_true(i)) continue;
        atomicMin(&shared_first, static_cast<uint32_t>(i));
        break;
    }
    __syncthreads();
    const uint32_t first = shared_first;
    __syncthreads();
    return first;
}

} // namespace
} // namespace forgelm

using namespace forgelm;

// Shapes: `tokens` and `nans` [R] written: the token drawn, and the first token whose logit is not
// a number (0xffffffff if there is none; `tokens` then means something). `logits` [R, V],
// `uniforms` [R] in [0, 1). top_k = 0 and top_p = 1 keep all. An inverse temperature of 0 stands for
// the temperature 0, which takes the first of the largest.
KERNEL(THREADS, 4)
void sampling_draw(
    uint32_t* tokens, uint32_t* nans, const float* logits, const float* uniforms, int n,
    float inverse_temperature, int top_k, float top_p) {
    __shared__ Shared shared;
    __shared__ uint32_t first;
    const int64_t r = blockIdx.x;
    Row row{logits + r * n, n, -infinity(), inverse_temperature};
    const uint32_t nan = first_index(first, n, [&](int i) { return row.logits[i] != row.logits[i]; });
    if (threadIdx.x == 0) nans[r] = nan;
    if (nan != NONE) {
        if (threadIdx.x == 0) tokens[r] = 0;
        return;
    }
    float top = -infinity();
    for (int i = threadIdx.x; i < n; i += THREADS) top = fmaxf(top, row.logits[i]);
    row.top = block_max(top);
    uint32_t token;
    if (inverse_temperature > 0.0f) {
        token = draw(shared, row, {top_k, top_p}, uniforms);
    } else {
        token = first_index(first, n, [&](int i) { return row.logits[i] == row.top; });
    }
    if (threadIdx.x == 0) tokens[r] = token;
}
REGISTER(sampling_draw)

// Repetition penalty: logits of tokens seen are divided by it when positive, else multiplied.
// Shapes: `logits` [R, V] changed; the tokens of row r are `seen[starts[r]..starts[r + 1]]`, each
// once and below V.
KERNEL(256)
void sampling_penalize(
    float* logits, const uint32_t* seen, const uint32_t* starts, int n, float penalty) {
    const int64_t r = blockIdx.x;
    for (uint32_t i = starts[r] + threadIdx.x; i < starts[r + 1]; i += 256) {
        float& logit = logits[r * n + seen[i]];
        logit = logit > 0.0f ? logit / penalty : logit * penalty;
    }
}
REGISTER(sampling_penalize)
