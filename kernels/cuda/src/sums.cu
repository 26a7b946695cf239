// Sums in a fixed order: of the parts that blocks left, and of each channel of images.
#include "common.cuh"

constexpr int kThreads = 256;

// Partial sums (parts, rows, pitch). Of a row's columns, each run of `width` is one tap of `channels` and what fills up the
// run; results are (rows, channels, taps).
struct Partials {
    int32 parts, rows, pitch, width, channels, taps;
};

// Adds the parts, first to last; where there are few results, every blockDim.y-th, and then the sums of those.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_partials(const Accumulator<T>* __restrict__ partial, T* __restrict__ results, Partials p) {
    using A = Accumulator<T>;
    __shared__ A of_lines[kThreads];
    const int32 size = p.rows * p.pitch, i = int32(blockIdx.x * blockDim.x + threadIdx.x);
    A sum = 0;
    if (i < size) {
#pragma unroll 4
        for (int32 part = threadIdx.y; part < p.parts; part += blockDim.y) sum += partial[int64(part) * size + i];
    }
    if (blockDim.y > 1) {
        of_lines[threadIdx.y * blockDim.x + threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y > 0) return;
        for (int32 line = 1; line < int32(blockDim.y); ++line) sum += of_lines[line * blockDim.x + threadIdx.x];
    }
    const int32 row = i / p.pitch, column = i - row * p.pitch, tap = column / p.width, channel = column - tap * p.width;
    if (i >= size || tap >= p.taps || channel >= p.channels) return;
    results[(int64(row) * p.channels + channel) * p.taps + tap] = narrow<T>(sum);
}

// Images (n, channels, plane). A block takes some neighbouring channels of `units_at_once` images, or, where planes are
// long, one channel and so many pieces of its planes. Each thread has some neighbouring columns of these, whose sums it
// keeps; in the end a warp adds up the columns of a channel.
struct ChannelSums {
    int64 image;  // elements
    int32 units, units_at_once, channels, channels_at_once, plane, piece, pieces;
    int32 vectors;  // whether images begin at multiples of a vector
};

// partial (parts, channels), or the sums themselves where there is one part.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    channel_sums(const T* __restrict__ x, T* __restrict__ sums, Accumulator<T>* __restrict__ partial, ChannelSums s) {
    using A = Accumulator<T>;
    constexpr int kVector = 16 / sizeof(T), kPart = 16 / sizeof(A), kAhead = 4;
    constexpr int kApart = kThreads * kPart + kWarpSize / 2;  // the second halves of vectors, in other banks
    using Vector = Pack<T, kVector>;
    __shared__ __align__(16) A of_columns[kApart * (kVector / kPart)];
    const auto place = [](int column) {
        return column / kPart % (kVector / kPart) * kApart + column / kVector * kPart + column % kPart;
    };

    const int32 groups = divide_up(s.channels, s.channels_at_once);
    const int32 group = int32(blockIdx.x % groups), part = int32(blockIdx.x / groups);
    const int32 first_channel = group * s.channels_at_once;
    const int32 channels = min(s.channels_at_once, s.channels - first_channel);
    const int64 start = int64(first_channel) * s.plane;
    // Where the first column does not begin a sector, vectors begin before it.
    const int32 before = s.vectors ? int32(start % (2 * kVector)) : 0;
    const auto column = [&](int i) {
        return s.vectors ? int32(threadIdx.x) * kVector + i : i * kThreads + int32(threadIdx.x);
    };

    A sum[kVector] = {};
    int32 unit = part * s.units_at_once;
    const int32 last = min(unit + s.units_at_once, s.units);
    const T* of_image = x + int64(unit / s.pieces) * s.image + start - before;
    int32 piece = unit % s.pieces;
    while (unit < last) {
        Vector packs[kAhead];
        int32 ends[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k, ++unit) {
            const T* const from = of_image + piece * s.piece;
            const int32 width = s.pieces > 1 ? min(s.piece, s.plane - piece * s.piece) : channels * s.plane;
            ends[k] = unit < last ? before + width : 0;
            if (s.vectors) {
                if (column(0) < ends[k]) packs[k] = *reinterpret_cast<const Vector*>(from + column(0));
            } else {
#pragma unroll
                for (int i = 0; i < kVector; ++i)
                    if (column(i) < ends[k]) packs[k].value[i] = from[column(i)];
            }
            if (++piece == s.pieces) piece = 0, of_image += s.image;
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
#pragma unroll
            for (int i = 0; i < kVector; ++i)
                if (column(i) >= before && column(i) < ends[k]) sum[i] += widen(packs[k].value[i]);
    }
    if (s.vectors) {
#pragma unroll
        for (int i = 0; i < kVector; i += kPart) {
            Pack<A, kPart> pack;
#pragma unroll
            for (int j = 0; j < kPart; ++j) pack.value[j] = sum[i + j];
            *reinterpret_cast<Pack<A, kPart>*>(of_columns + place(column(i))) = pack;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) of_columns[place(column(i))] = sum[i];
    }
    __syncthreads();

    const int32 lane = threadIdx.x % kWarpSize;
    const int32 width = s.pieces > 1 ? s.piece : s.plane;
    for (int32 c = threadIdx.x / kWarpSize; c < channels; c += kThreads / kWarpSize) {
        A total = 0;
        for (int32 i = lane; i < width; i += kWarpSize) total += of_columns[place(before + c * s.plane + i)];
        total = warp_sum(total);
        if (lane > 0) continue;
        if (partial) partial[int64(part) * s.channels + first_channel + c] = total;
        else sums[first_channel + c] = narrow<T>(total);
    }
}
