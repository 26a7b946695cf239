// Max-pooling of planes, its gradient, and what else its offsets are good for. An offset is the number of a maximum's
// tap in its window, (k * kernel_h + i) * kernel_w + j. The gradient adds without atomics, in an order that never
// changes.
#include "pool.cuh"

__device__ inline int load_offset(const void* offsets, int64 i, int bytes) {
    if (bytes == 1) return static_cast<const uint8*>(offsets)[i];
    if (bytes == 2) return static_cast<const int16*>(offsets)[i];
    if (bytes == 4) return static_cast<const int32*>(offsets)[i];
    return int(static_cast<const int64*>(offsets)[i]);
}

__device__ inline void store_offset(void* offsets, int64 i, int bytes, int offset) {
    if (bytes == 1) {
        static_cast<uint8*>(offsets)[i] = uint8(offset);
    } else if (bytes == 2) {
        static_cast<int16*>(offsets)[i] = int16(offset);
    } else if (bytes == 4) {
        static_cast<int32*>(offsets)[i] = offset;
    } else {
        static_cast<int64*>(offsets)[i] = offset;
    }
}

// The coordinates in the plane of the tap that `offset` names; false where it lies outside.
__device__ inline bool find(const Pool& pool, const int (&window)[3], int offset, int (&at)[3]) {
    bool inside = true;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
        const Axis& axis = pool.axis[a];
        const int rest = a > 0 ? axis.by_kernel.divide(offset) : 0;
        at[a] = window[a] * axis.stride - axis.pad + (offset - rest * axis.kernel) * axis.dilation;
        inside = inside && within(at[a], axis.size);
        offset = rest;
    }
    return inside;
}

template <class A> struct Best {
    A value = -infinity<A>();
    int tap = -1;

    // PyTorch's rule: a NaN wins, the last of several; of equal values the first.
    __device__ void offer(A other, int number) {
        if (other > value || other != other) {
            value = other;
            tap = number;
        }
    }

    // What another lane found, among the taps that it looked at.
    __device__ void merge(A other, int number) {
        const bool unknown = value != value, other_unknown = other != other;
        const bool later = unknown || other_unknown ? other_unknown && (!unknown || number > tap)
                                                    : other > value || (other == value && uint32(number) < uint32(tap));
        if (number >= 0 && (tap < 0 || later)) {
            value = other;
            tap = number;
        }
    }
};

// TAPS neighbours, or `count` of them where that is 0.
template <int TAPS, class T>
__device__ void offer_row(const T* row, int step, int count, int number, Best<Accumulator<T>>& best) {
    if constexpr (TAPS == 0) {
        for (int j = 0; j < count; ++j) best.offer(widen(row[j * step]), number + j);
    } else {
#pragma unroll
        for (int j = 0; j < TAPS; ++j) best.offer(widen(row[j]), number + j);
    }
}

template <class T>
__device__ Best<Accumulator<T>> best_of(const Pool& pool, const Volume<T>& x, const Place& place) {
    const Taps depth = taps_of(pool, 0, place.at[0]), height = taps_of(pool, 1, place.at[1]),
        width = taps_of(pool, 2, place.at[2]);
    const int step = pool.axis[2].dilation, count = width.end - width.begin;
    Best<Accumulator<T>> best;
    // Nothing replaces the first tap inside the input where there is only -inf.
    best.tap = (depth.begin * pool.axis[1].kernel + height.begin) * pool.axis[2].kernel + width.begin;
    for (int k = depth.begin; k < depth.end; ++k) {
        for (int i = height.begin; i < height.end; ++i) {
            const T* row = x.row(place.plane, depth.start + k * pool.axis[0].dilation,
                                 height.start + i * pool.axis[1].dilation) +
                           width.start + width.begin * step;
            const int number = (k * pool.axis[1].kernel + i) * pool.axis[2].kernel + width.begin;
            if (count == 3 && step == 1) {
                offer_row<3>(row, 1, 3, number, best);
            } else if (count == 2 && step == 1) {
                offer_row<2>(row, 1, 2, number, best);
            } else {
                offer_row<0>(row, step, count, number, best);
            }
        }
    }
    return best;
}

