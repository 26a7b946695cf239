// The weight gradient as a tiled matrix product, without tensor cores (product.cuh).
#include "conv.cuh"
#include "position.cuh"
#include "product.cuh"

// rows: output channels of a group; columns: channel, tap_d, tap_h, tap_w; reduction: positions (n, o, p, q) of one part.
template <class T, int Rows, int Columns, int RowsEach, int ColumnsEach>
__global__ void __launch_bounds__(kThreads)
    weight_grad_gemm(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dw,
                     Accumulator<T>* __restrict__ partial, WeightGrad g) {
    using P = Product<T, Rows, Columns, RowsEach, ColumnsEach>;
    constexpr int kLeft = Rows / kLoads, kRight = Columns / kLoads;
    __shared__ typename P::Tiles tiles;

    const int32 taps = g.taps_d * g.taps_h * g.taps_w, columns = g.channels * taps;
    const Digits tile = Digits::of(int32(blockIdx.x), divide_up(g.rows, Rows), divide_up(columns, Columns));
    const int32 first_row = tile.middle * Rows, first_column = tile.low * Columns;
    const int32 group = tile.high % g.groups, split = tile.high / g.groups;
    const int32 plane = g.out_d * g.out_h * g.out_w, source_plane = g.source_d * g.source_h * g.source_w;

    // This thread loads every kLoads-th row and column of the tiles, at one position of each step.
    const int32 depth = threadIdx.x % kDepth, line = threadIdx.x / kDepth;
    int32 offset[kRight], d0[kRight], h0[kRight], w0[kRight];
#pragma unroll
    for (int j = 0; j < kRight; ++j) {
        const int32 column = first_column + line + j * kLoads, channel = column / taps;
        const Digits tap = Digits::of(column - channel * taps, g.taps_h, g.taps_w);
        d0[j] = column < columns ? tap.high * g.dilation_d + g.first_d : -(1 << 30);  // outside at every position
        h0[j] = tap.middle * g.dilation_h + g.first_h;
        w0[j] = tap.low * g.dilation_w + g.first_w;
        const int32 tap_place = ((tap.high * g.dilation_d) * g.source_h + tap.middle * g.dilation_h) * g.source_w;
        offset[j] = channel * source_plane + tap_place + tap.low * g.dilation_w;
    }

    const int64 begin = split * g.part, end = min(g.pixels, begin + g.part);
    const Position step = Position::of(kDepth, g);
    int64 pixel = begin + depth;
    Position at = Position::of(pixel, g);
    T left[kLeft], right[kRight];

    const auto load = [&](int64) {
        const int64 image = int64(at.image) * g.groups + group;
        const T* const of_rows =
            dy + (image * g.rows + first_row + line) * plane + (at.d * g.out_h + at.h) * g.out_w + at.w;
        const T* const of_image = x + image * g.channels * source_plane;
        const int32 front = at.d * g.stride_d, top = at.h * g.stride_h, near = at.w * g.stride_w;
        const int32 first = ((front + g.first_d) * g.source_h + top + g.first_h) * g.source_w + near + g.first_w;
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
            const bool exists = pixel < end && first_row + line + i * kLoads < g.rows;
            left[i] = exists ? of_rows[i * kLoads * plane] : narrow<T>(0);
        }
#pragma unroll
        for (int j = 0; j < kRight; ++j) {
            const bool exists = pixel < end && uint32(front + d0[j]) < uint32(g.source_d) &&
                                inside(top + h0[j], near + w0[j], g.source_h, g.source_w);
            right[j] = exists ? of_image[first + offset[j]] : narrow<T>(0);
        }
        pixel += kDepth;
        at.add(step, g);
    };
    const auto store = [&](int half) {
#pragma unroll
        for (int i = 0; i < kLeft; ++i) tiles.left[half][depth][line + i * kLoads] = widen(left[i]);
#pragma unroll
        for (int j = 0; j < kRight; ++j) tiles.right[half][depth][line + j * kLoads] = widen(right[j]);
    };

    P product;
    product.run(tiles, begin, end, load, store);

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
