// The activations by kind: the formula of each, its slope, and the tiles in which the elementwise kernels go through
// arrays. Formulas work on accumulators: float for halves.
//
// A kind is known at run time: one uniform branch for the values of a thread, which costs nothing beside their loads, and
// four variants of a kernel, one for each dtype, instead of eighty.
#include "common.cuh"

// The numbers of kernels/geometry/activation.py.
enum ActivationKind {
    kRelu, kLeakyRelu, kElu, kSelu, kCelu, kGelu, kGeluTanh, kSilu, kMish, kSoftplus, kHardtanh,
    kHardsigmoid, kHardswish, kSigmoid, kTanh, kLogsigmoid, kSoftsign, kSoftshrink, kHardshrink, kTanhshrink, kThreshold,
};

struct Activation {
    double a, b;  // the kind's parameters
    int kind;
};

template <int VALUE> struct Constant { static constexpr int value = VALUE; };

// Calls `function` with the kind as a Constant.
template <class F> __device__ inline void with_kind(int kind, F function) {
    switch (kind) {
        case kRelu: function(Constant<kRelu>()); break;
        case kLeakyRelu: function(Constant<kLeakyRelu>()); break;
        case kElu: function(Constant<kElu>()); break;
        case kSelu: function(Constant<kSelu>()); break;
        case kCelu: function(Constant<kCelu>()); break;
        case kGelu: function(Constant<kGelu>()); break;
        case kGeluTanh: function(Constant<kGeluTanh>()); break;
        case kSilu: function(Constant<kSilu>()); break;
        case kMish: function(Constant<kMish>()); break;
        case kSoftplus: function(Constant<kSoftplus>()); break;
        case kHardtanh: function(Constant<kHardtanh>()); break;
        case kHardsigmoid: function(Constant<kHardsigmoid>()); break;
        case kHardswish: function(Constant<kHardswish>()); break;
        case kSigmoid: function(Constant<kSigmoid>()); break;
        case kTanh: function(Constant<kTanh>()); break;
        case kLogsigmoid: function(Constant<kLogsigmoid>()); break;
        case kSoftsign: function(Constant<kSoftsign>()); break;
        case kSoftshrink: function(Constant<kSoftshrink>()); break;
        case kHardshrink: function(Constant<kHardshrink>()); break;
        case kTanhshrink: function(Constant<kTanhshrink>()); break;
        case kThreshold: function(Constant<kThreshold>()); break;
    }
}

constexpr double kSeluAlpha = 1.6732632423543772, kSeluScale = 1.0507009873554805;
constexpr double kSqrtHalf = 0.70710678118654752440;
constexpr double kGeluBeta = 0.79788456080286535588;  // sqrt(2 / pi)
constexpr double kGeluKappa = 0.044715;
constexpr double kMishFlat = 20;  // tanh(log(1 + e^x)) is 1 from here on

template <class A> __device__ inline A sigmoid(A x) { return 1 / (1 + exp(-x)); }

// Comparisons are written so that NaN takes the side that it takes in PyTorch.
template <int KIND, class A> __device__ inline A activate(A x, A a, A b) {
    constexpr int kind = KIND;
    if constexpr (kind == kRelu) return x <= 0 ? A(0) : x;
    else if constexpr (kind == kLeakyRelu) return x > 0 ? x : x * a;
    else if constexpr (kind == kElu) return x <= 0 ? a * expm1(x) : x;
    else if constexpr (kind == kSelu) return A(kSeluScale) * (x <= 0 ? A(kSeluAlpha) * expm1(x) : x);
    else if constexpr (kind == kCelu) return x <= 0 ? a * expm1(x / a) : x;
    else if constexpr (kind == kGelu) return x * (A(0.5) * (1 + erf(x * A(kSqrtHalf))));
    else if constexpr (kind == kGeluTanh)
        return x * (A(0.5) * (1 + tanh(A(kGeluBeta) * x * (1 + A(kGeluKappa) * x * x))));
    else if constexpr (kind == kSilu) return x / (1 + exp(-x));
    else if constexpr (kind == kMish) {
        const A e = exp(min(x, A(kMishFlat))), n = e * (e + 2);
        return x * (n / (n + 2));
    }
    else if constexpr (kind == kSoftplus) {
        const A z = x * a;
        return z > b ? x : (max(z, A(0)) + log1p(exp(-fabs(z)))) / a;
    }
    else if constexpr (kind == kHardtanh) return x < a ? a : x > b ? b : x;
    else if constexpr (kind == kHardsigmoid) return x <= -3 ? A(0) : x >= 3 ? A(1) : (x + 3) / 6;
    else if constexpr (kind == kHardswish) return x * (x <= -3 ? A(0) : x >= 3 ? A(1) : (x + 3) / 6);
    else if constexpr (kind == kSigmoid) return sigmoid(x);
    else if constexpr (kind == kTanh) return tanh(x);
    else if constexpr (kind == kLogsigmoid) return (x > 0 ? A(0) : x) - log1p(exp(-fabs(x)));
    else if constexpr (kind == kSoftsign) return x / (1 + fabs(x));
    else if constexpr (kind == kSoftshrink) return x > a ? x - a : x < -a ? x + a : x != x ? x : A(0);
    else if constexpr (kind == kHardshrink) return x >= -a && x <= a ? A(0) : x;
    else if constexpr (kind == kTanhshrink) return x - tanh(x);
    else return x <= a ? b : x;
}

