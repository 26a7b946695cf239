// What the pooling kernels share. A pooling has three axes (depth, height, width), of which one or two may have size 1.
//
// A block owns a tile: of windows in a forward pass, of elements of the input in a backward pass. What it needs of the
// other side is a region of full rows wherever rows fit, which is one run of memory, or a few: it is staged in shared
// memory by 16-byte loads, whatever the width of a row, and what the block makes leaves in the same way. A kernel with
// STAGED = false takes windows too large for that directly from memory.
#include "divisor.cuh"

constexpr int kPoolBlock = 256;
constexpr int kPoolWarps = kPoolBlock / kWarpSize;
// Blocks of a multiprocessor that registers must suffice for.
template <class T, bool STAGED> constexpr int kResident = STAGED && sizeof(T) < 8 ? 4 : 2;

struct Axis {
    int size, count;  // elements of the input, windows
    int kernel, stride, pad, dilation;
    int tile, tiles;  // elements or windows of a block along it, and how many such tiles there are
    int classes;      // windows so far apart share no element
    int reach;        // of one class that meet a tile, at most
    Divisor by_kernel, by_stride, by_dilation, by_tile, by_tiles, by_reach;
};

struct Pool {
    Axis axis[3];
    int64 planes;
    int planes_per_block;
    Divisor by_volume;  // elements of the input's plane
    int offset_bytes;   // of a maximum's stored offset: 1, 2 or 4; 8 for its position in the plane
    int adaptive;       // window o of an axis is [floor(o size / count), ceil((o + 1) size / count))
    int whole;          // one window, which is the plane
    int count_include_pad;
    int lanes;             // threads that share a window, a power of two up to a warp
    int second, third;     // where the second and third array in shared memory begin
    double divisor;        // of every window of an average, or 0 where each has its own
    double norm;           // of a p-norm, or 0 for an average

    __device__ int volume() const { return axis[0].size * axis[1].size * axis[2].size; }
    __device__ int windows() const { return axis[0].count * axis[1].count * axis[2].count; }
};

__device__ inline bool within(int position, int length) { return uint32(position) < uint32(length); }

__device__ inline int divide_up_by(Divisor divisor, int n, int by) { return divisor.divide(n + by - 1); }

// The taps [begin, end) of a window that lie inside the input, the first of them at start + begin * dilation.
struct Taps {
    int start, begin, end;
};

__device__ inline Taps taps_of(const Pool& pool, int axis, int window) {
    const Axis& a = pool.axis[axis];
    if (pool.adaptive) {
        const int start = int(int64(window) * a.size / a.count);
        return {start, 0, int((int64(window + 1) * a.size + a.count - 1) / a.count) - start};
    }
    const int start = window * a.stride - a.pad;
    const int begin = start < 0 ? divide_up_by(a.by_dilation, -start, a.dilation) : 0;
    const int end = start < a.size ? min(a.kernel, a.by_dilation.divide(a.size - 1 - start) + 1) : 0;
    return {start, begin, end};
}

struct Span {
    int first, stop;
};

// The windows that reach over an element, if only with a gap.
__device__ inline Span windows_over(const Pool& pool, int axis, int element) {
    const Axis& a = pool.axis[axis];
    if (pool.adaptive) {
        return {int(int64(element) * a.count / a.size), int((int64(element + 1) * a.count + a.size - 1) / a.size)};
    }
    const int position = element + a.pad, extent = (a.kernel - 1) * a.dilation + 1;
    return {position < extent ? 0 : a.by_stride.divide(position - extent) + 1,
            min(a.by_stride.divide(position) + 1, a.count)};
}

// A block's tile.
struct Tile {
    int64 plane;
    int planes;
    Span along[3];

    // `limit`: for each axis how many elements or windows there are.
    __device__ Tile(const Pool& pool, int depths, int rows, int columns) {
        const int limit[3] = {depths, rows, columns};
        int number = blockIdx.x;
#pragma unroll
        for (int a = 2; a >= 0; --a) {
            const int rest = pool.axis[a].by_tiles.divide(number);
            along[a].first = (number - rest * pool.axis[a].tiles) * pool.axis[a].tile;
            along[a].stop = min(along[a].first + pool.axis[a].tile, limit[a]);
            number = rest;
        }
        plane = int64(number) * pool.planes_per_block;
        planes = int(min(int64(pool.planes_per_block), pool.planes - plane));
    }
};

__device__ inline Tile tile_of_windows(const Pool& pool) {
    return Tile(pool, pool.axis[0].count, pool.axis[1].count, pool.axis[2].count);
}

__device__ inline Tile tile_of_elements(const Pool& pool) {
    return Tile(pool, pool.axis[0].size, pool.axis[1].size, pool.axis[2].size);
}

// How many places a tile has when it is not cut off at the edge.
__device__ inline int places_of_tile(const Pool& pool) {
    return pool.planes_per_block * pool.axis[0].tile * pool.axis[1].tile * pool.axis[2].tile;
}

// A place in a tile: its plane, counted from the tile's first, and its coordinates in the plane.
struct Place {
    int plane;
    int at[3];
    bool inside;

