// What the pooling kernels share: the description of a pooling, the place of a thread in it, and rows moved as vectors.
#include "common.cuh"

constexpr int kPoolBlock = 256;
// Input columns that a thread of a `_fixed` kernel takes: it makes kColumns / STRIDE outputs of them, or their gradients.
constexpr int kColumns = 4;

// n / divisor for 0 <= n < 2^31 as a multiplication: multiplier = 2^shift / divisor + 1, shift = 31 + ceil(log2(divisor)).
struct Divisor {
    uint32 multiplier;
    int shift;

    __device__ int divide(int n) const { return int(uint64(n) * multiplier >> shift); }
};

// One pooling. Its threads are numbered over (plane, row, group of columns) within a slab of planes, and blockIdx.y is the
// slab: so a number fits in 31 bits however many planes there are.
struct Pool {
    int64 planes;
    int planes_per_slab;
    int rows, groups;
    Divisor by_rows, by_groups;
    int height, width;
    int out_height, out_width;
    int kernel_h, kernel_w;
    int stride_h, stride_w;
    int pad_h, pad_w;
    int dilation_h, dilation_w;
    Divisor by_kernel_w, by_stride_h, by_stride_w;
    int offset_bytes;       // of one stored offset of a maximum: 1, 2 or 4
    int count_include_pad;  // for an average with divisor 0
    int lanes;              // threads that share one window of an average
    double divisor;         // of every window of an average, or 0 where each has its own

    __device__ int64 input_plane() const { return int64(height) * width; }
    __device__ int64 output_plane() const { return int64(out_height) * out_width; }
};

struct Place {
    int64 plane;
    int row, group;
    bool inside;
};

__device__ inline Place place_of(const Pool& pool, uint32 number) {
    Place at = {0, 0, 0, number < uint32(pool.planes_per_slab) * pool.rows * pool.groups};
    if (at.inside) {
        const int row = pool.by_groups.divide(int(number));
        const int plane = pool.by_rows.divide(row);
        at.group = int(number) - row * pool.groups;
        at.row = row - plane * pool.rows;
        at.plane = int64(blockIdx.y) * pool.planes_per_slab + plane;
        at.inside = at.plane < pool.planes;
    }
    return at;
}

__device__ inline Place place_of_thread(const Pool& pool) {
    return place_of(pool, blockIdx.x * blockDim.x + threadIdx.x);
}

__device__ inline bool within(int position, int length) {
    return uint32(position) < uint32(length);
}

// The outputs of one axis whose windows reach over `position` (counted from the start of the padding): [first, stop).
struct Covering {
    int first, stop;

    __device__ Covering(int position, int extent, Divisor by_stride, int count)
        : first(position < extent ? 0 : by_stride.divide(position - extent) + 1),
          stop(min(by_stride.divide(position) + 1, count)) {}
};

// For the gradients of kColumns input columns from a multiple of kColumns on: the windows that cover them are, for any
// such place, kLeft before, kMiddle at, and kRight behind the output that belongs to it.
template <int KERNEL, int STRIDE, int PAD>
struct FixedCovering {
    static constexpr int kMiddle = kColumns / STRIDE;
    static constexpr int kLeft = (KERNEL - 1 - PAD) / STRIDE;
    static constexpr int kRight = (kColumns - 1 + PAD) / STRIDE - kMiddle + 1;
    static constexpr int kCount = kLeft + kMiddle + kRight;
    // Windows that cover a row, at most.
    static constexpr int kRows = (KERNEL + STRIDE - 1) / STRIDE;

    // The tap of the given window that lies on the given column; outside [0, KERNEL) where it does not cover it.
    __device__ static constexpr int tap(int column, int window) { return column + PAD - (window - kLeft) * STRIDE; }
};

// One row of a plane. A row beyond the edge has the length 0, so that all of its elements lie beyond the edge.
template <class T>
struct Row {
    const T* data;
    int length;

    __device__ Row(const T* plane, int row, int height, int width)
        : data(plane + int64(within(row, height) ? row : 0) * width),
          length(within(row, height) ? width : 0) {}
};

// Whether rows of `length` elements can be moved as vectors of COUNT.
template <int COUNT, class T>
__device__ bool vectors_fit(const T* array, int length) {
    return length % COUNT == 0 && reinterpret_cast<uint64>(array) % sizeof(Pack<T, COUNT>) == 0;
}

// The elements [base - LEFT, base + MIDDLE + RIGHT) of a row, `outside` for those beyond its edges.
template <int LEFT, int MIDDLE, int RIGHT, class T>
__device__ void load_span(Row<T> row, int base, bool vectors, T outside, T (&span)[LEFT + MIDDLE + RIGHT]) {
    if (vectors) {
        Pack<T, MIDDLE> middle;
#pragma unroll
        for (int i = 0; i < MIDDLE; ++i) middle.value[i] = outside;
        if (base < row.length) middle = *reinterpret_cast<const Pack<T, MIDDLE>*>(row.data + base);
#pragma unroll
        for (int i = 0; i < MIDDLE; ++i) span[LEFT + i] = middle.value[i];
    }
#pragma unroll
    for (int i = 0; i < LEFT + MIDDLE + RIGHT; ++i) {
        if (i >= LEFT && i < LEFT + MIDDLE && vectors) continue;
        const int column = base - LEFT + i;
        span[i] = within(column, row.length) ? row.data[column] : outside;
    }
}

template <int COUNT, class T>
__device__ void store_span(T* row, int base, int length, bool vectors, const T (&span)[COUNT]) {
    if (vectors) {
        Pack<T, COUNT> pack;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) pack.value[i] = span[i];
        *reinterpret_cast<Pack<T, COUNT>*>(row + base) = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        if (base + i < length) row[base + i] = span[i];
    }
}
