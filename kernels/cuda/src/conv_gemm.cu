// Convolution as a tiled matrix product whose right-hand matrix, the image columns, is gathered and never stored.
//
// A block of 256 threads computes Rows x Columns results. It walks along the reduction in steps of kDepth: while it
// multiplies the tiles in one half of its shared memory, the next tiles are on their way into registers, from where they go
// to the other half. Each thread keeps RowsEach x ColumnsEach sums in registers.
#include "conv.cuh"
#include "epilogue.cuh"
#include "product.cuh"

// rows: output channels of a group; columns: pixels; reduction: channel, tap_d, tap_h, tap_w.
template <class T, int Rows, int Columns, int RowsEach, int ColumnsEach>
__global__ void __launch_bounds__(kThreads)
    gather_gemm(const T* __restrict__ source, const T* __restrict__ filter, const T* __restrict__ bias,
                const T* __restrict__ residual, T* __restrict__ target, Gather g) {
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
    const int32 source_plane = g.source_d * g.source_h * g.source_w;

    // The pixels of this thread's loads: lane, lane + 32, ...
    const FirstPixel first(first_pixel, g);
    const T* image[kRight];
    int32 d0[kRight], h0[kRight], w0[kRight];
#pragma unroll
    for (int j = 0; j < kRight; ++j) {
        const int32 column = lane + j * kWarpSize;
        const bool exists = first_pixel + column < g.pixels;
        const Pixel p = first.and_then(column, g);
        const int64 of_group = p.image * g.groups + group;
        image[j] = source + of_group * g.channels * source_plane;
        d0[j] = exists ? p.l * g.step_d + g.first_d : -(1 << 30);  // outside for every tap
        h0[j] = p.i * g.step_h + g.first_h;
        w0[j] = p.j * g.step_w + g.first_w;
        if (warp == 0) target_of[column] = exists ? of_group * g.rows * g.target_plane + p.in_target(g) : -1;
    }

    const int32 reduction = g.channels * g.taps_d * g.taps_h * g.taps_w;
    int32 left_index = threadIdx.x % kDepth, right_index = warp;
    TapsOfChannel left_at = TapsOfChannel::of(left_index, g), right_at = TapsOfChannel::of(right_index, g);
    const int32 left_row = threadIdx.x / kDepth;
    const T* const of_group = filter + g.filter_first + group * g.filter_group + (first_row + left_row) * g.filter_row;
    T left[kLeft], right[kRight];

    const auto load = [&](int32) {
        const T* const f = of_group + left_at.channel * g.filter_channel + left_at.t * g.filter_d +
                           left_at.r * g.filter_h + left_at.s * g.filter_w;
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
            const bool exists = left_index < reduction && first_row + left_row + i * kLoads < g.rows;
            left[i] = exists ? f[i * kLoads * g.filter_row] : narrow<T>(0);
        }
        const int32 dd = right_at.t * g.tap_d, dh = right_at.r * g.tap_h, dw = right_at.s * g.tap_w;
        const int32 offset = right_at.channel * source_plane;
#pragma unroll
        for (int j = 0; j < kRight; ++j) {
            const int32 d = d0[j] + dd, h = h0[j] + dh, w = w0[j] + dw;
            const bool exists = right_index < reduction && uint32(d) < uint32(g.source_d) &&
                                inside(h, w, g.source_h, g.source_w);
            right[j] = exists ? image[j][offset + (d * g.source_h + h) * g.source_w + w] : narrow<T>(0);
        }
        left_index += kDepth;
        right_index += kDepth;
        left_at.add_stage(g);
        right_at.add_stage(g);
    };
    const auto store = [&](int half) {
#pragma unroll
        for (int i = 0; i < kLeft; ++i) tiles.left[half][threadIdx.x % kDepth][left_row + i * kLoads] = widen(left[i]);
#pragma unroll
        for (int j = 0; j < kRight; ++j) tiles.right[half][warp][lane + j * kWarpSize] = widen(right[j]);
    };

    P product;
    product.run(tiles, 0, reduction, load, store);

#pragma unroll
    for (int i = 0; i < RowsEach; ++i) {
        const int32 row = first_row + P::row(i);
        if (row >= g.rows) continue;
        const Accumulator<T> b = bias ? widen(bias[group * g.rows + row]) : 0;
        const int64 of_row = int64(row) * g.target_plane;
#pragma unroll
        for (int j = 0; j < ColumnsEach; j += P::Width) {
            Accumulator<T> values[P::Width];
#pragma unroll
            for (int v = 0; v < P::Width; ++v) values[v] = product.sum[i][j + v] + b;
            if (g.packed) {
                const int64 at = target_of[P::column(j)];
                if (at >= 0) finish_run<P::Width>(g.activation, values, residual, target, of_row + at);
                continue;
            }
#pragma unroll
            for (int v = 0; v < P::Width; ++v) {
                const int64 at = target_of[P::column(j + v)];
                if (at >= 0) finish_one(g.activation, values[v], residual, target, of_row + at);
            }
        }
    }
}
