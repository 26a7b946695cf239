// What the normalisations of rows share: the place of a thread in its row, rows moved as vectors or one by one, statistics
// of a row, and the sums for weight and bias.
//
// A row belongs to blockDim.x neighbouring threads (a power of two within a warp, or whole warps); threadIdx.y tells the rows
// of a block apart. All sums have a fixed order: results repeat bit for bit.
#pragma once
#include "norm.cuh"

// Threads of a block where rows share it, and, at most, where it has one row: half of what a device can run, so that a
// thread may have 128 registers.
constexpr int kBlock = 256, kRowBlock = 512;

// Which values of a run of `count` a thread takes: whole vectors, or one by one where the run is no whole number of vectors or
// begins between two. Either way neighbouring threads touch neighbouring addresses.
template <class T> struct Places {
    int first, by_step, by_item, count;
    bool vectors;

    __device__ Places(int lane, int lanes, int count, bool vectors)
        : first(vectors ? lane * kVector<T> : lane),
          by_step(lanes * kVector<T>),
          by_item(vectors ? 1 : lanes),
          count(count),
          vectors(vectors) {}

    // The same places, worked out anew: kept since the loads, addresses would make values spill. All threads of a warp must call it.
    __device__ Places again() const {
        Places same = *this;
        same.first = __shfl_sync(kFullWarp, first, int(threadIdx.y * blockDim.x + threadIdx.x) % kWarpSize);
        same.by_step = __shfl_sync(kFullWarp, by_step, 0);
        return same;
    }

    __device__ int at(int step, int item = 0) const { return first + step * by_step + item * by_item; }
    __device__ bool has(int step, int item = 0) const { return at(step, item) < count; }

    // One step's values; zeros beyond the end. S may be wider than T: these are then several vectors.
    template <class S> __device__ void load(const S* run, int step, S (&values)[kVector<T>]) const {
        if (vectors) {
            constexpr int kPack = kVector<S> < kVector<T> ? kVector<S> : kVector<T>;
            using Packed = Pack<S, kPack>;
#pragma unroll
            for (int i = 0; i < kVector<T>; i += kPack) {
                Packed pack = {};
                if (has(step)) pack = *reinterpret_cast<const Packed*>(run + at(step, i));
#pragma unroll
                for (int j = 0; j < kPack; ++j) values[i + j] = pack.value[j];
            }
        } else {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) values[i] = has(step, i) ? run[at(step, i)] : narrow<S>(0);
        }
    }

    template <class S> __device__ void store(S* run, int step, const Accumulator<S> (&values)[kVector<T>]) const {
        if (vectors) {
            constexpr int kPack = kVector<S> < kVector<T> ? kVector<S> : kVector<T>;
            using Packed = Pack<S, kPack>;
            if (!has(step)) return;
#pragma unroll
            for (int i = 0; i < kVector<T>; i += kPack) {
                Packed pack;
#pragma unroll
                for (int j = 0; j < kPack; ++j) pack.value[j] = narrow<S>(values[i + j]);
                *reinterpret_cast<Packed*>(run + at(step, i)) = pack;
            }
        } else {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                if (has(step, i)) run[at(step, i)] = narrow<S>(values[i]);
            }
        }
    }
};

// The values less `pivot`.
template <class T, int N>
__device__ void widen_all(const T (&values)[N], Accumulator<T> (&wide)[N], Accumulator<T> pivot = 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) wide[i] = widen(values[i]) - pivot;
}

// Weights or biases: null, of the type T, or float beside a half type.
template <class T> struct Vector {
    const void* values;
    bool wide;

    __device__ explicit operator bool() const { return values != nullptr; }

    // One step's values of the run that begins at `offset`, `otherwise` where there is no vector.
    __device__ void load(const Places<T>& places, int64 offset, int step, Accumulator<T> otherwise,
                         Accumulator<T> (&loaded)[kVector<T>]) const {
        if (!values) {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) loaded[i] = otherwise;
        } else if (wide) {
            places.load(static_cast<const Accumulator<T>*>(values) + offset, step, loaded);
        } else {
            T stored[kVector<T>];
            places.load(static_cast<const T*>(values) + offset, step, stored);
            widen_all(stored, loaded);
        }
    }

    __device__ Accumulator<T> at(int64 place, Accumulator<T> otherwise) const {
        if (!values) return otherwise;
        return wide ? static_cast<const Accumulator<T>*>(values)[place] : widen(static_cast<const T*>(values)[place]);
    }
};

// Merges what the threads of each row have seen; each of them gets the result. `of_warps` is shared memory of kMaxWarps.
template <class S> __device__ S row_merge(S seen, S* of_warps) {
    const int lanes = blockDim.x;
    seen = warp_merge(seen, min(lanes, kWarpSize));
    if (lanes <= kWarpSize) return seen;
    const int lane = threadIdx.x % kWarpSize;
    const int warps = lanes / kWarpSize;
    of_warps += threadIdx.y * warps;
    if (lane == 0) of_warps[threadIdx.x / kWarpSize] = seen;
    __syncthreads();
    seen = warp_merge(lane < warps ? of_warps[lane] : S::nothing());
    __syncthreads();  // before the next row's are written
    return seen;
}

// The moments of those of N values in registers for which `has(i)`.
template <class A, int N, class Has> __device__ Moments<A> moments_of(const A (&values)[N], Has has) {
    A sum = 0, count = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (has(i)) {
            sum += values[i];
            count += 1;
        }
    }
    if (count == 0) return Moments<A>::nothing();
    const A mean = sum / count;
    A m2 = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const A distance = has(i) ? values[i] - mean : A(0);
        m2 += distance * distance;
    }
    return {mean, m2, count};
}
