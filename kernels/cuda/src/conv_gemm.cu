// Convolution as a tiled matrix product whose right-hand matrix, the image columns, is gathered and never stored.
//
// A block of 256 threads computes Rows x Columns results. It walks along the reduction in steps of kDepth: while it
// multiplies the tiles in one half of its shared memory, the next tiles are on their way into registers, from where they go
// to the other half. Each thread keeps RowsEach x ColumnsEach sums in registers.
#include "conv.cuh"

constexpr int kThreads = 256;
constexpr int kDepth = 8;
constexpr int kLoads = kThreads / kDepth;  // elements of one step that the threads load at once

template <class T, int Rows_, int Columns_, int RowsEach_, int ColumnsEach_> struct Product {
    using A = Accumulator<T>;
    static constexpr int Rows = Rows_, Columns = Columns_, RowsEach = RowsEach_, ColumnsEach = ColumnsEach_;
    static constexpr int Width = 16 / sizeof(A);  // of a shared-memory load
    static constexpr int Across = Columns / ColumnsEach, Down = Rows / RowsEach;
    static_assert(Across * Down == kThreads && RowsEach % Width == 0 && ColumnsEach % Width == 0, "whole loads");

    // Four more in each line: the stores, which go along kDepth, then use all banks.
    struct Tiles {
        alignas(16) A left[2][kDepth][Rows + 4];
        alignas(16) A right[2][kDepth][Columns + 4];
    };

    A sum[RowsEach][ColumnsEach];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < RowsEach; ++i)
#pragma unroll
            for (int j = 0; j < ColumnsEach; ++j) sum[i][j] = 0;
    }

    // Where this thread's sums lie in the tile: runs of Width, as far apart as all threads' runs together are long.
    __device__ static int row(int i) { return i / Width * (Width * Down) + threadIdx.x / Across * Width + i % Width; }
    __device__ static int column(int j) {
        return j / Width * (Width * Across) + threadIdx.x % Across * Width + j % Width;
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

private:
    __device__ static void read(const A* from, A* to) {
        const auto pack = *reinterpret_cast<const Pack<A, Width>*>(from);
#pragma unroll
        for (int i = 0; i < Width; ++i) to[i] = pack.value[i];
    }
};

