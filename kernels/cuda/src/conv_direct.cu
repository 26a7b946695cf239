// Convolution without tiles, one output for each thread or block: the reference, for volumes, and the better choice where
// groups are too narrow to fill a tile.
#include "conv.cuh"
#include "epilogue.cuh"

// Blocks end where images end, which spares a division of 64 bits. It waits for memory: many blocks a multiprocessor.
template <class T>
__global__ void __launch_bounds__(256, 6)
    gather_direct(const T* __restrict__ source, const T* __restrict__ filter, const T* __restrict__ bias,
                  const T* __restrict__ residual, T* __restrict__ target, Gather g) {
    const int32 image_plane = g.out_h * g.out_w, plane = g.out_d * image_plane, rows = g.groups * g.rows;
    const int32 blocks_of_image = divide_up(rows * plane, int32(blockDim.x));
    const int64 image = blockIdx.x / blocks_of_image;
    const int32 within = int32(blockIdx.x % blocks_of_image * blockDim.x + threadIdx.x);
    if (within >= rows * plane) return;
    const int32 row = within / plane, pixel = within - row * plane;
    const int32 group = row / g.rows, l = pixel / image_plane, i = (pixel - l * image_plane) / g.out_w;
    const int32 j = pixel - l * image_plane - i * g.out_w;

    const int32 source_plane = g.source_d * g.source_h * g.source_w;
    const T* of_channel = source + (image * g.groups + group) * g.channels * source_plane;
    const T* f = filter + g.filter_first + group * g.filter_group + (row - group * g.rows) * g.filter_row;
    const int32 d0 = l * g.step_d + g.first_d, h0 = i * g.step_h + g.first_h, w0 = j * g.step_w + g.first_w;
    Accumulator<T> sum = bias ? widen(bias[row]) : 0;
    for (int32 c = 0; c < g.channels; ++c, of_channel += source_plane, f += g.filter_channel) {
        for (int32 t = 0; t < g.taps_d; ++t) {
            const int32 d = d0 + t * g.tap_d;
            if (uint32(d) >= uint32(g.source_d)) continue;
            for (int32 r = 0; r < g.taps_h; ++r) {
                const int32 h = h0 + r * g.tap_h;
                if (uint32(h) >= uint32(g.source_h)) continue;
                const T* of_row = of_channel + (d * g.source_h + h) * g.source_w;
                const T* of_taps = f + t * g.filter_d + r * g.filter_h;
                for (int32 s = 0; s < g.taps_w; ++s) {
                    const int32 w = w0 + s * g.tap_w;
                    if (uint32(w) >= uint32(g.source_w)) continue;
                    sum += widen(of_row[w]) * widen(of_taps[s * g.filter_w]);
                }
            }
        }
    }
    const int32 place = g.target_first + l * g.target_d + i * g.target_h + j * g.target_w;
    finish_one(g.activation, sum, residual, target, (image * rows + row) * g.target_plane + place);
}

// One block for each weight and part of the positions. The order of summation depends on the block's size only.
template <class T>
__global__ void __launch_bounds__(256)
    weight_grad_direct(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dw,
                       Accumulator<T>* __restrict__ partial, WeightGrad g) {
    const int32 taps = g.taps_d * g.taps_h * g.taps_w;
    const int32 weights = g.groups * g.rows * g.channels * taps;
    const int32 weight = int32(blockIdx.x % weights), split = int32(blockIdx.x / weights);
    const Digits tap = Digits::of(weight % taps, g.taps_h, g.taps_w);  // (t, r, s)
    const Digits channel = Digits::of(weight / taps, g.rows, g.channels);  // (group, m, c)

    const int32 source_plane = g.source_d * g.source_h * g.source_w;
    const int32 d0 = tap.high * g.dilation_d + g.first_d;
    const int32 h0 = tap.middle * g.dilation_h + g.first_h, w0 = tap.low * g.dilation_w + g.first_w;
    const int64 begin = split * g.part + threadIdx.x, end = min(g.pixels, (split + 1) * g.part);
    const Digits stride = Digits::of(int32(blockDim.x), g.out_h, g.out_w);
    // (n * out_d + o, p, q), and n and o apart.
    Digits at = position_of(begin, g.out_h, g.out_w);
    int32 image = at.high / g.out_d, depth = at.high - image * g.out_d;
    Accumulator<T> sum = 0;
    for (int64 pixel = begin; pixel < end; pixel += blockDim.x) {
        const int32 d = depth * g.stride_d + d0, h = at.middle * g.stride_h + h0, w = at.low * g.stride_w + w0;
        if (uint32(d) < uint32(g.source_d) && inside(h, w, g.source_h, g.source_w)) {
            const int64 of_group = int64(image) * g.groups + channel.high;
            const int64 of_row = (of_group * g.rows + channel.middle) * g.out_d + depth;
            const T left = dy[(of_row * g.out_h + at.middle) * g.out_w + at.low];
            const T right = x[(of_group * g.channels + channel.low) * source_plane + (d * g.source_h + h) * g.source_w + w];
            sum += widen(left) * widen(right);
        }
        const int32 before = at.high;
        at.add(stride, g.out_h, g.out_w);
        for (depth += at.high - before; depth >= g.out_d; depth -= g.out_d) ++image;
    }

    __shared__ Accumulator<T> of_warps[256 / kWarpSize];
    sum = warp_sum(sum);
    if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int32 warp = 1; warp < int32(blockDim.x) / kWarpSize; ++warp) sum += of_warps[warp];
    if (g.splits == 1) dw[weight] = narrow<T>(sum);
    else partial[int64(split) * weights + weight] = sum;
}
