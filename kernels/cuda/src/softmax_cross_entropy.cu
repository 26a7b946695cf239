// Cross-entropy of softmax(logits), logits (N, C), with the gradient written in the same pass.
//
// With the coefficients a_c of a row, its loss is -sum a_c log p_c and its gradient p_c sum(a) - a_c. For class indices,
// a_c = weight_c (smoothing / C + (1 - smoothing) [c is the target]); for probabilities t_c in the place of [...].
// SPREAD: every class of a row has a coefficient, which is so for probabilities and with smoothing.
//
// A row belongs to blockDim.x neighbouring threads (a power of two within a warp, or whole warps) and threadIdx.y tells
// the rows of a block apart. Blocks stride over the rows, and all sums have a fixed order: results repeat bit for bit.
#include "common.cuh"

// Threads of a block where rows share it, and, at most, where it has one row: half of what a device can run, so that a
// thread may have 128 registers.
constexpr int kBlock = 256, kRowBlock = 512;
constexpr int kMaxWarps = kRowBlock / kWarpSize;
// Elements in 16 bytes.
template <class T> constexpr int kVector = 16 / int(sizeof(T));

struct CrossEntropy {
    int64 rows;
    int64 ignore_index;
    double smoothing;
    int classes;
    int denominators;   // how many partial sums make up the denominator of a mean over class indices
    int mean;           // divide by the denominator
    int probabilities;  // in the place of class indices
};

// Which columns a thread takes of a row: at each step one vector of VECTOR, from columns.at(step) on. Vectors begin at
// the row's first address that is a multiple of 16 bytes, so the first one may hold columns before 0, the last one too many.
template <int VECTOR> struct Columns {
    int first, stride, count;

    template <class T>
    __device__ Columns(const T* row, int count)
        : first(int(threadIdx.x) * VECTOR - int(reinterpret_cast<uint64>(row) % 16 / sizeof(T))),
          stride(int(blockDim.x) * VECTOR),
          count(count) {}

    __device__ int at(int step) const { return first + step * stride; }
    __device__ bool has(int column) const { return uint32(column) < uint32(count); }
    __device__ bool has_all(int from) const { return from >= 0 && from + VECTOR <= count; }
};

template <class T> __device__ bool is_aligned(const T* place) { return reinterpret_cast<uint64>(place) % 16 == 0; }

// The values as they are stored, so that all loads of a row can be on their way before the first is used.
template <class T, int VECTOR>
__device__ Pack<T, VECTOR> load(Columns<VECTOR> columns, const T* row, int step, T outside) {
    Pack<T, VECTOR> pack;
    const int from = columns.at(step);
    if (columns.has_all(from) && is_aligned(row + from)) {
        pack = *reinterpret_cast<const Pack<T, VECTOR>*>(row + from);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) pack.value[i] = columns.has(from + i) ? row[from + i] : outside;
    }
    return pack;
}

// The larger of `most` and the pack's values, which are put into `values`.
template <class T, int VECTOR>
__device__ Accumulator<T> widened(const Pack<T, VECTOR>& pack, Accumulator<T> most, Accumulator<T> (&values)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        values[i] = widen(pack.value[i]);
        if (values[i] > most) most = values[i];
    }
    return most;
}

template <class T, int VECTOR>
__device__ void store(Columns<VECTOR> columns, T* row, int step, const Accumulator<T> (&values)[VECTOR]) {
    const int from = columns.at(step);
    if (columns.has_all(from) && is_aligned(row + from)) {
        Pack<T, VECTOR> pack;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) pack.value[i] = narrow<T>(values[i]);
        *reinterpret_cast<Pack<T, VECTOR>*>(row + from) = pack;
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            if (columns.has(from + i)) row[from + i] = narrow<T>(values[i]);
        }
    }
}

