// Rows that several threads share, and what is known of a softmax when a part of a row has been seen.
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
template <class T> using Vector = Pack<T, kVector<T>>;

// exp of a difference from the maximum, by the hardware's power of two: exp(x) = 2^(x log2 e). What that argument loses to
// rounding is made up for; in halves the result loses more. It takes fewer registers than exp, where a row fills them.
template <class T> __device__ inline Accumulator<T> exponential(Accumulator<T> x) { return exp2f(x * 1.44269504f); }
template <> __device__ inline double exponential<double>(double x) { return exp(x); }
template <> __device__ inline float exponential<float>(float x) {
    x = x < -200 ? -200 : x;  // infinity has no rounding error; NaN stays
    const float exponent = x * 1.44269504f;
    const float lost = fmaf(x, 1.92596299e-8f, fmaf(x, 1.44269504f, -exponent));
    const float power = exp2f(exponent);
    return fmaf(power, lost * 0.693147181f, power);
}

// Which columns a thread takes of a row: at each step one vector, from columns.at(step) on. Vectors begin at the row's
// first address that is a multiple of 16 bytes, so the first one may hold columns before 0, the last one too many.
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
    // Sets the stride to the same number, which hides from the compiler that `at` will give the places that it gave before:
    // kept until then, they would take a register each. All threads of a warp must call it.
    __device__ void forget_places() { stride = __shfl_sync(kFullWarp, stride, 0); }
    // The same for all threads of the row: any of them has a column below it.
    __device__ int steps() const { return count ? (count + VECTOR - 1 + stride - 1) / stride : 0; }
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

// A row of each of some arrays that a block passes over twice. Of the first pass, what fits stays on the chip, each
// thread's own part in its registers and in shared memory; what does not is read again, the last first: of that the L2
// cache has the most.
template <class T, int ARRAYS, int IN_REGISTERS> struct TwiceRead {
    static constexpr int kInRegisters = IN_REGISTERS;  // steps
    static constexpr int kAtOnce = 4 / ARRAYS;         // loads of later steps that are on their way together

    const T* rows[ARRAYS];
    Columns<kVector<T>> columns;
    T outside;
    Vector<T>* shared;  // this thread's first place
    int shared_stop;    // the step after the last that is kept there
    Vector<T> kept[kInRegisters][ARRAYS];

    __device__ TwiceRead(const T* const (&given)[ARRAYS], int count, T outside, void* memory, int shared_steps)
        : columns(given[0], count),
          outside(outside),
          shared(static_cast<Vector<T>*>(memory) + threadIdx.x),
          shared_stop(min(columns.steps(), kInRegisters + shared_steps)) {
#pragma unroll
        for (int a = 0; a < ARRAYS; ++a) rows[a] = given[a];
    }

    __device__ Vector<T>& place(int step, int array) {
        return shared[((step - kInRegisters) * ARRAYS + array) * int(blockDim.x)];
    }

    __device__ void load_all(int step, Vector<T> (&packs)[ARRAYS]) const {
#pragma unroll
        for (int a = 0; a < ARRAYS; ++a) packs[a] = load(columns, rows[a], step, outside);
    }

    // use(step, packs): one vector of each array.
    template <class Use> __device__ void first_pass(Use use) {
#pragma unroll
        for (int step = 0; step < kInRegisters; ++step) load_all(step, kept[step]);
#pragma unroll
        for (int step = 0; step < kInRegisters; ++step) use(step, kept[step]);
        const int steps = columns.steps();
        for (int first = kInRegisters; first < steps; first += kAtOnce) {
            Vector<T> packs[kAtOnce][ARRAYS];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) load_all(first + i, packs[i]);
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                use(first + i, packs[i]);
                if (first + i >= shared_stop) continue;
#pragma unroll
                for (int a = 0; a < ARRAYS; ++a) place(first + i, a) = packs[i][a];
            }
        }
    }

    template <class Use> __device__ void second_pass(Use use) {
        for (int last = columns.steps() - 1; last >= max(shared_stop, kInRegisters); last -= kAtOnce) {
            Vector<T> packs[kAtOnce][ARRAYS];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (last - i >= shared_stop) load_all(last - i, packs[i]);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (last - i >= shared_stop) use(last - i, packs[i]);
            }
        }
        for (int step = kInRegisters; step < shared_stop; ++step) {
            Vector<T> packs[ARRAYS];
#pragma unroll
            for (int a = 0; a < ARRAYS; ++a) packs[a] = place(step, a);
            use(step, packs);
        }
#pragma unroll
        for (int step = 0; step < kInRegisters; ++step) use(step, kept[step]);
    }
};

// What has been seen of a row, relative to the largest value so far. SPREAD: with coefficients a for all of its columns.
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

// A sum with the face of Softmax, for `merge_row`.
template <class A> struct Sum {
    A value;

    __device__ static Sum nothing() { return {0}; }
    __device__ void exchange(int distance) { value += __shfl_xor_sync(kFullWarp, value, distance); }
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
