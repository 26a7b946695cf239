// Random arrays from a Philox stream whose place lies in device memory.
#include "philox.cuh"

constexpr int kBlock = 256;

// Hands out the next `count` values of the counter: `taken` is where they begin. One thread.
__global__ void philox_take(int64* place, int64* taken, int64 count) {
    taken[0] = place[0];
    taken[1] = place[1];
    place[1] += count;
}

// The bare words, for tests against published ones.
__global__ void philox_words(const int64* counter, const int64* key, int32* words) {
    const Words found = philox(uint64(key[0]), uint64(counter[0]), uint64(counter[1]));
    for (int i = 0; i < 4; ++i) words[i] = int32(found.word[i]);
}

__device__ inline uint64 wide(const Words& words, int i) { return uint64(words.word[2 * i + 1]) << 32 | words.word[2 * i]; }

// In [0, 1): all bits that the type can hold.
__device__ inline Pack<float, 4> uniform(const Words& words, float) {
    Pack<float, 4> result;
    for (int i = 0; i < 4; ++i) result.value[i] = float(words.word[i] >> 8) * 0x1p-24f;
    return result;
}
__device__ inline Pack<double, 2> uniform(const Words& words, double) {
    return {{double(wide(words, 0) >> 11) * 0x1p-53, double(wide(words, 1) >> 11) * 0x1p-53}};
}

// Two normal numbers from two uniform ones, the first in (0, 1] (Box and Muller, 1958).
template <class A> __device__ void box_muller(A u, A v, A* result) {
    const A radius = sqrt(-2 * log(u));
    A sine, cosine;
    sincospi(2 * v, &sine, &cosine);
    result[0] = radius * cosine;
    result[1] = radius * sine;
}
__device__ inline Pack<float, 4> normal(const Words& words, float) {
    Pack<float, 4> result;
    for (int i = 0; i < 2; ++i) {
        const float u = fmaf(float(words.word[2 * i]), 0x1p-32f, 0x1p-33f);
        box_muller(u, float(words.word[2 * i + 1] >> 8) * 0x1p-24f, result.value + 2 * i);
    }
    return result;
}
__device__ inline Pack<double, 2> normal(const Words& words, double) {
    Pack<double, 2> result;
    const double u = double((wide(words, 0) >> 11) + 1) * 0x1p-53;
    box_muller(u, double(wide(words, 1) >> 11) * 0x1p-53, result.value);
    return result;
}

// A pack of numbers for each value of the counter.
template <class T, int N, class Draw>
__device__ void fill(const int64* taken, T* __restrict__ out, int64 count, const Draw& draw) {
    const int64 i = global_index();
    if (i * N >= count) return;
    const Pack<T, N> pack = draw(Place(taken).at(i));
    if (i * N + N <= count) {
        *reinterpret_cast<Pack<T, N>*>(out + i * N) = pack;
    } else {
        for (int j = 0; j < N; ++j) {
            if (i * N + j < count) out[i * N + j] = pack.value[j];
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kBlock) random_uniform(const int64* __restrict__ taken, T* out, int64 count) {
    fill<T, 16 / sizeof(T)>(taken, out, count, [](const Words& words) { return uniform(words, T()); });
}

template <class T>
__global__ void __launch_bounds__(kBlock) random_normal(const int64* __restrict__ taken, T* out, int64 count) {
    fill<T, 16 / sizeof(T)>(taken, out, count, [](const Words& words) { return normal(words, T()); });
}

// low + [0, range), without signs: the upper half of a product, whose bias of range / 2^64 nobody can find.
__global__ void __launch_bounds__(kBlock) random_integers(const int64* __restrict__ taken, int64* out, int64 count,
                                                          int64 low, int64 range) {
    fill<int64, 2>(taken, out, count, [=](const Words& words) {
        Pack<int64, 2> pack;
        for (int i = 0; i < 2; ++i) pack.value[i] = int64(uint64(low) + __umul64hi(wide(words, i), uint64(range)));
        return pack;
    });
}
