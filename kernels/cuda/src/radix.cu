// A stable sort of integers below 2^31 by digits: the order in which equal ones were given stays. Integer sums do not
// depend on their order, so neither does the result.
//
// Each digit takes three launches: each block counts the digits of its tile, one block makes places of the counts, each
// block writes its tile to these places.
#include "common.cuh"

constexpr int kRadixBlock = 256, kRadixWarps = kRadixBlock / kWarpSize, kRadixItems = 8;
constexpr int kRadixTile = kRadixBlock * kRadixItems;
constexpr int kDigits = 512;

struct Radix {
    int count;
    int bound;    // keys are below it; what is dropped has it as its key
    int dropped;  // an index that is dropped, -1 for none
    int shift, bits;
    int blocks;

    __device__ int digit(int key) const { return key >> shift & ((1 << bits) - 1); }
};

// FIRST: the keys are made from the indices.
template <bool FIRST> __device__ int load_key(const Radix& radix, const void* keys, int i) {
    if (!FIRST) return static_cast<const int*>(keys)[i];
    const int64 index = static_cast<const int64*>(keys)[i];
    return index >= 0 && index < radix.bound && index != radix.dropped ? int(index) : radix.bound;
}

// counts[block][digit]
template <bool FIRST>
__global__ void __launch_bounds__(kRadixBlock)
    radix_count(const void* __restrict__ keys, int* __restrict__ counts, Radix radix) {
    __shared__ int of_block[kDigits];
    for (int d = threadIdx.x; d < kDigits; d += kRadixBlock) of_block[d] = 0;
    __syncthreads();
    for (int item = 0; item < kRadixItems; ++item) {
        const int64 i = int64(blockIdx.x) * kRadixTile + item * kRadixBlock + threadIdx.x;
        if (i < radix.count) atomicAdd(&of_block[radix.digit(load_key<FIRST>(radix, keys, int(i)))], 1);
    }
    __syncthreads();
    for (int d = threadIdx.x; d < kDigits; d += kRadixBlock) counts[int64(blockIdx.x) * kDigits + d] = of_block[d];
}

// The counts become the place where each block begins to write each digit.
template <class Count> __global__ void __launch_bounds__(kDigits) radix_places(Count* __restrict__ counts, Radix radix) {
    __shared__ Count totals[kDigits];
    const int digit = threadIdx.x;
    Count total = 0;
    for (int block = 0; block < radix.blocks; ++block) {
        const Count count = counts[int64(block) * kDigits + digit];
        counts[int64(block) * kDigits + digit] = total;
        total += count;
    }
    totals[digit] = total;
    __syncthreads();
    for (int distance = 1; distance < kDigits; distance *= 2) {
        const Count before = digit >= distance ? totals[digit - distance] : 0;
        __syncthreads();
        totals[digit] += before;
        __syncthreads();
    }
    const Count base = totals[digit] - total;
    for (int block = 0; block < radix.blocks; ++block) counts[int64(block) * kDigits + digit] += base;
}

template <bool FIRST>
__global__ void __launch_bounds__(kRadixBlock) radix_move(
    const void* __restrict__ keys, const int* __restrict__ positions, const int* __restrict__ places,
    int* __restrict__ sorted_keys, int* __restrict__ sorted_positions, Radix radix) {
    __shared__ int of_warps[kRadixWarps][kDigits];
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    for (int d = lane; d < kDigits; d += kWarpSize) of_warps[warp][d] = 0;
    __syncwarp();
    // A warp has neighbouring elements, and ranks them among those of their digit in its part.
    int key[kRadixItems], rank[kRadixItems];
    const int64 first = int64(blockIdx.x) * kRadixTile + warp * kRadixItems * kWarpSize + lane;
#pragma unroll
    for (int item = 0; item < kRadixItems; ++item) {
        const int64 i = first + item * kWarpSize;
        const bool exists = i < radix.count;
        key[item] = exists ? load_key<FIRST>(radix, keys, int(i)) : 0;
        const int digit = radix.digit(key[item]);
        uint32 equal = __ballot_sync(kFullWarp, exists);
        for (int bit = 0; bit < radix.bits; ++bit) {
            const uint32 set = __ballot_sync(kFullWarp, digit >> bit & 1);
            equal &= digit >> bit & 1 ? set : ~set;
        }
        const uint32 before = equal & ((1u << lane) - 1);
        rank[item] = of_warps[warp][digit] + __popc(before);
        __syncwarp();
        if (exists && before == 0) of_warps[warp][digit] += __popc(equal);
        __syncwarp();
    }
    __syncthreads();
    for (int d = threadIdx.x; d < kDigits; d += kRadixBlock) {
        int place = places[int64(blockIdx.x) * kDigits + d];
        for (int w = 0; w < kRadixWarps; ++w) {
            const int count = of_warps[w][d];
            of_warps[w][d] = place;
            place += count;
        }
    }
    __syncthreads();
#pragma unroll
    for (int item = 0; item < kRadixItems; ++item) {
        const int64 i = first + item * kWarpSize;
        if (i >= radix.count) continue;
        const int place = of_warps[warp][radix.digit(key[item])] + rank[item];
        sorted_keys[place] = key[item];
        sorted_positions[place] = FIRST ? int(i) : positions[i];
    }
}

// starts[row]: the first of the sorted keys that is not below the row, for the rows 0 ... bound.
template <class Key>
__global__ void __launch_bounds__(kRadixBlock)
    radix_starts(const Key* __restrict__ sorted_keys, int* __restrict__ starts, Radix radix) {
    for (int64 row = global_index(); row <= radix.bound; row += grid_size()) {
        int low = 0, high = radix.count;
        while (low < high) {
            const int middle = low + (high - low) / 2;
            if (sorted_keys[middle] < row) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        starts[row] = low;
    }
}
