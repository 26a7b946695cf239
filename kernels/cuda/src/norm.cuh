// What the normalisations share: mean and variance in one pass without cancellation, merged in a fixed order (Welford, 1962;
// Chan, Golub & LeVeque, 1979), and sums over a warp and a block.
//
// A block of these kernels has whole warps. Each function for a block ends with a barrier before its shared memory may be
// written again, and all threads of the block must call it.
#pragma once
#include "common.cuh"

constexpr int kMaxWarps = 32;

// Elements in 16 bytes.
template <class T> constexpr int kVector = 16 / int(sizeof(T));

template <class A> __device__ inline A inverse_root(A x) { return A(1) / sqrt(x); }

// The mean of `count` numbers and the sum of their squared distances from it.
template <class A> struct Moments {
    A mean, m2, count;

    // No constructor: shared memory holds these.
    __device__ static Moments nothing() { return {0, 0, 0}; }

    // Of N numbers in registers.
    template <int N> __device__ static Moments of(const A (&values)[N]) {
        A sum = values[0];
#pragma unroll
        for (int i = 1; i < N; ++i) sum += values[i];
        const A mean = sum * (A(1) / A(N));
        A m2 = 0;
#pragma unroll
        for (int i = 0; i < N; ++i) m2 += (values[i] - mean) * (values[i] - mean);
        return {mean, m2, A(N)};
    }

    __device__ void add(A x) { merge({x, 0, 1}); }

    // With the numbers of `later`. The order of the two matters to the last bit.
    __device__ void merge(const Moments& later) {
        if (later.count == 0) return;  // 0 / 0 where both are empty
        const A total = count + later.count;
        const A share = later.count / total;
        const A gap = later.mean - mean;
        mean += gap * share;
        m2 += later.m2 + gap * gap * (count * share);
        count = total;
    }

    // With those of the lane `distance` (a power of two) away, the lower lane's first: the same bits for both.
    __device__ void exchange(int distance) {
        const A other_mean = __shfl_xor_sync(kFullWarp, mean, distance);
        const A other_m2 = __shfl_xor_sync(kFullWarp, m2, distance);
        const A other_count = __shfl_xor_sync(kFullWarp, count, distance);
        const bool upper = threadIdx.x & distance;
        // Number by number: a choice between structs would be one between addresses.
        const Moments later = {upper ? mean : other_mean, upper ? m2 : other_m2, upper ? count : other_count};
        *this = {upper ? other_mean : mean, upper ? other_m2 : m2, upper ? other_count : count};
        merge(later);
    }

    // The biased one.
    __device__ A variance() const { return m2 / count; }
};

// Merges over groups of `lanes` neighbouring lanes, a power of two; threadIdx.x tells lanes apart. Every lane gets the result.
template <class A> __device__ Moments<A> warp_merge(Moments<A> seen, int lanes = kWarpSize) {
    for (int distance = 1; distance < lanes; distance *= 2) seen.exchange(distance);
    return seen;
}

// Merges over a block of one dimension. Every thread gets the result.
template <class A> __device__ Moments<A> block_merge(Moments<A> seen) {
    __shared__ Moments<A> of_warps[kMaxWarps];
    seen = warp_merge(seen);
    const int warps = blockDim.x / kWarpSize;
    if (warps == 1) return seen;
    const int lane = threadIdx.x % kWarpSize;
    if (lane == 0) of_warps[threadIdx.x / kWarpSize] = seen;
    __syncthreads();
    seen = lane < warps ? of_warps[lane] : Moments<A>::nothing();
    seen = warp_merge(seen);
    __syncthreads();
    return seen;
}

// Two sums that are taken together.
template <class A> struct Sums {
    A first, second;

    __device__ static Sums nothing() { return {0, 0}; }
    __device__ void merge(const Sums& other) {
        first += other.first;
        second += other.second;
    }
};

// Sums over groups of `lanes` neighbouring lanes, a power of two. Every lane gets the result.
template <class A> __device__ Sums<A> warp_merge(Sums<A> sums, int lanes = kWarpSize) {
    for (int distance = 1; distance < lanes; distance *= 2) {
        sums.merge({
            __shfl_xor_sync(kFullWarp, sums.first, distance),
            __shfl_xor_sync(kFullWarp, sums.second, distance),
        });
    }
    return sums;
}

// Sums over a block of one dimension. Every thread gets the result.
template <class A> __device__ Sums<A> block_merge(Sums<A> sums) {
    __shared__ Sums<A> of_warps[kMaxWarps];
    sums = warp_merge(sums);
    const int warps = blockDim.x / kWarpSize;
    if (warps == 1) return sums;
    const int lane = threadIdx.x % kWarpSize;
    if (lane == 0) of_warps[threadIdx.x / kWarpSize] = sums;
    __syncthreads();
    sums = lane < warps ? of_warps[lane] : Sums<A>::nothing();
    sums = warp_merge(sums);
    __syncthreads();
    return sums;
}
