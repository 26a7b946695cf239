// Max-pooling of (N, C, H, W), its gradient, and what else its offsets are good for. An offset is a maximum's position
// i * kernel_w + j inside its window. The gradient gathers from the windows that cover an element, so that it needs no
// atomics and repeats bit for bit.
#include "pool.cuh"

// Marks an output beyond the edge: no offset inside the window of a `_fixed` kernel.
constexpr uint8 kNoOffset = 255;

__device__ inline int load_offset(const void* offsets, int64 i, int bytes) {
    if (bytes == 1) return static_cast<const uint8*>(offsets)[i];
    if (bytes == 2) return static_cast<const int16*>(offsets)[i];
    return static_cast<const int32*>(offsets)[i];
}

__device__ inline void store_offset(void* offsets, int64 i, int bytes, int offset) {
    if (bytes == 1) {
        static_cast<uint8*>(offsets)[i] = uint8(offset);
    } else if (bytes == 2) {
        static_cast<int16*>(offsets)[i] = int16(offset);
    } else {
        static_cast<int32*>(offsets)[i] = offset;
    }
}

// PyTorch's rule: a NaN wins, the last of several; of equal values the first.
template <class A>
__device__ bool replaces(A value, A best) {
    return value > best || value != value;
}

template <class T, int KERNEL, int STRIDE, int PAD>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool2d_fixed(
    const T* __restrict__ x, T* __restrict__ y, uint8* __restrict__ offsets, Pool pool) {
    constexpr int kOutputs = kColumns / STRIDE;
    constexpr int kRight = KERNEL - STRIDE - PAD;
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const T* plane = x + at.plane * pool.input_plane();
    const bool vectors = vectors_fit<kColumns>(x, pool.width);
    const int left = at.group * kColumns;
    const int top = at.row * STRIDE - PAD;
    const Accumulator<T> lowest = -infinity<Accumulator<T>>();

    T taps[KERNEL][PAD + kColumns + kRight];
#pragma unroll
    for (int i = 0; i < KERNEL; ++i) {
        const Row<T> row(plane, top + i, pool.height, pool.width);
        load_span<PAD, kColumns, kRight>(row, left, vectors, narrow<T>(lowest), taps[i]);
    }

    T best[kOutputs];
    uint8 offset[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
        Accumulator<T> most = lowest;
        // The first tap inside the input: nothing replaces it where there is only -inf.
        int found = max(-top, 0) * KERNEL + max(PAD - left - o * STRIDE, 0);
#pragma unroll
        for (int i = 0; i < KERNEL; ++i) {
#pragma unroll
            for (int j = 0; j < KERNEL; ++j) {
                const Accumulator<T> value = widen(taps[i][o * STRIDE + j]);
                if (replaces(value, most)) {
                    most = value;
                    found = i * KERNEL + j;
                }
            }
        }
        best[o] = narrow<T>(most);
        offset[o] = uint8(found);
    }
    const int64 out = at.plane * pool.output_plane() + at.row * pool.out_width;
    const bool out_vectors = pool.out_width % kOutputs == 0;
    store_span<kOutputs>(y + out, at.group * kOutputs, pool.out_width, out_vectors, best);
    store_span<kOutputs>(offsets + out, at.group * kOutputs, pool.out_width, out_vectors, offset);
}

template <class T>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool2d_any(
    const T* __restrict__ x, T* __restrict__ y, void* __restrict__ offsets, Pool pool) {
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const T* plane = x + at.plane * pool.input_plane();
    const int top = at.row * pool.stride_h - pool.pad_h;
    const int left = at.group * pool.stride_w - pool.pad_w;
    Accumulator<T> most = -infinity<Accumulator<T>>();
    int found = -1;
    for (int i = 0; i < pool.kernel_h; ++i) {
        const int h = top + i * pool.dilation_h;
        if (!within(h, pool.height)) continue;
        for (int j = 0; j < pool.kernel_w; ++j) {
            const int w = left + j * pool.dilation_w;
            if (!within(w, pool.width)) continue;
            const Accumulator<T> value = widen(plane[h * pool.width + w]);
            if (found < 0 || replaces(value, most)) {
                most = value;
                found = i * pool.kernel_w + j;
            }
        }
    }
    const int64 out = at.plane * pool.output_plane() + at.row * pool.out_width + at.group;
    y[out] = narrow<T>(most);
    store_offset(offsets, out, pool.offset_bytes, found);
}

