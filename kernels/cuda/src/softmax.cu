// Softmax and its logarithm over the middle dimension of (outer, size, inner), and their gradients from the result:
//
//     softmax      y = exp(x - most) / sum                dx = y (dy - sum(dy y))
//     log_softmax  y = x - most - log(sum)                dx = dy - exp(y) sum(dy)
//
// With inner = 1 the elements of a softmax are a row, shared by neighbouring threads. Else they are a column: threadIdx.x
// goes along the columns, so that neighbours touch neighbours, and threadIdx.y shares a column.
#include "softmax.cuh"

struct SoftmaxShape {
    int64 outer;  // of rows, how many; of columns, how many times `inner` there are
    int64 inner;
    int size;
    int log;
    int shared_steps;  // of long rows
};

// What turns x into y.
template <class T> struct Result {
    using A = Accumulator<T>;
    A shift, factor, log_sum;
    bool log;

    __device__ Result(const Softmax<A, false>& seen, bool log)
        : shift(seen.reference()), factor(1 / seen.sum), log_sum(log ? A(::log(seen.sum)) : A(0)), log(log) {}

    __device__ A of(A x) const { return log ? x - shift - log_sum : exponential<T>(x - shift) * factor; }
};

// Adds values, none above seen.most, to what has been seen.
template <class T, int COUNT>
__device__ void see(Softmax<Accumulator<T>, false>& seen, const Accumulator<T> (&x)[COUNT]) {
    const Accumulator<T> reference = seen.reference();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) seen.sum += exponential<T>(x[i] - reference);
}

// Rows of up to ITEMS columns a thread, which stay in registers.
template <class T, int ITEMS>
__global__ void __launch_bounds__(kRowBlock, 1)
    softmax_rows(const T* __restrict__ x, T* __restrict__ y, SoftmaxShape shape) {
    using A = Accumulator<T>;
    constexpr int kSteps = ITEMS / kVector<T>;
    __shared__ Softmax<A, false> of_warps[kMaxWarps];
    for (int64 first = int64(blockIdx.x) * blockDim.y; first < shape.outer; first += int64(gridDim.x) * blockDim.y) {
        const int64 at = first + threadIdx.y;
        const bool exists = at < shape.outer;  // threads beyond the last row stay, for the exchanges
        const T* row = x + (exists ? at : 0) * shape.size;
        Columns<kVector<T>> columns(row, exists ? shape.size : 0);
        Vector<T> packs[kSteps];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) packs[step] = load(columns, row, step, narrow<T>(-infinity<A>()));
        A values[kSteps][kVector<T>];
        auto seen = Softmax<A, false>::nothing();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) seen.most = widened(packs[step], seen.most, values[step]);
        const A own = seen.most, reference = seen.reference();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                const A power = exponential<T>(values[step][i] - reference);
                seen.sum += power;
                values[step][i] = shape.log ? values[step][i] : power;
            }
        }
        seen = merge_row(seen, of_warps);
        columns.forget_places();
        const A to_row = own == -infinity<A>() ? A(1) : exp(own - seen.most);
        const A most = shape.log ? seen.reference() : A(0), factor = shape.log ? A(1) : to_row / seen.sum;
        const A log_sum = shape.log ? log(seen.sum) : A(0);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                values[step][i] = (values[step][i] - most) * factor - log_sum;
            }
            store(columns, y + (exists ? at : 0) * shape.size, step, values[step]);
        }
    }
}

// Rows of any length.
template <class T>
__global__ void __launch_bounds__(kRowBlock, 1)
    softmax_long_rows(const T* __restrict__ x, T* __restrict__ y, SoftmaxShape shape) {
    using A = Accumulator<T>;
    DYNAMIC_SHARED(memory);
    __shared__ Softmax<A, false> of_warps[kMaxWarps];
    for (int64 at = blockIdx.x; at < shape.outer; at += gridDim.x) {
        const T* const row[] = {x + at * shape.size};
        TwiceRead<T, 1, 4> parts(row, shape.size, narrow<T>(-infinity<A>()), memory, shape.shared_steps);
        auto seen = Softmax<A, false>::nothing();
        parts.first_pass([&](int, const Vector<T>(&packs)[1]) {
            A values[kVector<T>];
            seen.raise(widened(packs[0], seen.most, values));
            see<T>(seen, values);
        });
        seen = merge_row(seen, of_warps);
        const Result<T> result(seen, shape.log);
        parts.second_pass([&](int step, const Vector<T>(&packs)[1]) {
            A values[kVector<T>];
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) values[i] = result.of(widen(packs[0].value[i]));
            store(parts.columns, y + at * shape.size, step, values);
        });
    }
}

