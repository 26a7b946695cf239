// What a convolution or matrix product does with its sums before they leave the registers: y = activation(sum + residual).
#include "activation.cuh"

constexpr int kIdentity = -1;  // no activation; the others are an ActivationKind

template <int N, class A> __device__ inline void activate_some(int32 kind, A (&values)[N]) {
    if (kind == kIdentity) return;
#pragma unroll
    for (int i = 0; i < N; ++i)
        values[i] = kind == kRelu ? activate<kRelu>(values[i], A(0), A(0)) : activate<kSilu>(values[i], A(0), A(0));
}

// N values that lie at a multiple of N in the target, and in a residual of the same shape, or null.
template <int N, class T>
__device__ inline void finish_run(int32 kind, Accumulator<T> (&values)[N], const T* residual, T* target, int64 at) {
    if (residual) {
        const auto pack = *reinterpret_cast<const Pack<T, N>*>(residual + at);
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += widen(pack.value[i]);
    }
    activate_some(kind, values);
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.value[i] = narrow<T>(values[i]);
    *reinterpret_cast<Pack<T, N>*>(target + at) = pack;
}

template <class T>
__device__ inline void finish_one(int32 kind, Accumulator<T> value, const T* residual, T* target, int64 at) {
    Accumulator<T> values[1] = {value};
    if (residual) values[0] += widen(residual[at]);
    activate_some(kind, values);
    target[at] = narrow<T>(values[0]);
}