// The same by `lanes` neighbouring threads, which take the taps in turn. All of a warp must come here.
template <class T>
__device__ Best<Accumulator<T>> shared_best_of(const Pool& pool, const Volume<T>& x, const Place& place) {
    const Axis &deep = pool.axis[0], &high = pool.axis[1], &wide = pool.axis[2];
    Best<Accumulator<T>> best;
    if (place.inside) {
        const Taps depth = taps_of(pool, 0, place.at[0]), height = taps_of(pool, 1, place.at[1]),
            width = taps_of(pool, 2, place.at[2]);
        const int taps = deep.kernel * high.kernel * wide.kernel;
        for (int tap = threadIdx.x & (pool.lanes - 1); tap < taps; tap += pool.lanes) {
            const int row = wide.by_kernel.divide(tap), j = tap - row * wide.kernel;
            const int k = high.by_kernel.divide(row), i = row - k * high.kernel;
            if (k < depth.begin || k >= depth.end || i < height.begin || i >= height.end) continue;
            if (j < width.begin || j >= width.end) continue;
            if (best.tap < 0) best.tap = tap;
            best.offer(widen(x.row(place.plane, depth.start + k * deep.dilation, height.start + i * high.dilation)
                                 [width.start + j * wide.dilation]), tap);
        }
    }
    for (int distance = pool.lanes / 2; distance > 0; distance /= 2) {
        const Accumulator<T> other = __shfl_xor_sync(kFullWarp, best.value, distance);
        best.merge(other, __shfl_xor_sync(kFullWarp, best.tap, distance));
    }
    return best;
}

// What is stored of a maximum: its tap or, in 8 bytes, its position.
__device__ inline int stored_offset(const Pool& pool, const Place& place, int tap) {
    if (pool.offset_bytes < 8) return tap;
    const int row = pool.axis[2].by_kernel.divide(tap), k = pool.axis[1].by_kernel.divide(row);
    const int d = taps_of(pool, 0, place.at[0]).start + k;
    const int h = taps_of(pool, 1, place.at[1]).start + row - k * pool.axis[1].kernel;
    const int w = taps_of(pool, 2, place.at[2]).start + tap - row * pool.axis[2].kernel;
    return (d * pool.axis[1].size + h) * pool.axis[2].size + w;
}

template <class O> __device__ void* stage_offsets(const Region& region, const void* offsets, void* shared) {
    return stage<O>(region, static_cast<const O*>(offsets), shared);
}

// Stored offsets of any size to shared memory; where they begin there.
__device__ inline void* stage_offsets(const Region& region, const void* offsets, void* shared, int bytes) {
    if (bytes == 1) return stage_offsets<uint8>(region, offsets, shared);
    if (bytes == 2) return stage_offsets<int16>(region, offsets, shared);
    return stage_offsets<int32>(region, offsets, shared);
}

__device__ inline void unstage_offsets(const Region& region, const void* from, void* offsets, int bytes) {
    if (bytes == 1) {
        unstage(region, static_cast<const uint8*>(from), static_cast<uint8*>(offsets));
    } else if (bytes == 2) {
        unstage(region, static_cast<const int16*>(from), static_cast<int16*>(offsets));
    } else if (bytes == 4) {
        unstage(region, static_cast<const int32*>(from), static_cast<int32*>(offsets));
    } else {
        unstage(region, static_cast<const int64*>(from), static_cast<int64*>(offsets));
    }
}

__device__ inline void* offsets_in(const Region& region, unsigned char* shared, int bytes) {
    return shared + (region.first & (16 / bytes - 1)) * bytes;
}

