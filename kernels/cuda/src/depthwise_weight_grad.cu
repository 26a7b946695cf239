// The weight gradient of a depthwise convolution, which reads x and dy once for all taps.
#include "depthwise.cuh"

// With sums for D planes, a thread needs more registers than a block of full size has for it.
template <class W> constexpr int kGradThreads = W::D > 1 ? 192 : kDepthwiseBlock;

// Adds the products of a thread's patch, at `grads`, with the source rows that its taps see. The rows of the patch that
// meet the current source row move along with it: so their number does not cost registers.
template <class W, class A>
__device__ void add_row_by_row(const A* grads, int32 grads_pitch, const A* source, int32 pitch, int32 rows, int32 columns,
                               A (&sum)[W::kTaps]) {
    A met[W::R][W::COLUMNS] = {};  // met[r] is row h - r
#pragma unroll 1
    for (int32 h = 0; h < rows + W::R - 1; ++h, grads += grads_pitch, source += pitch) {
#pragma unroll
        for (int r = W::R - 1; r > 0; --r)
#pragma unroll
            for (int j = 0; j < W::COLUMNS; ++j) met[r][j] = met[r - 1][j];
        if (h < rows) read_row<W::COLUMNS, W::COLUMNS>(grads, met[0]);
        A seen[W::kSpan];
        read_row<W::kSpan, kVector>(source, seen);
#pragma unroll
        for (int r = 0; r < W::R; ++r) {
            if (h < r || h - r >= rows) continue;
#pragma unroll
            for (int j = 0; j < W::COLUMNS; ++j) {
                if (j >= columns) continue;
#pragma unroll
                for (int s = 0; s < W::S; ++s) sum[r * W::S + s] += met[r][j] * seen[W::kFirst + j + s];
            }
        }
    }
}

// A block takes one filter and a part of its units: tiles of dy of a band, of some columns and of some images. Each thread
// holds a sum for every tap; the block adds them up in a fixed order.
template <class T, int D, int R, int S, int STRIDE, int PAD, int ROWS>
__global__ void __launch_bounds__((kGradThreads<Window<D, R, S, STRIDE, PAD, ROWS>>), 2)
    depthwise_weight_grad(const T* __restrict__ dy, const T* __restrict__ x, Accumulator<T>* __restrict__ partial,
                          Depthwise g) {
    using A = Accumulator<T>;
    using W = Window<D, R, S, STRIDE, PAD, ROWS>;
    DYNAMIC_SHARED(memory);
    A* const tile = reinterpret_cast<A*>(memory);
    A* const grads = tile + g.planes_at_once * g.tile.plane;

    const int32 k = int32(blockIdx.x) % g.filters, part = int32(blockIdx.x) / g.filters;
    const Spot spot(g);
    A sum[W::kTaps] = {};

    const int32 last = min(g.units, (part + 1) * g.units_of_part);
    for (int32 unit = part * g.units_of_part; unit < last; ++unit) {
        int32 number = unit;
        const int32 left = take_digit(number, g.column_tiles) * g.lanes_used * W::COLUMNS;
        const int32 top = take_digit(number, g.bands) * g.tile_rows * ROWS;
        const int32 first_depth = take_digit(number, g.chunks) * g.depths;
        const int32 first_image = number * g.planes_at_once;
        const int32 planes = min(g.planes_at_once, g.images - first_image);
        const T* const of_x = x + first_image * g.source.image + int64(k / g.multiplier) * g.source.channel;
        const T* const of_dy = dy + first_image * g.target.image + int64(k) * g.target.channel;
        const int32 rows = min(ROWS, g.target.h - top - spot.row * ROWS);
        const int32 columns = min(W::COLUMNS, g.target.w - left - spot.lane * W::COLUMNS);
        const bool works = spot.works(g, planes) && rows > 0 && columns > 0;

        // given[d] belongs to the depth that the source plane of this step reaches by tap D - 1 - d.
        A given[D][ROWS][W::COLUMNS] = {};
        const int32 depths = min(g.depths, g.target.d - first_depth);
        for (int32 step = 0; step < depths + D - 1; ++step) {
            const int32 z = first_depth + step - g.pad_d;
            const bool exists = uint32(z) < uint32(g.source.d), more = step < depths;
            __syncthreads();
            if (exists)
                stage(of_x + z * g.source.plane, g.source.image, planes, g.source.h, g.source.w, top * STRIDE - g.pad_h,
                      left * STRIDE - g.pad_w - W::kFirst, g.tile, tile);
            if (more)
                stage(of_dy + (first_depth + step) * g.target.plane, g.target.image, planes, g.target.h, g.target.w, top, left,
                      g.patch, grads);
            __syncthreads();
            if (!works) continue;
            const A* const of_patch =
                grads + spot.plane * g.patch.plane + spot.row * ROWS * g.patch.pitch + spot.lane * W::COLUMNS;
            const A* row = tile + spot.plane * g.tile.plane + spot.row * ROWS * STRIDE * g.tile.pitch + spot.lane * kVector;
            if constexpr (W::kRowByRow) {
                if (exists) add_row_by_row<W>(of_patch, g.patch.pitch, row, g.tile.pitch, rows, columns, sum);
                continue;
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
#pragma unroll
                for (int d = 0; d + 1 < D; ++d)
#pragma unroll
                    for (int j = 0; j < W::COLUMNS; ++j) given[d][i][j] = given[d + 1][i][j];
#pragma unroll
                for (int j = 0; j < W::COLUMNS; ++j) given[D - 1][i][j] = 0;
                if (more) read_row<W::COLUMNS, W::COLUMNS>(of_patch + i * g.patch.pitch, given[D - 1][i]);
            }
            if (!exists) continue;
#pragma unroll
            for (int h = 0; h < W::kSourceRows; ++h, row += g.tile.pitch) {
                A seen[W::kSpan];
                read_row<W::kSpan, kVector>(row, seen);
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    if (h < r || (h - r) % STRIDE != 0 || (h - r) / STRIDE >= ROWS) continue;
                    // What lies outside of dy sees elements that need not be finite.
                    if ((h - r) / STRIDE >= rows) continue;
#pragma unroll
                    for (int d = 0; d < D; ++d) {
                        // Tap D - 1 - d leads to an output of this chunk, or to none.
                        if (D > 1 && (step + d < D - 1 || step + d - (D - 1) >= depths)) continue;
#pragma unroll
                        for (int j = 0; j < W::COLUMNS; ++j) {
                            if (j >= columns) continue;
#pragma unroll
                            for (int s = 0; s < S; ++s)
                                if (W::has_tap(s, g))
                                    sum[((D - 1 - d) * R + r) * S + s] +=
                                        given[d][(h - r) / STRIDE][j] * seen[W::kFirst + j * STRIDE + s];
                        }
                    }
                }
            }
        }
    }

    __shared__ A of_warps[kGradThreads<W> / kWarpSize][W::kTaps];
    const int32 lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
    for (int i = 0; i < W::kTaps; ++i) {
        const A of_warp = warp_sum(sum[i]);
        if (lane == 0) of_warps[warp][i] = of_warp;
    }
    __syncthreads();
    const int32 count = W::kAnyWidth ? g.taps_w : W::kTaps;
    if (int32(threadIdx.x) >= count) return;
    A total = 0;
    for (int32 i = 0; i < int32(blockDim.x) / kWarpSize; ++i) total += of_warps[i][threadIdx.x];
    partial[(int64(part) * g.filters + k) * count + threadIdx.x] = total;
}

