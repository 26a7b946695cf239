// Group normalisation (Wu & He, 2018) of (N, C, ...); with a group for each channel, instance normalisation.
//
// A group of an image is a row of depth · length neighbouring elements: `depth` channels, each of which has one weight and one bias.
// With n = (x - mean) rstd and g = dy weight, dx = rstd (g - <g> - n <g n>), <> the mean of a row; weight gets the sum of dy n
// over its channel, bias that of dy.
#pragma once
#include "row_norm.cuh"

struct GroupNorm {
    int64 rows;
    int64 size;   // of a row
    int64 slots;  // of the gradient of whole rows: rows at this distance, a multiple of the groups, are one thread's
    double eps;
    int groups, depth, length;
    int lanes;        // threads that share a channel, a power of two
    int per_channel;  // steps that a channel takes
    int steps;        // of a thread in all
    int parts, chunk; // of a row, or of a channel, that is split over blocks
    int vectors;      // runs are whole vectors, and all arrays begin at one
    int wide;         // weight and bias are float beside a half type
};

// Of a row from the moments of its distances from `pivot`, its first value: numbers that lie close together far from 0 lose nothing.
template <class A> struct Statistics {
    A pivot, mean, rstd;  // the mean of the distances

    __device__ Statistics(const GroupNorm& norm, A pivot, const Moments<A>& seen)
        : pivot(pivot), mean(seen.mean), rstd(inverse_root(seen.variance() + A(norm.eps))) {}

    __device__ void store(A* means, A* rstds, int64 row) const {
        means[row] = pivot + mean;
        rstds[row] = rstd;
    }

    // Of values less the pivot.
    template <int N> __device__ void apply(A weight, A bias, A (&values)[N]) const {
        const A factor = rstd * weight;
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] = (values[i] - mean) * factor + bias;
    }
};
