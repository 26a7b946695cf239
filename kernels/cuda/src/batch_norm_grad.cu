// The gradient of batch normalisation, with that of a residual sum and of ReLU.
#include "batch_norm.cuh"

// Where the gradient comes from: dy, stopped where ReLU's result is zero. `y` is that result, or null where `affine` gives
// it; the gradient with the mask is also written to `gated`, where there is one.
template <class T> struct Upstream {
    const T* dy;
    const T* y;
    T* gated;
    int relu;

    template <int WIDTH, class A>
    __device__ void widened(
        int64 at, const Pack<T, WIDTH>& dys, const Pack<T, WIDTH>& ys, const A (&x)[WIDTH], const Affine<A>& affine,
        A (&g)[WIDTH]) const {
        Pack<T, WIDTH> kept;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            kept.value[i] = dys.value[i];
            if (relu && widen(y ? ys.value[i] : narrow<T>(affine(x[i]))) <= 0) kept.value[i] = narrow<T>(A(0));
            g[i] = widen(kept.value[i]);
        }
        if (gated) *reinterpret_cast<Pack<T, WIDTH>*>(gated + at) = kept;
    }
};

template <class T, int WIDTH, class A> __device__ void widen_pack(const Pack<T, WIDTH>& pack, A (&values)[WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[i] = widen(pack.value[i]);
}

// The sums of g and of g (x - mean).
template <class T>
__global__ void __launch_bounds__(kBlock, 3) batch_norm_grad_sums(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, T* __restrict__ gated,
    const void* __restrict__ weight, const void* __restrict__ bias, const Accumulator<T>* __restrict__ means,
    const Accumulator<T>* __restrict__ inverse_stds, void* __restrict__ partials, BatchNorm bn) {
    using A = Accumulator<T>;
    Walk walk(bn, blockIdx.x);
    const Affine<A> affine(bn, walk.channel, means[walk.channel], inverse_stds[walk.channel], weight, bias, T());
    const Upstream<T> upstream = {dy, y, gated, bn.relu};
    Sums<A> seen = Sums<A>::nothing();
    with_width<T>(bn.width, [&](auto width) {
        constexpr int kWidth = decltype(width)::value, kCount = kBatch<kWidth, 2>;
        while (walk.left > 0) {
            const Batch<kCount> batch(bn, walk);
            Pack<T, kWidth> dys[kCount], xs[kCount], ys[kCount];
            batch.load(dy, dys);
            batch.load(x, xs);
            if (y) batch.load(y, ys);
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (batch.at[i] < 0) continue;
                A value[kWidth], g[kWidth];
                widen_pack(xs[i], value);
                upstream.widened(batch.at[i], dys[i], ys[i], value, affine, g);
#pragma unroll
                for (int j = 0; j < kWidth; ++j) seen.merge({g[j], g[j] * (value[j] - affine.mean)});
            }
        }
    });
    seen = of_block(bn, seen);
    if (walk.leads >= 0) static_cast<Sums<A>*>(partials)[partial_index(bn, walk.leads, walk.part)] = seen;
}

// dx = scale (g + slope (x - mean) + shift).
template <class A> struct InputGradient {
    A mean, scale, slope, shift;

    __device__ InputGradient(const BatchNorm& bn, const Affine<A>& affine, A inverse_std, Sums<A> sums)
        : mean(affine.mean),
          scale(affine.scale),
          slope(bn.inference ? A(0) : -inverse_std * inverse_std * (sums.second / A(bn.count))),
          shift(bn.inference ? A(0) : -sums.first / A(bn.count)) {}

    __device__ A operator()(A g, A x) const { return (g + fma(x - mean, slope, shift)) * scale; }
};

template <class T, class A>
__device__ void keep_sums(
    const BatchNorm& bn, int channel, Sums<A> sums, A inverse_std, void* dweight, void* dbias) {
    if (!dweight) return;
    set_parameter<T>(bn, dweight, channel, sums.second * inverse_std);
    set_parameter<T>(bn, dbias, channel, sums.first);
}

