// Small kernels that try out the host build: right ones, then ones with a mistake that a check must find.
#include "common.cuh"

struct Affine {
    float scale;
    int64 offset;
};

template <class T> __global__ void affine(const T* x, T* y, Affine f, int32 n) {
    const int64 i = global_index();
    if (i < n) y[i] = narrow<T>(widen(x[i]) * f.scale + f.offset);
}

template <class From, class To> __global__ void convert(const From* x, To* y, int32 n) {
    const int64 i = global_index();
    if (i < n) y[i] = narrow<To>(widen(x[i]));
}

__global__ void optional(const float* x, const float* bias, float* y) {
    y[threadIdx.x] = x[threadIdx.x] + (bias ? bias[threadIdx.x] : 0.f);
}

// The sum of each block's 128 values, through warps, then shared memory.
__global__ void block_sums(const float* x, float* sums) {
    __shared__ float of_warps[4];
    const float sum = warp_sum(x[global_index()]);
    if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = sum;
    __syncthreads();
    if (threadIdx.x == 0) sums[blockIdx.x] = of_warps[0] + of_warps[1] + of_warps[2] + of_warps[3];
}

__global__ void reverse_rows(const int* x, int* y) {
    DYNAMIC_SHARED(bytes);
    int* row = reinterpret_cast<int*>(bytes);
    const int64 first = int64(blockIdx.x) * blockDim.x;
    row[threadIdx.x] = x[first + threadIdx.x];
    __syncthreads();
    y[first + threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}

// Each lane writes what the warp functions gave it: 8 numbers.
__global__ void warp_functions(int* y) {
    const int lane = threadIdx.x;
    int* out = y + 8 * lane;
    out[0] = __shfl_sync(kFullWarp, 10 * lane, 5);
    out[1] = __shfl_up_sync(kFullWarp, 10 * lane, 3);
    out[2] = __shfl_down_sync(kFullWarp, 10 * lane, 2, 8);
    out[3] = __shfl_xor_sync(kFullWarp, 10 * lane, 1);
    out[4] = int(__ballot_sync(kFullWarp, lane % 3 == 0));
    out[5] = __any_sync(kFullWarp, lane == 40) + 2 * __all_sync(kFullWarp, lane < 32);
    out[6] = __syncthreads_count(lane < 7) + 100 * __syncthreads_or(lane == 3) + 1000 * __syncthreads_and(lane > 0);
    if (lane < 16) out[7] = __shfl_sync(0xffffu, lane, 15 - lane);
    else out[7] = __shfl_sync(0xffff0000u, lane, 47 - lane);
}

__global__ void where_am_i(int* y) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * (blockDim.x * blockDim.y * blockDim.z) + thread] = 1000 * block + thread;
}

// ---- mistakes

template <class T> __global__ void uninitialized_shared(T* y) {
    __shared__ T sums[32];
    if (blockIdx.x == 0) sums[threadIdx.x] = 0;
    __syncthreads();
    sums[threadIdx.x] += 1;
    y[global_index()] = sums[threadIdx.x];
}

__global__ void missing_barrier(const int* x, int* y) {
    __shared__ int row[64];
    row[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = row[(threadIdx.x + 32) % 64];
}

// In order, each thread reads what an earlier one wrote: only another order shows it.
__global__ void missing_barrier_hidden_by_order(const int* x, int* y) {
    __shared__ int row[64];
    row[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = row[threadIdx.x / 2];
}

// Adds up rows of 128 values. A slow warp may read what a fast one has written of the next row.
__global__ void one_barrier_a_row(const float* x, float* sums, int32 rows) {
    __shared__ float of_warps[4];
    for (int row = 0; row < rows; ++row) {
        const float sum = warp_sum(x[row * blockDim.x + threadIdx.x]);
        if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = sum;
        __syncthreads();
        sums[row * 4 + threadIdx.x / kWarpSize] = of_warps[0] + of_warps[1] + of_warps[2] + of_warps[3];
    }
}

__global__ void divergent_barrier(int* y) {
    y[threadIdx.x] = 1;
    if (threadIdx.x < 40) __syncthreads();
}

__global__ void barriers_at_two_places(int* y) {
    if (threadIdx.x < 40) {
        __syncthreads();
        y[threadIdx.x] = 1;
    } else {
        __syncthreads();
        y[threadIdx.x] = 2;
    }
}

__global__ void shuffle_without_all_lanes(int* y) {
    if (threadIdx.x % 32 < 30) y[threadIdx.x] = __shfl_sync(kFullWarp, 1, 0);
}

__global__ void write_beyond_array(int* y, int32 n) {
    if (threadIdx.x <= n) y[threadIdx.x] = 1;
}

__global__ void write_beyond_shared(int* y, int32 n) {
    __shared__ int row[64];
    row[threadIdx.x + n] = 1;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x];
}

template <class T> __global__ void write_beyond_shared_of_template(T* y, int32 n) {
    __shared__ T row[64];
    T* const p = row;
    p[threadIdx.x + n] = 1;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x];
}

__global__ void read_beyond_dynamic_shared(int* y) {
    DYNAMIC_SHARED(bytes);
    y[threadIdx.x] = reinterpret_cast<int*>(bytes)[threadIdx.x];
}

__global__ void signed_overflow(int* y, int32 n) { y[threadIdx.x] = n * 65536; }
