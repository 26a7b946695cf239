// The norm of all gradients together, and clipping by it, in two launches: partial sums of all arrays; then every block
// adds these up once more, in the same order, and multiplies its chunks. The host learns nothing of it.
#include "multi_tensor.cuh"

enum { kMaximum = 0, kSum = 1, kSquares = 2, kPowers = 3 };

struct Norm {
    double order;
    double max_norm;  // of what clipping leaves
    int kind;
    int partials;
};

// NaN stays.
template <class A> __device__ A larger(A a, A b) { return b > a || b != b ? b : a; }

template <class A> __device__ A merged(int kind, A a, A b) { return kind == kMaximum ? larger(a, b) : a + b; }

// What an element adds to the sum (or the maximum).
template <class A> __device__ A power(const Norm& norm, A x) {
    const A size = x < 0 ? -x : x;
    if (norm.kind == kSquares) return x * x;
    return norm.kind == kPowers ? A(pow(size, A(norm.order))) : size;
}

// The values of all threads, merged in a fixed order; every thread gets the result.
__device__ inline double merge_block(int kind, double value) {
    __shared__ double of_warps[kBlock / kWarpSize];
#pragma unroll
    for (int d = kWarpSize / 2; d > 0; d /= 2) value = merged(kind, value, __shfl_xor_sync(kFullWarp, value, d));
    if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    value = of_warps[0];
#pragma unroll
    for (int warp = 1; warp < kBlock / kWarpSize; ++warp) value = merged(kind, value, of_warps[warp]);
    return value;
}

// Block b takes the chunks b, b + gridDim.x and so on.
template <class T>
__global__ void __launch_bounds__(kBlock) grad_norm_partials(const __grid_constant__ ArrayLists<1> lists,
                                                             double* __restrict__ partials, const Norm norm) {
    using A = Accumulator<T>;
    double total = 0;
    for (int number = blockIdx.x; number < lists.chunks; number += gridDim.x) {
        A seen = 0;
        for_each_element<0u>(Chunk<T, 1>(lists, number),
                             [&](const A* values) { seen = merged(norm.kind, seen, power(norm, values[0])); });
        total = merged(norm.kind, total, double(seen));
    }
    total = merge_block(norm.kind, total);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

__device__ inline double total_norm(const double* partials, const Norm& norm) {
    double total = 0;
    for (int i = threadIdx.x; i < norm.partials; i += kBlock) total = merged(norm.kind, total, partials[i]);
    total = merge_block(norm.kind, total);
    if (norm.kind == kSquares) return sqrt(total);
    return norm.kind == kPowers ? pow(total, 1 / norm.order) : total;
}

// R: the type of the norm.
template <class R>
__global__ void __launch_bounds__(kBlock) grad_norm_finish(const double* __restrict__ partials, R* result,
                                                           const Norm norm) {
    const double total = total_norm(partials, norm);
    if (threadIdx.x == 0) *result = R(total);
}

// Multiplies all elements by max_norm / norm where the norm is larger. A norm that is NaN makes them NaN.
template <class T, class R>
__global__ void __launch_bounds__(kBlock) grad_norm_clip(const __grid_constant__ ArrayLists<1> lists,
                                                         const double* __restrict__ partials, R* result,
                                                         const Norm norm) {
    using A = Accumulator<T>;
    const R total = R(total_norm(partials, norm));
    if (result && blockIdx.x == 0 && threadIdx.x == 0) *result = total;
    const R factor = R(norm.max_norm) / (total + R(1e-6));
    if (factor >= 1) return;
    for (int number = blockIdx.x; number < lists.chunks; number += gridDim.x) {
        for_each_element<1u>(Chunk<T, 1>(lists, number), [&](A* values) { values[0] *= A(factor); });
    }
}

// Limits all elements to ±limit; NaN stays.
template <class T>
__global__ void __launch_bounds__(kBlock) grad_clamp(const __grid_constant__ ArrayLists<1> lists, double limit) {
    using A = Accumulator<T>;
    const A most = limit;
    for_each_element<1u>(Chunk<T, 1>(lists, blockIdx.x), [&](A* values) {
        if (values[0] > most) values[0] = most;
        if (values[0] < -most) values[0] = -most;
    });
}
