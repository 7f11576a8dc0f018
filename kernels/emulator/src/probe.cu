// A kernel for tests of the stand-in driver and of those who call it.
#include "device.cuh"

// y[i] += a * x[i] for n numbers.
KERNEL(256) void probe_axpy_f32(float* y, const float* x, float a, int n) {
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] += a * x[i];
}
REGISTER(probe_axpy_f32)

// y[0] = the sum of n numbers, by one block through dynamic shared memory of n floats.
KERNEL(256) void probe_sum_f32(float* y, const float* x, int n) {
    SHARED(float, values);
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) values[i] = x[i];
    __syncthreads();
    float sum = 0.0f;
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) sum += values[i];
    sum = forgelm::block_sum(sum);
    if (threadIdx.x == 0) y[0] = sum;
}
REGISTER(probe_sum_f32)
