// Layer normalisation (Ba, Kiros & Hinton, 2016) and RMS normalisation (Zhang & Sennrich, 2019) of rows (rows, size).
//
// With n = (x - mean) rstd and g = dy weight, dx = rstd (g - <g> - n <g n>), <> the mean of a row; weight gets the sum of dy n
// over the rows, bias that of dy. RMS normalisation is the same with a mean of 0, about which nothing is subtracted.
#include "row_norm.cuh"

struct LayerNorm {
    int64 rows;
    double eps;
    int size;
    int centred;  // layer normalisation
    int vectors;  // rows are whole vectors, and all arrays begin at one
    int wide;     // weight and bias are float beside a half type
    int64 partial_stride;
};

// Statistics are those of the distances from the row's first value: numbers that lie close together far from 0 lose nothing.
template <class T> __device__ Accumulator<T> pivot_of(const LayerNorm& norm, const T* row) {
    return norm.centred && norm.size > 0 ? widen(*row) : Accumulator<T>(0);
}

// Of a row from the moments of its distances from `pivot`.
template <class A> struct Statistics {
    A pivot, mean, rstd;  // the mean of the distances

    __device__ Statistics(const LayerNorm& norm, A pivot, const Moments<A>& seen)
        : pivot(pivot),
          mean(norm.centred ? seen.mean : A(0)),
          rstd(inverse_root(seen.variance() + (norm.centred ? A(0) : seen.mean * seen.mean) + A(norm.eps))) {}

    __device__ void store(A* means, A* rstds, int64 row) const {
        if (threadIdx.x != 0) return;
        if (means) means[row] = pivot + mean;
        rstds[row] = rstd;
    }
};

template <class T>
__device__ void store_normal(const Places<T>& places, const Vector<T>& weight, const Vector<T>& bias, T* y, int step,
                             const Statistics<Accumulator<T>>& row, Accumulator<T> (&x)[kVector<T>]) {
    Accumulator<T> w[kVector<T>], b[kVector<T>];
    weight.load(places, 0, step, 1, w);
    bias.load(places, 0, step, 0, b);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) x[i] = (x[i] - row.mean) * row.rstd * w[i] + b[i];
    places.store(y, step, x);
}

// Rows of up to ITEMS columns a thread, which stay in registers from the read to the result. A thread has one row only: in a
// loop, weight and bias would be kept in registers.
template <class T, int ITEMS>
__global__ void __launch_bounds__(kRowBlock, 1) layer_norm_rows(
    const T* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias, T* __restrict__ y,
    Accumulator<T>* __restrict__ means, Accumulator<T>* __restrict__ rstds, LayerNorm norm) {
    using A = Accumulator<T>;
    constexpr int kSteps = ITEMS / kVector<T>;
    __shared__ Moments<A> of_warps[kMaxWarps];
    const Places<T> places(threadIdx.x, blockDim.x, norm.size, norm.vectors);
    const int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool exists = row < norm.rows;  // threads beyond the last row stay, for the exchanges
    x += (exists ? row : 0) * norm.size;
    const A pivot = pivot_of(norm, x);
    T stored[kSteps][kVector<T>];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) places.load(x, step, stored[step]);
    A values[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) values[i] = widen(stored[i / kVector<T>][i % kVector<T>]) - pivot;
    const auto has = [&](int i) { return places.has(i / kVector<T>, i % kVector<T>); };
    const Statistics<A> of(norm, pivot, row_merge(moments_of(values, has), of_warps));
    const Places<T> same = places.again();
    if (!exists) return;
    of.store(means, rstds, row);
    const Vector<T> weights = {weight, bool(norm.wide)}, biases = {bias, bool(norm.wide)};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        A part[kVector<T>];
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) part[i] = values[step * kVector<T> + i];
        store_normal(same, weights, biases, y + row * norm.size, step, of, part);
    }
}

// Rows of any length, one a block, read twice.
template <class T>
__global__ void __launch_bounds__(kRowBlock, 1) layer_norm_long_rows(
    const T* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias, T* __restrict__ y,
    Accumulator<T>* __restrict__ means, Accumulator<T>* __restrict__ rstds, LayerNorm norm) {
    using A = Accumulator<T>;
    __shared__ Moments<A> of_warps[kMaxWarps];
    const Places<T> places(threadIdx.x, blockDim.x, norm.size, norm.vectors);
    const int64 row = blockIdx.x;
    x += row * norm.size;
    const A pivot = pivot_of(norm, x);
    T stored[kVector<T>];
    A values[kVector<T>];
    auto seen = Moments<A>::nothing();
    for (int step = 0; places.has(step); ++step) {
        places.load(x, step, stored);
        widen_all(stored, values, pivot);
        seen.merge(moments_of(values, [&](int i) { return places.has(step, i); }));
    }
    const Statistics<A> of(norm, pivot, row_merge(seen, of_warps));
    of.store(means, rstds, row);
    const Vector<T> weights = {weight, bool(norm.wide)}, biases = {bias, bool(norm.wide)};
    for (int step = 0; places.has(step); ++step) {
        places.load(x, step, stored);
        widen_all(stored, values, pivot);
        store_normal(places, weights, biases, y + row * norm.size, step, of, values);
    }
}

