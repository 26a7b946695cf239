// The epilogue alone, after kernels that have none.
#include "epilogue.cuh"

constexpr int kAtOnce = 8;  // elements of a thread, a block's size apart

template <class T>
__global__ void __launch_bounds__(256) finish(T* __restrict__ y, const T* __restrict__ residual, int64 size, int32 kind) {
    const int64 first = int64(blockIdx.x) * (blockDim.x * kAtOnce) + threadIdx.x;
    Accumulator<T> values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
        const int64 at = first + i * int64(blockDim.x);
        values[i] = at < size ? widen(y[at]) : 0;
        if (residual && at < size) values[i] += widen(residual[at]);
    }
    activate_some(kind, values);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
        const int64 at = first + i * int64(blockDim.x);
        if (at < size) y[at] = narrow<T>(values[i]);
    }
}