// What a gradient's sum takes of one element, and the gradient.
template <class A> __device__ A term(bool log, A y, A dy) { return log ? dy : dy * y; }
template <class T> __device__ Accumulator<T> gradient(bool log, Accumulator<T> y, Accumulator<T> dy, Accumulator<T> sum) {
    return log ? dy - exponential<T>(y) * sum : y * (dy - sum);
}

template <class T, int ITEMS>
__global__ void __launch_bounds__(kRowBlock, 1)
    softmax_input_grad_rows(const T* __restrict__ y, const T* __restrict__ dy, T* __restrict__ dx, SoftmaxShape shape) {
    using A = Accumulator<T>;
    constexpr int kSteps = ITEMS / kVector<T>;
    __shared__ Sum<A> of_warps[kMaxWarps];
    for (int64 first = int64(blockIdx.x) * blockDim.y; first < shape.outer; first += int64(gridDim.x) * blockDim.y) {
        const int64 at = first + threadIdx.y;
        const bool exists = at < shape.outer;
        const int64 from = (exists ? at : 0) * shape.size;
        Columns<kVector<T>> columns(y + from, exists ? shape.size : 0);
        Vector<T> ys[kSteps], dys[kSteps];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            ys[step] = load(columns, y + from, step, narrow<T>(0));
            dys[step] = load(columns, dy + from, step, narrow<T>(0));
        }
        Sum<A> sum = {0};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                sum.value += term<A>(shape.log, widen(ys[step].value[i]), widen(dys[step].value[i]));
            }
        }
        sum = merge_row(sum, of_warps);
        columns.forget_places();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            A dxs[kVector<T>];
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                dxs[i] = gradient<T>(shape.log, widen(ys[step].value[i]), widen(dys[step].value[i]), sum.value);
            }
            store(columns, dx + from, step, dxs);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kRowBlock, 1) softmax_input_grad_long_rows(
    const T* __restrict__ y, const T* __restrict__ dy, T* __restrict__ dx, SoftmaxShape shape) {
    using A = Accumulator<T>;
    DYNAMIC_SHARED(memory);
    __shared__ Sum<A> of_warps[kMaxWarps];
    for (int64 at = blockIdx.x; at < shape.outer; at += gridDim.x) {
        const T* const row[] = {y + at * shape.size, dy + at * shape.size};
        TwiceRead<T, 2, 2> parts(row, shape.size, narrow<T>(0), memory, shape.shared_steps);
        Sum<A> sum = {0};
        parts.first_pass([&](int, const Vector<T>(&packs)[2]) {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                sum.value += term<A>(shape.log, widen(packs[0].value[i]), widen(packs[1].value[i]));
            }
        });
        sum = merge_row(sum, of_warps);
        parts.second_pass([&](int step, const Vector<T>(&packs)[2]) {
            A dxs[kVector<T>];
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                dxs[i] = gradient<T>(shape.log, widen(packs[0].value[i]), widen(packs[1].value[i]), sum.value);
            }
            store(parts.columns, dx + at * shape.size, step, dxs);
        });
    }
}

// This thread's part of a column: every blockDim.y-th of its elements, the first ones of them kept in registers.
constexpr int kColumnBlock = 512, kColumnItems = 16;

struct Column {
    bool exists;
    int64 from;  // its first element
    int64 step;  // to the thread's next one
    int size;

    __device__ Column(const SoftmaxShape& shape, int64 number)
        : exists(number < shape.outer * shape.inner), step(blockDim.y * shape.inner), size(shape.size) {
        const int64 outer = exists ? number / shape.inner : 0;
        const int64 lane = exists ? number - outer * shape.inner : 0;
        from = (outer * size + threadIdx.y) * shape.inner + lane;
    }

