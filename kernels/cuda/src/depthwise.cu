// Depthwise convolution, forward and its two gradients, for common windows; conv_direct.cu has any other.
#include "depthwise.cuh"

// y, or, with the filters flipped, the input gradient of a stride-1 convolution. A block walks along the depth of its
// tile; each thread holds the sums of the D planes that the current source plane reaches.
template <class T, int D, int R, int S, int STRIDE, int PAD, int ROWS>
__global__ void __launch_bounds__(kDepthwiseBlock, Window<D, R, S, STRIDE, PAD, ROWS>::kBlocks)
    depthwise(const T* __restrict__ source, const T* __restrict__ filter, const T* __restrict__ bias,
              T* __restrict__ target, Depthwise g) {
    using A = Accumulator<T>;
    using W = Window<D, R, S, STRIDE, PAD, ROWS>;
    DYNAMIC_SHARED(memory);
    A* const tile = reinterpret_cast<A*>(memory);

    int32 number = int32(blockIdx.x);
    const int32 left = take_digit(number, g.column_tiles) * g.lanes_used * W::COLUMNS;
    const int32 top = take_digit(number, g.bands) * g.tile_rows * ROWS;
    const int32 first_depth = take_digit(number, g.chunks) * g.depths;
    const int32 first_plane = number * g.planes_at_once;
    const int32 planes = min(g.planes_at_once, g.planes - first_plane);
    const Spot spot(g);
    const bool works = spot.works(g, planes);
    const int32 k = (first_plane + min(spot.plane, planes - 1)) % g.filters;

    A taps[W::kTaps];
    const int32 count = W::kAnyWidth ? g.taps_w : W::kTaps;
#pragma unroll
    for (int i = 0; i < W::kTaps; ++i)
        taps[i] = W::has_tap(i, g) ? widen(filter[k * count + (g.flipped ? count - 1 - i : i)]) : A(0);
    const A start = bias ? widen(bias[k]) : A(0);
    A sum[D][ROWS][W::COLUMNS];
#pragma unroll
    for (int d = 0; d < D; ++d)
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < W::COLUMNS; ++j) sum[d][i][j] = start;

    const T* const of_source = source + int64(first_plane / g.multiplier) * g.source.channel;
    T* const of_target = target + int64(first_plane) * g.target.channel;
    const int32 depths = min(g.depths, g.target.d - first_depth);
    for (int32 step = 0; step < depths + D - 1; ++step) {
        if (step > 0) __syncthreads();
        const int32 z = first_depth + step - g.pad_d;
        if (uint32(z) < uint32(g.source.d)) {
            stage(of_source + z * g.source.plane, g.source.channel, planes, g.source.h, g.source.w,
                  top * STRIDE - g.pad_h, left * STRIDE - g.pad_w - W::kFirst, g.tile, tile);
            __syncthreads();
            if (works) {
                const A* row = tile + spot.plane * g.tile.plane + spot.row * ROWS * STRIDE * g.tile.pitch + spot.lane * kVector;
#pragma unroll
                for (int h = 0; h < W::kSourceRows; ++h, row += g.tile.pitch) {
                    A seen[W::kSpan];
                    read_row<W::kSpan, kVector>(row, seen);
#pragma unroll
                    for (int r = 0; r < R; ++r) {
                        if (h < r || (h - r) % STRIDE != 0 || (h - r) / STRIDE >= ROWS) continue;
#pragma unroll
                        for (int d = 0; d < D; ++d)
#pragma unroll
                            for (int j = 0; j < W::COLUMNS; ++j)
#pragma unroll
                                for (int s = 0; s < S; ++s)
                                    if (W::has_tap(s, g))
                                        sum[d][(h - r) / STRIDE][j] +=
                                            taps[((D - 1 - d) * R + r) * S + s] * seen[W::kFirst + j * STRIDE + s];
                    }
                }
            }
        }
        if (step >= D - 1)
            write<T>(g, spot, planes, sum[0], of_target + (first_depth + step - (D - 1)) * g.target.plane,
                     g.target.channel, top, left, tile);
#pragma unroll
        for (int d = 0; d < D; ++d)
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
                for (int j = 0; j < W::COLUMNS; ++j) sum[d][i][j] = d + 1 < D ? sum[d + 1 < D ? d + 1 : d][i][j] : start;
    }
}

// The input gradient of a convolution with stride 2 along both axes: a thread's patch of 4 x 4 has all four residues, each
// of which meets its own taps.
template <class T, int SIZE, int PAD>
__global__ void __launch_bounds__(kDepthwiseBlock, 4)
    depthwise_input_grad_stride2(const T* __restrict__ dy, const T* __restrict__ filter, T* __restrict__ dx, Depthwise g) {
    using A = Accumulator<T>;
    constexpr int kPatch = 4;
    // Rows and columns of dy that reach a patch: as many before the one at its start, and so many in all.
    constexpr int kBefore = (SIZE - 1 - PAD) / 2, kReach = kBefore + kPatch / 2 + (1 + PAD) / 2;
    constexpr int kFirst = (kMargin - kBefore) % 2, kSpan = divide_up(kFirst + kReach, 2) * 2;
    DYNAMIC_SHARED(memory);
    A* const tile = reinterpret_cast<A*>(memory);

    int32 number = int32(blockIdx.x);
    const int32 left = take_digit(number, g.column_tiles) * g.lanes_used * kPatch;
    const int32 top = take_digit(number, g.bands) * g.tile_rows * kPatch;
    const int32 first_plane = number * g.planes_at_once;
    const int32 planes = min(g.planes_at_once, g.planes - first_plane);
    const Spot spot(g);
    const bool works = spot.works(g, planes);
    const int32 k = (first_plane + min(spot.plane, planes - 1)) % g.filters;
    A taps[SIZE * SIZE];
#pragma unroll
    for (int i = 0; i < SIZE * SIZE; ++i) taps[i] = widen(filter[k * SIZE * SIZE + i]);
    A sum[kPatch][kPatch] = {};

    stage(dy + first_plane * g.source.plane, g.source.plane, planes, g.source.h, g.source.w, top / 2 - kBefore,
          left / 2 - kMargin, g.tile, tile);
    __syncthreads();
    if (works) {
        const A* row = tile + spot.plane * g.tile.plane + spot.row * (kPatch / 2) * g.tile.pitch + spot.lane * (kPatch / 2) +
                       kMargin - kBefore - kFirst;
#pragma unroll
        for (int p = 0; p < kReach; ++p, row += g.tile.pitch) {
            A seen[kSpan];
            read_row<kSpan, 2>(row, seen);
#pragma unroll
            for (int i = 0; i < kPatch; ++i) {
                const int r = i + PAD - 2 * (p - kBefore);
                if (r < 0 || r >= SIZE) continue;
#pragma unroll
                for (int j = 0; j < kPatch; ++j)
#pragma unroll
                    for (int q = 0; q < kReach; ++q) {
                        const int s = j + PAD - 2 * (q - kBefore);
                        if (s >= 0 && s < SIZE) sum[i][j] += taps[r * SIZE + s] * seen[kFirst + q];
                    }
            }
        }
    }
    write<T>(g, spot, planes, sum, dx + first_plane * g.target.plane, g.target.plane, top, left, tile);
}