template <class T, int KERNEL, int STRIDE, int PAD>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool2d_scatter_fixed(
    const T* __restrict__ dy, const uint8* __restrict__ offsets, T* __restrict__ dx, Pool pool) {
    using Cover = FixedCovering<KERNEL, STRIDE, PAD>;
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const int64 out = at.plane * pool.output_plane();
    const bool dy_vectors = vectors_fit<Cover::kMiddle>(dy, pool.out_width);
    const bool offset_vectors = vectors_fit<Cover::kMiddle>(offsets, pool.out_width);
    const int last = (at.row + PAD) / STRIDE;

    T gradient[Cover::kRows][Cover::kCount];
    uint8 offset[Cover::kRows][Cover::kCount];
#pragma unroll
    for (int r = 0; r < Cover::kRows; ++r) {
        const Row<T> dy_row(dy + out, last - r, pool.out_height, pool.out_width);
        const Row<uint8> offset_row(offsets + out, last - r, pool.out_height, pool.out_width);
        const int base = at.group * Cover::kMiddle;
        load_span<Cover::kLeft, Cover::kMiddle, Cover::kRight>(
            dy_row, base, dy_vectors, narrow<T>(Accumulator<T>(0)), gradient[r]);
        load_span<Cover::kLeft, Cover::kMiddle, Cover::kRight>(
            offset_row, base, offset_vectors, kNoOffset, offset[r]);
    }

    T sums[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
        Accumulator<T> sum = 0;
#pragma unroll
        for (int r = Cover::kRows - 1; r >= 0; --r) {
            const int i = at.row + PAD - (last - r) * STRIDE;
#pragma unroll
            for (int o = 0; o < Cover::kCount; ++o) {
                const int j = Cover::tap(c, o);
                if (j < 0 || j >= KERNEL) continue;
                sum += offset[r][o] == i * KERNEL + j ? widen(gradient[r][o]) : Accumulator<T>(0);
            }
        }
        sums[c] = narrow<T>(sum);
    }
    T* row = dx + at.plane * pool.input_plane() + at.row * pool.width;
    store_span<kColumns>(row, at.group * kColumns, pool.width, pool.width % kColumns == 0, sums);
}

template <class T>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool2d_scatter_any(
    const T* __restrict__ dy, const void* __restrict__ offsets, T* __restrict__ dx, Pool pool) {
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const int64 out = at.plane * pool.output_plane();
    const int h = at.row + pool.pad_h;
    const int w = at.group + pool.pad_w;
    const Covering rows(h, (pool.kernel_h - 1) * pool.dilation_h + 1, pool.by_stride_h, pool.out_height);
    const Covering columns(w, (pool.kernel_w - 1) * pool.dilation_w + 1, pool.by_stride_w, pool.out_width);
    Accumulator<T> sum = 0;
    for (int p = rows.first; p < rows.stop; ++p) {
        for (int q = columns.first; q < columns.stop; ++q) {
            const int64 window = out + p * pool.out_width + q;
            const int offset = load_offset(offsets, window, pool.offset_bytes);
            const int i = pool.by_kernel_w.divide(offset);
            const int j = offset - i * pool.kernel_w;
            if (p * pool.stride_h + i * pool.dilation_h == h && q * pool.stride_w + j * pool.dilation_w == w) {
                sum += widen(dy[window]);
            }
        }
    }
    dx[at.plane * pool.input_plane() + at.row * pool.width + at.group] = narrow<T>(sum);
}

// The position in the input plane that an output's offset points to; -1 where it points beyond the edge.
__device__ inline int64 position_of(const Pool& pool, const Place& at, const void* offsets) {
    const int64 out = at.plane * pool.output_plane() + at.row * pool.out_width + at.group;
    const int offset = load_offset(offsets, out, pool.offset_bytes);
    const int i = pool.by_kernel_w.divide(offset);
    const int j = offset - i * pool.kernel_w;
    const int h = at.row * pool.stride_h - pool.pad_h + i * pool.dilation_h;
    const int w = at.group * pool.stride_w - pool.pad_w + j * pool.dilation_w;
    return within(h, pool.height) && within(w, pool.width) ? int64(h) * pool.width + w : -1;
}

template <class T>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool2d_gather(
    const T* __restrict__ x, const void* __restrict__ offsets, T* __restrict__ y, Pool pool) {
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const int64 position = position_of(pool, at, offsets);
    y[at.plane * pool.output_plane() + at.row * pool.out_width + at.group] =
        position < 0 ? narrow<T>(Accumulator<T>(0)) : x[at.plane * pool.input_plane() + position];
}

template <class Index>
__global__ void __launch_bounds__(kPoolBlock, 4) max_pool2d_indices(
    const void* __restrict__ offsets, Index* __restrict__ indices, Pool pool) {
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    indices[at.plane * pool.output_plane() + at.row * pool.out_width + at.group] = position_of(pool, at, offsets);
}
