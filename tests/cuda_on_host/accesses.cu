// Kernels whose traffic is known: tests compare what a traced run counts with numbers worked out by hand.
#include "common.cuh"

// Thread i reads x[i * stride + offset].
template <class T> __global__ void read_strided(const T* x, T* y, int stride, int offset) {
    const int64 i = global_index();
    y[i] = x[i * stride + offset];
}

__global__ void read_one(const float* x, float* y) { y[global_index()] = x[7]; }

// Every block reads the same row.
__global__ void read_row_by_each_block(const float* x, float* y) { y[global_index()] = x[threadIdx.x]; }

template <class T, int N> __global__ void copy_packs(const T* x, T* y) {
    const int64 i = global_index();
    Pack<T, N> pack = reinterpret_cast<const Pack<T, N>*>(x)[i];
#pragma unroll
    for (int j = 0; j < N; ++j) pack.value[j] = narrow<T>(widen(pack.value[j]) + 1);
    reinterpret_cast<Pack<T, N>*>(y)[i] = pack;
}

// Lane i reads i + 1 neighbours of a row that all lanes walk together.
__global__ void loops_of_different_lengths(const float* x, float* y) {
    float sum = 0;
    for (int k = 0; k <= int(threadIdx.x); ++k) sum += x[32 * k + threadIdx.x];
    y[threadIdx.x] = sum;
}

// Some lanes read between two meetings, others after the second: not in one request.
__global__ void read_between_meetings(const float* x, float* y) {
    float sum = 0;
    for (int k = 0; k < 2; ++k) {
        if (int(threadIdx.x % 2) == k) sum += x[threadIdx.x];
        __syncwarp();
    }
    y[threadIdx.x] = sum;
}

__global__ void branches(const float* x, float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = x[threadIdx.x] + 1;
    else y[threadIdx.x] = x[threadIdx.x + 32] * 2;
}

__global__ void read_through_table(const int64* addresses, float* y) {
    y[threadIdx.x] = reinterpret_cast<const float*>(addresses[blockIdx.x])[threadIdx.x];
}

// Thread i reads shared value i * stride, of 4096.
template <class T> __global__ void read_shared(T* y, int stride) {
    __shared__ T values[4096];
    for (int i = threadIdx.x; i < 4096; i += blockDim.x) values[i] = narrow<T>(Accumulator<T>(i));
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x * stride % 4096];
}

__global__ void read_shared_packs(float* y, int stride) {
    DYNAMIC_SHARED(bytes);
    float* values = reinterpret_cast<float*>(bytes);
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) values[i] = float(i);
    __syncthreads();
    const Pack<float, 4> pack = *reinterpret_cast<const Pack<float, 4>*>(values + threadIdx.x * stride % 1024);
    y[threadIdx.x] = pack.value[0] + pack.value[1] + pack.value[2] + pack.value[3];
}

// A column of a tile of 32 x `pitch`.
__global__ void transpose_tile(const float* x, float* y, int pitch) {
    DYNAMIC_SHARED(bytes);
    float* tile = reinterpret_cast<float*>(bytes);
    tile[threadIdx.y * pitch + threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x * pitch + threadIdx.y];
}

__global__ void read_beyond_the_end(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
