// Group normalisation (Wu & He, 2018) of (N, C, ...); with a group for each channel, instance normalisation.
//
// A group of an image is a row of depth · length neighbouring elements: `depth` channels, each of which has one weight and one bias.
// With n = (x - mean) rstd and g = dy weight, dx = rstd (g - <g> - n <g n>), <> the mean of a row; weight gets the sum of dy n
// over its channel, bias that of dy.
//
// Rows that fit into the registers of a block are read once, longer ones twice by the same block. Long ones of which there are few
// are split over blocks, which leave partial results for a second launch.
#include "row_norm.cuh"

// Of rows that are read twice: one block fills a device's multiprocessor, so that the L2 keeps the rows under way.
constexpr int kLongBlock = 1024;

struct GroupNorm {
    int64 rows;
    int64 size;   // of a row
    int64 slots;  // of the gradient of whole rows: rows at this distance, a multiple of the groups, are one thread's
    double eps;
    int groups, depth, length;
    int lanes;        // threads that share a channel, a power of two
    int per_channel;  // steps that a channel takes
    int steps;        // of a thread in all
    int parts, chunk; // of a row, or of a channel, that is split over blocks
    int vectors;      // runs are whole vectors, and all arrays begin at one
    int wide;         // weight and bias are float beside a half type
};

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