// What has been seen of a row, relative to the largest logit so far.
template <class A, bool SPREAD> struct Softmax {
    A most;
    A sum;   // of exp(x - most)
    A mass;  // of the spread a
    A dot;   // of the spread a (x - most)

    // No constructor: shared memory holds these.
    __device__ static Softmax nothing() { return {-infinity<A>(), 0, 0, 0}; }

    // While there is nothing but -inf, differences are taken from 0, which keeps NaN away.
    __device__ A reference() const { return most == -infinity<A>() ? A(0) : most; }

    __device__ void raise(A to) {
        if (!(to > most)) return;
        const A shift = most == -infinity<A>() ? A(0) : most - to;
        sum *= exp(shift);
        if (SPREAD) dot += mass * shift;
        most = to;
    }

    // With the same bits on both sides of an exchange: the part with the smaller maximum is raised.
    __device__ void merge(Softmax other) {
        if (other.most > most) {
            const Softmax mine = *this;
            *this = other;
            other = mine;
        }
        other.raise(most);
        sum += other.sum;
        mass += other.mass;
        dot += other.dot;
    }

    __device__ void exchange(int distance) {
        Softmax other = nothing();
        other.most = __shfl_xor_sync(kFullWarp, most, distance);
        other.sum = __shfl_xor_sync(kFullWarp, sum, distance);
        if (SPREAD) {
            other.mass = __shfl_xor_sync(kFullWarp, mass, distance);
            other.dot = __shfl_xor_sync(kFullWarp, dot, distance);
        }
        merge(other);
    }
};

// Merges what the threads of each row have seen; each of them gets the result.
template <class S> __device__ S merge_row(S seen, S* of_warps) {
    const int lanes = blockDim.x;
    for (int d = min(lanes, kWarpSize) / 2; d > 0; d /= 2) seen.exchange(d);
    if (lanes <= kWarpSize) return seen;
    const int lane = threadIdx.x % kWarpSize;
    const int warps = lanes / kWarpSize;
    of_warps += threadIdx.y * warps;
    if (lane == 0) of_warps[threadIdx.x / kWarpSize] = seen;
    __syncthreads();
    seen = lane < warps ? of_warps[lane] : S::nothing();
    for (int d = kWarpSize / 2; d > 0; d /= 2) seen.exchange(d);
    __syncthreads();  // before the next row's are written
    return seen;
}

// The sum over the block, for its first thread.
__device__ inline double block_sum(double x) {
    __shared__ double of_warps[kMaxWarps];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    const double sum = warp_sum(x);
    if (thread % kWarpSize == 0) of_warps[thread / kWarpSize] = sum;
    __syncthreads();
    if (thread >= kWarpSize) return 0;
    return warp_sum(thread < int(blockDim.x * blockDim.y) / kWarpSize ? of_warps[thread] : 0.0);
}

// What a mean is divided by: the rows, or the sum of `denominators`. All threads of a warp must call it.
__device__ inline double denominator(const CrossEntropy& loss, const double* denominators) {
    if (!denominators) return double(loss.rows);
    const int lane = (threadIdx.y * blockDim.x + threadIdx.x) % kWarpSize;
    double sum = 0;
    for (int i = lane; i < loss.denominators; i += kWarpSize) sum += denominators[i];
    return warp_sum(sum);
}

template <class A> __device__ A gradient_scale(const CrossEntropy& loss, const double* denominators) {
    return loss.mean ? A(1 / denominator(loss, denominators)) : A(1);
}

// Stores the sum of x over the block as one of the partial sums of the grid, where these are wanted.
__device__ inline void store_partial(double x, double* partials) {
    if (!partials) return;
    const double sum = block_sum(x);
    if (threadIdx.x == 0 && threadIdx.y == 0) partials[blockIdx.x] = sum;
}