    __device__ bool has(int item) const { return exists && int(threadIdx.y) + item * int(blockDim.y) < size; }
    __device__ int64 at(int item) const { return from + item * step; }
};

// Merges what the threads of a column have seen, in the order of threadIdx.y; each of them gets the result.
template <class S, class Merge> __device__ S merge_column(S seen, S* of_threads, Merge merge) {
    if (blockDim.y == 1) return seen;
    of_threads += threadIdx.x;
    of_threads[threadIdx.y * blockDim.x] = seen;
    __syncthreads();
    seen = of_threads[0];
    for (int i = 1; i < int(blockDim.y); ++i) merge(seen, of_threads[i * blockDim.x]);
    __syncthreads();  // before the next column's are written
    return seen;
}

template <class T>
__global__ void __launch_bounds__(kColumnBlock, 1)
    softmax_columns(const T* __restrict__ x, T* __restrict__ y, SoftmaxShape shape) {
    using A = Accumulator<T>;
    using Seen = Softmax<A, false>;
    __shared__ Seen of_threads[kColumnBlock];
    const int64 columns = shape.outer * shape.inner;
    for (int64 first = int64(blockIdx.x) * blockDim.x; first < columns; first += int64(gridDim.x) * blockDim.x) {
        const Column column(shape, first + threadIdx.x);
        A kept[kColumnItems];
        Seen seen = Seen::nothing();
#pragma unroll
        for (int i = 0; i < kColumnItems; ++i) kept[i] = column.has(i) ? widen(x[column.at(i)]) : -infinity<A>();
#pragma unroll
        for (int i = 0; i < kColumnItems; ++i) seen.most = kept[i] > seen.most ? kept[i] : seen.most;
        see<T>(seen, kept);
        for (int i = kColumnItems; column.has(i); ++i) {
            const A value[] = {widen(x[column.at(i)])};
            seen.raise(value[0]);
            see<T>(seen, value);
        }
        seen = merge_column(seen, of_threads, [](Seen& all, const Seen& other) { all.merge(other); });
        const Result<T> result(seen, shape.log);
#pragma unroll
        for (int i = 0; i < kColumnItems; ++i) {
            if (column.has(i)) y[column.at(i)] = narrow<T>(result.of(kept[i]));
        }
        for (int i = kColumnItems; column.has(i); ++i) y[column.at(i)] = narrow<T>(result.of(widen(x[column.at(i)])));
    }
}

template <class T>
__global__ void __launch_bounds__(kColumnBlock, 1) softmax_input_grad_columns(
    const T* __restrict__ y, const T* __restrict__ dy, T* __restrict__ dx, SoftmaxShape shape) {
    using A = Accumulator<T>;
    __shared__ A of_threads[kColumnBlock];
    const int64 columns = shape.outer * shape.inner;
    for (int64 first = int64(blockIdx.x) * blockDim.x; first < columns; first += int64(gridDim.x) * blockDim.x) {
        const Column column(shape, first + threadIdx.x);
        T ys[kColumnItems], dys[kColumnItems];
#pragma unroll
        for (int i = 0; i < kColumnItems; ++i) {
            ys[i] = column.has(i) ? y[column.at(i)] : narrow<T>(0);
            dys[i] = column.has(i) ? dy[column.at(i)] : narrow<T>(0);
        }
        A sum = 0;
#pragma unroll
        for (int i = 0; i < kColumnItems; ++i) sum += term<A>(shape.log, widen(ys[i]), widen(dys[i]));
        for (int i = kColumnItems; column.has(i); ++i) {
            const int64 at = column.at(i);
            sum += term<A>(shape.log, shape.log ? A(0) : widen(y[at]), widen(dy[at]));
        }
        sum = merge_column(sum, of_threads, [](A& all, A other) { all += other; });
#pragma unroll
        for (int i = 0; i < kColumnItems; ++i) {
            if (column.has(i)) dx[column.at(i)] = narrow<T>(gradient<T>(shape.log, widen(ys[i]), widen(dys[i]), sum));
        }
        for (int i = kColumnItems; column.has(i); ++i) {
            const int64 at = column.at(i);
            dx[at] = narrow<T>(gradient<T>(shape.log, widen(y[at]), widen(dy[at]), sum));
        }
    }
}
