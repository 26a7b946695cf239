// What the convolution kernels share: how a launch is described, and counting without division.
#include "common.cuh"

// One pass that computes, for every image n, group g, row m of the group and pixel (i, j) of the launch,
//
//   target[n, g, m][target_first + i * target_h + j * target_w] =
//       sum over channel c, tap (r, s) of  filter(g, m, c, r, s) *
//       source[n, g, c][i * step_h + r * tap_h + first_h, j * step_w + s * tap_w + first_w]
//
// where positions outside the source count as zero. The forward convolution is one such pass: steps are strides, tap
// distances are dilations. The input gradient is one pass for each residue of the position modulo the stride: the taps
// that meet such positions lie at equal distances, so no product with a skipped position is ever made.
struct Gather {
    int64 pixels;  // images * out_h * out_w
    int32 groups, rows, channels, taps_h, taps_w;
    int32 out_h, out_w;
    int32 source_h, source_w, step_h, step_w, tap_h, tap_w, first_h, first_w;
    int32 filter_group, filter_row, filter_channel, filter_h, filter_w, filter_first;
    int32 target_plane, target_first, target_h, target_w;
    int32 packed;  // whether pixels lie in the target one after the other and four of them never span two images
};

// The weight gradient: for every group, row m, channel c and tap (r, s), the sum over n, p, q of
//
//   dy[n, g, m][p, q] * x[n, g, c][p * stride_h + r * dilation_h + first_h, q * stride_w + s * dilation_w + first_w]
//
// in `splits` parts of `part` positions (n, p, q) each; more than one part leave partial sums that are added in order.
struct WeightGrad {
    int64 pixels, part;
    int32 splits, groups, rows, channels, taps_h, taps_w;
    int32 out_h, out_w;
    int32 source_h, source_w, stride_h, stride_w, dilation_h, dilation_w, first_h, first_w;
};

// A number written as (high, middle, low) with low < size_low and middle < size_middle.
struct Digits {
    int32 high, middle, low;

    __device__ static Digits of(int32 number, int32 size_middle, int32 size_low) {
        const int32 rest = number / size_low;
        return {rest / size_middle, rest % size_middle, number % size_low};
    }

    __device__ void add(const Digits& d, int32 size_middle, int32 size_low) {
        low += d.low;
        middle += d.middle;
        high += d.high;
        if (low >= size_low) low -= size_low, ++middle;
        if (middle >= size_middle) middle -= size_middle, ++high;
    }
};

// A position (n, p, q) from its number, which may exceed 32 bits.
__device__ inline Digits position_of(int64 number, int32 out_h, int32 out_w) {
    const int32 plane = out_h * out_w;
    const int32 image = int32(number / plane);
    Digits d = Digits::of(int32(number - int64(image) * plane), out_h, out_w);
    d.high = image;
    return d;
}

__device__ inline bool inside(int32 h, int32 w, int32 size_h, int32 size_w) {
    return uint32(h) < uint32(size_h) && uint32(w) < uint32(size_w);
}
