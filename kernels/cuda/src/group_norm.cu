// Group normalisation of rows that one block takes: those that fit into its registers are read once, longer ones twice.
#include "group_norm.cuh"

// Of rows that are read twice: one block fills a device's multiprocessor, so that the L2 keeps the rows under way.
constexpr int kLongBlock = 1024;

// The steps of a thread through its row: `lanes` threads share a channel, and groups of them take the channels in turns.
template <class T> struct Walk {
    Places<T> places;
    int slot, slots, depth, per_channel;
    int channel, step = 0;

    __device__ explicit Walk(const GroupNorm& norm)
        : places(threadIdx.x & (norm.lanes - 1), norm.lanes, norm.length, norm.vectors),
          slot(threadIdx.x / norm.lanes),
          slots(blockDim.x / norm.lanes),
          depth(norm.depth),
          per_channel(norm.per_channel),
          channel(slot) {}

    __device__ void start() {
        // The same numbers, which hides that these are the places of the loads: kept since then, they would make values spill.
        slots = __shfl_sync(kFullWarp, slots, 0);
        per_channel = __shfl_sync(kFullWarp, per_channel, 0);
        slot = __shfl_sync(kFullWarp, slot, int(threadIdx.y * blockDim.x + threadIdx.x) % kWarpSize);
        places = places.again();
        channel = slot;
        step = 0;
    }

    __device__ bool ends_channel() const { return step + 1 == per_channel; }

    __device__ void next() {
        if (++step == per_channel) {
            step = 0;
            channel += slots;
        }
    }

    __device__ bool exists() const { return channel < depth; }
    __device__ bool has(int item) const { return exists() && places.has(step, item); }
    __device__ int offset() const { return channel * places.count; }

    __device__ void load(const T* row, T (&values)[kVector<T>]) const {
        if (exists()) {
            places.load(row + offset(), step, values);
        } else {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) values[i] = narrow<T>(0);
        }
    }
};

// Rows of up to ITEMS elements a thread, which stay in registers from the read to the result.
template <class T, int ITEMS>
__global__ void __launch_bounds__(kRowBlock, 1) group_norm_rows(
    const T* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias, T* __restrict__ y,
    Accumulator<T>* __restrict__ means, Accumulator<T>* __restrict__ rstds, GroupNorm norm) {
    using A = Accumulator<T>;
    constexpr int kSteps = ITEMS / kVector<T>;
    __shared__ Moments<A> of_warps[kMaxWarps];
    const int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool exists = row < norm.rows;  // threads beyond the last row stay, for the exchanges
    x += (exists ? row : 0) * norm.size;
    const A pivot = widen(*x);
    Walk<T> walk(norm);
    T stored[kSteps][kVector<T>];
#pragma unroll
    for (int step = 0; step < kSteps; ++step, walk.next()) walk.load(x, stored[step]);
    A values[kSteps][kVector<T>];
    A sum = 0, count = 0;
    walk.start();
#pragma unroll
    for (int step = 0; step < kSteps; ++step, walk.next()) {
        widen_all(stored[step], values[step], pivot);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            sum += walk.has(i) ? values[step][i] : A(0);
            count += walk.has(i) ? A(1) : A(0);
        }
    }
    const A mean = count > 0 ? sum / count : A(0);
    A m2 = 0;
    walk.start();
#pragma unroll
    for (int step = 0; step < kSteps; ++step, walk.next()) {
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            const A distance = walk.has(i) ? values[step][i] - mean : A(0);
            m2 += distance * distance;
        }
    }
    const Statistics<A> of(norm, pivot, row_merge(Moments<A>{mean, m2, count}, of_warps));
    walk.start();
    if (!exists) return;
    if (threadIdx.x == 0) of.store(means, rstds, row);
    const Vector<T> weights = {weight, bool(norm.wide)}, biases = {bias, bool(norm.wide)};
    const int first_channel = int(row % norm.groups) * norm.depth;
    y += row * norm.size;
#pragma unroll
    for (int step = 0; step < kSteps; ++step, walk.next()) {
        if (!walk.exists()) continue;
        of.apply(weights.at(first_channel + walk.channel, 1), biases.at(first_channel + walk.channel, 0), values[step]);
        walk.places.store(y + walk.offset(), walk.step, values[step]);
    }
}

// Rows of any length, read twice.
template <class T>
__global__ void __launch_bounds__(kLongBlock, 1) group_norm_long_rows(
    const T* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias, T* __restrict__ y,
    Accumulator<T>* __restrict__ means, Accumulator<T>* __restrict__ rstds, GroupNorm norm) {
    using A = Accumulator<T>;
    __shared__ Moments<A> of_warps[kMaxWarps];
    const int64 row = blockIdx.x;
    x += row * norm.size;
    y += row * norm.size;
    const A pivot = widen(*x);
    Walk<T> walk(norm);
    T stored[kVector<T>];
    A values[kVector<T>];
    auto seen = Moments<A>::nothing();
    for (int step = 0; step < norm.steps; ++step, walk.next()) {
        walk.load(x, stored);
        widen_all(stored, values, pivot);
        seen.merge(moments_of(values, [&](int i) { return walk.has(i); }));
    }
    const Statistics<A> of(norm, pivot, row_merge(seen, of_warps));
    if (threadIdx.x == 0) of.store(means, rstds, row);
    const Vector<T> weights = {weight, bool(norm.wide)}, biases = {bias, bool(norm.wide)};
    const int first_channel = int(row % norm.groups) * norm.depth;
    walk.start();
    for (int step = 0; step < norm.steps; ++step, walk.next()) {
        if (!walk.exists()) continue;
        walk.load(x, stored);
        widen_all(stored, values, pivot);
        of.apply(weights.at(first_channel + walk.channel, 1), biases.at(first_channel + walk.channel, 0), values);
        walk.places.store(y + walk.offset(), walk.step, values);
    }
}

