// Adafactor: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5.
//
// Nothing is read back between the kernels of a step: what all elements need (the mean of the row
// moments, the factor on the update) is left in device memory by kernels of one block.
//
// Numerics: elements in f32, sums over the whole parameter in f64 over fixed blocks. Sums over
// columns are those of `columns_dots`.
#include "device.cuh"

namespace forgelm {
namespace {

constexpr int BLOCK_ELEMENTS = 16384;

// A moment that follows a new value.
DEVICE float follow(float old, float value, float beta2, float rest2) {
    return beta2 * old + rest2 * value;
}

// The update of an element of a factored parameter.
DEVICE float factored_update(float grad, float row_factor, float column) {
    return grad * row_factor * (1.0f / sqrtf(column));
}

// `grad_scale / sqrt(row / mean)`.
DEVICE float row_factor_of(float row, double mean, float grad_scale) {
    return grad_scale / sqrtf(float(double(row) / mean));
}

} // namespace
} // namespace forgelm

using namespace forgelm;

// Brings `v` forward. Shapes: `v`, `grad` [n]; `partials` [ceil(n / 16384)] written: sums of
// squares of the update.
KERNEL(256) void adafactor_whole_moments(
    float* v, double* partials, const float* grad, int64_t n, float grad_scale, float eps,
    float beta2, float rest2
) {
    const int64_t begin = int64_t(blockIdx.x) * BLOCK_ELEMENTS;
    const int64_t end = min(n, begin + BLOCK_ELEMENTS);
    double sum = 0.0;
    for (int64_t i = begin + threadIdx.x; i < end; i += 256) {
        const float g = grad[i] * grad_scale;
        const float moment = follow(v[i], g * g + eps, beta2, rest2);
        v[i] = moment;
        sum += double(g * g / moment);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
REGISTER(adafactor_whole_moments)

// `factors` are what is kept of a parameter and what multiplies its update.
KERNEL(256) void adafactor_whole_update(
    float* param, const float* v, const float* grad, const float* factors, int64_t n,
    float grad_scale
) {
    const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (i >= n) return;
    param[i] = factors[0] * param[i] + factors[1] * (grad[i] * grad_scale / sqrtf(v[i]));
}
REGISTER(adafactor_whole_update)

// Brings the moments of rows forward, a row a block. Shapes: `rows` [N], `grad` [N, K].
KERNEL(256) void adafactor_rows(
    float* rows, const float* grad, int k, float grad_scale, float eps, float beta2, float rest2
) {
    const float* grad_row = grad + int64_t(blockIdx.x) * k;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < k; c += 256) {
        const float g = grad_row[c] * grad_scale;
        sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        float* row = rows + blockIdx.x;
        *row = follow(*row, sum / float(k) + eps, beta2, rest2);
    }
}
REGISTER(adafactor_rows)

// Brings the moments of columns forward. Shapes: `columns`, `sums` [K]; `sums` are those of the
// squares of the gradient before it is scaled, over `n` rows.
KERNEL(256) void adafactor_columns(
    float* columns, const float* sums, int k, int n, float grad_scale, float eps, float beta2,
    float rest2
) {
    const int c = int(blockIdx.x) * 256 + int(threadIdx.x);
    if (c >= k) return;
    const float mean = sums[c] / float(n) * grad_scale * grad_scale + eps;
    columns[c] = follow(columns[c], mean, beta2, rest2);
}
REGISTER(adafactor_columns)

// One block. Shapes: `mean` [1] written, `rows` [n].
KERNEL(256) void adafactor_mean(double* mean, const float* rows, int n) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += 256) sum += double(rows[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) *mean = sum / double(n);
}
REGISTER(adafactor_mean)

// Sums of squares of the update, a row a block. Shapes: `partials` [N] written.
KERNEL(256) void adafactor_squares(
    double* partials, const float* grad, const float* rows, const float* columns,
    const double* mean, int k, float grad_scale
) {
    const float* grad_row = grad + int64_t(blockIdx.x) * k;
    const float row_factor = row_factor_of(rows[blockIdx.x], *mean, grad_scale);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < k; c += 256) {
        const float update = factored_update(grad_row[c], row_factor, columns[c]);
        sum += update * update;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = double(sum);
}
REGISTER(adafactor_squares)

// One block: from the sum of squares of the update to the two factors of its application.
// Shapes: `factors` [2] written, `partials` [n_partials]; the parameter has `n` elements.
KERNEL(256) void adafactor_clip(
    float* factors, const double* partials, int64_t n_partials, int64_t n, double clip_threshold,
    double lr, double weight_decay
) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < n_partials; i += 256) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    const double rms = sqrt(sum / double(n));
    // What is not a number stays what it is: as `max(1, ...)` it would go unseen.
    const double clip = rms / clip_threshold <= 1.0 ? 1.0 : rms / clip_threshold;
    factors[0] = float(1.0 - lr * weight_decay);
    factors[1] = float(-lr / clip);
}
REGISTER(adafactor_clip)

// A row a block.
KERNEL(256) void adafactor_factored_update(
    float* param, const float* grad, const float* rows, const float* columns, const double* mean,
    const float* factors, int k, float grad_scale
) {
    const int64_t first = int64_t(blockIdx.x) * k;
    const float keep = factors[0];
    const float row_factor = factors[1] * row_factor_of(rows[blockIdx.x], *mean, grad_scale);
    for (int c = threadIdx.x; c < k; c += 256) {
        const float update = factored_update(grad[first + c], row_factor, columns[c]);
        param[first + c] = keep * param[first + c] + update;
    }
}
REGISTER(adafactor_factored_update)
