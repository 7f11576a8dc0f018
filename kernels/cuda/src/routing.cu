// Which rows go to which experts, and the gradient of that choice.
// Paper: Shazeer et al. 2017, arXiv:1701.06538, sec. 2.1.
//
// Rows are ordered by expert, and within an expert by row, through a counting sort without
// atomics: a thread that stands for an expert walks over the choices of 64 rows in their order.
//
// Numerics: f32, sums over the k choices in order; the sums of probabilities are f64, over 64 rows
// in order and then over blocks in order. Equal inputs give equal places.
#include "device.cuh"

namespace forgelm {
namespace {

constexpr int BLOCK_ROWS = 64;

// A probability and its expert; without an expert there is none.
struct Candidate {
    float p;
    int expert;

    // The more probable, of equal ones the first.
    DEVICE bool precedes(const Candidate& other) const {
        if (other.expert < 0) return expert >= 0;
        return expert >= 0 && (p > other.p || (p == other.p && expert < other.expert));
    }
};

// The first of a warp's candidates, for all lanes.
DEVICE Candidate first_of_warp(Candidate best) {
    for (int distance = 16; distance > 0; distance /= 2) {
        const Candidate other{
            __shfl_xor_sync(ALL_LANES, best.p, distance),
            __shfl_xor_sync(ALL_LANES, best.expert, distance)};
        if (other.precedes(best)) best = other;
    }
    return best;
}

// What follows `last` among the candidates of a row, by a warp. What is not a number counts as the
// smallest, so that k experts are chosen whatever the row holds.
DEVICE Candidate next_choice(const float* probs, int n_experts, const Candidate& last) {
    Candidate best{0.0f, -1};
    for (int expert = lane_index(); expert < n_experts; expert += WARP) {
        const float p = probs[expert];
        const Candidate candidate{p == p ? p : -infinity(), expert};
        const bool is_left = last.expert < 0 || last.precedes(candidate);
        if (is_left && candidate.precedes(best)) best = candidate;
    }
    return first_of_warp(best);
}

// The choices of this block's rows.
struct Choices {
    int first_row;
    int n_rows;

    DEVICE explicit Choices(int t) {
        first_row = int(blockIdx.x) * BLOCK_ROWS;
        n_rows = min(BLOCK_ROWS, t - first_row);
    }
};

} // namespace
} // namespace forgelm

using namespace forgelm;

// Chooses the k most probable experts of each row and counts them, 64 rows a block.
//
// Shapes: `chosen` [T, k], `divisors` [T], `counts` and, unless null, `sums` [ceil(T / 64), E]
// written, `probs` [T, E] read. Shared memory: 64 k numbers of 4 bytes.
KERNEL(256) void routing_choose(
    uint32_t* chosen, float* divisors, uint32_t* counts, double* sums, const float* probs, int t,
    int n_experts, int k, int normalize
) {
    SHARED(char, memory);
    uint32_t* const block_chosen = reinterpret_cast<uint32_t*>(memory);
    const Choices choices(t);
    const int lane = lane_index();
    for (int i = warp_index(); i < choices.n_rows; i += 8) {
        const int row = choices.first_row + i;
        Candidate last{0.0f, -1};
        float sum = 0.0f;
        for (int j = 0; j < k; j++) {
            last = next_choice(probs + int64_t(row) * n_experts, n_experts, last);
            sum += probs[int64_t(row) * n_experts + last.expert];
            if (lane == 0) {
                block_chosen[i * k + j] = uint32_t(last.expert);
                chosen[int64_t(row) * k + j] = uint32_t(last.expert);
            }
        }
        if (lane == 0) divisors[row] = normalize ? sum : 1.0f;
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < n_experts; expert += 256) {
        uint32_t count = 0;
        for (int i = 0; i < choices.n_rows * k; i++) count += block_chosen[i] == uint32_t(expert);
        counts[int64_t(blockIdx.x) * n_experts + expert] = count;
        if (!sums) continue;
        const float* const first = probs + int64_t(choices.first_row) * n_experts + expert;
        double sum = 0.0;
        for (int i = 0; i < choices.n_rows; i++) sum += first[int64_t(i) * n_experts];
        sums[int64_t(blockIdx.x) * n_experts + expert] = sum;
    }
}
REGISTER(routing_choose)

