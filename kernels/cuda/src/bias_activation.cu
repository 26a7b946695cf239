// Activations with one number per channel, each in one launch over (outer, channels, inner): f(x + bias), and PReLU, whose
// slope below 0 is the number. Their gradients write dx and, in the same pass, the sums of each channel: partial sums of
// the blocks, which a second launch adds up in a fixed order.
#include "activation.cuh"

constexpr int kPrelu = -1;  // as a kind
constexpr int kSumRows = 8;

struct Channels {
    int64 size;             // of the array
    int channels, inner;
    int64 lines;            // of a channel: rows, or elements of its planes
    int64 lines_per_block;  // for the gradients
};

// The channel of an element, and of those that follow it at a fixed distance, without divisions.
struct ChannelWalk {
    int channels, inner, channel, rest, channel_step, rest_step;

    __device__ ChannelWalk(const Channels& shape, int64 start, int step)
        : channels(shape.channels), inner(shape.inner) {
        int64 plane;
        if (start >> 32 == 0) {  // the same for nearly all blocks
            plane = uint32(start) / uint32(inner);
            channel = uint32(plane) % uint32(channels);
        } else {
            plane = start / inner;
            channel = int(plane % channels);
        }
        rest = int(start - plane * inner);
        const int planes = step / inner;
        rest_step = step - planes * inner;
        channel_step = planes % channels;
    }

    __device__ void advance() {
        rest += rest_step;
        channel += channel_step;
        if (rest >= inner) rest -= inner, ++channel;
        if (channel >= channels) channel -= channels;
    }
};

// f(x + p), or PReLU of slope p.
template <int N, class A> __device__ inline void activate(const Activation& how, A (&x)[N], const A (&p)[N]) {
    if (how.kind == kPrelu) {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = x[i] > 0 ? x[i] : x[i] * p[i];
        return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += p[i];
    activate(how, x);
}

// dy becomes dx, and s what is summed over a channel. `p` is 0 where s is the output.
template <int N, class A> __device__ inline void gradients(const Activation& how, A (&dy)[N], A (&s)[N], const A (&p)[N]) {
    if (how.kind == kPrelu) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const A x = s[i];
            s[i] = x > 0 ? A(0) : dy[i] * x;
            dy[i] = x > 0 ? dy[i] : dy[i] * p[i];
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] += p[i];
    input_gradient(how, dy, s);
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] = dy[i];
}

template <class T>
__global__ void __launch_bounds__(kTileBlock) bias_activation(
    const T* __restrict__ x, const T* __restrict__ numbers, T* __restrict__ y, Channels shape, Activation how) {
    constexpr int kVector = Tile<T>::kVector, kItems = Tile<T>::kItems;
    const Tile<T> tile(shape.size, fits_vectors(x) && fits_vectors(y));
    Accumulator<T> values[kItems], p[kItems];
    tile.load(x, values);
    const int64 start = tile.base + tile.at(0);
    if (tile.vectors && shape.inner % kVector == 0) {
        ChannelWalk walk(shape, start, kTileBlock * kVector);
#pragma unroll
        for (int i = 0; i < kItems; i += kVector) {
            const Accumulator<T> number = widen(numbers[walk.channel]);
#pragma unroll
            for (int j = 0; j < kVector; ++j) p[i + j] = number;
            walk.advance();
        }
    } else if (tile.vectors && shape.inner == 1 && shape.channels % kVector == 0 && fits_vectors(numbers)) {
        ChannelWalk walk(shape, start, kTileBlock * kVector);
#pragma unroll
        for (int i = 0; i < kItems; i += kVector) {
            const auto pack = *reinterpret_cast<const Pack<T, kVector>*>(numbers + walk.channel);
#pragma unroll
            for (int j = 0; j < kVector; ++j) p[i + j] = widen(pack.value[j]);
            walk.advance();
        }
    } else if (tile.vectors) {
#pragma unroll
        for (int i = 0; i < kItems; i += kVector) {
            ChannelWalk walk(shape, tile.base + tile.at(i), 1);
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                p[i + j] = widen(numbers[walk.channel]);
                walk.advance();
            }
        }
    } else {
        ChannelWalk walk(shape, start, kTileBlock);
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            p[i] = widen(numbers[walk.channel]);
            walk.advance();
        }
    }
    activate(how, values, p);
    tile.store(y, values);
}