// Without dx only the gradients of weight and bias; without partials dx alone.
template <class T>
__global__ void __launch_bounds__(kBlock, 3) batch_norm_grad_apply(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, T* __restrict__ gated,
    const void* __restrict__ weight, const void* __restrict__ bias, const Accumulator<T>* __restrict__ means,
    const Accumulator<T>* __restrict__ inverse_stds, const void* __restrict__ sums_of_parts,
    T* __restrict__ dx, void* __restrict__ dweight, void* __restrict__ dbias, BatchNorm bn) {
    using A = Accumulator<T>;
    Walk walk(bn, int(gridDim.x - 1 - blockIdx.x));
    const Upstream<T> upstream = {dy, y, gated, bn.relu};
    const Sums<A>* partials = static_cast<const Sums<A>*>(sums_of_parts);
    const A own_std = inverse_stds[walk.channel];
    const Affine<A> affine(bn, walk.channel, means[walk.channel], own_std, weight, bias, T());
    const Sums<A> own = partials ? merged(bn, partials, walk.channel) : Sums<A>::nothing();
    if (partials && walk.part == 0 && walk.leads >= 0) {
        const Sums<A> led = walk.leads == walk.channel ? own : merged(bn, partials, walk.leads);
        keep_sums<T>(bn, walk.leads, led, inverse_stds[walk.leads], dweight, dbias);
    }
    if (!dx && !gated) return;
    const InputGradient<A> gradient(bn, affine, own_std, own);
    const bool needs_x = !bn.inference || (bn.relu && !y);
    with_width<T>(bn.width, [&](auto width) {
        constexpr int kWidth = decltype(width)::value, kCount = kBatch<kWidth, 2>;
        while (walk.left > 0) {
            const Batch<kCount> batch(bn, walk);
            Pack<T, kWidth> dys[kCount], xs[kCount], ys[kCount];
            batch.load(dy, dys);
            if (needs_x) batch.load(x, xs);
            if (y) batch.load(y, ys);
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (batch.at[i] < 0) continue;
                A value[kWidth], g[kWidth];
#pragma unroll
                for (int j = 0; j < kWidth; ++j) value[j] = needs_x ? widen(xs[i].value[j]) : affine.mean;
                upstream.widened(batch.at[i], dys[i], ys[i], value, affine, g);
                if (!dx) continue;
                Pack<T, kWidth> result;
#pragma unroll
                for (int j = 0; j < kWidth; ++j) result.value[j] = narrow<T>(gradient(g[j], value[j]));
                *reinterpret_cast<Pack<T, kWidth>*>(dx + batch.at[i]) = result;
            }
        }
    });
}

// A block for each channel, whose dy and x must fit into its registers: the gradient with one look at each.
template <class T, int WORDS>
__global__ void __launch_bounds__(kResidentBlock, WORDS > 8 || sizeof(T) == 2 ? 1 : 2) batch_norm_grad_resident(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, T* __restrict__ gated,
    const void* __restrict__ weight, const void* __restrict__ bias, const Accumulator<T>* __restrict__ means,
    const Accumulator<T>* __restrict__ inverse_stds, T* __restrict__ dx, void* __restrict__ dweight,
    void* __restrict__ dbias, BatchNorm bn) {
    using A = Accumulator<T>;
    with_width<T>(bn.width, [&](auto width) {
        constexpr int kWidth = decltype(width)::value, kCount = kKept<T, kWidth, WORDS>;
        Walk walk(bn, blockIdx.x);
        const int channel = walk.channel, count = int(walk.left);
        const A own_std = inverse_stds[channel];
        const Affine<A> affine(bn, channel, means[channel], own_std, weight, bias, T());
        const Upstream<T> upstream = {dy, y, gated, bn.relu};
        Pack<T, kWidth> xs[kCount], gs[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (i >= count) break;
            gs[i] = *reinterpret_cast<const Pack<T, kWidth>*>(dy + walk.offset);
            xs[i] = *reinterpret_cast<const Pack<T, kWidth>*>(x + walk.offset);
            walk.next(bn);
        }
        Walk second(bn, blockIdx.x);
        Sums<A> sums = Sums<A>::nothing();
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (i >= count) break;
            A value[kWidth], g[kWidth];
            Pack<T, kWidth> ys;
            if (y) ys = *reinterpret_cast<const Pack<T, kWidth>*>(y + second.offset);
            widen_pack(xs[i], value);
            upstream.widened(second.offset, gs[i], ys, value, affine, g);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                gs[i].value[j] = narrow<T>(g[j]);
                sums.merge({g[j], g[j] * (value[j] - affine.mean)});
            }
            second.next(bn);
        }
        sums = block_merge(sums);
        if (threadIdx.x == 0) keep_sums<T>(bn, channel, sums, own_std, dweight, dbias);
        const InputGradient<A> gradient(bn, affine, own_std, sums);
        Walk third(bn, blockIdx.x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (i >= count) break;
            Pack<T, kWidth> result;
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                result.value[j] = narrow<T>(gradient(widen(gs[i].value[j]), widen(xs[i].value[j])));
            }
            *reinterpret_cast<Pack<T, kWidth>*>(dx + third.offset) = result;
            third.next(bn);
        }
    });
}