// One block: from counts to the place of each block's first row of each expert, in place, and the
// sums of all blocks.
//
// Shapes: `counts` [n_blocks, E] changed, `starts` [E + 1] written, `totals` [E] written unless
// null, `sums` [n_blocks, E] read then. Shared memory: E numbers of 4 bytes.
KERNEL(256) void routing_starts(
    uint32_t* counts, uint64_t* starts, double* totals, const double* sums, int n_blocks,
    int n_experts
) {
    SHARED(char, memory);
    uint32_t* const n_rows = reinterpret_cast<uint32_t*>(memory);
    for (int expert = threadIdx.x; expert < n_experts; expert += 256) {
        uint32_t total = 0;
        for (int block = 0; block < n_blocks; block++) {
            total += counts[int64_t(block) * n_experts + expert];
        }
        n_rows[expert] = total;
        if (!totals) continue;
        double sum = 0.0;
        for (int block = 0; block < n_blocks; block++) {
            sum += sums[int64_t(block) * n_experts + expert];
        }
        totals[expert] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t next = 0;
        for (int expert = 0; expert < n_experts; expert++) {
            const uint32_t n = n_rows[expert];
            n_rows[expert] = next;
            starts[expert] = next;
            next += n;
        }
        starts[n_experts] = next;
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < n_experts; expert += 256) {
        uint32_t next = n_rows[expert];
        for (int block = 0; block < n_blocks; block++) {
            uint32_t* const place = counts + int64_t(block) * n_experts + expert;
            const uint32_t count = *place;
            *place = next;
            next += count;
        }
    }
}
REGISTER(routing_starts)

// Puts the rows in their places, 64 rows a block.
//
// Shapes: `rows`, `weights` [T k] by expert and `places` [T, k] written; `offsets` [n_blocks, E]
// are what `routing_starts` made of the counts. Shared memory: 64 k numbers of 4 bytes.
KERNEL(256) void routing_place(
    uint32_t* rows, float* weights, uint32_t* places, const uint32_t* offsets,
    const uint32_t* chosen, const float* divisors, const float* probs, int t, int n_experts, int k
) {
    SHARED(char, memory);
    uint32_t* const block_chosen = reinterpret_cast<uint32_t*>(memory);
    const Choices choices(t);
    for (int i = threadIdx.x; i < choices.n_rows * k; i += 256) {
        block_chosen[i] = chosen[int64_t(choices.first_row) * k + i];
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < n_experts; expert += 256) {
        uint32_t next = offsets[int64_t(blockIdx.x) * n_experts + expert];
        for (int i = 0; i < choices.n_rows * k; i++) {
            if (block_chosen[i] != uint32_t(expert)) continue;
            const int row = choices.first_row + i / k;
            rows[next] = uint32_t(row);
            weights[next] = probs[int64_t(row) * n_experts + expert] / divisors[row];
            places[int64_t(choices.first_row) * k + i] = next;
            next++;
        }
    }
}
REGISTER(routing_place)

// From the gradient of the weights to that of the router's scores, through the choice, the sum to 1
// where there is one, and the softmax. A row a warp.
//
// Shapes: `dscores` [T, E] written; `probs` [T, E], `dweights` and `weights` [T k], `chosen` and
// `places` [T, k] read; `balance` [E] is added to the gradient of each probability, or null.
KERNEL(256) void routing_backward(
    float* dscores, const float* probs, const float* dweights, const float* weights,
    const uint32_t* chosen, const uint32_t* places, const float* balance, int t, int n_experts,
    int k, int normalize
) {
    const int row = int(blockIdx.x) * 8 + warp_index();
    if (row >= t) return;
    const int lane = lane_index();
    dscores += int64_t(row) * n_experts;
    probs += int64_t(row) * n_experts;
    chosen += int64_t(row) * k;
    places += int64_t(row) * k;
    // Of `p / sum(p)` with respect to p: `(dw - sum(dw w)) / sum(p)`.
    float mean = 0.0f, divisor = 1.0f;
    if (normalize) {
        divisor = 0.0f;
        for (int j = 0; j < k; j++) {
            divisor += probs[chosen[j]];
            mean += dweights[places[j]] * weights[places[j]];
        }
    }
    float sum = 0.0f;
    for (int expert = lane; expert < n_experts; expert += WARP) {
        float dprob = balance ? balance[expert] : 0.0f;
#pragma unroll 1
        for (int j = 0; j < k; j++) {
            if (chosen[j] != uint32_t(expert)) continue;
            dprob += (dweights[places[j]] - mean) / divisor;
        }
        dscores[expert] = dprob;
        sum += dprob * probs[expert];
    }
    sum = warp_sum(sum);
    for (int expert = lane; expert < n_experts; expert += WARP) {
        dscores[expert] = probs[expert] * (dscores[expert] - sum);
    }
}
REGISTER(routing_backward)