// Channels last. A block takes columns, neighbouring threads neighbouring ones, and walks down its rows; blockIdx.y is its
// part of the rows. `partials` (gridDim.y, channels) or null.
template <class T>
__global__ void __launch_bounds__(kTileBlock, 3) bias_activation_grad_rows(
    const T* __restrict__ dy, const T* __restrict__ saved, const T* __restrict__ numbers, T* __restrict__ dx,
    Accumulator<T>* __restrict__ partials, Channels shape, Activation how) {
    using A = Accumulator<T>;
    using Vector = Pack<T, Tile<T>::kVector>;
    constexpr int kVector = Tile<T>::kVector, kPart = kVectorBytes / sizeof(A);
    constexpr int kApart = kWarpSize / 2;
    __shared__ __align__(kVectorBytes) A sums[(kTileBlock * kPart + kApart) * (kVector / kPart)];
    const bool vectors =
        shape.channels % kVector == 0 && fits_vectors(dy) && fits_vectors(saved) && fits_vectors(dx);
    const int width = blockDim.x, columns = width * kVector, first = blockIdx.x * columns;
    // Item i's column of the block.
    const auto column = [=](int i) {
        return vectors ? int(threadIdx.x) * kVector + i : i * width + int(threadIdx.x);
    };
    const int left = shape.channels - first;
    A p[kVector], sum[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = p[i] = 0;
    if (numbers != nullptr && vectors && fits_vectors(numbers)) {
        if (column(0) < left) {
            const Vector pack = *reinterpret_cast<const Vector*>(numbers + first + column(0));
#pragma unroll
            for (int i = 0; i < kVector; ++i) p[i] = widen(pack.value[i]);
        }
    } else if (numbers != nullptr) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (column(i) < left) p[i] = widen(numbers[first + column(i)]);
        }
    }
    const int64 start = blockIdx.y * shape.lines_per_block;
    const int64 stop = min(start + shape.lines_per_block, shape.lines);
#pragma unroll 1
    for (int64 row = start + threadIdx.y; row < stop; row += blockDim.y) {
        const int64 at = row * shape.channels + first;
        A g[kVector], s[kVector];
        if (vectors) {
            if (column(0) >= left) break;
            const Vector dy_pack = *reinterpret_cast<const Vector*>(dy + at + column(0));
            const Vector saved_pack = *reinterpret_cast<const Vector*>(saved + at + column(0));
#pragma unroll
            for (int i = 0; i < kVector; ++i) g[i] = widen(dy_pack.value[i]), s[i] = widen(saved_pack.value[i]);
        } else {
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                g[i] = column(i) < left ? widen(dy[at + column(i)]) : A(0);
                s[i] = column(i) < left ? widen(saved[at + column(i)]) : A(0);
            }
        }
        gradients(how, g, s, p);
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[i] += s[i];
        if (vectors) {
            Vector pack;
#pragma unroll
            for (int i = 0; i < kVector; ++i) pack.value[i] = narrow<T>(g[i]);
            *reinterpret_cast<Vector*>(dx + at + column(0)) = pack;
        } else {
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                if (column(i) < left) dx[at + column(i)] = narrow<T>(g[i]);
            }
        }
    }
    if (partials == nullptr) return;
    // Item i of a thread; the parts of a longer row of items lie in different banks.
    const auto place = [](int thread, int i) {
        return i / kPart * (kTileBlock * kPart + kApart) + thread * kPart + i % kPart;
    };
    const int thread = threadIdx.y * width + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kVector; i += kPart) {
        Pack<A, kPart> pack;
#pragma unroll
        for (int j = 0; j < kPart; ++j) pack.value[j] = sum[i + j];
        *reinterpret_cast<Pack<A, kPart>*>(sums + place(thread, i)) = pack;
    }
    __syncthreads();
    if (thread >= min(columns, left)) return;
    const int x = vectors ? thread / kVector : thread % width, item = vectors ? thread % kVector : thread / width;
    A total = 0;
    for (int y = 0; y < int(blockDim.y); ++y) total += sums[place(y * width + x, item)];
    partials[int64(blockIdx.y) * shape.channels + first + thread] = total;
}