template <class T, bool STAGED>
__global__ void __launch_bounds__(kPoolBlock, kResident<T, STAGED>) max_pool(
    const T* __restrict__ x, T* __restrict__ y, void* __restrict__ offsets, Pool pool) {
    DYNAMIC_SHARED(shared);
    const Tile tile = tile_of_windows(pool);
    const Region made = region_of_windows(pool, tile);
    Volume<T> source;
    T* values = y;
    void* found = offsets;
    if constexpr (STAGED) {
        const Region seen = input_of(pool, tile);
        source = staged_volume(seen, stage<T>(seen, x, shared));
        values = begin_in<T>(made, reinterpret_cast<T*>(shared + pool.second));
        found = offsets_in(made, shared + pool.third, pool.offset_bytes);
        __syncthreads();
    } else {
        source = volume_in_memory(x, tile.plane, pool.axis[0].size, pool.axis[1].size, pool.axis[2].size);
    }
    const int windows = places_of_tile(pool), step = kPoolBlock / pool.lanes;
    for (int first = 0; first < windows; first += step) {
        const int number = first + int(threadIdx.x) / pool.lanes;
        Place place(pool, tile, min(number, windows - 1));
        place.inside = place.inside && number < windows;
        Best<Accumulator<T>> best;
        if (pool.lanes > 1) {
            best = shared_best_of(pool, source, place);
            if ((threadIdx.x & (pool.lanes - 1)) != 0) continue;
        } else if (place.inside) {
            best = best_of(pool, source, place);
        }
        if (!place.inside) continue;
        const int64 to = STAGED ? made.number(place) : made.element(pool.axis[0].count, place);
        values[to] = narrow<T>(best.value);
        store_offset(found, to, pool.offset_bytes, stored_offset(pool, place, best.tap));
    }
    if constexpr (STAGED) {
        __syncthreads();
        unstage(made, values, y);
        unstage_offsets(made, found, offsets, pool.offset_bytes);
    }
}

// Windows `classes` apart share no element, so that a class of them adds without a race, one class after the other.
template <class T>
__global__ void __launch_bounds__(kPoolBlock, kResident<T, true>) max_pool_scatter(
    const T* __restrict__ dy, const void* __restrict__ offsets, T* __restrict__ dx, Pool pool) {
    using A = Accumulator<T>;
    DYNAMIC_SHARED(shared);
    const Tile tile = tile_of_elements(pool);
    const Region made = region_of_elements(pool, tile), seen = windows_of(pool, tile);
    const T* const given = stage<T>(seen, dy, shared + pool.second);
    const void* const found = stage_offsets(seen, offsets, shared + pool.third, pool.offset_bytes);
    A* const sums = begin_in<T>(made, reinterpret_cast<A*>(shared));
    for (int i = threadIdx.x; i < made.size(); i += kPoolBlock) sums[i] = 0;
    __syncthreads();

    const Axis &deep = pool.axis[0], &high = pool.axis[1], &wide = pool.axis[2];
    const int windows = pool.planes_per_block * deep.reach * high.reach * wide.reach;
    for (int d = 0; d < deep.classes; ++d) {
        for (int h = 0; h < high.classes; ++h) {
            for (int w = 0; w < wide.classes; ++w) {
                for (int number = threadIdx.x; number < windows; number += kPoolBlock) {
                    const int row = wide.by_reach.divide(number), slice = high.by_reach.divide(row),
                        plane = deep.by_reach.divide(slice);
                    const int window[3] = {
                        seen.along[0].first + d + (slice - plane * deep.reach) * deep.classes,
                        seen.along[1].first + h + (row - slice * high.reach) * high.classes,
                        seen.along[2].first + w + (number - row * wide.reach) * wide.classes,
                    };
                    const bool exists = plane < tile.planes && window[0] < seen.along[0].stop &&
                                        window[1] < seen.along[1].stop && window[2] < seen.along[2].stop;
                    if (!exists) continue;
                    const int from = seen.number(plane, window[0], window[1], window[2]);
                    int at[3];
                    if (!find(pool, window, load_offset(found, from, pool.offset_bytes), at)) continue;
                    const bool ours = at[0] >= tile.along[0].first && at[0] < tile.along[0].stop &&
                                      at[1] >= tile.along[1].first && at[1] < tile.along[1].stop &&
                                      at[2] >= tile.along[2].first && at[2] < tile.along[2].stop;
                    if (ours) sums[made.number(plane, at[0], at[1], at[2])] += widen(given[from]);
                }
                __syncthreads();
            }
        }
    }
    unstage(made, sums, dx);
}