// One row's target.
template <class T, bool SPREAD> struct Target {
    using A = Accumulator<T>;
    using Seen = Softmax<A, SPREAD>;
    bool exists;             // threads beyond the last row stay, for the exchanges
    bool counts;             // exists and is not ignored
    int64 at;                // the row's number, 0 where it does not exist
    int index = -1;          // its class, -1 where it has none
    A picked = 0;            // the coefficient that only this class has; NaN for an index out of range
    const T* row = nullptr;  // its probabilities
    const T* weight;
    A keep, share;

    __device__ Target(const CrossEntropy& loss, const void* target, const T* weight, int64 number)
        : exists(number < loss.rows),
          counts(exists),
          at(exists ? number : 0),
          weight(weight),
          keep(A(1 - loss.smoothing)),
          share(A(loss.smoothing / loss.classes)) {
        if (SPREAD && loss.probabilities) {
            row = static_cast<const T*>(target) + at * loss.classes;
        } else if (exists) {
            const int64 given = static_cast<const int64*>(target)[at];
            counts = given != loss.ignore_index;
            if (given >= 0 && given < loss.classes) {
                index = int(given);
                picked = keep * (weight ? widen(weight[given]) : A(1));
            } else {
                picked = quiet_nan<A>();
            }
        }
    }

    // The spread coefficients of one step's columns.
    __device__ void load_spread(Columns<kVector<T>> columns, int step, A (&a)[kVector<T>]) const {
        Pack<T, kVector<T>> probabilities = {}, weights = {};
        if (row) probabilities = load(columns, row, step, narrow<T>(0));
        if (weight) weights = load(columns, weight, step, narrow<T>(0));
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            a[i] = row ? widen(probabilities.value[i]) * keep + share : share;
            if (weight) a[i] *= widen(weights.value[i]);
        }
    }

    // Adds one step's logits, none above seen.most, to what has been seen; they become exponentials.
    __device__ void see(Seen& seen, Columns<kVector<T>> columns, int step, A (&x)[kVector<T>]) const {
        const A reference = seen.reference();
        A a[kVector<T>];
        if (SPREAD) load_spread(columns, step, a);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            const A difference = x[i] - reference;
            if (SPREAD && columns.has(columns.at(step) + i)) {
                seen.mass += a[i];
                seen.dot += a[i] * difference;
            }
            x[i] = exp(difference);
            seen.sum += x[i];
        }
    }

    // The loss of the row, which its first thread stores and returns; the others return 0.
    __device__ A finish(const Seen& seen, const T* logits, T* losses) const {
        if (!exists || threadIdx.x != 0) return 0;
        A result = 0;
        if (counts) {
            const A log_sum = log(seen.sum);
            if (SPREAD) result = seen.mass * log_sum - seen.dot;
            if (!row) result += picked * (log_sum - ((index < 0 ? A(0) : widen(logits[index])) - seen.most));
        }
        if (losses) losses[at] = narrow<T>(result);
        return result;
    }

    // What makes the gradient's positive part of exp(x - seen.most).
    __device__ A factor(const Seen& seen, A scale) const { return (seen.mass + picked) * scale / seen.sum; }

    // One step's exponentials become gradients, which are stored.
    __device__ void store_gradient(
        Columns<kVector<T>> columns, T* grad, int step, A factor, A scale, A (&x)[kVector<T>]) const {
        A a[kVector<T>];
        if (SPREAD && counts) load_spread(columns, step, a);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            A gradient = x[i] * factor;
            if (SPREAD) gradient -= a[i] * scale;
            if (columns.at(step) + i == index) gradient -= picked * scale;
            x[i] = counts ? gradient : A(0);
        }
        store(columns, grad, step, x);
    }
};

// Rows of up to ITEMS columns a thread, which stay in registers from the read to the gradient.
template <class T, bool SPREAD, int ITEMS>
__global__ void __launch_bounds__(kRowBlock, 1) softmax_cross_entropy_rows(
    const T* __restrict__ logits, const void* __restrict__ target, const T* __restrict__ weight,
    const double* __restrict__ denominators, T* __restrict__ losses, double* __restrict__ partial_losses,
    T* __restrict__ grad, CrossEntropy loss) {
    using A = Accumulator<T>;
    constexpr int kSteps = ITEMS / kVector<T>;
    __shared__ Softmax<A, SPREAD> of_warps[kMaxWarps];
    const A scale = gradient_scale<A>(loss, denominators);
    double total = 0;
    for (int64 first = int64(blockIdx.x) * blockDim.y; first < loss.rows; first += int64(gridDim.x) * blockDim.y) {
        const Target<T, SPREAD> of(loss, target, weight, first + threadIdx.y);
        const T* row = logits + of.at * loss.classes;
        Columns<kVector<T>> columns(row, of.counts ? loss.classes : 0);
        Pack<T, kVector<T>> packs[kSteps];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) packs[step] = load(columns, row, step, narrow<T>(-infinity<A>()));
        A x[kSteps][kVector<T>];
        auto seen = Softmax<A, SPREAD>::nothing();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) seen.most = widened(packs[step], seen.most, x[step]);
        const A own_most = seen.most;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) of.see(seen, columns, step, x[step]);
        seen = merge_row(seen, of_warps);
        total += of.finish(seen, row, losses);

        if (!grad) continue;
        columns.count = of.exists ? loss.classes : 0;
        // The same number, which hides that these are the places of the loads: kept since then, they would make x spill.
        columns.stride = __shfl_sync(kFullWarp, columns.stride, 0);
        const A factor = of.factor(seen, scale) * (own_most == -infinity<A>() ? A(1) : exp(own_most - seen.most));
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            of.store_gradient(columns, grad + of.at * loss.classes, step, factor, scale, x[step]);
        }
    }
    store_partial(total, partial_losses);
}