// Channels with planes. A block takes a part of one channel's elements: blockIdx.x = part * channels + channel.
template <class T>
__global__ void __launch_bounds__(kTileBlock, 3) bias_activation_grad_planes(
    const T* __restrict__ dy, const T* __restrict__ saved, const T* __restrict__ numbers, T* __restrict__ dx,
    Accumulator<T>* __restrict__ partials, Channels shape, Activation how) {
    using A = Accumulator<T>;
    constexpr int kVector = Tile<T>::kVector;
    __shared__ A sums[kTileBlock / kWarpSize];
    const int channel = blockIdx.x % shape.channels;
    const int64 start = blockIdx.x / shape.channels * shape.lines_per_block;
    const int64 stop = min(start + shape.lines_per_block, shape.lines);
    const bool vectors = shape.inner % kVector == 0 && shape.lines % kVector == 0 && fits_vectors(dy) &&
                         fits_vectors(saved) && fits_vectors(dx);
    const A number = numbers != nullptr ? widen(numbers[channel]) : A(0);
    const int64 image = int64(shape.channels) * shape.inner;

    // A place within the channel's planes, moved on without divisions.
    const int step = vectors ? kTileBlock * kVector : kTileBlock;
    const int64 first = start + (vectors ? int(threadIdx.x) * kVector : int(threadIdx.x));
    int64 plane = first / shape.inner;
    int rest = int(first - plane * shape.inner);
    const int plane_step = step / shape.inner, rest_step = step % shape.inner;
    const auto advance = [&] {
        plane += plane_step;
        rest += rest_step;
        if (rest >= shape.inner) rest -= shape.inner, ++plane;
    };

    A sum = 0;
    if (vectors) {
        for (int64 at = first; at < stop; at += step, advance()) {
            const int64 place = plane * image + int64(channel) * shape.inner + rest;
            const auto dy_pack = *reinterpret_cast<const Pack<T, kVector>*>(dy + place);
            const auto saved_pack = *reinterpret_cast<const Pack<T, kVector>*>(saved + place);
            A g[kVector], s[kVector], p[kVector];
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                g[i] = widen(dy_pack.value[i]), s[i] = widen(saved_pack.value[i]), p[i] = number;
            }
            gradients(how, g, s, p);
            Pack<T, kVector> pack;
#pragma unroll
            for (int i = 0; i < kVector; ++i) sum += s[i], pack.value[i] = narrow<T>(g[i]);
            *reinterpret_cast<Pack<T, kVector>*>(dx + place) = pack;
        }
    } else {
        for (int64 at = first; at < stop; at += step, advance()) {
            const int64 place = plane * image + int64(channel) * shape.inner + rest;
            A g[1] = {widen(dy[place])}, s[1] = {widen(saved[place])};
            const A p[1] = {number};
            gradients(how, g, s, p);
            sum += s[0];
            dx[place] = narrow<T>(g[0]);
        }
    }
    if (partials == nullptr) return;
    sum = warp_sum(sum);
    if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    A total = 0;
    for (int warp = 0; warp < kTileBlock / kWarpSize; ++warp) total += sums[warp];
    partials[blockIdx.x] = total;
}

// totals[c] = the sum of partials[:, c], for a warp of channels in a block.
template <class T>
__global__ void __launch_bounds__(kWarpSize * kSumRows) bias_activation_sum(
    const Accumulator<T>* __restrict__ partials, T* __restrict__ totals, int parts, int channels) {
    using A = Accumulator<T>;
    __shared__ A sums[kSumRows][kWarpSize];
    const int channel = blockIdx.x * kWarpSize + threadIdx.x;
    A sum = 0;
    if (channel < channels) {
        for (int part = threadIdx.y; part < parts; part += kSumRows) sum += partials[int64(part) * channels + channel];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || channel >= channels) return;
    A total = 0;
    for (int row = 0; row < kSumRows; ++row) total += sums[row][threadIdx.x];
    totals[channel] = narrow<T>(total);
}
