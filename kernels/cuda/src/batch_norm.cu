// Batch normalisation by the statistics of each channel, or by given ones, with a residual sum and ReLU.
#include "batch_norm.cuh"

// Writes what the gradient needs, and moves the running statistics.
template <class T, class A>
__device__ void keep_statistics(
    const BatchNorm& bn, int channel, Statistics<A> of, A* means, A* inverse_stds, void* running_mean,
    void* running_var, const int64* num_batches_tracked) {
    means[channel] = of.mean;
    inverse_stds[channel] = inverse_std(bn, of.variance);
    if (bn.inference || !running_mean || !bn.count) return;
    const A momentum = bn.cumulative ? A(1) / A(*num_batches_tracked) : A(bn.momentum);
    const A unbiased = of.variance * (A(bn.count) / A(max(bn.count - 1, int64(1))));
    const A old_mean = parameter<T>(bn, running_mean, channel), old_var = parameter<T>(bn, running_var, channel);
    set_parameter<T>(bn, running_mean, channel, old_mean * (1 - momentum) + of.mean * momentum);
    set_parameter<T>(bn, running_var, channel, old_var * (1 - momentum) + unbiased * momentum);
}

template <class T, int WIDTH>
__device__ Pack<T, WIDTH> normalised(
    const BatchNorm& bn, Affine<Accumulator<T>> affine, const Pack<T, WIDTH>& x, bool adds,
    const Pack<T, WIDTH>& residual) {
    Pack<T, WIDTH> y;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        Accumulator<T> z = affine(widen(x.value[i]));
        if (adds) z += widen(residual.value[i]);
        if (bn.relu && z <= 0) z = 0;
        y.value[i] = narrow<T>(z);
    }
    return y;
}

template <class T>
__global__ void __launch_bounds__(kBlock, 3) batch_norm_statistics(
    const T* __restrict__ x, void* __restrict__ partials, int64* num_batches_tracked, BatchNorm bn) {
    using A = Accumulator<T>;
    if (num_batches_tracked && blockIdx.x == 0 && threadIdx.x == 0 && threadIdx.y == 0) *num_batches_tracked += 1;
    Walk walk(bn, blockIdx.x);
    const A origin = origin_of(bn, x, walk.channel);
    Moments<A> seen = Moments<A>::nothing();
    with_width<T>(bn.width, [&](auto width) {
        constexpr int kWidth = decltype(width)::value, kCount = kBatch<kWidth, 1>;
        while (walk.left > 0) {
            const Batch<kCount> batch(bn, walk);
            Pack<T, kWidth> packs[kCount];
            batch.load(x, packs);
            if (batch.full) {
                A values[kCount * kWidth];
#pragma unroll
                for (int i = 0; i < kCount * kWidth; ++i) values[i] = widen(packs[i / kWidth].value[i % kWidth]) - origin;
                seen.merge(Moments<A>::of(values));
                continue;
            }
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (batch.at[i] < 0) continue;
                A values[kWidth];
#pragma unroll
                for (int j = 0; j < kWidth; ++j) values[j] = widen(packs[i].value[j]) - origin;
                seen.merge(Moments<A>::of(values));
            }
        }
    });
    seen = of_block(bn, seen);
    if (walk.leads >= 0) static_cast<Moments<A>*>(partials)[partial_index(bn, walk.leads, walk.part)] = seen;
}