// For windows too large, or too many over one element: asks each window that covers an element for its maximum.
template <class T>
__global__ void __launch_bounds__(kPoolBlock, kResident<T, false>) max_pool_scatter_large(
    const T* __restrict__ dy, const void* __restrict__ offsets, T* __restrict__ dx, Pool pool) {
    const Tile tile = tile_of_elements(pool);
    const Region made = region_of_elements(pool, tile);
    const int places = places_of_tile(pool);
    for (int number = threadIdx.x; number < places; number += kPoolBlock) {
        const Place place(pool, tile, number);
        if (!place.inside) continue;
        const Span depth = windows_over(pool, 0, place.at[0]), height = windows_over(pool, 1, place.at[1]),
                   width = windows_over(pool, 2, place.at[2]);
        const int64 windows = (tile.plane + place.plane) * pool.windows();
        const int position = (place.at[0] * pool.axis[1].size + place.at[1]) * pool.axis[2].size + place.at[2];
        Accumulator<T> sum = 0;
        for (int d = depth.first; d < depth.stop; ++d) {
            for (int h = height.first; h < height.stop; ++h) {
                for (int w = width.first; w < width.stop; ++w) {
                    const int64 from = windows + (d * pool.axis[1].count + h) * pool.axis[2].count + w;
                    const int offset = load_offset(offsets, from, pool.offset_bytes);
                    const int window[3] = {d, h, w};
                    int at[3];
                    const bool here = pool.offset_bytes == 8
                                          ? offset == position
                                          : find(pool, window, offset, at) && at[0] == place.at[0] &&
                                              at[1] == place.at[1] && at[2] == place.at[2];
                    if (here) sum += widen(dy[from]);
                }
            }
        }
        dx[made.element(pool.axis[0].size, place)] = narrow<T>(sum);
    }
}

// The position in the input's plane of each maximum, -1 where an offset points beyond the edge.
__device__ inline int position_of(const Pool& pool, const Place& place, const void* offsets, int64 i) {
    int at[3];
    const bool inside = find(pool, place.at, load_offset(offsets, i, pool.offset_bytes), at);
    return inside ? (at[0] * pool.axis[1].size + at[1]) * pool.axis[2].size + at[2] : -1;
}

// Bits of the size of an element: what moves needs no other type.
template <class Bits>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool_gather(
    const Bits* __restrict__ x, const void* __restrict__ offsets, Bits* __restrict__ y, Pool pool) {
    const Tile tile = tile_of_windows(pool);
    const Region made = region_of_windows(pool, tile);
    const int places = places_of_tile(pool);
    for (int number = threadIdx.x; number < places; number += kPoolBlock) {
        const Place place(pool, tile, number);
        if (!place.inside) continue;
        const int64 to = made.element(pool.axis[0].count, place);
        const int position = position_of(pool, place, offsets, to);
        y[to] = position < 0 ? Bits(0) : x[(tile.plane + place.plane) * pool.volume() + position];
    }
}

template <class Index>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool_indices(
    const void* __restrict__ offsets, Index* __restrict__ indices, Pool pool) {
    const Tile tile = tile_of_windows(pool);
    const Region made = region_of_windows(pool, tile);
    const int places = places_of_tile(pool);
    for (int number = threadIdx.x; number < places; number += kPoolBlock) {
        const Place place(pool, tile, number);
        if (!place.inside) continue;
        const int64 to = made.element(pool.axis[0].count, place);
        indices[to] = position_of(pool, place, offsets, to);
    }
}