    __device__ Place(const Pool& pool, const Tile& tile, int number) {
        inside = true;
#pragma unroll
        for (int a = 2; a >= 0; --a) {
            const int rest = pool.axis[a].by_tile.divide(number);
            at[a] = tile.along[a].first + number - rest * pool.axis[a].tile;
            inside = inside && at[a] < tile.along[a].stop;
            number = rest;
        }
        plane = number;
        inside = inside && plane < tile.planes;
    }
};

// A part of an array of planes: a box, the same in each plane.
struct Region {
    int64 first;  // the array's element with which it begins
    int planes;
    int slice, row;  // elements of a whole slice and a whole row
    Span along[3];
    bool one_run;  // of memory

    __device__ Region(int64 plane, int planes, int depth, int height, int width, Span depths, Span rows, Span columns)
        : planes(planes), slice(height * width), row(width), along{depths, rows, columns} {
        first = plane * (int64(depth) * slice) + int64(depths.first) * slice + rows.first * width + columns.first;
        const bool full_rows = length(2) == width, full_slices = full_rows && length(1) == height;
        one_run = planes == 1 ? full_slices || (full_rows && length(0) == 1) || length(0) * length(1) == 1
                              : full_slices && length(0) == depth;
    }

    __device__ int length(int axis) const { return along[axis].stop - along[axis].first; }
    __device__ int of_plane() const { return length(0) * length(1) * length(2); }
    __device__ int size() const { return planes * of_plane(); }
    // The number within the region, whose elements lie one after the other in shared memory.
    __device__ int number(int plane, int d, int h, int w) const {
        return ((plane * length(0) + d - along[0].first) * length(1) + h - along[1].first) * length(2) +
            w - along[2].first;
    }
    __device__ int number(const Place& place) const {
        return number(place.plane, place.at[0], place.at[1], place.at[2]);
    }
    // The element's number in the array.
    __device__ int64 element(int64 depth, const Place& place) const {
        return first + place.plane * (depth * slice) + int64(place.at[0] - along[0].first) * slice +
               (place.at[1] - along[1].first) * row + place.at[2] - along[2].first;
    }
};

__device__ inline Span whole_if(bool whole, int length, Span part) { return whole ? Span{0, length} : part; }

// What a tile of windows sees of the input. Where the tile has all windows of an axis, that is all of the axis.
__device__ inline Region input_of(const Pool& pool, const Tile& tile) {
    Span along[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const Axis& axis = pool.axis[a];
        const Taps low = taps_of(pool, a, tile.along[a].first), high = taps_of(pool, a, tile.along[a].stop - 1);
        const int stop = pool.adaptive ? high.start + high.end : high.start + (axis.kernel - 1) * axis.dilation + 1;
        along[a] = whole_if(axis.tiles == 1, axis.size, {max(low.start, 0), min(stop, axis.size)});
    }
    return Region(tile.plane, tile.planes, pool.axis[0].size, pool.axis[1].size,
        pool.axis[2].size, along[0], along[1], along[2]);
}

// The windows that meet a tile of the input.
__device__ inline Region windows_of(const Pool& pool, const Tile& tile) {
    Span along[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const Axis& axis = pool.axis[a];
        const int first = windows_over(pool, a, tile.along[a].first).first;
        const Span part = {first, max(windows_over(pool, a, tile.along[a].stop - 1).stop, first)};
        along[a] = whole_if(axis.tiles == 1, axis.count, part);
    }
    return Region(tile.plane, tile.planes, pool.axis[0].count, pool.axis[1].count,
        pool.axis[2].count, along[0], along[1], along[2]);
}

__device__ inline Region region_of_windows(const Pool& pool, const Tile& tile) {
    return Region(tile.plane, tile.planes, pool.axis[0].count, pool.axis[1].count, pool.axis[2].count,
                  tile.along[0], tile.along[1], tile.along[2]);
}

__device__ inline Region region_of_elements(const Pool& pool, const Tile& tile) {
    return Region(tile.plane, tile.planes, pool.axis[0].size, pool.axis[1].size, pool.axis[2].size,
                  tile.along[0], tile.along[1], tile.along[2]);
}

template <bool FIRST, class A, class B> struct Choice { using type = A; };
template <class A, class B> struct Choice<false, A, B> { using type = B; };

template <class S, class T> __device__ S converted(T value) {
    if constexpr (sizeof(S) == sizeof(T)) {
        return value;
    } else if constexpr (sizeof(S) > sizeof(T)) {
        return widen(value);
    } else {
        return narrow<S>(value);
    }
}

