// The wide end: from a chunk of logits to log-probabilities and gradients.
//
// A chunk is [rows, width] of the logits of a few rows and a few columns of the vocabulary, as a
// product has left them in scratch, with `stride` floats from row to row (a multiple of eight).
// Its first column stands for the token `first`. One block of threads works on one row.
//
// Between chunks a row is known by `max`, the largest logit so far, `sum`, the sum of
// e^(logit - max), and `label`, the label's logit. A soft cap of 0 is none.
//
// Factors of a gradient replace the logits in place: as f32, or as bfloat16 in the first half of
// each row, 2 * stride elements from row to row.
//
// Numerics: sums in f32 in an order that the width fixes; chunks are added in order.
#include "device.cuh"

namespace forgelm {
namespace {

constexpr int THREADS = 256;
// Columns that a block of threads reads at once.
constexpr int STEP = THREADS * 4;

struct Cap {
    float cap;

    DEVICE float apply(float logit) const {
        return cap > 0.0f ? cap * tanhf(logit / cap) : logit;
    }

    // Slope of the cap where it has given this logit.
    DEVICE float slope(float logit) const {
        if (!(cap > 0.0f)) return 1.0f;
        const float part = logit / cap;
        return 1.0f - part * part;
    }
};

// Four neighbors of a row, capped; minus infinity behind its end.
DEVICE void read4(
    float (&values)[4], const float* row, int column, int width, Cap cap) {
#pragma unroll
    for (int i = 0; i < 4; i++) values[i] = -infinity();
    if (column >= width) return;
    const float4 read = *reinterpret_cast<const float4*>(row + column);
    const float raw[4] = {read.x, read.y, read.z, read.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (column + i < width) values[i] = cap.apply(raw[i]);
    }
}

struct Softmax {
    float max;
    float sum;
};

// Shrinks a sum to a larger maximum. An empty sum may come with a maximum of minus infinity.
DEVICE float shrunk(Softmax part, float max) {
    return part.sum > 0.0f ? part.sum * expf(part.max - max) : part.sum;
}

// The softmax of one row of a chunk; every thread gets it.
DEVICE Softmax softmax_of_row(const float* row, int width, Cap cap) {
    Softmax own{-infinity(), 0.0f};
    for (int column = static_cast<int>(threadIdx.x) * 4; column < width; column += STEP) {
        float values[4];
        read4(values, row, column, width, cap);
        const float largest = fmaxf(fmaxf(values[0], values[1]), fmaxf(values[2], values[3]));
        const float max = fmaxf(own.max, largest);
        own.sum = shrunk(own, max);
        own.max = max;
        // Only minus infinities so far: their weight is nothing, not NaN.
        if (max == -infinity()) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) own.sum += expf(values[i] - max);
    }
    const float max = block_max(own.max);
    return {max, block_sum(shrunk(own, max))};
}

// What is known of all rows. Shapes: [rows].
struct Known {
    float* max;
    float* sum;
    float* label;
};

// Adds one row of a chunk to what is known of it; every thread gets the new maximum and the old one.
DEVICE float2 absorb(
    Known known, const float* row, uint32_t label, int width, uint32_t first, Cap cap,
    bool is_first) {
    const int64_t r = blockIdx.x;
    Softmax before{-infinity(), 0.0f};
    if (!is_first) before = {known.max[r], known.sum[r]};
    const Softmax part = softmax_of_row(row, width, cap);
    const float max = fmaxf(before.max, part.max);
    if (threadIdx.x == 0) {
        known.max[r] = max;
        known.sum[r] = shrunk(before, max) + shrunk(part, max);
        if (label - first < static_cast<uint32_t>(width)) {
            known.label[r] = cap.apply(row[label - first]);
        }
    }
    return make_float2(max, before.max);
}

// Replaces four logits by their factors. As bfloat16 they lie where other threads' logits are,
// which those must have read before: all threads come here, also behind the end of the row.
DEVICE void replace4(
    float* row, int column, int width, const float (&factors)[4], bool is_bf16) {
    if (is_bf16) {
        __syncthreads();
        if (column >= width) return;
        uint2* to = reinterpret_cast<uint2*>(reinterpret_cast<bf16*>(row) + column);
        *to = make_uint2(pack_bf16(factors[0], factors[1]), pack_bf16(factors[2], factors[3]));
    } else if (column < width) {
        *reinterpret_cast<float4*>(row + column) =
            make_float4(factors[0], factors[1], factors[2], factors[3]);
    }
}

} // namespace
} // namespace forgelm

