// Average-pooling of planes, pooling by a p-norm, and their gradients, which gather from the windows over an element.
// Divisors are PyTorch's: with `count_include_pad` the part of a window inside the padded input, else its part inside
// the input. A p-norm is (c Σ x^p)^(1/p), c the window's size over its part inside the input.
#include "pool.cuh"

__device__ inline int counted_along(const Pool& pool, int axis, int window) {
    const Axis& a = pool.axis[axis];
    if (pool.count_include_pad && !pool.adaptive) {
        const int start = window * a.stride - a.pad;
        return min(start + a.kernel, a.size + a.pad) - start;
    }
    const Taps taps = taps_of(pool, axis, window);
    return taps.end - taps.begin;
}

// Elements that count in a window, for poolings without a divisor for all windows.
template <class A> __device__ A counted(const Pool& pool, int d, int h, int w) {
    return A(counted_along(pool, 0, d)) * A(counted_along(pool, 1, h)) * A(counted_along(pool, 2, w));
}

__device__ inline float power(float x, float exponent) {
    if (exponent == 1) return x;
    if (exponent == 2) return x * x;
    return exponent == 0.5f ? sqrtf(x) : powf(x, exponent);
}

__device__ inline double power(double x, double exponent) {
    if (exponent == 1) return x;
    if (exponent == 2) return x * x;
    return exponent == 0.5 ? sqrt(x) : pow(x, exponent);
}

// The weight of a window's sum in a p-norm.
template <class A> __device__ A weight(const Pool& pool, int d, int h, int w) {
    if (pool.divisor != 0) return 1;
    return A(pool.axis[0].kernel * pool.axis[1].kernel * pool.axis[2].kernel) / counted<A>(pool, d, h, w);
}

// A window's result from the sum of its elements, or of their powers.
template <class A> __device__ A result_of(const Pool& pool, A sum, const Place& place) {
    if (pool.norm != 0) return power(sum * weight<A>(pool, place.at[0], place.at[1], place.at[2]), A(1 / pool.norm));
    return sum / (pool.divisor != 0 ? A(pool.divisor) : counted<A>(pool, place.at[0], place.at[1], place.at[2]));
}

// What a window hands out to each of its elements, but for a division that is common to all, and the power of x.
template <class A> __device__ A share_of(const Pool& pool, A dy, A y, int d, int h, int w) {
    if (pool.norm != 0) return y == 0 ? A(0) : dy * power(y, A(1 - pool.norm)) * weight<A>(pool, d, h, w);
    return pool.divisor != 0 ? dy : dy / counted<A>(pool, d, h, w);
}

// TAPS neighbours, or `count` of them where that is 0.
template <int TAPS, bool POWERS, class A, class T>
__device__ A sum_row(const T* row, int count, A norm) {
    A sum = 0;
    if constexpr (TAPS == 0) {
        for (int j = 0; j < count; ++j) sum += POWERS ? power(A(widen(row[j])), norm) : A(widen(row[j]));
    } else {
#pragma unroll
        for (int j = 0; j < TAPS; ++j) sum += widen(row[j]);
    }
    return sum;
}

// The sum of a window's elements, of which `powers` are taken first.
template <class S, bool POWERS, class A>
__device__ A sum_of(const Pool& pool, const Volume<S>& x, const Place& place) {
    const Taps depth = taps_of(pool, 0, place.at[0]), height = taps_of(pool, 1, place.at[1]),
        width = taps_of(pool, 2, place.at[2]);
    const int count = width.end - width.begin;
    A sum = 0;
    for (int k = depth.begin; k < depth.end; ++k) {
        for (int i = height.begin; i < height.end; ++i) {
            const S* row = x.row(place.plane, depth.start + k, height.start + i) + width.start + width.begin;
            if (count == 3 && !POWERS) {
                sum += sum_row<3, false, A>(row, 3, A(0));
            } else if (count == 2 && !POWERS) {
                sum += sum_row<2, false, A>(row, 2, A(0));
            } else {
                sum += sum_row<0, POWERS, A>(row, count, A(pool.norm));
            }
        }
    }
    return sum;
}

// The same by `lanes` neighbouring threads, which take the taps in turn. All of a warp must come here.
template <class S, bool POWERS, class A>
__device__ A shared_sum_of(const Pool& pool, const Volume<S>& x, const Place& place) {
    const Axis &high = pool.axis[1], &wide = pool.axis[2];
    A sum = 0;
    if (place.inside) {
        const Taps depth = taps_of(pool, 0, place.at[0]), height = taps_of(pool, 1, place.at[1]),
            width = taps_of(pool, 2, place.at[2]);
        const int taps = pool.axis[0].kernel * high.kernel * wide.kernel;
        for (int tap = threadIdx.x & (pool.lanes - 1); tap < taps; tap += pool.lanes) {
            const int row = wide.by_kernel.divide(tap), j = tap - row * wide.kernel;
            const int k = high.by_kernel.divide(row), i = row - k * high.kernel;
            if (k < depth.begin || k >= depth.end || i < height.begin || i >= height.end) continue;
            if (j < width.begin || j >= width.end) continue;
            const A value = widen(x.row(place.plane, depth.start + k, height.start + i)[width.start + j]);
            sum += POWERS && pool.norm != 0 ? power(value, A(pool.norm)) : value;
        }
    }
    for (int distance = pool.lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kFullWarp, sum, distance);
    return sum;
}