// COUNT neighbours from memory to shared memory or back, by instructions of 16 bytes.
template <int COUNT, class S, class T> __device__ void move_vector(const T* from, S* to) {
    if constexpr (sizeof(S) == sizeof(T)) {
        *reinterpret_cast<Pack<S, COUNT>*>(to) = *reinterpret_cast<const Pack<T, COUNT>*>(from);
    } else if constexpr (sizeof(S) > sizeof(T)) {
        // A second part lies 16 bytes after the first, so that lanes would meet in half of the banks: some begin there.
        const bool second = (threadIdx.x >> 2) % 2 != 0;
        const Pack<T, COUNT> values = *reinterpret_cast<const Pack<T, COUNT>*>(from);
        Pack<S, COUNT / 2> first, last;
#pragma unroll
        for (int k = 0; k < COUNT / 2; ++k) {
            const S low = widen(values.value[k]), high = widen(values.value[k + COUNT / 2]);
            first.value[k] = second ? high : low;
            last.value[k] = second ? low : high;
        }
        *reinterpret_cast<Pack<S, COUNT / 2>*>(to + (second ? COUNT / 2 : 0)) = first;
        *reinterpret_cast<Pack<S, COUNT / 2>*>(to + (second ? 0 : COUNT / 2)) = last;
    } else {
        const bool second = (threadIdx.x >> 2) % 2 != 0;
        const Pack<T, COUNT / 2> first = *reinterpret_cast<const Pack<T, COUNT / 2>*>(from + (second ? COUNT / 2 : 0));
        const Pack<T, COUNT / 2> last = *reinterpret_cast<const Pack<T, COUNT / 2>*>(from + (second ? 0 : COUNT / 2));
        Pack<S, COUNT> values;
#pragma unroll
        for (int k = 0; k < COUNT / 2; ++k) {
            const T one = first.value[k], other = last.value[k];
            values.value[k] = narrow<S>(second ? other : one);
            values.value[k + COUNT / 2] = narrow<S>(second ? one : other);
        }
        *reinterpret_cast<Pack<S, COUNT>*>(to) = values;
    }
}

// Where a region begins in shared memory: at the same place within 16 bytes of `array` as in memory.
template <class T, class S> __device__ S* begin_in(const Region& region, S* shared) {
    return shared + (region.first & (16 / sizeof(T) - 1));
}

// Calls whole(i) for the elements from i on that make one vector of 16 bytes of T, one(i) for single elements.
template <class T, class Whole, class One>
__device__ void over_region(const Region& region, const T* array, Whole whole, One one) {
    constexpr int kVector = 16 / sizeof(T);
    const int size = region.size();
    if (size == 0) return;
    if (region.one_run) {
        const int skew = int(region.first & (kVector - 1));
        const bool aligned = reinterpret_cast<uint64>(array) % 16 == 0;
#pragma unroll 2
        for (int v = threadIdx.x * kVector - skew; v < size; v += kPoolBlock * kVector) {
            if (aligned && v >= 0 && v + kVector <= size) {
                whole(v, region.first + v);
            } else {
                for (int i = max(v, 0); i < min(v + kVector, size); ++i) one(i, region.first + i);
            }
        }
        return;
    }
    const bool full_rows = region.length(2) == region.row;
    const int rows = full_rows ? 1 : region.length(1), length = region.size() / (region.length(0) * rows);
    int run = threadIdx.x / kWarpSize;
    for (int d = 0; d < region.length(0); ++d) {
        for (; run < (d + 1) * rows; run += kPoolWarps) {
            const int64 first = region.first + int64(d) * region.slice + (run - d * rows) * region.row;
            // A warp's lanes begin at a multiple of their number.
#pragma unroll 2
            for (int i = int(threadIdx.x % kWarpSize) - int(first % kWarpSize); i < length; i += kWarpSize) {
                if (i >= 0) one(run * length + i, first + i);
            }
        }
    }
}

// Copies a region of `array` to shared memory, and says where it begins there.
template <class S, class T> __device__ S* stage(const Region& region, const T* array, void* shared) {
    S* const to = begin_in<T>(region, static_cast<S*>(shared));
    over_region(
        region, array, [&](int i, int64 element) { move_vector<16 / sizeof(T)>(array + element, to + i); },
        [&](int i, int64 element) { to[i] = converted<S>(array[element]); });
    return to;
}

// The way back, from where `begin_in<T>` says.
template <class T, class S> __device__ void unstage(const Region& region, const S* from, T* array) {
    over_region(
        region, array, [&](int i, int64 element) { move_vector<16 / sizeof(T)>(from + i, array + element); },
        [&](int i, int64 element) { array[element] = converted<T>(from[i]); });
}

// A plane's elements, staged or in memory, by their coordinates in the plane.
template <class T> struct Volume {
    const T* origin;
    int64 plane_pitch;
    int slice_pitch, row_pitch;

    __device__ const T* row(int plane, int d, int h) const {
        return origin + plane * plane_pitch + int64(d) * slice_pitch + h * row_pitch;
    }
};

template <class T> __device__ Volume<T> staged_volume(const Region& region, const T* data) {
    const int row = region.length(2), slice = region.length(1) * row;
    return {data - (region.along[0].first * slice + region.along[1].first * row + region.along[2].first),
            int64(region.length(0)) * slice, slice, row};
}

template <class T> __device__ Volume<T> volume_in_memory(const T* data, int64 plane, int depth, int height, int width) {
    const int64 pitch = int64(depth) * height * width;
    return {data + plane * pitch, pitch, height * width, width};
}
