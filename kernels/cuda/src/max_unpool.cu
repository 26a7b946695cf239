// Max-unpooling: planes of zeros with each element at its position. Of several elements for one place the last in
// memory stays: the largest number wins by an integer maximum, whatever the order in which threads come.
#include "divisor.cuh"

constexpr int kUnpoolBlock = 256;

// A block takes `chunk` elements of a plane, or all elements of several planes.
struct Planes {
    int64 planes;
    int planes_per_block;
    int elements, others;  // of a plane that threads take, and of the other array's
    int chunk, chunks;
    Divisor by_elements, by_chunks;
};

// Calls take(plane, element) for this thread's elements.
template <class Take> __device__ void over_elements(const Planes& planes, Take take) {
    const int group = planes.by_chunks.divide(blockIdx.x);
    const int start = (int(blockIdx.x) - group * planes.chunks) * planes.chunk;
    const int64 first = int64(group) * planes.planes_per_block;
    const int stop = planes.planes_per_block > 1 ?
        int(min(int64(planes.planes_per_block), planes.planes - first)) * planes.elements
                                                 : min(planes.chunk, planes.elements - start);
    for (int i = threadIdx.x; i < stop; i += kUnpoolBlock) {
        const int plane = planes.planes_per_block > 1 ? planes.by_elements.divide(i) : 0;
        take(first + plane, start + i - plane * planes.elements);
    }
}

__device__ inline bool is_place(int64 position, int places) { return uint64(position) < uint64(places); }

// winners: for each place the last element whose position it is; -1, which it begins with, where there is none.
template <class Index>
__global__ void __launch_bounds__(kUnpoolBlock, 4) max_unpool_winners(
    const Index* __restrict__ positions, int32* __restrict__ winners, Planes planes) {
    over_elements(planes, [&](int64 plane, int element) {
        const int64 position = positions[plane * planes.elements + element];
        if (is_place(position, planes.others)) atomicMax(&winners[plane * planes.others + position], element);
    });
}

// Bits of the size of an element: what moves needs no other type.
template <class Bits>
__global__ void __launch_bounds__(kUnpoolBlock, 4) max_unpool(
    const Bits* __restrict__ x, const int32* __restrict__ winners, Bits* __restrict__ y, Planes planes) {
    over_elements(planes, [&](int64 plane, int place) {
        const int64 to = plane * planes.elements + place;
        const int winner = winners[to];
        y[to] = winner < 0 ? Bits(0) : x[plane * planes.others + winner];
    });
}

// The elements at the positions; with `winners` 0 for those that another one replaced.
template <class Bits>
__global__ void __launch_bounds__(kUnpoolBlock, 4) max_unpool_gather(
    const Bits* __restrict__ dy, const int64* __restrict__ positions, const int32* __restrict__ winners,
    Bits* __restrict__ dx, Planes planes) {
    over_elements(planes, [&](int64 plane, int element) {
        const int64 to = plane * planes.elements + element, position = positions[to], from = plane * planes.others +
            position;
        const bool kept = is_place(position, planes.others) && (winners == nullptr || winners[from] == element);
        dx[to] = kept ? dy[from] : Bits(0);
    });
}
