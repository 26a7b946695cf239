// Cross-entropy of softmax(logits), logits (N, C), with the gradient written in the same pass.
//
// With the coefficients a_c of a row, its loss is -sum a_c log p_c and its gradient p_c sum(a) - a_c. For class indices,
// a_c = weight_c (smoothing / C + (1 - smoothing) [c is the target]); for probabilities t_c in the place of [...].
// SPREAD: every class of a row has a coefficient, which is so for probabilities and with smoothing.
#include "softmax.cuh"

struct CrossEntropy {
    int64 rows;
    int64 ignore_index;
    double smoothing;
    int classes;
    int denominators;   // how many partial sums make up the denominator of a mean over class indices
    int mean;           // divide by the denominator
    int probabilities;  // in the place of class indices
};

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
    T logit = {};            // the logit of this class, for the first thread
    const T* row = nullptr;  // its probabilities
    const T* weight;
    A keep, share;

    __device__ Target(
        const CrossEntropy& loss, const T* logits, const void* target, const T* weight, int64 number)
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
                // Now, as the gradient may be written over the logits.
                if (threadIdx.x == 0) logit = logits[at * loss.classes + given];
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
            x[i] = exponential<T>(difference);
            seen.sum += x[i];
        }
    }

    // The loss of the row, which its first thread stores and returns; the others return 0.
    __device__ A finish(const Seen& seen, T* losses) const {
        if (!exists || threadIdx.x != 0) return 0;
        A result = 0;
        if (counts) {
            const A log_sum = log(seen.sum);
            if (SPREAD) result = seen.mass * log_sum - seen.dot;
            if (!row) result += picked * (log_sum - (widen(logit) - seen.most));
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

// Rows of up to ITEMS columns a thread, which stay in registers from the read to the gradient. Here and below, `grad` may
// be `logits`.
template <class T, bool SPREAD, int ITEMS>
__global__ void __launch_bounds__(kRowBlock, 1) softmax_cross_entropy_rows(
    const T* logits, const void* __restrict__ target, const T* __restrict__ weight,
    const double* __restrict__ denominators, T* __restrict__ losses, double* __restrict__ partial_losses, T* grad,
    CrossEntropy loss) {
    using A = Accumulator<T>;
    constexpr int kSteps = ITEMS / kVector<T>;
    __shared__ Softmax<A, SPREAD> of_warps[kMaxWarps];
    const A scale = gradient_scale<A>(loss, denominators);
    double total = 0;
    for (int64 first = int64(blockIdx.x) * blockDim.y; first < loss.rows; first += int64(gridDim.x) * blockDim.y) {
        const Target<T, SPREAD> of(loss, logits, target, weight, first + threadIdx.y);
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
        total += of.finish(seen, losses);

        if (!grad) continue;
        columns.count = of.exists ? loss.classes : 0;
        columns.forget_places();
        const A factor = of.factor(seen, scale) * (own_most == -infinity<A>() ? A(1) : exp(own_most - seen.most));
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            of.store_gradient(columns, grad + of.at * loss.classes, step, factor, scale, x[step]);
        }
    }
    store_partial(total, partial_losses);
}

// Rows of any length: one pass for the maximum and the sums, one for the gradient.
template <class T, bool SPREAD>
__global__ void __launch_bounds__(kRowBlock, 1) softmax_cross_entropy_long_rows(
    const T* logits, const void* __restrict__ target, const T* __restrict__ weight,
    const double* __restrict__ denominators, T* __restrict__ losses, double* __restrict__ partial_losses, T* grad,
    CrossEntropy loss, int shared_steps) {
    using A = Accumulator<T>;
    DYNAMIC_SHARED(memory);
    __shared__ Softmax<A, SPREAD> of_warps[kMaxWarps];
    const A scale = gradient_scale<A>(loss, denominators);
    double total = 0;
    for (int64 first = blockIdx.x; first < loss.rows; first += gridDim.x) {
        const Target<T, SPREAD> of(loss, logits, target, weight, first);
        const T* const row[] = {logits + first * loss.classes};
        const Columns<kVector<T>> columns(row[0], loss.classes);
        TwiceRead<T, 1, SPREAD ? 1 : 4> parts(row, of.counts ? loss.classes : 0, narrow<T>(-infinity<A>()), memory, shared_steps);
        auto seen = Softmax<A, SPREAD>::nothing();
        parts.first_pass([&](int step, const Vector<T>(&packs)[1]) {
            A x[kVector<T>];
            seen.raise(widened(packs[0], seen.most, x));
            of.see(seen, columns, step, x);
        });
        seen = merge_row(seen, of_warps);
        total += of.finish(seen, losses);

        if (!grad) continue;
        T* grad_row = grad + first * loss.classes;
        if (!of.counts) {
            const A zeros[kVector<T>] = {};
            for (int step = 0; step < columns.steps(); ++step) store(columns, grad_row, step, zeros);
            continue;
        }
        const A factor = of.factor(seen, scale);
        const A reference = seen.reference();
        parts.second_pass([&](int step, const Vector<T>(&packs)[1]) {
            A x[kVector<T>];
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) x[i] = exponential<T>(widen(packs[0].value[i]) - reference);
            of.store_gradient(columns, grad_row, step, factor, scale, x);
        });
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