// What the gradient needs of one row.
template <class T> struct GradRow {
    using A = Accumulator<T>;
    A mean, rstd;
    A level = 0, slope = 0;  // the means of g and of g n

    __device__ GradRow(const LayerNorm& norm, const A* means, const A* rstds, int64 row, bool exists)
        : mean(exists && norm.centred ? means[row] : A(0)), rstd(exists ? rstds[row] : A(0)) {}

    __device__ A normal(T x) const { return (widen(x) - mean) * rstd; }

    __device__ void add(Sums<A>& sums, const T (&dy)[kVector<T>], const T (&x)[kVector<T>], const A (&w)[kVector<T>]) const {
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            const A g = widen(dy[i]) * w[i];
            sums.merge({g, g * normal(x[i])});
        }
    }

    __device__ void finish(const LayerNorm& norm, const Sums<A>& sums) {
        level = norm.centred ? sums.first / norm.size : A(0);
        slope = sums.second / norm.size;
    }

    // One step of dx; and what the step adds to the sums of weight and bias.
    __device__ void gradient(const T (&dy)[kVector<T>], const T (&x)[kVector<T>], const A (&w)[kVector<T>],
                             A (&dx)[kVector<T>], A (&by_weight)[kVector<T>], A (&by_bias)[kVector<T>]) const {
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            const A g = widen(dy[i]), n = normal(x[i]);
            dx[i] = rstd * (g * w[i] - level - n * slope);
            by_weight[i] += g * n;
            by_bias[i] += g;
        }
    }
};

// Which threads of a block of several rows add up what all of them have for one column: groups of a warp, or of a row where that is
// longer, take turns, and in a group the threads of its first row.
struct Turns {
    int count, own;
    bool leads;

    __device__ Turns() {
        const int lanes = blockDim.x, group = max(lanes, kWarpSize);
        const int thread = threadIdx.y * lanes + threadIdx.x;
        count = lanes * blockDim.y / group;
        own = thread / group;
        leads = thread % group < lanes;
    }

    __device__ bool last() const { return leads && own == count - 1; }
};

// Adds each thread's sums over the rows of the block; those of turns.last() get the result.
template <class A, int STEPS, int N>
__device__ void add_rows(const Turns& turns, A (&sums)[STEPS][N], A* shared) {
    const int lanes = blockDim.x;
    for (int distance = lanes; distance < kWarpSize; distance *= 2) {
#pragma unroll
        for (int i = 0; i < STEPS * N; ++i) sums[i / N][i % N] += __shfl_xor_sync(kFullWarp, sums[i / N][i % N], distance);
    }
    if (turns.count == 1) return;
    for (int turn = 0; turn < turns.count; ++turn) {
        if (turns.leads && turns.own == turn) {
#pragma unroll
            for (int i = 0; i < STEPS * N; ++i) {
                A& place = shared[i * lanes + threadIdx.x];
                if (turn > 0) sums[i / N][i % N] += place;
                place = sums[i / N][i % N];
            }
        }
        __syncthreads();
    }
}

