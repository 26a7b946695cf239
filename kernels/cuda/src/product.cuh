// The product of two tiles in shared memory with sums in registers, without tensor cores.
//
// A block of 256 threads computes Rows x Columns sums in steps of kDepth: while it multiplies the tiles in one half of its
// shared memory, the next tiles are on their way into registers, from where they go to the other half.
#include "common.cuh"

constexpr int kThreads = 256;
constexpr int kDepth = 8;
constexpr int kLoads = kThreads / kDepth;  // elements of one step that the threads load at once

template <class T, int Rows_, int Columns_, int RowsEach_, int ColumnsEach_> struct Product {
    using A = Accumulator<T>;
    static constexpr int Rows = Rows_, Columns = Columns_, RowsEach = RowsEach_, ColumnsEach = ColumnsEach_;
    static constexpr int Width = 16 / sizeof(A);  // of a shared-memory load
    static constexpr int Across = Columns / ColumnsEach, Down = Rows / RowsEach;
    static_assert(Across * Down == kThreads && RowsEach % Width == 0 && ColumnsEach % Width == 0, "whole loads");

    // 16 bytes more in each line: the stores, which go along kDepth, then use all banks.
    struct Tiles {
        alignas(16) A left[2][kDepth][Rows + Width];
        alignas(16) A right[2][kDepth][Columns + Width];
    };

    A sum[RowsEach][ColumnsEach];

    // All steps of a reduction from `begin` to `end`: `load(k)` brings this thread's part of the tiles from k on into
    // registers, `store(half)` takes it to shared memory.
    template <class K, class Load, class Store>
    __device__ void run(const Tiles& tiles, K begin, K end, const Load& load, const Store& store) {
        clear();
        load(begin);
        store(0);
        __syncthreads();
        int half = 0;
        for (K k = begin; k < end; k += kDepth, half ^= 1) {
            const bool more = k + kDepth < end;
            if (more) load(k + kDepth);
            add(tiles, half);
            if (more) store(half ^ 1);
            __syncthreads();
        }
    }

    // Where this thread's sums lie in the tile: runs of Width, as far apart as all threads' runs together are long.
    __device__ static int row(int i) { return i / Width * (Width * Down) + threadIdx.x / Across * Width + i % Width; }
    __device__ static int column(int j) {
        return j / Width * (Width * Across) + threadIdx.x % Across * Width + j % Width;
    }

private:
    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < RowsEach; ++i)
#pragma unroll
            for (int j = 0; j < ColumnsEach; ++j) sum[i][j] = 0;
    }

    __device__ void add(const Tiles& tiles, int half) {
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            A left[RowsEach], right[ColumnsEach];
#pragma unroll
            for (int i = 0; i < RowsEach; i += Width) read(&tiles.left[half][k][row(i)], left + i);
#pragma unroll
            for (int j = 0; j < ColumnsEach; j += Width) read(&tiles.right[half][k][column(j)], right + j);
#pragma unroll
            for (int i = 0; i < RowsEach; ++i)
#pragma unroll
                for (int j = 0; j < ColumnsEach; ++j) sum[i][j] += left[i] * right[j];
        }
    }

    __device__ static void read(const A* from, A* to) {
        const auto pack = *reinterpret_cast<const Pack<A, Width>*>(from);
#pragma unroll
        for (int i = 0; i < Width; ++i) to[i] = pack.value[i];
    }
};
