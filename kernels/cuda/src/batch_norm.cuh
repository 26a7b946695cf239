// What batch normalisation of (N, C, ...) and its gradient share: how a channel is cut up, and how a thread walks over it.
//
// A channel is cut into `parts`, each the work of one block: a first launch leaves what each part has seen, a second one
// merges that in a fixed order, in every block that needs it, and goes over the data once more. A channel that fits into
// the registers of one block is read only once (`_resident`).
//
// Where the elements of a channel in one image, its run, are many, a block has one channel and its threads lie along the
// runs; where they are few, lanes lie along the channels of an image and a block has as many channels as fit.
#pragma once
#include "norm.cuh"

constexpr int kBlock = 256;

struct BatchNorm {
    int64 count;   // elements of a channel
    int64 image;   // elements from one image to the next
    int64 run;     // elements of a channel in one image
    int64 steps;   // of a channel: vectors of `width` elements, or images where lanes lie along channels
    int64 steps_per_part;
    int64 jump;       // elements from a thread's step to its next one
    int jump_in_run;  // steps of these that go on in a run
    int length;       // of a run, in steps
    double eps, momentum;
    int channels, parts;
    int width;
    int channels_per_block;  // where lanes lie along channels, else 0
    int wide_vectors;        // weight, bias and running statistics are float beside a half type
    int cumulative;          // the momentum is 1 / the number of batches
    int inference;           // mean and variance are given
    int relu;
};

// The steps of one thread.
struct Walk {
    int64 offset;
    int in_run, left;
    int channel, part;
    int leads;  // the channel for which this thread speaks in the block, or -1

    __device__ Walk(const BatchNorm& bn, int block) : part(block % bn.parts) {
        const int group = block / bn.parts;
        const int64 begin = part * bn.steps_per_part;
        const int64 end = min(bn.steps, begin + bn.steps_per_part);
        int64 first = begin;
        if (bn.channels_per_block) {
            const int lane = threadIdx.x, run = int(bn.run);
            channel = group * bn.channels_per_block + lane / run;
            leads = group * bn.channels_per_block + lane;
            if (threadIdx.y || lane >= bn.channels_per_block || leads >= bn.channels) leads = -1;
            first += threadIdx.y;
            in_run = 0;
            offset = first * bn.image + int64(group) * bn.channels_per_block * run + lane;
            left = lane / run < bn.channels_per_block && channel < bn.channels ? steps(first, end, blockDim.y) : 0;
            channel = min(channel, bn.channels - 1);
        } else {
            channel = group;
            leads = threadIdx.x == 0 ? group : -1;
            first += threadIdx.x;
            const bool is_small = first < int64(1) << 31;  // a division of 64 bits takes many instructions
            const int64 image = is_small ? int64(uint32(first) / uint32(bn.length)) : first / bn.length;
            in_run = int(first - image * bn.length);
            offset = image * bn.image + channel * bn.run + int64(in_run) * bn.width;
            left = steps(first, end, blockDim.x);
        }
    }

    __device__ static int steps(int64 first, int64 end, int stride) {
        return first < end ? int((end - first - 1) / stride) + 1 : 0;
    }

    __device__ void next(const BatchNorm& bn) {
        --left;
        offset += bn.jump;
        // Not a comparison of the sum, which may be above 2^31.
        const bool goes_on = in_run < bn.length - bn.jump_in_run;
        in_run += goes_on ? bn.jump_in_run : bn.jump_in_run - bn.length;
        if (!goes_on) offset += bn.image - bn.run;
    }
};

// Offsets of a thread's next steps, -1 behind the last.
template <int COUNT> struct Batch {
    int64 at[COUNT];
    bool full;

    __device__ Batch(const BatchNorm& bn, Walk& walk) : full(walk.left >= COUNT) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            at[i] = walk.left > 0 ? walk.offset : -1;
            walk.next(bn);
        }
    }

    // All loads are on their way before the first value is used.
    template <class T, int WIDTH> __device__ void load(const T* array, Pack<T, WIDTH> (&packs)[COUNT]) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (at[i] >= 0) packs[i] = *reinterpret_cast<const Pack<T, WIDTH>*>(array + at[i]);
        }
    }
};

template <int WIDTH> struct Width { static constexpr int value = WIDTH; };

