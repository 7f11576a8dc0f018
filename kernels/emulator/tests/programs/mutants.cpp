// Two small kernels and planted faults of them, one for each kind that a GPU shows seldom or never:
// a fault that the emulator does not catch is a hole in the emulator.
//
// mutants FAULT runs the kernels with that fault (0 for none) in all twelve combinations, prints
// those whose numbers were wrong, and ends with 1 if there were any. All inputs are small integers,
// so that every sum is exact and any order of additions gives the same.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "device.cuh"

namespace forgelm {

enum Fault {
    NONE,
    K_OVERWRITTEN,      // no barrier between the last read of K and the copy of the next one
    V_OVERWRITTEN,      // the same for V
    NO_WAIT,            // V is read without waiting for its copy
    NO_BARRIER,         // V is read after waiting for the own copies only
    WRONG_LANE,         // ldmatrix reads the rows of another matrix
    REDUCTION_NO_BARRIER, // sums of other warps are read before they are written
    LANE_LEAVES,        // one lane returns before a reduction over its warp
    DIVERGENT_BARRIER,  // two halves of a block wait in two places
    MISALIGNED_COPY,    // a cp.async to an address that is no multiple of 16
    SHARED_OVERRUN,     // a write behind the end of dynamic shared memory
    DIFFERENT_COLLECTIVES, // lanes of a warp meet in a shuffle and in a vote
    GLOBAL_OVERRUN,     // a read behind the end of an array (for AddressSanitizer)
    N_FAULTS,
};

constexpr int TILE = 16, DEPTH = 16, ROWS = 32, STRIDE = DEPTH + 8, N_TILES = 5;
constexpr int KEYS = TILE * N_TILES;
constexpr int SHARED_BYTES = (ROWS + 2 * TILE) * STRIDE * 2;

DEVICE void copy_rows(bf16* to, const bf16* from, int n_rows) {
    for (int i = int(threadIdx.x); i < n_rows * 2; i += int(blockDim.x)) {
        int row = i / 2, column = i % 2 * 8;
        cp_async_16(to + row * STRIDE + column, from + row * DEPTH + column);
    }
}

// out [ROWS, DEPTH] = (q k^T) v with q [ROWS, DEPTH], k and v [KEYS, DEPTH], by two warps with 16
// rows each; tiles of k and v pass through shared memory as in a flash attention.
template <int FAULT>
DEVICE void two_products(float* out, const bf16* q, const bf16* k, const bf16* v) {
    SHARED(bf16, shared);
    bf16 *shared_q = shared, *shared_k = shared_q + ROWS * STRIDE;
    bf16* shared_v = shared_k + TILE * STRIDE;
    if constexpr (FAULT == SHARED_OVERRUN)
        if (threadIdx.x == 0) shared_v[TILE * STRIDE] = bf16{0};
    int lane = lane_index(), warp = warp_index();
    copy_rows(shared_q, q, ROWS);
    copy_rows(shared_k, k, TILE);
    if constexpr (FAULT == MISALIGNED_COPY)
        if (threadIdx.x == 3) cp_async_16(shared_v + 4, v);
    cp_async_commit();
    uint32_t q_fragment[4];
    float sums[2][4] = {};
    for (int tile = 0; tile < N_TILES; tile++) {
        copy_rows(shared_v, v + tile * TILE * DEPTH, TILE);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads(); // the tile of k is there
        if (tile == 0)
            ldmatrix_x4<false>(q_fragment, shared_q + (warp * 16 + (lane & 15)) * STRIDE +
                                               (lane >> 4) * 8);
        uint32_t pairs[4];
        int key = (lane >> 4) * 8 + (lane & 7), depth = (lane >> 3 & 1) * 8;
        if constexpr (FAULT == WRONG_LANE) key = (lane >> 3 & 1) * 8 + (lane & 7);
        ldmatrix_x4<false>(pairs, shared_k + key * STRIDE + depth);
        float scores[2][4] = {};
        uint32_t low[2] = {pairs[0], pairs[1]}, high[2] = {pairs[2], pairs[3]};
        mma_16816(scores[0], q_fragment, low);
        mma_16816(scores[1], q_fragment, high);
        if constexpr (FAULT != K_OVERWRITTEN) __syncthreads(); // nobody reads this tile of k again
        if (tile + 1 < N_TILES) copy_rows(shared_k, k + (tile + 1) * TILE * DEPTH, TILE);
        cp_async_commit();
        if constexpr (FAULT != NO_WAIT) cp_async_wait<1>();
        if constexpr (FAULT != NO_BARRIER) __syncthreads(); // the tile of v is there
        uint32_t weights[4] = {
            pack_bf16(scores[0][0], scores[0][1]), pack_bf16(scores[0][2], scores[0][3]),
            pack_bf16(scores[1][0], scores[1][1]), pack_bf16(scores[1][2], scores[1][3])};
        ldmatrix_x4<true>(pairs, shared_v + (lane & 15) * STRIDE + (lane >> 4) * 8);
        uint32_t left[2] = {pairs[0], pairs[1]}, right[2] = {pairs[2], pairs[3]};
        mma_16816(sums[0], weights, left);
        mma_16816(sums[1], weights, right);
        if constexpr (FAULT != V_OVERWRITTEN) __syncthreads(); // nobody reads this tile of v again
    }
    cp_async_wait<0>();
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 4; i++) {
            int row = warp * 16 + (lane >> 2) + (i >> 1) * 8;
            out[row * DEPTH + half * 8 + (lane & 3) * 2 + (i & 1)] = sums[half][i];
        }
}

