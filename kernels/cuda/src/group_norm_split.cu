// Group normalisation of long rows of which there are few: split over blocks, which leave partial results for a second launch.
#include "group_norm.cuh"

// The part of a row that a block takes: blockIdx.x counts the parts of all rows.
struct RowPart {
    int64 row;
    int part;
    int64 begin;
    int count;
    int channel;    // where it begins
    uint32 within;  // and where in that channel

    __device__ explicit RowPart(const GroupNorm& norm)
        : row(blockIdx.x / norm.parts),
          part(blockIdx.x % norm.parts),
          begin(int64(part) * norm.chunk),
          count(int(min(int64(norm.chunk), norm.size - begin))),
          channel(int(begin / norm.length)),
          within(uint32(begin - int64(channel) * norm.length)) {}

    __device__ int channel_of(const GroupNorm& norm, int place) const {
        return channel + int((within + uint32(place)) / uint32(norm.length));
    }
};

// The moments of each part of each row, of the distances from the row's first value: (rows, parts, 3).
template <class T>
__global__ void __launch_bounds__(kBlock) group_norm_moments(
    const T* __restrict__ x, Accumulator<T>* __restrict__ parts, GroupNorm norm) {
    using A = Accumulator<T>;
    __shared__ Moments<A> of_warps[kMaxWarps];
    const RowPart mine(norm);
    const Places<T> places(threadIdx.x, blockDim.x, mine.count, norm.vectors);
    x += mine.row * norm.size;
    const A pivot = widen(*x);
    x += mine.begin;
    auto seen = Moments<A>::nothing();
    for (int step = 0; places.has(step); ++step) {
        T stored[kVector<T>];
        A values[kVector<T>];
        places.load(x, step, stored);
        widen_all(stored, values, pivot);
        seen.merge(moments_of(values, [&](int i) { return places.has(step, i); }));
    }
    seen = row_merge(seen, of_warps);
    if (threadIdx.x) return;
    parts += 3 * int64(blockIdx.x);
    parts[0] = seen.mean;
    parts[1] = seen.m2;
    parts[2] = seen.count;
}

// Calls `change(channel, values, item)` for what stands at each place of one step.
template <class T, class Change>
__device__ void by_channel(const GroupNorm& norm, const RowPart& mine, const Places<T>& places, int step, Change change) {
    int channel = norm.vectors ? mine.channel_of(norm, places.at(step)) : 0;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
        if (!norm.vectors) channel = min(mine.channel_of(norm, places.at(step, i)), norm.depth - 1);
        change(channel, i);
    }
}

// y from the moments of the parts, of which there are at most as many as lanes.
template <class T>
__global__ void __launch_bounds__(kBlock) group_norm_apply(
    const T* __restrict__ x, const Accumulator<T>* __restrict__ parts, const void* __restrict__ weight,
    const void* __restrict__ bias, T* __restrict__ y, Accumulator<T>* __restrict__ means,
    Accumulator<T>* __restrict__ rstds, GroupNorm norm) {
    using A = Accumulator<T>;
    const RowPart mine(norm);
    const int lane = threadIdx.x % kWarpSize;
    const bool has = lane < norm.parts;
    parts += 3 * (mine.row * norm.parts + (has ? lane : 0));
    const Moments<A> seen = {has ? parts[0] : A(0), has ? parts[1] : A(0), has ? parts[2] : A(0)};
    const A pivot = widen(x[mine.row * norm.size]);
    const Statistics<A> of(norm, pivot, warp_merge(seen));
    if (mine.part == 0 && threadIdx.x == 0) of.store(means, rstds, mine.row);
    const Places<T> places(threadIdx.x, blockDim.x, mine.count, norm.vectors);
    const Vector<T> weights = {weight, bool(norm.wide)}, biases = {bias, bool(norm.wide)};
    const int first_channel = int(mine.row % norm.groups) * norm.depth;
    const int64 base = mine.row * norm.size + mine.begin;
    for (int step = 0; places.has(step); ++step) {
        T stored[kVector<T>];
        A values[kVector<T>];
        places.load(x + base, step, stored);
        widen_all(stored, values, pivot);
        by_channel(norm, mine, places, step, [&](int channel, int i) {
            const A factor = of.rstd * weights.at(first_channel + channel, 1);
            values[i] = (values[i] - of.mean) * factor + biases.at(first_channel + channel, 0);
        });
        places.store(y + base, step, values);
    }
}