// dy times the slope at s: the output for the kinds that geometry/activation.py says, else the input.
template <int KIND, class A> __device__ inline A input_gradient(A dy, A s, A a, A b) {
    constexpr int kind = KIND;
    if constexpr (kind == kRelu) return s <= 0 ? A(0) : dy;
    else if constexpr (kind == kLeakyRelu) return s > 0 ? dy : dy * a;
    else if constexpr (kind == kElu) return s <= 0 ? dy * a * exp(s) : dy;
    else if constexpr (kind == kSelu) return A(kSeluScale) * (s <= 0 ? dy * A(kSeluAlpha) * exp(s) : dy);
    else if constexpr (kind == kCelu) return s <= 0 ? dy * exp(s / a) : dy;
    else if constexpr (kind == kGelu) {
        const A below = A(0.5) * (1 + erf(s * A(kSqrtHalf)));
        return dy * (below + s * exp(A(-0.5) * s * s) * A(kGeluBeta / 2));
    }
    else if constexpr (kind == kGeluTanh) {
        const A square = s * s;
        const A t = tanh(A(kGeluBeta) * s * (1 + A(kGeluKappa) * square));
        const A inner = A(kGeluBeta) * (1 + A(3 * kGeluKappa) * square);
        return dy * (A(0.5) * (1 + t) + A(0.5) * s * (1 - t * t) * inner);
    }
    else if constexpr (kind == kSilu) {
        const A p = sigmoid(s);
        return dy * (p * (1 + s * (1 - p)));
    }
    else if constexpr (kind == kMish) {
        const A e = exp(min(s, A(kMishFlat))), n = e * (e + 2);
        return dy * (n / (n + 2) + 4 * s * (e * (1 + e) / (n + 2) / (n + 2)));
    }
    else if constexpr (kind == kSoftplus) return s * a > b ? dy : dy * sigmoid(s * a);
    else if constexpr (kind == kHardtanh) return s <= a || s >= b ? A(0) : dy;
    else if constexpr (kind == kHardsigmoid) return s > -3 && s < 3 ? dy * A(1.0 / 6) : A(0);
    else if constexpr (kind == kHardswish) return s <= -3 ? A(0) : s < 3 ? dy * (s / 3 + A(0.5)) : dy;
    else if constexpr (kind == kSigmoid) return dy * ((1 - s) * s);
    else if constexpr (kind == kTanh) return dy * (1 - s * s);
    else if constexpr (kind == kLogsigmoid) return dy * -expm1(s);
    else if constexpr (kind == kSoftsign) {
        const A below = 1 + fabs(s);
        return dy / (below * below);
    }
    else if constexpr (kind == kSoftshrink || kind == kHardshrink) return s >= -a && s <= a ? A(0) : dy;
    else if constexpr (kind == kTanhshrink) {
        const A t = tanh(s);
        return dy * (t * t);
    }
    else return s <= a ? A(0) : dy;
}

// Both for all values of a thread, in place.
template <int N, class A> __device__ inline void activate(const Activation& how, A (&x)[N]) {
    const A a = A(how.a), b = A(how.b);
    with_kind(how.kind, [&](auto kind) {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = activate<decltype(kind)::value>(x[i], a, b);
    });
}

template <int N, class A> __device__ inline void input_gradient(const Activation& how, A (&dy)[N], const A (&s)[N]) {
    const A a = A(how.a), b = A(how.b);
    with_kind(how.kind, [&](auto kind) {
#pragma unroll
        for (int i = 0; i < N; ++i) dy[i] = input_gradient<decltype(kind)::value>(dy[i], s[i], a, b);
    });
}

constexpr int kVectorBytes = 16;
constexpr int kTileBlock = 256;

template <class T> __device__ inline bool fits_vectors(const T* p) {
    return (reinterpret_cast<uint64>(p) & (kVectorBytes - 1)) == 0;
}

// A block's share of flat arrays. Its threads take whole vectors, neighbours side by side; at the end of the arrays, and
// where one of them is not aligned, single elements instead: item i of a thread is the same element of every array.
template <class T> struct Tile {
    static constexpr int kVector = kVectorBytes / sizeof(T);
    static constexpr int kItems = sizeof(T) == 2 ? kVector : 2 * kVector;
    static constexpr int kSize = kTileBlock * kItems;
    using A = Accumulator<T>;

    int64 base, size;
    bool vectors;

    // `aligned`: whether vectors fit all arrays.
    __device__ Tile(int64 size, bool aligned)
        : base(int64(blockIdx.x) * kSize), size(size), vectors(aligned && base + kSize <= size) {}

    // Where item i is, counted from base. The items of a vector follow each other.
    __device__ int at(int i) const {
        return vectors ? (i / kVector * kTileBlock + int(threadIdx.x)) * kVector + i % kVector
                       : i * kTileBlock + int(threadIdx.x);
    }

    __device__ void load(const T* x, A (&values)[kItems]) const {
        if (vectors) {
#pragma unroll
            for (int i = 0; i < kItems; i += kVector) {
                const Pack<T, kVector> pack = *reinterpret_cast<const Pack<T, kVector>*>(x + base + at(i));
#pragma unroll
                for (int j = 0; j < kVector; ++j) values[i + j] = widen(pack.value[j]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < kItems; ++i) values[i] = base + at(i) < size ? widen(x[base + at(i)]) : A(0);
        }
    }

    __device__ void store(T* y, const A (&values)[kItems]) const {
        if (vectors) {
#pragma unroll
            for (int i = 0; i < kItems; i += kVector) {
                Pack<T, kVector> pack;
#pragma unroll
                for (int j = 0; j < kVector; ++j) pack.value[j] = narrow<T>(values[i + j]);
                *reinterpret_cast<Pack<T, kVector>*>(y + base + at(i)) = pack;
            }
        } else {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                if (base + at(i) < size) y[base + at(i)] = narrow<T>(values[i]);
            }
        }
    }
};
