// Average-pooling of (N, C, H, W) and its gradient, which gathers from the windows that cover an element. Divisors are
// PyTorch's: with `count_include_pad` the part of a window inside the padded input, else its part inside the input.
#include "pool.cuh"

__device__ inline int counted(int out, int stride, int pad, int kernel, int size, bool include_pad) {
    const int start = out * stride - pad;
    const int stop = min(start + kernel, size + pad);
    return include_pad ? stop - start : min(stop, size) - max(start, 0);
}

// Elements that count in the window (p, q), for poolings without a divisor for all windows.
__device__ inline int counted_in(const Pool& pool, int p, int q) {
    const bool include_pad = pool.count_include_pad != 0;
    return counted(p, pool.stride_h, pool.pad_h, pool.kernel_h, pool.height, include_pad) *
           counted(q, pool.stride_w, pool.pad_w, pool.kernel_w, pool.width, include_pad);
}

template <class A>
__device__ A mean_of(const Pool& pool, A sum, int p, int q) {
    return sum / (pool.divisor != 0 ? A(pool.divisor) : A(counted_in(pool, p, q)));
}

template <class T, int KERNEL, int STRIDE, int PAD>
__global__ void __launch_bounds__(kPoolBlock, 4) avg_pool2d_fixed(
    const T* __restrict__ x, T* __restrict__ y, Pool pool) {
    constexpr int kOutputs = kColumns / STRIDE;
    constexpr int kRight = KERNEL - STRIDE - PAD;
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const T* plane = x + at.plane * pool.input_plane();
    const bool vectors = vectors_fit<kColumns>(x, pool.width);

    T taps[KERNEL][PAD + kColumns + kRight];
#pragma unroll
    for (int i = 0; i < KERNEL; ++i) {
        const Row<T> row(plane, at.row * STRIDE - PAD + i, pool.height, pool.width);
        load_span<PAD, kColumns, kRight>(row, at.group * kColumns, vectors, narrow<T>(Accumulator<T>(0)), taps[i]);
    }

    T means[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
        Accumulator<T> sum = 0;
#pragma unroll
        for (int i = 0; i < KERNEL; ++i) {
#pragma unroll
            for (int j = 0; j < KERNEL; ++j) sum += widen(taps[i][o * STRIDE + j]);
        }
        means[o] = narrow<T>(mean_of(pool, sum, at.row, at.group * kOutputs + o));
    }
    T* row = y + at.plane * pool.output_plane() + at.row * pool.out_width;
    store_span<kOutputs>(row, at.group * kOutputs, pool.out_width, pool.out_width % kOutputs == 0, means);
}

// Any window, shared by `lanes` neighbouring threads, a power of two up to a warp: one where windows are small.
template <class T>
__global__ void __launch_bounds__(kPoolBlock, 4) avg_pool2d_any(const T* __restrict__ x, T* __restrict__ y, Pool pool) {
    const int lane = threadIdx.x & (pool.lanes - 1);
    const int windows_per_block = blockDim.x / pool.lanes;
    const Place at = place_of(pool, blockIdx.x * windows_per_block + threadIdx.x / pool.lanes);
    const T* plane = x + at.plane * pool.input_plane();
    const int top = at.row * pool.stride_h - pool.pad_h;
    const int left = at.group * pool.stride_w - pool.pad_w;
    Accumulator<T> sum = 0;
    // Threads without a window stay, for the exchange between lanes.
    const int taps = at.inside ? pool.kernel_h * pool.kernel_w : 0;
    for (int tap = lane; tap < taps; tap += pool.lanes) {
        const int i = pool.by_kernel_w.divide(tap);
        const int h = top + i;
        const int w = left + tap - i * pool.kernel_w;
        if (within(h, pool.height) && within(w, pool.width)) sum += widen(plane[h * pool.width + w]);
    }
    for (int distance = pool.lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kFullWarp, sum, distance);
    if (at.inside && lane == 0) {
        y[at.plane * pool.output_plane() + at.row * pool.out_width + at.group] =
            narrow<T>(mean_of(pool, sum, at.row, at.group));
    }
}

template <class T, int KERNEL, int STRIDE, int PAD>
__global__ void __launch_bounds__(kPoolBlock, 4) avg_pool2d_input_grad_fixed(
    const T* __restrict__ dy, T* __restrict__ dx, Pool pool) {
    using Cover = FixedCovering<KERNEL, STRIDE, PAD>;
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const T* plane = dy + at.plane * pool.output_plane();
    const bool vectors = vectors_fit<Cover::kMiddle>(dy, pool.out_width);
    const int last = (at.row + PAD) / STRIDE;
    const int base = at.group * Cover::kMiddle;

    const bool common = pool.divisor != 0;
    Accumulator<T> share[Cover::kRows][Cover::kCount];
#pragma unroll
    for (int r = 0; r < Cover::kRows; ++r) {
        T gradient[Cover::kCount];
        const Row<T> row(plane, last - r, pool.out_height, pool.out_width);
        load_span<Cover::kLeft, Cover::kMiddle, Cover::kRight>(
            row, base, vectors, narrow<T>(Accumulator<T>(0)), gradient);
        const bool covers = at.row + PAD - (last - r) * STRIDE < KERNEL;
#pragma unroll
        for (int o = 0; o < Cover::kCount; ++o) {
            const int q = base - Cover::kLeft + o;
            Accumulator<T> value = covers ? widen(gradient[o]) : Accumulator<T>(0);
            if (!common && within(q, row.length)) value /= Accumulator<T>(counted_in(pool, last - r, q));
            share[r][o] = value;
        }
    }

    T sums[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
        Accumulator<T> sum = 0;
#pragma unroll
        for (int r = Cover::kRows - 1; r >= 0; --r) {
#pragma unroll
            for (int o = 0; o < Cover::kCount; ++o) {
                const int j = Cover::tap(c, o);
                if (j >= 0 && j < KERNEL) sum += share[r][o];
            }
        }
        sums[c] = narrow<T>(common ? sum / Accumulator<T>(pool.divisor) : sum);
    }
    T* row = dx + at.plane * pool.input_plane() + at.row * pool.width;
    store_span<kColumns>(row, at.group * kColumns, pool.width, pool.width % kColumns == 0, sums);
}

template <class T>
__global__ void __launch_bounds__(kPoolBlock, 4) avg_pool2d_input_grad_any(
    const T* __restrict__ dy, T* __restrict__ dx, Pool pool) {
    const Place at = place_of_thread(pool);
    if (!at.inside) return;
    const T* plane = dy + at.plane * pool.output_plane();
    const Covering rows(at.row + pool.pad_h, pool.kernel_h, pool.by_stride_h, pool.out_height);
    const Covering columns(at.group + pool.pad_w, pool.kernel_w, pool.by_stride_w, pool.out_width);
    const bool common = pool.divisor != 0;
    Accumulator<T> sum = 0;
    for (int p = rows.first; p < rows.stop; ++p) {
#pragma unroll 2
        for (int q = columns.first; q < columns.stop; ++q) {
            const Accumulator<T> value = widen(plane[p * pool.out_width + q]);
            sum += common ? value : value / Accumulator<T>(counted_in(pool, p, q));
        }
    }
    dx[at.plane * pool.input_plane() + at.row * pool.width + at.group] =
        narrow<T>(common ? sum / Accumulator<T>(pool.divisor) : sum);
}