// rows: output channels of a group; columns: pixels; reduction: channel, tap_h, tap_w.
template <class T, int Rows, int Columns, int RowsEach, int ColumnsEach>
__global__ void __launch_bounds__(kThreads)
    gather_gemm(const T* __restrict__ source, const T* __restrict__ filter, const T* __restrict__ bias,
                T* __restrict__ target, Gather g) {
    using P = Product<T, Rows, Columns, RowsEach, ColumnsEach>;
    constexpr int kLeft = Rows / kLoads, kRight = Columns / kWarpSize;
    static_assert(kThreads / kWarpSize == kDepth, "each warp loads one line of the right tile");
    __shared__ typename P::Tiles tiles;
    __shared__ int64 target_of[Columns];

    const int32 row_tiles = divide_up(g.rows, Rows), rows_of_all = row_tiles * g.groups;
    const int32 group = int32(blockIdx.x % rows_of_all) / row_tiles;
    const int32 first_row = int32(blockIdx.x % rows_of_all) % row_tiles * Rows;
    const int64 first_pixel = int64(blockIdx.x / rows_of_all) * Columns;
    const int32 lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int32 source_plane = g.source_h * g.source_w;

    // The pixels of this thread's loads: lane, lane + 32, ...
    const Digits first = position_of(first_pixel, g.out_h, g.out_w);
    const T* image[kRight];
    int32 h0[kRight], w0[kRight];
#pragma unroll
    for (int j = 0; j < kRight; ++j) {
        const int32 column = lane + j * kWarpSize;
        const bool exists = first_pixel + column < g.pixels;
        Digits at = first;
        at.add(Digits::of(column, g.out_h, g.out_w), g.out_h, g.out_w);
        const int64 of_group = int64(at.high) * g.groups + group;
        image[j] = source + of_group * g.channels * source_plane;
        h0[j] = exists ? at.middle * g.step_h + g.first_h : -(1 << 30);  // outside for every tap
        w0[j] = at.low * g.step_w + g.first_w;
        if (warp == 0)
            target_of[column] = exists ? of_group * g.rows * g.target_plane + g.target_first + at.middle * g.target_h +
                                             at.low * g.target_w
                                       : -1;
    }

    const int32 reduction = g.channels * g.taps_h * g.taps_w;
    const Digits step = Digits::of(kDepth, g.taps_h, g.taps_w);
    int32 left_index = threadIdx.x % kDepth, right_index = warp;
    Digits left_at = Digits::of(left_index, g.taps_h, g.taps_w), right_at = Digits::of(right_index, g.taps_h, g.taps_w);
    const int32 left_row = threadIdx.x / kDepth;
    const T* const of_group = filter + g.filter_first + group * g.filter_group + (first_row + left_row) * g.filter_row;
    T left[kLeft], right[kRight];

    const auto load = [&] {
        const T* const f =
            of_group + left_at.high * g.filter_channel + left_at.middle * g.filter_h + left_at.low * g.filter_w;
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
            const bool exists = left_index < reduction && first_row + left_row + i * kLoads < g.rows;
            left[i] = exists ? f[i * kLoads * g.filter_row] : narrow<T>(0);
        }
        const int32 dh = right_at.middle * g.tap_h, dw = right_at.low * g.tap_w;
        const int32 offset = right_at.high * source_plane;
#pragma unroll
        for (int j = 0; j < kRight; ++j) {
            const int32 h = h0[j] + dh, w = w0[j] + dw;
            const bool exists = right_index < reduction && inside(h, w, g.source_h, g.source_w);
            right[j] = exists ? image[j][offset + h * g.source_w + w] : narrow<T>(0);
        }
        left_index += kDepth;
        right_index += kDepth;
        left_at.add(step, g.taps_h, g.taps_w);
        right_at.add(step, g.taps_h, g.taps_w);
    };
    const auto store = [&](int half) {
#pragma unroll
        for (int i = 0; i < kLeft; ++i) tiles.left[half][threadIdx.x % kDepth][left_row + i * kLoads] = widen(left[i]);
#pragma unroll
        for (int j = 0; j < kRight; ++j) tiles.right[half][warp][lane + j * kWarpSize] = widen(right[j]);
    };

    P product;
    product.clear();
    load();
    store(0);
    __syncthreads();
    int half = 0;
    for (int32 k = 0; k < reduction; k += kDepth, half ^= 1) {
        const bool more = k + kDepth < reduction;
        if (more) load();
        product.add(tiles, half);
        if (more) store(half ^ 1);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < RowsEach; ++i) {
        const int32 row = first_row + P::row(i);
        if (row >= g.rows) continue;
        const Accumulator<T> b = bias ? widen(bias[group * g.rows + row]) : 0;
        T* const of_row = target + int64(row) * g.target_plane;
#pragma unroll
        for (int j = 0; j < ColumnsEach; j += P::Width) {
            Pack<T, P::Width> pack;
#pragma unroll
            for (int v = 0; v < P::Width; ++v) pack.value[v] = narrow<T>(product.sum[i][j + v] + b);
            if (g.packed) {
                const int64 at = target_of[P::column(j)];
                if (at >= 0) *reinterpret_cast<Pack<T, P::Width>*>(of_row + at) = pack;
                continue;
            }
#pragma unroll
            for (int v = 0; v < P::Width; ++v) {
                const int64 at = target_of[P::column(j + v)];
                if (at >= 0) of_row[at] = pack.value[v];
            }
        }
    }
}