using namespace forgelm;

// Forward: adds a chunk to what is known.
KERNEL(THREADS)
void token_logprobs_absorb(
    float* max, float* sum, float* label_logits, const float* logits, const uint32_t* labels,
    int64_t stride, int width, uint32_t first, float soft_cap, int is_first) {
    const int64_t r = blockIdx.x;
    absorb(
        {max, sum, label_logits}, logits + r * stride, labels[r], width, first, {soft_cap},
        is_first != 0);
}
REGISTER(token_logprobs_absorb)

// Forward with gradient: adds a chunk to what is known, and replaces each logit by
// e^(logit - max) * slope, the label's by zero (its factor is added at the end, without
// cancellation). Sums of earlier factors are to be multiplied by `rescale`.
KERNEL(THREADS)
void token_logprobs_weigh(
    float* max, float* sum, float* label_logits, float* rescale, float* logits,
    const uint32_t* labels, int64_t stride, int width, uint32_t first, float soft_cap, int is_first,
    int is_bf16) {
    const int64_t r = blockIdx.x;
    const uint32_t label = labels[r];
    const Cap cap{soft_cap};
    float* row = logits + r * stride;
    const float2 maxima =
        absorb({max, sum, label_logits}, row, label, width, first, cap, is_first != 0);
    if (threadIdx.x == 0) {
        // Equal maxima may be infinite.
        rescale[r] = maxima.x == maxima.y ? 1.0f : expf(maxima.y - maxima.x);
    }
    // The label's logit has been read.
    __syncthreads();
    for (int start = 0; start < width; start += STEP) {
        const int column = start + static_cast<int>(threadIdx.x) * 4;
        float values[4];
        read4(values, row, column, width, cap);
        float factors[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool is_label = first + column + i == label;
            const float factor = expf(values[i] - maxima.x) * cap.slope(values[i]);
            factors[i] = is_label || column + i >= width ? 0.0f : factor;
        }
        replace4(row, column, width, factors, is_bf16 != 0);
    }
}
REGISTER(token_logprobs_weigh)

// Brings sums of factors to a new maximum. Rows whose maximum stays are left alone.
KERNEL(THREADS)
void token_logprobs_rescale(float* sums, const float* rescale, int n_columns) {
    const int64_t r = blockIdx.x;
    const float factor = rescale[r];
    if (factor == 1.0f) return;
    for (int i = threadIdx.x; i < n_columns; i += THREADS) sums[r * n_columns + i] *= factor;
}
REGISTER(token_logprobs_rescale)

// Forward: one thread a row.
KERNEL(THREADS)
void token_logprobs_finish(
    float* logp, float* lse, const float* max, const float* sum, const float* label_logits,
    int n_rows) {
    const int64_t r = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (r >= n_rows) return;
    const double log_sum = static_cast<double>(max[r]) + log(static_cast<double>(sum[r]));
    lse[r] = static_cast<float>(log_sum);
    logp[r] = static_cast<float>(static_cast<double>(label_logits[r]) - log_sum);
}
REGISTER(token_logprobs_finish)

