// One launch over the elements of many arrays, whose addresses and sizes are a parameter of the kernel.
//
// LISTS lists of arrays belong together: the first arrays of all lists have one size, so have the second ones, and so on.
// Arrays are cut into chunks, numbered through all of them. A block looks up once which array its chunk belongs to.
#include "common.cuh"

constexpr int kBlock = 256;
constexpr int kChunk = 4096;  // elements
// Parameters of a kernel may take 4 KB: these lists, and 320 bytes of others.
template <int LISTS> constexpr int kMostArrays = (4096 - 320) / (8 * LISTS + 8 + 4);

template <int LISTS> struct ArrayLists {
    uint64 address[LISTS][kMostArrays<LISTS>];
    int64 size[kMostArrays<LISTS>];
    int first_chunk[kMostArrays<LISTS>];
    int arrays;
    int chunks;
};

// The last array whose first chunk is not behind `chunk`; no array is empty.
template <int LISTS> __device__ int array_of(const ArrayLists<LISTS>& lists, int chunk) {
    int low = 0, high = lists.arrays;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (lists.first_chunk[middle] <= chunk) low = middle;
        else high = middle;
    }
    return low;
}

// The part of each of the lists' arrays that a chunk is.
template <class T, int LISTS> struct Chunk {
    T* place[LISTS];
    int count;
    bool aligned;

    __device__ Chunk(const ArrayLists<LISTS>& lists, int chunk) {
        const int array = array_of(lists, chunk);
        const int64 start = int64(chunk - lists.first_chunk[array]) * kChunk;
        count = int(min(int64(kChunk), lists.size[array] - start));
        uint64 together = 0;
#pragma unroll
        for (int k = 0; k < LISTS; ++k) {
            together |= lists.address[k][array];
            place[k] = reinterpret_cast<T*>(lists.address[k][array]) + start;
        }
        aligned = together % 16 == 0;
    }
};

// Calls change(values) for each element of a chunk, values[k] being that of list k, and stores the lists in the mask
// STORED. `change` takes the values in the type they are computed in.
template <unsigned STORED, class T, int LISTS, class Change>
__device__ void for_each_element(const Chunk<T, LISTS>& chunk, const Change& change) {
    constexpr int N = 16 / int(sizeof(T));
    const int whole = chunk.aligned ? chunk.count / N * N : 0;
    for (int i = int(threadIdx.x) * N; i < whole; i += kBlock * N) {
        Pack<T, N> packs[LISTS];
#pragma unroll
        for (int k = 0; k < LISTS; ++k) packs[k] = *reinterpret_cast<const Pack<T, N>*>(chunk.place[k] + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            Accumulator<T> values[LISTS];
#pragma unroll
            for (int k = 0; k < LISTS; ++k) values[k] = widen(packs[k].value[j]);
            change(values);
#pragma unroll
            for (int k = 0; k < LISTS; ++k) {
                if (STORED >> k & 1) packs[k].value[j] = narrow<T>(values[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < LISTS; ++k) {
            if (STORED >> k & 1) *reinterpret_cast<Pack<T, N>*>(chunk.place[k] + i) = packs[k];
        }
    }
    for (int i = whole + int(threadIdx.x); i < chunk.count; i += kBlock) {
        Accumulator<T> values[LISTS];
#pragma unroll
        for (int k = 0; k < LISTS; ++k) values[k] = widen(chunk.place[k][i]);
        change(values);
#pragma unroll
        for (int k = 0; k < LISTS; ++k) {
            if (STORED >> k & 1) chunk.place[k][i] = narrow<T>(values[k]);
        }
    }
}
