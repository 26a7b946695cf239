// Dropout: y = x · factor + shift, both by whether an element is kept. Which ones are is a function of their positions
// and of where the random stream was, so that a gradient draws the same numbers again and no mask is in memory.
#include "philox.cuh"

constexpr int kBlock = 256;

struct Dropout {
    int64 count;
    double scale;        // the factor of what is kept; of the rest it is 0
    double kept_shift;
    double dropped_shift;
    uint32 threshold;    // words from here on keep an element
    int shifts;
};

template <class T> struct Kept {
    using A = Accumulator<T>;
    A scale, kept_shift, dropped_shift;
    uint32 threshold;
    bool shifts;

    __device__ explicit Kept(const Dropout& s)
        : scale(A(s.scale)), kept_shift(A(s.kept_shift)), dropped_shift(A(s.dropped_shift)), threshold(s.threshold),
          shifts(s.shifts != 0) {}

    // What is dropped is multiplied too: NaN and infinities show, as in PyTorch.
    __device__ T operator()(T x, uint32 word) const {
        const bool kept = word >= threshold;
        const A y = widen(x) * (kept ? scale : A(0));
        return narrow<T>(shifts ? y + (kept ? kept_shift : dropped_shift) : y);
    }
};

// A thread takes as many elements as a vector has, four at least: one value of the counter for every four.
template <class T> constexpr int kVector = 16 / int(sizeof(T));
template <class T> constexpr int kEach = kVector<T> > 4 ? kVector<T> : 4;

template <class T>
__global__ void __launch_bounds__(kBlock) dropout(const T* __restrict__ x, const int64* __restrict__ taken,
                                                  T* __restrict__ y, const Dropout settings) {
    constexpr int N = kVector<T>, EACH = kEach<T>;
    const Place place(taken);
    const Kept<T> kept(settings);
    const int64 first = int64(blockIdx.x) * (kBlock * EACH);
    const int64 start = first + int64(threadIdx.x) * EACH;
    const bool aligned = (reinterpret_cast<uint64>(x) | reinterpret_cast<uint64>(y)) % 16 == 0;
    if (aligned && first + kBlock * EACH <= settings.count) {
        Pack<T, N> packs[EACH / N];
#pragma unroll
        for (int k = 0; k < EACH / N; ++k) packs[k] = *reinterpret_cast<const Pack<T, N>*>(x + start + k * N);
#pragma unroll
        for (int quad = 0; quad < EACH / 4; ++quad) {
            const Words words = place.at(start / 4 + quad);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                T& value = packs[(quad * 4 + i) / N].value[(quad * 4 + i) % N];
                value = kept(value, words.word[i]);
            }
        }
#pragma unroll
        for (int k = 0; k < EACH / N; ++k) *reinterpret_cast<Pack<T, N>*>(y + start + k * N) = packs[k];
        return;
    }
    // The end, or an address that no vector may have: neighbouring threads take neighbouring elements.
    const int64 end = min(settings.count, first + kBlock * EACH);
    for (int64 i = first + threadIdx.x; i < end; i += kBlock) {
        const Words words = place.at(i / 4);
        const int which = int(i % 4);
        const uint32 low = which & 1 ? words.word[1] : words.word[0], high = which & 1 ? words.word[3] : words.word[2];
        y[i] = kept(x[i], which & 2 ? high : low);
    }
}