// The sums of dy n and of dy over each part of each channel of each image: twice (parts, N · C). blockIdx.y is the part; the threads
// of a row of the block share a channel.
template <class T>
__global__ void __launch_bounds__(kBlock) group_norm_sums(
    const T* __restrict__ dy, const T* __restrict__ x, const Accumulator<T>* __restrict__ means,
    const Accumulator<T>* __restrict__ rstds, Accumulator<T>* __restrict__ partials, GroupNorm norm) {
    using A = Accumulator<T>;
    __shared__ Sums<A> of_warps[kMaxWarps];
    const int64 runs = norm.rows * norm.depth, run = int64(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool exists = run < runs;
    const int64 row = exists ? run / norm.depth : 0;
    const A mean = means[row], rstd = rstds[row];
    const int begin = blockIdx.y * norm.chunk;
    const int count = exists ? min(norm.chunk, norm.length - begin) : 0;
    const Places<T> places(threadIdx.x, blockDim.x, count, norm.vectors);
    const int64 base = (exists ? run : 0) * norm.length + begin;
    auto sums = Sums<A>::nothing();
    for (int step = 0; places.has(step); ++step) {
        T upstream[kVector<T>], given[kVector<T>];
        places.load(dy + base, step, upstream);
        places.load(x + base, step, given);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            const A g = widen(upstream[i]);
            sums.merge({g, g * ((widen(given[i]) - mean) * rstd)});
        }
    }
    sums = row_merge(sums, of_warps);
    if (threadIdx.x || !exists) return;
    partials[blockIdx.y * runs + run] = sums.second;
    partials[(gridDim.y + blockIdx.y) * runs + run] = sums.first;
}

// dx from these sums, of which each channel has `sums`.
template <class T>
__global__ void __launch_bounds__(kBlock, 4) group_norm_grad_apply(
    const T* __restrict__ dy, const T* __restrict__ x, const void* __restrict__ weight,
    const Accumulator<T>* __restrict__ means, const Accumulator<T>* __restrict__ rstds,
    const Accumulator<T>* __restrict__ partials, T* __restrict__ dx, GroupNorm norm, int sums) {
    using A = Accumulator<T>;
    __shared__ Sums<A> of_warps[kMaxWarps];
    const RowPart mine(norm);
    const Vector<T> weights = {weight, bool(norm.wide)};
    const int first_channel = int(mine.row % norm.groups) * norm.depth;
    const int64 runs = norm.rows * norm.depth, first_run = mine.row * norm.depth;
    auto total = Sums<A>::nothing();
    for (int d = threadIdx.x; d < norm.depth; d += blockDim.x) {
        auto of_channel = Sums<A>::nothing();
        for (int i = 0; i < sums; ++i) {
            of_channel.merge({partials[(sums + i) * runs + first_run + d], partials[i * runs + first_run + d]});
        }
        const A w = weights.at(first_channel + d, 1);
        total.merge({of_channel.first * w, of_channel.second * w});
    }
    total = row_merge(total, of_warps);
    const A mean = means[mine.row], rstd = rstds[mine.row];
    const A level = total.first / A(norm.size), slope = total.second / A(norm.size);
    const Places<T> places(threadIdx.x, blockDim.x, mine.count, norm.vectors);
    const int64 base = mine.row * norm.size + mine.begin;
    for (int step = 0; places.has(step); ++step) {
        T upstream[kVector<T>], given[kVector<T>];
        places.load(dy + base, step, upstream);
        places.load(x + base, step, given);
        A gradient[kVector<T>];
        by_channel(norm, mine, places, step, [&](int channel, int i) {
            const A n = (widen(given[i]) - mean) * rstd;
            const A g = widen(upstream[i]) * weights.at(first_channel + channel, 1);
            gradient[i] = rstd * (g - level - n * slope);
        });
        places.store(dx + base, step, gradient);
    }
}