// The gradient of rows of up to ITEMS elements a thread, whose x and dy stay in registers; with ITEMS 0 of rows of any length, read
// twice. `partials` gets the sums for weight of (slots / groups, C), and then those for bias.
template <class T, int ITEMS>
__global__ void __launch_bounds__(ITEMS ? kRowBlock : kLongBlock, 1) group_norm_grad_rows(
    const T* __restrict__ dy, const T* __restrict__ x, const void* __restrict__ weight,
    const Accumulator<T>* __restrict__ means, const Accumulator<T>* __restrict__ rstds, T* __restrict__ dx,
    Accumulator<T>* __restrict__ partials, GroupNorm norm) {
    using A = Accumulator<T>;
    constexpr int kKept = ITEMS ? ITEMS / kVector<T> : 1;
    const int steps = ITEMS ? kKept : norm.steps;
    __shared__ Sums<A> of_warps[kMaxWarps];
    DYNAMIC_SHARED(memory);
    Walk<T> walk(norm);
    // For each channel of each of the block's rows, the sums by each of the warps that share it; and the sums over all rows.
    const int lanes = min(norm.lanes, kWarpSize), warps = norm.lanes / lanes;
    const int pitch = warps | 1;  // an odd one, so that neighbouring channels do not share banks
    const int channels = divide_up(norm.depth, walk.slots) * walk.slots;
    Sums<A>* const by_warp = reinterpret_cast<Sums<A>*>(memory) + threadIdx.y * channels * pitch;
    Sums<A>* const of_channels = reinterpret_cast<Sums<A>*>(memory) + blockDim.y * channels * pitch + threadIdx.y * norm.depth;
    for (int d = threadIdx.x; d < norm.depth; d += blockDim.x) of_channels[d] = Sums<A>::nothing();
    const int64 slot = int64(blockIdx.x) * blockDim.y + threadIdx.y;
    const int first_channel = int(slot % norm.groups) * norm.depth;
    const Vector<T> weights = {weight, bool(norm.wide)};
    for (int64 first = int64(blockIdx.x) * blockDim.y; first < norm.rows; first += norm.slots) {
        const int64 row = first + threadIdx.y;
        const bool exists = slot < norm.slots && row < norm.rows;
        const int64 base = (exists ? row : 0) * norm.size;
        const A mean = exists ? means[row] : A(0), rstd = exists ? rstds[row] : A(0);
        T upstream[kKept][kVector<T>], given[kKept][kVector<T>];
        const auto load = [&](int kept) {
            walk.load(dy + base, upstream[kept]);
            walk.load(x + base, given[kept]);
        };
        walk.start();
#pragma unroll
        for (int step = 0; ITEMS && step < kKept; ++step, walk.next()) load(step);
        walk.start();
        auto sums = Sums<A>::nothing();
#pragma unroll
        for (int step = 0; step < steps; ++step, walk.next()) {
            const int kept = ITEMS ? step : 0;
            if (!ITEMS) load(0);
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                const A g = widen(upstream[kept][i]);
                sums.merge({g, g * ((widen(given[kept][i]) - mean) * rstd)});
            }
            if (!walk.ends_channel()) continue;
            sums = warp_merge(sums, lanes);
            if (threadIdx.x % lanes == 0 && walk.channel < channels) {
                by_warp[walk.channel * pitch + threadIdx.x % norm.lanes / lanes] = sums;
            }
            sums = Sums<A>::nothing();
        }
        __syncthreads();
        auto total = Sums<A>::nothing();
        for (int d = threadIdx.x; d < norm.depth; d += blockDim.x) {
            auto of_channel = by_warp[d * pitch];
            for (int i = 1; i < warps; ++i) of_channel.merge(by_warp[d * pitch + i]);
            const A w = weights.at(first_channel + d, 1);
            total.merge({of_channel.first * w, of_channel.second * w});
            if (exists) of_channels[d].merge(of_channel);
        }
        total = row_merge(total, of_warps);
        __syncthreads();  // before the next row's sums are written
        walk.start();
        if (!exists) continue;
        const A level = total.first / A(norm.size), slope = total.second / A(norm.size);
#pragma unroll
        for (int step = 0; step < steps; ++step, walk.next()) {
            if (!walk.exists()) continue;
            const int kept = ITEMS ? step : 0;
            if (!ITEMS) load(0);
            const A w = weights.at(first_channel + walk.channel, 1);
            A gradient[kVector<T>];
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) {
                const A n = (widen(given[kept][i]) - mean) * rstd;
                gradient[i] = rstd * (widen(upstream[kept][i]) * w - level - n * slope);
            }
            walk.places.store(dx + base + walk.offset(), walk.step, gradient);
        }
    }
    if (!partials || slot >= norm.slots) return;
    for (int d = threadIdx.x; d < norm.depth; d += blockDim.x) {
        partials[slot * norm.depth + d] = of_channels[d].second;
        partials[(norm.slots + slot) * norm.depth + d] = of_channels[d].first;
    }
}