// Backward: replaces each logit by (onehot - softmax) * slope. With `dlogp` each factor is
// multiplied by it.
KERNEL(THREADS)
void token_logprobs_gradient(
    float* logits, const float* lse, const float* dlogp, const uint32_t* labels, int64_t stride,
    int width, uint32_t first, float soft_cap, int is_bf16) {
    const int64_t r = blockIdx.x;
    const uint32_t label = labels[r];
    const float log_sum = lse[r];
    const float upstream = dlogp != nullptr ? dlogp[r] : 1.0f;
    const Cap cap{soft_cap};
    float* row = logits + r * stride;
    for (int start = 0; start < width; start += STEP) {
        const int column = start + static_cast<int>(threadIdx.x) * 4;
        float values[4];
        read4(values, row, column, width, cap);
        float factors[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float one_hot = first + column + i == label ? 1.0f : 0.0f;
            const float factor = (one_hot - expf(values[i] - log_sum)) * cap.slope(values[i]);
            factors[i] = column + i >= width ? 0.0f : upstream * factor;
        }
        replace4(row, column, width, factors, is_bf16 != 0);
    }
}
REGISTER(token_logprobs_gradient)

namespace forgelm {
namespace {

template <class E>
DEVICE void scale_row(
    E* dx, const float* sums, const float* dlogp, int n_columns) {
    const int64_t r = blockIdx.x;
    const float factor = dlogp[r];
    for (int i = threadIdx.x; i < n_columns; i += THREADS) {
        store(dx + r * n_columns + i, factor * sums[r * n_columns + i]);
    }
}

// `own * head[label] - e^(max - lse) * sums`, with own = (1 - e^(label_logit - lse)) * slope.
template <class E, class W>
DEVICE void join_row(
    E* dx, const float* sums, const W* head, const uint32_t* labels, const float* max,
    const float* label_logits, const float* lse, int n_columns, Cap cap) {
    const int64_t r = blockIdx.x;
    const double log_sum = lse[r];
    const float factor = static_cast<float>(exp(max[r] - log_sum));
    const float own =
        static_cast<float>(1.0 - exp(label_logits[r] - log_sum)) * cap.slope(label_logits[r]);
    // Rows of a head in blocks have been unpacked, one for each row of dx.
    const W* weight = head + (labels != nullptr ? labels[r] : r) * static_cast<int64_t>(n_columns);
    for (int i = threadIdx.x; i < n_columns; i += THREADS) {
        const float value = own * load(weight + i) - factor * sums[r * n_columns + i];
        store(dx + r * n_columns + i, value);
    }
}

} // namespace
} // namespace forgelm

// Backward: the finished sums times dlogp. `dx` may be `sums`.
#define TOKEN_LOGPROBS_SCALE(suffix, E)                                                            \
    KERNEL(THREADS)                                                                               \
    void token_logprobs_scale_##suffix(                                                            \
        E* dx, const float* sums, const float* dlogp, int n_columns) {                             \
        scale_row(dx, sums, dlogp, n_columns);                                                     \
    }                                                                                              \
    REGISTER(token_logprobs_scale_##suffix)

TOKEN_LOGPROBS_SCALE(f32, float)
TOKEN_LOGPROBS_SCALE(bf16, bf16)

// Forward with gradient: the finished gradient. `dx` may be `sums`. Storage of dx, then of head.
#define TOKEN_LOGPROBS_JOIN(suffix, E, W)                                                          \
    KERNEL(THREADS)                                                                               \
    void token_logprobs_join_##suffix(                                                             \
        E* dx, const float* sums, const W* head, const uint32_t* labels, const float* max,         \
        const float* label_logits, const float* lse, int n_columns, float soft_cap) {              \
        join_row(                                                                                  \
            dx, sums, head, labels, max, label_logits, lse, n_columns, Cap{soft_cap});             \
    }                                                                                              \
    REGISTER(token_logprobs_join_##suffix)

TOKEN_LOGPROBS_JOIN(f32_f32, float, float)
TOKEN_LOGPROBS_JOIN(f32_bf16, float, bf16)
TOKEN_LOGPROBS_JOIN(bf16_f32, bf16, float)
TOKEN_LOGPROBS_JOIN(bf16_bf16, bf16, bf16)