// Calls f with the width of the vectors as a constant.
template <class T, class F> __device__ void with_width(int width, F f) {
    if (width == kVector<T>) return f(Width<kVector<T>>());
    if constexpr (kVector<T> > 4) {
        if (width == kVector<T> / 2) return f(Width<kVector<T> / 2>());
    }
    f(Width<1>());
}

// How many vectors of an array a thread has on their way at a time, where it goes over so many ARRAYS.
template <int WIDTH, int ARRAYS> constexpr int kBatch = (WIDTH > 4 ? 2 : WIDTH > 1 ? 4 : 8) / ARRAYS;

template <class T> __device__ Accumulator<T> parameter(const BatchNorm& bn, const void* vector, int channel) {
    if (bn.wide_vectors) return static_cast<const Accumulator<T>*>(vector)[channel];
    return widen(static_cast<const T*>(vector)[channel]);
}

template <class T>
__device__ void set_parameter(const BatchNorm& bn, void* vector, int channel, Accumulator<T> value) {
    if (bn.wide_vectors) {
        static_cast<Accumulator<T>*>(vector)[channel] = value;
    } else {
        static_cast<T*>(vector)[channel] = narrow<T>(value);
    }
}

__device__ inline int64 partial_index(const BatchNorm& bn, int channel, int part) {
    return bn.channels_per_block ? int64(part) * bn.channels + channel : int64(channel) * bn.parts + part;
}

// What all parts of a channel have seen. All lanes of a warp must call it.
template <class Seen> __device__ Seen merged(const BatchNorm& bn, const Seen* partials, int channel) {
    const bool in_turn = bn.channels_per_block;
    const int lane = in_turn ? 0 : threadIdx.x % kWarpSize;
    Seen seen = Seen::nothing();
    for (int part = lane; part < bn.parts; part += in_turn ? 1 : kWarpSize) {
        seen.merge(partials[partial_index(bn, channel, part)]);
    }
    return in_turn ? seen : warp_merge(seen);
}

// What the block has seen of the channel for which this thread speaks.
template <class Seen> __device__ Seen of_block(const BatchNorm& bn, Seen seen) {
    if (!bn.channels_per_block) return block_merge(seen);
    __shared__ Seen of_threads[kBlock];
    of_threads[threadIdx.y * kWarpSize + threadIdx.x] = seen;
    __syncthreads();
    if (threadIdx.y) return seen;
    for (int y = 1; y < int(blockDim.y); ++y) seen.merge(of_threads[y * kWarpSize + threadIdx.x]);
    of_threads[threadIdx.x] = seen;
    __syncwarp();
    const int run = int(bn.run), first = int(threadIdx.x) * run;
    if (int(threadIdx.x) >= bn.channels_per_block) return seen;
    seen = of_threads[first];
    for (int i = 1; i < run; ++i) seen.merge(of_threads[first + i]);
    return seen;
}

template <class A> struct Statistics { A mean, variance; };

// A value of the channel. Moments are of x less this, so that a mean far from zero loses no digits.
template <class T> __device__ Accumulator<T> origin_of(const BatchNorm& bn, const T* x, int channel) {
    return bn.count ? widen(x[channel * bn.run]) : Accumulator<T>(0);
}

template <class A> __device__ A inverse_std(const BatchNorm& bn, A variance) {
    return bn.count ? inverse_root(variance + A(bn.eps)) : A(0);
}

// How the numbers of a channel are changed: (x - mean) * scale + shift.
template <class A> struct Affine {
    A mean, scale, shift;

    template <class T>
    __device__ Affine(const BatchNorm& bn, int channel, A mean, A inverse_std, const void* weight, const void* bias, T)
        : mean(mean),
          scale(weight ? inverse_std * parameter<T>(bn, weight, channel) : inverse_std),
          shift(bias ? parameter<T>(bn, bias, channel) : A(0)) {}

    // One instruction, so that the mask of the gradient is that of the result to the last bit.
    __device__ A operator()(A x) const { return fma(x - mean, scale, shift); }
};

// Threads of a block that has a whole channel, at most; so many that two blocks find registers where WORDS are few.
constexpr int kResidentBlock = 448;

// The vectors of a channel that one thread keeps in registers, at most WORDS of 4 bytes each.
template <class T, int WIDTH, int WORDS>
constexpr int kKept = WIDTH == 1 && sizeof(T) < 4 ? WORDS : WORDS * 4 / int(sizeof(T)) / WIDTH;