// Rows of any length, read twice: once for the maximum and the sums, once for the gradient.
template <class T, bool SPREAD>
__global__ void __launch_bounds__(kRowBlock, 1) softmax_cross_entropy_long_rows(
    const T* __restrict__ logits, const void* __restrict__ target, const T* __restrict__ weight,
    const double* __restrict__ denominators, T* __restrict__ losses, double* __restrict__ partial_losses,
    T* __restrict__ grad, CrossEntropy loss) {
    using A = Accumulator<T>;
    __shared__ Softmax<A, SPREAD> of_warps[kMaxWarps];
    const A scale = gradient_scale<A>(loss, denominators);
    double total = 0;
    for (int64 first = blockIdx.x; first < loss.rows; first += gridDim.x) {
        const Target<T, SPREAD> of(loss, target, weight, first);
        const T* row = logits + first * loss.classes;
        const Columns<kVector<T>> columns(row, loss.classes);
        A x[kVector<T>];
        auto seen = Softmax<A, SPREAD>::nothing();
        for (int step = 0; of.counts && columns.at(step) < loss.classes; ++step) {
            const Pack<T, kVector<T>> pack = load(columns, row, step, narrow<T>(-infinity<A>()));
            seen.raise(widened(pack, seen.most, x));
            of.see(seen, columns, step, x);
        }
        seen = merge_row(seen, of_warps);
        total += of.finish(seen, row, losses);

        const A factor = of.factor(seen, scale);
        for (int step = 0; grad && columns.at(step) < loss.classes; ++step) {
            if (of.counts) {
                const Pack<T, kVector<T>> pack = load(columns, row, step, narrow<T>(-infinity<A>()));
#pragma unroll
                for (int i = 0; i < kVector<T>; ++i) x[i] = exp(widen(pack.value[i]) - seen.reference());
            }
            of.store_gradient(columns, grad + first * loss.classes, step, factor, scale, x);
        }
    }
    store_partial(total, partial_losses);
}

// The weights of the targets that are not ignored, one sum a block: the denominators of a mean over class indices.
template <class T>
__global__ void __launch_bounds__(kBlock) softmax_cross_entropy_denominators(
    const int64* __restrict__ target, const T* __restrict__ weight, double* __restrict__ sums, CrossEntropy loss) {
    double sum = 0;
    for (int64 at = global_index(); at < loss.rows; at += grid_size()) {
        const int64 index = target[at];
        if (index == loss.ignore_index) continue;
        if (!weight) {
            sum += 1;
        } else if (index >= 0 && index < loss.classes) {
            sum += widen(weight[index]);
        }
    }
    store_partial(sum, sums);
}

// The sum or the mean of the losses, by one block.
template <class T>
__global__ void __launch_bounds__(kBlock) softmax_cross_entropy_reduce(
    const double* __restrict__ partial_losses, const double* __restrict__ denominators, T* __restrict__ result,
    CrossEntropy loss, int partials) {
    double sum = 0;
    for (int i = threadIdx.x; i < partials; i += blockDim.x) sum += partial_losses[i];
    const double divisor = loss.mean ? denominator(loss, denominators) : 1;
    sum = block_sum(sum);
    if (threadIdx.x == 0) *result = narrow<T>(Accumulator<T>(sum / divisor));
}

// grad (N, C) times one number, or one a row. `result` may be `grad`, whose rows with a factor of 1 then stay as they are.
template <class T>
__global__ void __launch_bounds__(kBlock) softmax_cross_entropy_scale(
    const T* grad, const T* __restrict__ upstream, T* result, int64 rows, int classes, int one_a_row) {
    for (int64 at = int64(blockIdx.x) * blockDim.y + threadIdx.y; at < rows; at += int64(gridDim.x) * blockDim.y) {
        const Accumulator<T> factor = widen(upstream[one_a_row ? at : 0]);
        if (result == grad && factor == 1) continue;
        const Columns<kVector<T>> columns(grad + at * classes, classes);
        for (int step = 0; columns.at(step) < classes; ++step) {
            const Pack<T, kVector<T>> pack = load(columns, grad + at * classes, step, narrow<T>(0));
            Accumulator<T> x[kVector<T>];
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) x[i] = widen(pack.value[i]) * factor;
            store(columns, result + at * classes, step, x);
        }
    }
}