// Mean and 1 / sqrt(var + eps) of a row.
template <class A> struct Statistics {
    A mean, rstd;

    __device__ Statistics(const GroupNorm& norm, const Moments<A>& seen)
        : mean(seen.mean), rstd(inverse_root(seen.variance() + A(norm.eps))) {}

    __device__ void store(A* means, A* rstds, int64 row) const {
        means[row] = mean;
        rstds[row] = rstd;
    }

    template <int N> __device__ void apply(A weight, A bias, A (&values)[N]) const {
        const A factor = rstd * weight;
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] = (values[i] - mean) * factor + bias;
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
    Walk<T> walk(norm);
    T stored[kSteps][kVector<T>];
#pragma unroll
    for (int step = 0; step < kSteps; ++step, walk.next()) walk.load(x, stored[step]);
    A values[kSteps][kVector<T>];
    A sum = 0, count = 0;
    walk.start();
#pragma unroll
    for (int step = 0; step < kSteps; ++step, walk.next()) {
        widen_all(stored[step], values[step]);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            sum += values[step][i];  // 0 where there is nothing
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
    const Statistics<A> of(norm, row_merge(Moments<A>{mean, m2, count}, of_warps));
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
    Walk<T> walk(norm);
    T stored[kVector<T>];
    A values[kVector<T>];
    auto seen = Moments<A>::nothing();
    for (int step = 0; step < norm.steps; ++step, walk.next()) {
        walk.load(x, stored);
        widen_all(stored, values);
        seen.merge(moments_of(values, [&](int i) { return walk.has(i); }));
    }
    const Statistics<A> of(norm, row_merge(seen, of_warps));
    if (threadIdx.x == 0) of.store(means, rstds, row);
    const Vector<T> weights = {weight, bool(norm.wide)}, biases = {bias, bool(norm.wide)};
    const int first_channel = int(row % norm.groups) * norm.depth;
    walk.start();
    for (int step = 0; step < norm.steps; ++step, walk.next()) {
        if (!walk.exists()) continue;
        walk.load(x, stored);
        widen_all(stored, values);
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
    const int channels = divide_up(norm.depth, walk.slots) * walk.slots;
    Sums<A>* const by_warp = reinterpret_cast<Sums<A>*>(memory) + threadIdx.y * channels * warps;
    Sums<A>* const of_channels = reinterpret_cast<Sums<A>*>(memory) + blockDim.y * channels * warps + threadIdx.y * norm.depth;
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
                by_warp[walk.channel * warps + threadIdx.x % norm.lanes / lanes] = sums;
            }
            sums = Sums<A>::nothing();
        }
        __syncthreads();
        auto total = Sums<A>::nothing();
        for (int d = threadIdx.x; d < norm.depth; d += blockDim.x) {
            auto of_channel = by_warp[d * warps];
            for (int i = 1; i < warps; ++i) of_channel.merge(by_warp[d * warps + i]);
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

// The part of a row that a block takes: blockIdx.x counts the parts of all rows.
struct RowPart {
    int64 row;
    int part;
    int64 begin;
    int count;

    __device__ explicit RowPart(const GroupNorm& norm)
        : row(blockIdx.x / norm.parts),
          part(blockIdx.x % norm.parts),
          begin(int64(part) * norm.chunk),
          count(int(min(int64(norm.chunk), norm.size - begin))) {}
};

// The moments of each part of each row: (rows, parts, 3).
template <class T>
__global__ void __launch_bounds__(kBlock) group_norm_moments(
    const T* __restrict__ x, Accumulator<T>* __restrict__ parts, GroupNorm norm) {
    using A = Accumulator<T>;
    __shared__ Moments<A> of_warps[kMaxWarps];
    const RowPart mine(norm);
    const Places<T> places(threadIdx.x, blockDim.x, mine.count, norm.vectors);
    x += mine.row * norm.size + mine.begin;
    auto seen = Moments<A>::nothing();
    for (int step = 0; places.has(step); ++step) {
        T stored[kVector<T>];
        A values[kVector<T>];
        places.load(x, step, stored);
        widen_all(stored, values);
        seen.merge(moments_of(values, [&](int i) { return places.has(step, i); }));
    }
    seen = row_merge(seen, of_warps);
    if (threadIdx.x) return;
    parts += 3 * int64(blockIdx.x);
    parts[0] = seen.mean;
    parts[1] = seen.m2;
    parts[2] = seen.count;
}

// Calls `change(channel, values, item)` for what stands at each place of one step.
template <class T, class Change>
__device__ void by_channel(const GroupNorm& norm, const RowPart& mine, const Places<T>& places, int step, Change change) {
    int channel = norm.vectors ? int((mine.begin + places.at(step)) / norm.length) : 0;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
        if (!norm.vectors) channel = min(int((mine.begin + places.at(step, i)) / norm.length), norm.depth - 1);
        change(channel, i);
    }
}

// y from the moments of the parts, of which there are at most as many as lanes.
template <class T>
__global__ void __launch_bounds__(kBlock) group_norm_apply(
    const T* __restrict__ x, const Accumulator<T>* __restrict__ parts, const void* __restrict__ weight,
    const void* __restrict__ bias, T* __restrict__ y, Accumulator<T>* __restrict__ means,
    Accumulator<T>* __restrict__ rstds, GroupNorm norm) {
    using A = Accumulator<T>;
    const RowPart mine(norm);
    const int lane = threadIdx.x % kWarpSize;
    auto seen = Moments<A>::nothing();
    if (lane < norm.parts) {
        parts += 3 * (mine.row * norm.parts + lane);
        seen = {parts[0], parts[1], parts[2]};
    }
    const Statistics<A> of(norm, warp_merge(seen));
    if (mine.part == 0 && threadIdx.x == 0) of.store(means, rstds, mine.row);
    const Places<T> places(threadIdx.x, blockDim.x, mine.count, norm.vectors);
    const Vector<T> weights = {weight, bool(norm.wide)}, biases = {bias, bool(norm.wide)};
    const int first_channel = int(mine.row % norm.groups) * norm.depth;
    const int64 base = mine.row * norm.size + mine.begin;
    for (int step = 0; places.has(step); ++step) {
        T stored[kVector<T>];
        A values[kVector<T>];
        places.load(x + base, step, stored);
        widen_all(stored, values);
        by_channel(norm, mine, places, step, [&](int channel, int i) {
            const A factor = of.rstd * weights.at(first_channel + channel, 1);
            values[i] = (values[i] - of.mean) * factor + biases.at(first_channel + channel, 0);
        });
        places.store(y + base, step, values);
    }
}

// The sums of dy n and of dy over each part of each channel of each image: twice (parts, N · C). blockIdx.y is the part; the threads
// of a row of the block share a channel.
template <class T>
__global__ void __launch_bounds__(kBlock) group_norm_sums(
    const T* __restrict__ dy, const T* __restrict__ x, const Accumulator<T>* __restrict__ means,
    const Accumulator<T>* __restrict__ rstds, Accumulator<T>* __restrict__ partials, GroupNorm norm) {
    using A = Accumulator<T>;
    __shared__ Sums<A> of_warps[kMaxWarps];
    const int64 runs = norm.rows * norm.depth, run = int64(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool exists = run < runs;
    const int64 row = exists ? run / norm.depth : 0;
    const A mean = means[row], rstd = rstds[row];
    const int begin = blockIdx.y * norm.chunk;
    const int count = exists ? min(norm.chunk, norm.length - begin) : 0;
    const Places<T> places(threadIdx.x, blockDim.x, count, norm.vectors);
    const int64 base = (exists ? run : 0) * norm.length + begin;
    auto sums = Sums<A>::nothing();
    for (int step = 0; places.has(step); ++step) {
        T upstream[kVector<T>], given[kVector<T>];
        places.load(dy + base, step, upstream);
        places.load(x + base, step, given);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            const A g = widen(upstream[i]);
            sums.merge({g, g * ((widen(given[i]) - mean) * rstd)});
        }
    }
    sums = row_merge(sums, of_warps);
    if (threadIdx.x || !exists) return;
    partials[blockIdx.y * runs + run] = sums.second;
    partials[(gridDim.y + blockIdx.y) * runs + run] = sums.first;
}

// dx from these sums, of which each channel has `sums`.
template <class T>
__global__ void __launch_bounds__(kBlock) group_norm_grad_apply(
    const T* __restrict__ dy, const T* __restrict__ x, const void* __restrict__ weight,
    const Accumulator<T>* __restrict__ means, const Accumulator<T>* __restrict__ rstds,
    const Accumulator<T>* __restrict__ partials, T* __restrict__ dx, GroupNorm norm, int sums) {
    using A = Accumulator<T>;
    __shared__ Sums<A> of_warps[kMaxWarps];
    const RowPart mine(norm);
    const Vector<T> weights = {weight, bool(norm.wide)};
    const int first_channel = int(mine.row % norm.groups) * norm.depth;
    const int64 runs = norm.rows * norm.depth, first_run = mine.row * norm.depth;
    auto total = Sums<A>::nothing();
    for (int d = threadIdx.x; d < norm.depth; d += blockDim.x) {
        auto of_channel = Sums<A>::nothing();
        for (int i = 0; i < sums; ++i) {
            of_channel.merge({partials[(sums + i) * runs + first_run + d], partials[i * runs + first_run + d]});
        }
        const A w = weights.at(first_channel + d, 1);
        total.merge({of_channel.first * w, of_channel.second * w});
    }
    total = row_merge(total, of_warps);
    const A mean = means[mine.row], rstd = rstds[mine.row];
    const A level = total.first / A(norm.size), slope = total.second / A(norm.size);
    const Places<T> places(threadIdx.x, blockDim.x, mine.count, norm.vectors);
    const int64 base = mine.row * norm.size + mine.begin;
    for (int step = 0; places.has(step); ++step) {
        T upstream[kVector<T>], given[kVector<T>];
        places.load(dy + base, step, upstream);
        places.load(x + base, step, given);
        A gradient[kVector<T>];
        by_channel(norm, mine, places, step, [&](int channel, int i) {
            const A n = (widen(given[i]) - mean) * rstd;
            const A g = widen(upstream[i]) * weights.at(first_channel + channel, 1);
            gradient[i] = rstd * (g - level - n * slope);
        });
        places.store(dx + base, step, gradient);
    }
}