// Averages where `norm` is 0, else p-norms.
template <class T, bool STAGED>
__global__ void __launch_bounds__(kPoolBlock, kResident<T, STAGED>) avg_pool(
    const T* __restrict__ x, T* __restrict__ y, Pool pool) {
    using A = Accumulator<T>;
    using S = typename Choice<STAGED, A, T>::type;
    DYNAMIC_SHARED(shared);
    const Tile tile = tile_of_windows(pool);
    const Region made = region_of_windows(pool, tile);
    Volume<S> source;
    T* values = y;
    if constexpr (STAGED) {
        const Region seen = input_of(pool, tile);
        A* const staged = stage<A>(seen, x, shared);
        source = staged_volume(seen, staged);
        values = begin_in<T>(made, reinterpret_cast<T*>(shared + pool.second));
        if (pool.norm != 0) {
            __syncthreads();
            for (int i = threadIdx.x; i < seen.size(); i += kPoolBlock) staged[i] = power(staged[i], A(pool.norm));
        }
        __syncthreads();
    } else {
        source = volume_in_memory(x, tile.plane, pool.axis[0].size, pool.axis[1].size, pool.axis[2].size);
    }
    constexpr bool kPowers = !STAGED;
    const int windows = places_of_tile(pool), step = kPoolBlock / pool.lanes;
    for (int first = 0; first < windows; first += step) {
        const int number = first + int(threadIdx.x) / pool.lanes;
        Place place(pool, tile, min(number, windows - 1));
        place.inside = place.inside && number < windows;
        A sum = 0;
        if (pool.lanes > 1) {
            sum = shared_sum_of<S, kPowers, A>(pool, source, place);
            if ((threadIdx.x & (pool.lanes - 1)) != 0) continue;
        } else if (place.inside) {
            sum = kPowers && pool.norm != 0 ? sum_of<S, kPowers, A>(pool, source, place) :
                sum_of<S, false, A>(pool, source, place);
        }
        if (!place.inside) continue;
        values[STAGED ?
            made.number(place) : made.element(pool.axis[0].count, place)] = narrow<T>(result_of(pool, sum, place));
    }
    if constexpr (STAGED) {
        __syncthreads();
        unstage(made, values, y);
    }
}

// A plane's one gradient to all of its elements.
template <class T>
__device__ void spread_over_planes(const T* dy, T* dx, const Region& made, int64 plane, const Pool& pool) {
    constexpr int kVector = 16 / sizeof(T);
    using A = Accumulator<T>;
    const auto share = [&](int i) {
        const int which = made.planes == 1 ? 0 : pool.by_volume.divide(i);
        return narrow<T>(widen(dy[plane + which]) / A(pool.divisor));
    };
    over_region(
        made, dx,
        [&](int i, int64 element) {
            Pack<T, kVector> values;
#pragma unroll
            for (int k = 0; k < kVector; ++k) values.value[k] = share(i + k);
            *reinterpret_cast<Pack<T, kVector>*>(dx + element) = values;
        },
        [&](int i, int64 element) { dx[element] = share(i); });
}

// The gradients of averages, or of p-norms, which need x and y as well.
template <class T, bool STAGED>
__global__ void __launch_bounds__(kPoolBlock, kResident<T, STAGED>) avg_pool_input_grad(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, T* __restrict__ dx, Pool pool) {
    using A = Accumulator<T>;
    DYNAMIC_SHARED(shared);
    const Tile tile = tile_of_elements(pool);
    const Region made = region_of_elements(pool, tile);
    if (pool.whole && pool.norm == 0) {
        spread_over_planes(dy, dx, made, tile.plane, pool);
        return;
    }
    Volume<A> shares;
    T* values = dx;
    if constexpr (STAGED) {
        const Region seen = windows_of(pool, tile);
        A* const staged = stage<A>(seen, dy, shared);
        shares = staged_volume(seen, staged);
        values = begin_in<T>(made, reinterpret_cast<T*>(shared + pool.second));
        if (pool.divisor == 0 || pool.norm != 0) {
            const A* const results = pool.norm != 0 ? stage<A>(seen, y, shared + pool.third) : staged;
            __syncthreads();
            const int columns = seen.length(2), rows = seen.length(1), depths = seen.length(0);
            for (int i = threadIdx.x; i < seen.size(); i += kPoolBlock) {
                const int row = i / columns, slice = row / rows;
                staged[i] = share_of(pool, staged[i], results[i], seen.along[0].first + slice % depths,
                                     seen.along[1].first + row - slice * rows, seen.along[2].first + i - row * columns);
            }
        }
        __syncthreads();
    }
    const int places = places_of_tile(pool);
    for (int number = threadIdx.x; number < places; number += kPoolBlock) {
        const Place place(pool, tile, number);
        if (!place.inside) continue;
        const Span depth = windows_over(pool, 0, place.at[0]), height = windows_over(pool, 1, place.at[1]),
                   width = windows_over(pool, 2, place.at[2]);
        A sum = 0;
        for (int d = depth.first; d < depth.stop; ++d) {
            for (int h = height.first; h < height.stop; ++h) {
                if constexpr (STAGED) {
                    const A* row = shares.row(place.plane, d, h);
                    for (int w = width.first; w < width.stop; ++w) sum += row[w];
                } else {
                    const int64 row = (tile.plane + place.plane) * pool.windows() + (d * pool.axis[1].count +
                        h) * pool.axis[2].count;
                    for (int w = width.first; w < width.stop; ++w) {
                        sum += share_of(pool, A(widen(dy[row + w])), pool.norm != 0 ? A(widen(y[row +
                            w])) : A(0), d, h, w);
                    }
                }
            }
        }
        const int64 element = made.element(pool.axis[0].size, place);
        if (pool.norm != 0) {
            if (pool.norm != 1) sum *= power(A(widen(x[element])), A(pool.norm - 1));
        } else if (pool.divisor != 0) {
            sum /= A(pool.divisor);
        }
        values[STAGED ? made.number(place) : element] = narrow<T>(sum);
    }
    if constexpr (STAGED) {
        __syncthreads();
        unstage(made, values, dx);
    }
}