// Any window: a block takes one filter, some of its taps and a part of the positions. The taps' reads of x are answered by
// the cache.
constexpr int kTapsAtOnce = 9;

template <class T>
__global__ void __launch_bounds__(256, 2)
    depthwise_weight_grad_any(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dw,
                              Accumulator<T>* __restrict__ partial, WeightGrad g) {
    using A = Accumulator<T>;
    const int32 taps = g.taps_d * g.taps_h * g.taps_w, chunks = divide_up(taps, kTapsAtOnce), filters = g.groups * g.rows;
    const int32 block = int32(blockIdx.x % (filters * chunks)), split = int32(blockIdx.x / (filters * chunks));
    const int32 k = block / chunks, first_tap = block % chunks * kTapsAtOnce;
    const int32 source_plane = g.source_d * g.source_h * g.source_w;

    __shared__ Digits of_taps[kTapsAtOnce];
    if (threadIdx.x < kTapsAtOnce) {
        const Digits tap = Digits::of(first_tap + threadIdx.x, g.taps_h, g.taps_w);
        of_taps[threadIdx.x] = {tap.high * g.dilation_d + g.first_d, tap.middle * g.dilation_h + g.first_h,
                                tap.low * g.dilation_w + g.first_w};
    }
    __syncthreads();

    const int64 begin = split * g.part + threadIdx.x, end = min(g.pixels, (split + 1) * g.part);
    const Digits stride = Digits::of(int32(blockDim.x), g.out_h, g.out_w);
    // (n * out_d + o, p, q), and n and o apart.
    Digits at = position_of(begin, g.out_h, g.out_w);
    int32 image = at.high / g.out_d, depth = at.high - image * g.out_d;
    A sum[kTapsAtOnce] = {};
    for (int64 pixel = begin; pixel < end; pixel += blockDim.x) {
        const int64 of_row = (int64(image) * filters + k) * g.out_d + depth;
        const A given = widen(dy[(of_row * g.out_h + at.middle) * g.out_w + at.low]);
        const T* const of_x = x + (int64(image) * g.groups + k / g.rows) * source_plane;
#pragma unroll
        for (int i = 0; i < kTapsAtOnce; ++i) {
            const int32 d = depth * g.stride_d + of_taps[i].high, h = at.middle * g.stride_h + of_taps[i].middle;
            const int32 w = at.low * g.stride_w + of_taps[i].low;
            if (first_tap + i < taps && uint32(d) < uint32(g.source_d) && inside(h, w, g.source_h, g.source_w))
                sum[i] += given * widen(of_x[(d * g.source_h + h) * g.source_w + w]);
        }
        const int32 before = at.high;
        at.add(stride, g.out_h, g.out_w);
        for (depth += at.high - before; depth >= g.out_d; depth -= g.out_d) ++image;
    }

    __shared__ A of_warps[256 / kWarpSize][kTapsAtOnce];
#pragma unroll
    for (int i = 0; i < kTapsAtOnce; ++i) {
        const A of_warp = warp_sum(sum[i]);
        if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize][i] = of_warp;
    }
    __syncthreads();
    const int32 tap = first_tap + int32(threadIdx.x);
    if (threadIdx.x >= kTapsAtOnce || tap >= taps) return;
    A total = 0;
    for (int32 warp = 0; warp < int32(blockDim.x) / kWarpSize; ++warp) total += of_warps[warp][threadIdx.x];
    const int32 weight = k * taps + tap;
    if (g.splits == 1) dw[weight] = narrow<T>(total);
    else partial[int64(split) * filters * taps + weight] = total;
}