// Rows of up to ITEMS columns a thread, whose x and dy stay in registers. Each block leaves its sums for weight and bias in
// `partials`, null where they are not wanted.
template <class T, int ITEMS>
__global__ void __launch_bounds__(kRowBlock, 1) layer_norm_grad_rows(
    const T* __restrict__ dy, const T* __restrict__ x, const void* __restrict__ weight,
    const Accumulator<T>* __restrict__ means, const Accumulator<T>* __restrict__ rstds, T* __restrict__ dx,
    Accumulator<T>* __restrict__ partials, LayerNorm norm) {
    using A = Accumulator<T>;
    constexpr int kSteps = ITEMS / kVector<T>;
    __shared__ Sums<A> of_warps[kMaxWarps];
    __shared__ A of_rows[kBlock / 2 * ITEMS];  // rows that share a block have at most half of its threads
    const Places<T> places(threadIdx.x, blockDim.x, norm.size, norm.vectors);
    const Vector<T> weights = {weight, bool(norm.wide)};
    A w[kSteps][kVector<T>], by_weight[kSteps][kVector<T>] = {}, by_bias[kSteps][kVector<T>] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) weights.load(places, 0, step, 1, w[step]);
    for (int64 first = int64(blockIdx.x) * blockDim.y; first < norm.rows; first += int64(gridDim.x) * blockDim.y) {
        const int64 row = first + threadIdx.y;
        const bool exists = row < norm.rows;
        const int64 offset = (exists ? row : 0) * norm.size;
        T upstream[kSteps][kVector<T>], given[kSteps][kVector<T>];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            places.load(dy + offset, step, upstream[step]);
            places.load(x + offset, step, given[step]);
        }
        GradRow<T> of(norm, means, rstds, row, exists);
        auto sums = Sums<A>::nothing();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) of.add(sums, upstream[step], given[step], w[step]);
        of.finish(norm, row_merge(sums, of_warps));
        if (!exists) continue;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            A gradient[kVector<T>];
            of.gradient(upstream[step], given[step], w[step], gradient, by_weight[step], by_bias[step]);
            places.store(dx + offset, step, gradient);
        }
    }
    if (!partials) return;
    const Turns turns;
    add_rows(turns, by_weight, of_rows);
    add_rows(turns, by_bias, of_rows);
    if (!turns.last()) return;
    partials += 2 * blockIdx.x * norm.partial_stride;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        places.store(partials, step, by_weight[step]);
        places.store(partials + norm.partial_stride, step, by_bias[step]);
    }
}

// Rows of any length, read twice; the block's sums stay where it leaves them.
template <class T>
__global__ void __launch_bounds__(kRowBlock, 1) layer_norm_grad_long_rows(
    const T* __restrict__ dy, const T* __restrict__ x, const void* __restrict__ weight,
    const Accumulator<T>* __restrict__ means, const Accumulator<T>* __restrict__ rstds, T* __restrict__ dx,
    Accumulator<T>* __restrict__ partials, LayerNorm norm) {
    using A = Accumulator<T>;
    __shared__ Sums<A> of_warps[kMaxWarps];
    const Places<T> places(threadIdx.x, blockDim.x, norm.size, norm.vectors);
    const Vector<T> weights = {weight, bool(norm.wide)};
    A* const weight_sums = partials + 2 * blockIdx.x * norm.partial_stride;
    A* const bias_sums = weight_sums + norm.partial_stride;
    for (int64 row = blockIdx.x; row < norm.rows; row += gridDim.x) {
        const int64 offset = row * norm.size;
        T upstream[kVector<T>], given[kVector<T>];
        A w[kVector<T>];
        GradRow<T> of(norm, means, rstds, row, true);
        auto sums = Sums<A>::nothing();
        for (int step = 0; places.has(step); ++step) {
            places.load(dy + offset, step, upstream);
            places.load(x + offset, step, given);
            weights.load(places, 0, step, 1, w);
            of.add(sums, upstream, given, w);
        }
        of.finish(norm, row_merge(sums, of_warps));
        for (int step = 0; places.has(step); ++step) {
            places.load(dy + offset, step, upstream);
            places.load(x + offset, step, given);
            weights.load(places, 0, step, 1, w);
            A gradient[kVector<T>], by_weight[kVector<T>] = {}, by_bias[kVector<T>] = {};
            if (partials && row != blockIdx.x) {
                places.load(weight_sums, step, by_weight);
                places.load(bias_sums, step, by_bias);
            }
            of.gradient(upstream, given, w, gradient, by_weight, by_bias);
            places.store(dx + offset, step, gradient);
            if (partials) {
                places.store(weight_sums, step, by_weight);
                places.store(bias_sums, step, by_bias);
            }
        }
    }
}

// Adds `count` rows of `size` partial sums, `step` apart, in their order: those for weight (blockIdx.y 0), and those for bias, which are
// `bias_at` further on. A result that is null is not wanted.
template <class W>
__global__ void __launch_bounds__(kBlock) sum_partials(
    const Accumulator<W>* __restrict__ partials, W* __restrict__ by_weight, W* __restrict__ by_bias, int count, int size,
    int64 bias_at, int64 step) {
    using A = Accumulator<W>;
    constexpr int kSlices = kBlock / kWarpSize;
    __shared__ A of_slices[kSlices][kWarpSize];
    W* result = blockIdx.y ? by_bias : by_weight;
    if (!result) return;
    const int column = blockIdx.x * kWarpSize + threadIdx.x;
    partials += blockIdx.y * bias_at;
    A sum = 0;
    if (column < size) {
        for (int i = threadIdx.y; i < count; i += kSlices) sum += partials[i * step + column];
    }
    of_slices[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || column >= size) return;
#pragma unroll
    for (int i = 1; i < kSlices; ++i) sum += of_slices[i][threadIdx.x];
    result[column] = narrow<W>(sum);
}