// rows: output channels of a group; columns: channel, tap_h, tap_w; reduction: positions (n, p, q) of one part.
template <class T, int Rows, int Columns, int RowsEach, int ColumnsEach>
__global__ void __launch_bounds__(kThreads)
    weight_grad_gemm(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dw,
                     Accumulator<T>* __restrict__ partial, WeightGrad g) {
    using P = Product<T, Rows, Columns, RowsEach, ColumnsEach>;
    constexpr int kLeft = Rows / kLoads, kRight = Columns / kLoads;
    __shared__ typename P::Tiles tiles;

    const int32 columns = g.channels * g.taps_h * g.taps_w;
    const Digits tile = Digits::of(int32(blockIdx.x), divide_up(g.rows, Rows), divide_up(columns, Columns));
    const int32 first_row = tile.middle * Rows, first_column = tile.low * Columns;
    const int32 group = tile.high % g.groups, split = tile.high / g.groups;
    const int32 plane = g.out_h * g.out_w, source_plane = g.source_h * g.source_w;

    // This thread loads every kLoads-th row and column of the tiles, at one position of each step.
    const int32 depth = threadIdx.x % kDepth, line = threadIdx.x / kDepth;
    int32 offset[kRight], h0[kRight], w0[kRight];
#pragma unroll
    for (int j = 0; j < kRight; ++j) {
        const int32 column = first_column + line + j * kLoads;
        const Digits tap = Digits::of(column, g.taps_h, g.taps_w);
        h0[j] = column < columns ? tap.middle * g.dilation_h + g.first_h : -(1 << 30);  // outside at every position
        w0[j] = tap.low * g.dilation_w + g.first_w;
        offset[j] = tap.high * source_plane;
    }

    const int64 begin = split * g.part, end = min(g.pixels, begin + g.part);
    const Digits step = Digits::of(kDepth, g.out_h, g.out_w);
    int64 pixel = begin + depth;
    Digits at = position_of(pixel, g.out_h, g.out_w);
    T left[kLeft], right[kRight];

    const auto load = [&] {
        const int64 image = int64(at.high) * g.groups + group;
        const T* const of_rows =
            dy + (image * g.rows + first_row + line) * plane + at.middle * g.out_w + at.low;
        const T* const of_image = x + image * g.channels * source_plane;
        const int32 top = at.middle * g.stride_h, near = at.low * g.stride_w;
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
            const bool exists = pixel < end && first_row + line + i * kLoads < g.rows;
            left[i] = exists ? of_rows[i * kLoads * plane] : narrow<T>(0);
        }
#pragma unroll
        for (int j = 0; j < kRight; ++j) {
            const int32 h = top + h0[j], w = near + w0[j];
            const bool exists = pixel < end && inside(h, w, g.source_h, g.source_w);
            right[j] = exists ? of_image[offset[j] + h * g.source_w + w] : narrow<T>(0);
        }
        pixel += kDepth;
        at.add(step, g.out_h, g.out_w);
    };
    const auto store = [&](int half) {
#pragma unroll
        for (int i = 0; i < kLeft; ++i) tiles.left[half][depth][line + i * kLoads] = widen(left[i]);
#pragma unroll
        for (int j = 0; j < kRight; ++j) tiles.right[half][depth][line + j * kLoads] = widen(right[j]);
    };

    P product;
    product.clear();
    load();
    store(0);
    __syncthreads();
    int half = 0;
    for (int64 k = begin; k < end; k += kDepth, half ^= 1) {
        const bool more = k + kDepth < end;
        if (more) load();
        product.add(tiles, half);
        if (more) store(half ^ 1);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < RowsEach; ++i) {
        const int32 row = first_row + P::row(i);
        if (row >= g.rows) continue;
        const int64 of_row = (int64(group) * g.rows + row) * columns;
        const int64 of_split = int64(split) * g.groups * g.rows * columns;
#pragma unroll
        for (int j = 0; j < ColumnsEach; ++j) {
            const int32 column = first_column + P::column(j);
            if (column >= columns) continue;
            if (g.splits == 1) dw[of_row + column] = narrow<T>(product.sum[i][j]);
            else partial[of_split + of_row + column] = product.sum[i][j];
        }
    }
}

// Adds the parts of a weight gradient, first to last.
template <class T>
__global__ void __launch_bounds__(256)
    sum_partials(const Accumulator<T>* __restrict__ partial, T* __restrict__ dw, int32 splits, int32 weights) {
    const int64 i = global_index();
    if (i >= weights) return;
    Accumulator<T> sum = 0;
    for (int32 split = 0; split < splits; ++split) sum += partial[int64(split) * weights + i];
    dw[i] = narrow<T>(sum);
}
