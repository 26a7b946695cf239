// Activations and their gradients, one launch each way, and the gated linear unit.
#include "activation.cuh"

template <class T>
__global__ void __launch_bounds__(kTileBlock) activation(
    const T* __restrict__ x, T* __restrict__ y, int64 size, Activation how) {
    const Tile<T> tile(size, fits_vectors(x) && fits_vectors(y));
    Accumulator<T> values[Tile<T>::kItems];
    tile.load(x, values);
    activate(how, values);
    tile.store(y, values);
}

template <class T>
__global__ void __launch_bounds__(kTileBlock) activation_input_grad(
    const T* __restrict__ dy, const T* __restrict__ saved, T* __restrict__ dx, int64 size, Activation how) {
    const Tile<T> tile(size, fits_vectors(dy) && fits_vectors(saved) && fits_vectors(dx));
    Accumulator<T> values[Tile<T>::kItems], at[Tile<T>::kItems];
    tile.load(dy, values);
    tile.load(saved, at);
    input_gradient(how, values, at);
    tile.store(dx, values);
}

// Where the elements of a tile over (outer, half) lie in an array (outer, 2, half).
template <class T> struct Halves {
    int64 half;
    int64 skipped;  // rows before the tile, each a second half that the tile does not count
    int64 start;    // of the tile in its first row

    __device__ Halves(int64 half, int64 base) : half(half), skipped(base / half), start(base - skipped * half) {}

    // The first half's element for the tile's element t.
    __device__ int64 first(int64 base, int t) const {
        // A tile may cover many short rows, but at most the end of a long one.
        const int64 place = start + t;
        int64 rows = place >= half;
        if (half < Tile<T>::kSize) rows = uint32(place) / uint32(half);
        return base + t + (skipped + rows) * half;
    }
};

template <class T> struct GluTile : Tile<T> {
    using Tile<T>::base;
    using Tile<T>::kItems;
    using Tile<T>::kVector;
    using A = Accumulator<T>;

    Halves<T> halves;

    __device__ GluTile(int64 size, int64 half, bool aligned)
        : Tile<T>(size, aligned && half % kVector == 0), halves(half, this->base) {}

    // Calls `function` with the positions in the tile and in the array of halves of each vector or element, and its number.
    template <class F> __device__ void each(F function) const {
        if (this->vectors) {
#pragma unroll
            for (int i = 0; i < kItems; i += kVector) function(Constant<kVector>(), i, halves.first(base, this->at(i)));
        } else {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                if (base + this->at(i) < this->size) function(Constant<1>(), i, halves.first(base, this->at(i)));
            }
        }
    }

    __device__ void load_halves(const T* x, A (&first)[kItems], A (&gate)[kItems]) const {
#pragma unroll
        for (int i = 0; i < kItems; ++i) first[i] = gate[i] = 0;
        each([&](auto count, int i, int64 position) {
            constexpr int kCount = decltype(count)::value;
            const auto a = *reinterpret_cast<const Pack<T, kCount>*>(x + position);
            const auto b = *reinterpret_cast<const Pack<T, kCount>*>(x + position + halves.half);
#pragma unroll
            for (int j = 0; j < kCount; ++j) first[i + j] = widen(a.value[j]), gate[i + j] = widen(b.value[j]);
        });
    }

    __device__ void store_halves(T* y, const A (&first)[kItems], const A (&gate)[kItems]) const {
        each([&](auto count, int i, int64 position) {
            constexpr int kCount = decltype(count)::value;
            Pack<T, kCount> a, b;
#pragma unroll
            for (int j = 0; j < kCount; ++j) a.value[j] = narrow<T>(first[i + j]), b.value[j] = narrow<T>(gate[i + j]);
            *reinterpret_cast<Pack<T, kCount>*>(y + position) = a;
            *reinterpret_cast<Pack<T, kCount>*>(y + position + halves.half) = b;
        });
    }
};

template <class T>
__global__ void __launch_bounds__(kTileBlock) glu(const T* __restrict__ x, T* __restrict__ y, int64 size, int64 half) {
    const GluTile<T> tile(size, half, fits_vectors(x) && fits_vectors(y));
    Accumulator<T> first[Tile<T>::kItems], gate[Tile<T>::kItems];
    tile.load_halves(x, first, gate);
#pragma unroll
    for (int i = 0; i < Tile<T>::kItems; ++i) first[i] *= sigmoid(gate[i]);
    tile.store(y, first);
}

template <class T>
__global__ void __launch_bounds__(kTileBlock, 4) glu_input_grad(
    const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, int64 size, int64 half) {
    const GluTile<T> tile(size, half, fits_vectors(dy) && fits_vectors(x) && fits_vectors(dx));
    Accumulator<T> grad[Tile<T>::kItems], first[Tile<T>::kItems], gate[Tile<T>::kItems];
    tile.load(dy, grad);
    tile.load_halves(x, first, gate);
#pragma unroll
    for (int i = 0; i < Tile<T>::kItems; ++i) {
        const Accumulator<T> s = sigmoid(gate[i]);
        gate[i] = grad[i] * first[i] * ((1 - s) * s);
        first[i] = grad[i] * s;
    }
    tile.store_halves(dx, first, gate);
}