// out[block] = the sum of the block's row of n numbers.
template <int FAULT> DEVICE void sum_of_row(float* out, const float* x, int n) {
    SHARED(float, partial);
    float sum = 0.0f;
    if constexpr (FAULT == GLOBAL_OVERRUN) n++;
    const float* row = x + int64_t(blockIdx.x) * n;
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) sum += row[i];
    if constexpr (FAULT == LANE_LEAVES)
        if (threadIdx.x == 37) return;
    if constexpr (FAULT == DIFFERENT_COLLECTIVES)
        if (threadIdx.x == 37) __any_sync(ALL_LANES, 1);
    sum = warp_sum(sum);
    if (lane_index() == 0) partial[warp_index()] = sum;
    if constexpr (FAULT == DIVERGENT_BARRIER) {
        if (threadIdx.x < 64)
            __syncthreads();
        else
            __syncthreads();
    } else if constexpr (FAULT != REDUCTION_NO_BARRIER) {
        __syncthreads();
    }
    float total = 0.0f;
    for (int i = 0; i < int(blockDim.x) / WARP; i++) total += partial[i];
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}

} // namespace forgelm

using namespace forgelm;

#define KERNELS_WITH(FAULT)                                                                       \
    KERNEL(64)                                                                                    \
    void two_products_##FAULT(float* out, const bf16* q, const bf16* k, const bf16* v) {          \
        two_products<FAULT>(out, q, k, v);                                                        \
    }                                                                                             \
    REGISTER(two_products_##FAULT)                                                                \
    KERNEL(128)                                                                                   \
    void sum_of_row_##FAULT(float* out, const float* x, int n) { sum_of_row<FAULT>(out, x, n); } \
    REGISTER(sum_of_row_##FAULT)

KERNELS_WITH(0)
KERNELS_WITH(1)
KERNELS_WITH(2)
KERNELS_WITH(3)
KERNELS_WITH(4)
KERNELS_WITH(5)
KERNELS_WITH(6)
KERNELS_WITH(7)
KERNELS_WITH(8)
KERNELS_WITH(9)
KERNELS_WITH(10)
KERNELS_WITH(11)
KERNELS_WITH(12)

namespace {

// Small integers with no period that a tile or a warp has.
float number(int i) { return float((i * 7 + i / 11 * 5) % 5 - 2); }

struct Inputs {
    std::vector<bf16> q, k, v;
    std::vector<float> x;
    std::vector<float> products, sums; // what is expected
};

constexpr int N_SUMS = 3, SUM_LENGTH = 1000;

Inputs make_inputs() {
    Inputs in;
    for (int i = 0; i < ROWS * DEPTH; i++) in.q.push_back(to_bf16(number(i)));
    for (int i = 0; i < KEYS * DEPTH; i++) in.k.push_back(to_bf16(number(i + 3)));
    for (int i = 0; i < KEYS * DEPTH; i++) in.v.push_back(to_bf16(number(i * 3 + 1)));
    for (int i = 0; i < N_SUMS * SUM_LENGTH; i++) in.x.push_back(number(i));
    for (int row = 0; row < ROWS; row++)
        for (int column = 0; column < DEPTH; column++) {
            double sum = 0;
            for (int key = 0; key < KEYS; key++) {
                double score = 0;
                for (int d = 0; d < DEPTH; d++)
                    score += to_float(in.q[row * DEPTH + d]) * to_float(in.k[key * DEPTH + d]);
                sum += score * to_float(in.v[key * DEPTH + column]);
            }
            in.products.push_back(float(sum));
        }
    for (int row = 0; row < N_SUMS; row++) {
        double sum = 0;
        for (int i = 0; i < SUM_LENGTH; i++) sum += in.x[row * SUM_LENGTH + i];
        in.sums.push_back(float(sum));
    }
    return in;
}

// Arrays at addresses that are aligned as device memory is, exact to the byte.
template <class T> class DeviceArray {
  public:
    explicit DeviceArray(const std::vector<T>& from) {
        if (posix_memalign(&memory_, 256, from.size() * sizeof(T))) std::abort();
        std::memcpy(memory_, from.data(), from.size() * sizeof(T));
    }
    ~DeviceArray() { std::free(memory_); }
    const T* begin() const { return static_cast<const T*>(memory_); }

  private:
    void* memory_ = nullptr;
};

} // namespace

int main(int n_arguments, char** arguments) {
    int fault = n_arguments > 1 ? std::atoi(arguments[1]) : 0;
    if (fault < 0 || fault >= N_FAULTS) return 2;
    std::string suffix = "_" + std::to_string(fault);
    Inputs in = make_inputs();
    DeviceArray<bf16> q(in.q), k(in.k), v(in.v);
    DeviceArray<float> x(in.x);
    int n_wrong = 0;
    emulator::for_each_combination([&](int schedule, int copies) {
        std::vector<float> products(ROWS * DEPTH), sums(N_SUMS);
        emulator::launch(("two_products" + suffix).c_str(), 1, 64, SHARED_BYTES, products.data(),
                         q.begin(), k.begin(), v.begin());
        emulator::launch(("sum_of_row" + suffix).c_str(), N_SUMS, 128, 4 * sizeof(float),
                         sums.data(), x.begin(), SUM_LENGTH);
        if (products == in.products && sums == in.sums) return;
        std::printf("wrong under schedule %d, copies %d\n", schedule, copies);
        n_wrong++;
    });
    return n_wrong ? 1 : 0;
}
