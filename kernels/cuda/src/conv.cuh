// What the convolution kernels share: how a launch is described, and counting without division.
#include "common.cuh"

// One pass that computes, for every image n, group g, row m of the group and pixel (l, i, j) of the launch,
//
//   target[n, g, m][target_first + l * target_d + i * target_h + j * target_w] =
//       sum over channel c, tap (t, r, s) of  filter(g, m, c, t, r, s) *
//       source[n, g, c][l * step_d + t * tap_d + first_d, i * step_h + r * tap_h + first_h, j * step_w + ...]
//
// where positions outside the source count as zero. The forward convolution is one such pass: steps are strides, tap
// distances are dilations. The input gradient is one pass for each residue of the position modulo the stride: the taps
// that meet such positions lie at equal distances, so no product with a skipped position is ever made.
struct Gather {
    int64 pixels;  // images * out_d * out_h * out_w
    int32 groups, rows, channels, taps_d, taps_h, taps_w;
    int32 out_d, out_h, out_w;
    int32 source_d, source_h, source_w, step_d, step_h, step_w, tap_d, tap_h, tap_w, first_d, first_h, first_w;
    int32 filter_group, filter_row, filter_channel, filter_d, filter_h, filter_w, filter_first;
    int32 target_plane, target_first, target_d, target_h, target_w;
    int32 ahead_d, ahead_h, ahead_w, ahead_channels;  // one stage of the reduction, as taps and channels
    int32 activation;  // of the sum: kIdentity or an ActivationKind
    int32 packed;  // whether pixels lie in the target one after the other and four of them never span two images
};

// The weight gradient: for every group, row m, channel c and tap (t, r, s), the sum over n, o, p, q of
//
//   dy[n, g, m][o, p, q] * x[n, g, c][o * stride_d + t * dilation_d + first_d, p * stride_h + r * dilation_h + first_h, ...]
//
// in `splits` parts of `part` positions (n, o, p, q) each; more than one part leave partial sums that are added in order.
struct WeightGrad {
    int64 pixels, part;
    int32 splits, groups, rows, channels, taps_d, taps_h, taps_w;
    int32 out_d, out_h, out_w;
    int32 source_d, source_h, source_w, stride_d, stride_h, stride_w;
    int32 dilation_d, dilation_h, dilation_w, first_d, first_h, first_w;
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

// A pixel (image, l, i, j) of a Gather.
struct Pixel {
    int64 image;
    int32 l, i, j;

    __device__ int32 in_target(const Gather& g) const {
        return g.target_first + l * g.target_d + i * g.target_h + j * g.target_w;
    }
};

// The first pixel of a tile; the others are counted from it, in 32 bits.
struct FirstPixel {
    int64 image;
    int32 rest;

    __device__ FirstPixel(int64 number, const Gather& g) {
        const int32 volume = g.out_d * g.out_h * g.out_w;
        image = number / volume;
        rest = int32(number - image * volume);
    }

    __device__ Pixel and_then(int32 column, const Gather& g) const {
        const int32 volume = g.out_d * g.out_h * g.out_w, number = rest + column, more = number / volume;
        const Digits at = Digits::of(number - more * volume, g.out_h, g.out_w);
        return {image + more, at.high, at.middle, at.low};
    }
};

// A tap (t, r, s).
struct Tap {
    int32 t, r, s;

    __device__ static Tap of(int32 number, const Gather& g) {
        const int32 line = number / g.taps_w;
        return {line / g.taps_h, line % g.taps_h, number % g.taps_w};
    }

    __device__ void add(const Tap& d, const Gather& g) {
        s += d.s;
        r += d.r;
        t += d.t;
        if (s >= g.taps_w) s -= g.taps_w, ++r;
        if (r >= g.taps_h) r -= g.taps_h, ++t;
    }
};

// Places in the reduction, which goes through the taps of each channel ...
struct TapsOfChannel : Tap {
    int32 channel;

    __device__ static TapsOfChannel of(int32 number, const Gather& g) {
        const int32 taps = g.taps_d * g.taps_h * g.taps_w;
        return {Tap::of(number % taps, g), number / taps};
    }

    __device__ void add_stage(const Gather& g) {
        Tap::add({g.ahead_d, g.ahead_h, g.ahead_w}, g);
        channel += g.ahead_channels;
        if (t >= g.taps_d) t -= g.taps_d, ++channel;
    }
};

// ... or through the channels of each tap.
struct ChannelsOfTap : Tap {
    int32 channel;

    __device__ static ChannelsOfTap of(int32 number, const Gather& g) {
        return {Tap::of(number / g.channels, g), number % g.channels};
    }

    __device__ void add_stage(const Gather& g) {
        channel += g.ahead_channels;
        if (channel >= g.channels) channel -= g.channels, ++s;
        Tap::add({g.ahead_d, g.ahead_h, g.ahead_w}, g);
    }
};