// With `inference` the running statistics are those that normalise. Blocks go backwards: what the launch before read last
// is still in the cache.
template <class T>
__global__ void __launch_bounds__(kBlock, 4) batch_norm_apply(
    const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y, const void* __restrict__ weight,
    const void* __restrict__ bias, const void* __restrict__ partials,
    Accumulator<T>* __restrict__ means, Accumulator<T>* __restrict__ inverse_stds, void* running_mean,
    void* running_var, const int64* num_batches_tracked, BatchNorm bn) {
    using A = Accumulator<T>;
    Walk walk(bn, int(gridDim.x - 1 - blockIdx.x));
    const auto statistics = [&](int channel) -> Statistics<A> {
        if (bn.inference) return {parameter<T>(bn, running_mean, channel), parameter<T>(bn, running_var, channel)};
        const Moments<A> seen = merged(bn, static_cast<const Moments<A>*>(partials), channel);
        return {origin_of(bn, x, channel) + seen.mean, seen.variance()};
    };
    const Statistics<A> own = statistics(walk.channel);
    const Affine<A> affine(bn, walk.channel, own.mean, inverse_std(bn, own.variance), weight, bias, T());
    if (walk.part == 0 && walk.leads >= 0) {
        const Statistics<A> led = walk.leads == walk.channel ? own : statistics(walk.leads);
        keep_statistics<T>(bn, walk.leads, led, means, inverse_stds, running_mean, running_var, num_batches_tracked);
    }
    with_width<T>(bn.width, [&](auto width) {
        constexpr int kWidth = decltype(width)::value, kCount = kBatch<kWidth, 2>;
        while (walk.left > 0) {
            const Batch<kCount> batch(bn, walk);
            Pack<T, kWidth> packs[kCount], added[kCount];
            batch.load(x, packs);
            if (residual) batch.load(residual, added);
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (batch.at[i] < 0) continue;
                *reinterpret_cast<Pack<T, kWidth>*>(y + batch.at[i]) =
                    normalised(bn, affine, packs[i], residual, added[i]);
            }
        }
    });
}

// A block for each channel, which must fit into its registers. Sums are of x, then of (x - mean)².
template <class T, int WORDS>
__global__ void __launch_bounds__(kResidentBlock, WORDS > 16 ? 1 : 2) batch_norm_resident(
    const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y, const void* __restrict__ weight,
    const void* __restrict__ bias, Accumulator<T>* __restrict__ means, Accumulator<T>* __restrict__ inverse_stds,
    void* running_mean, void* running_var, int64* num_batches_tracked, BatchNorm bn) {
    using A = Accumulator<T>;
    if (num_batches_tracked && blockIdx.x == 0 && threadIdx.x == 0) *num_batches_tracked += 1;
    with_width<T>(bn.width, [&](auto width) {
        constexpr int kWidth = decltype(width)::value, kCount = kKept<T, kWidth, WORDS>;
        Walk walk(bn, blockIdx.x);
        const int channel = walk.channel, count = int(walk.left);
        Pack<T, kWidth> kept[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (i >= count) break;
            kept[i] = *reinterpret_cast<const Pack<T, kWidth>*>(x + walk.offset);
            walk.next(bn);
        }
        const auto sum = [&](auto of) {
            A total = 0;
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (i >= count) break;
#pragma unroll
                for (int j = 0; j < kWidth; ++j) total += of(widen(kept[i].value[j]));
            }
            return block_merge(Sums<A>{total, 0}).first;
        };
        const A origin = origin_of(bn, x, channel);
        const A mean = origin + sum([&](A value) { return value - origin; }) / A(bn.count);
        const A variance = sum([&](A value) { return (value - mean) * (value - mean); }) / A(bn.count);
        const Affine<A> affine(bn, channel, mean, inverse_std(bn, variance), weight, bias, T());
        if (threadIdx.x == 0) {
            keep_statistics<T>(
                bn, channel, Statistics<A>{mean, variance}, means, inverse_stds, running_mean, running_var, nullptr);
        }
        Walk again(bn, blockIdx.x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (i >= count) break;
            Pack<T, kWidth> added;
            if (residual) added = *reinterpret_cast<const Pack<T, kWidth>*>(residual + again.offset);
            *reinterpret_cast<Pack<T, kWidth>*>(y + again.offset) =
                normalised(bn, affine, kept[i], residual, added);
            again.next(bn);
        }
    });
}
