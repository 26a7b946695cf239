// The weight gradient on tensor cores: for each group a matrix product, filters x (tap, channel), whose reduction runs
// over the positions (n, o, p, q) of the result.
//
// The left matrix is dy as it lies, neighbouring positions one after the other. The right one is gathered from images
// with their channels last, so that the channels of a tap are one run, or, float by float, from images as they lie.
// Copies of `kStages` - 1 steps are on their way to shared memory while one is multiplied:
//
//     left [row][kDepth]                     right [kDepth][column]
//     16 bytes: positions of one filter      `Bytes` bytes: channels of one tap at one position
//
// Which place of which image the first tap sees at a position stands in a table, which the first warp writes a step ahead.
#include "conv.cuh"
#include "mma.cuh"
#include "position.cuh"

constexpr int kStages = 4;
constexpr int kChunk = 16;       // bytes that a lane reads at once
constexpr int kChunksDeep = 4;   // of a row of the left tile
constexpr int kChunksOfMma = 2;  // along the reduction, for each type
constexpr int kPromoted = 64;    // steps of the reduction after which sums of split floats are added to others

struct WeightGradMma {
    int64 pixels;                      // as of WeightGrad
    int64 dy_image, dy_group, dy_row;  // how far apart the elements of neighbours lie in dy
    int32 plane;                       // positions of an image of dy that follow one another: whole vectors of 16 bytes
    int32 part;
    int32 splits, groups, rows, channels;
    int32 width;  // channels of x, with those that fill up a copy
    int32 pitch;  // of a row of partial sums
    int32 taps_d, taps_h, taps_w, out_d, out_h, out_w;
    int32 source_d, source_h, source_w, stride_d, stride_h, stride_w;
    int32 dilation_d, dilation_h, dilation_w, first_d, first_h, first_w;
    int32 step_image, step_d, step_h, step_w;  // kDepth positions
};

// What the first tap sees at a position of dy: a place in an image, which may lie outside, and how far from the image's
// start. Together with the offset of a tap that exists, that is no longer negative.
struct alignas(16) Seen {
    int32 d, h, w;
    uint32 offset;
};

constexpr int32 kOutside = -(1 << 30);  // for every tap; twice this is a number too

template <class T_, int Rows, int Columns, int WarpRows, int WarpColumns, int Bytes, bool Strict_> struct MmaTile {
    using T = T_;
    static constexpr bool kStrict = Strict_;
    static constexpr int kColumns = Columns;
    static constexpr bool kHalves = sizeof(T) == 2, kPlanes = Bytes == sizeof(T);  // planes: images as they lie
    static constexpr bool kRounds = kPlanes && !kStrict;  // copies with channels last are rounded to tf32 already
    static constexpr int kTilesDown = WarpRows / 16, kTilesAcross = WarpColumns / 8;
    static constexpr int kWarpsAcross = Columns / WarpColumns;
    static constexpr int kThreads = Rows / WarpRows * kWarpsAcross * kWarpSize;
    static constexpr int kBlocks = 512 / kThreads;  // of a multiprocessor, at least
    static constexpr int kPerChunk = kChunk / sizeof(T);
    static constexpr int kDepth = kChunksDeep * kPerChunk;
    static constexpr int kLeft = Rows * kDepth, kStage = kLeft + kDepth * Columns;  // elements
    static constexpr int kRowsAtOnce = kThreads / kChunksDeep;
    static constexpr int kCopiesAcross = Columns * int(sizeof(T)) / Bytes;
    static constexpr int kPositionsAtOnce = kThreads / kCopiesAcross;
    static_assert(Rows % kRowsAtOnce == 0 && kDepth % kPositionsAtOnce == 0, "whole copies");
    static_assert(kRowsAtOnce % 8 == 0 && (kPositionsAtOnce & kPositionsAtOnce - 1) == 0, "whole runs of rows");
    static_assert(WarpColumns == 32, "a lane finds the columns of its tiles from the first");

    // Chunks change places within their row so that what lanes read together lies in different banks: of the left tile
    // 8 rows at one depth; of the right tile 8 depths (halves), or 8 columns at 4 depths (floats). From one place others in
    // the same row, whose numbers have other bits set that were 0, and in rows by whole runs further on: `other_chunk`.
    static constexpr int kLeftRun = 8, kRightRun = kHalves ? 8 : 4;
    __device__ static int left(int row, int chunk) {
        return row * kDepth + (chunk ^ row % kLeftRun / 2) * kPerChunk;
    }
    __device__ static constexpr int right_shift(int depth) { return depth % kRightRun * (kHalves ? 1 : 2); }
    __device__ static int right(int depth, int chunk) {
        return kLeft + depth * Columns + (chunk ^ right_shift(depth)) * kPerChunk;
    }
    __device__ static int other_chunk(int place, int difference) { return place ^ difference * kPerChunk; }
};

template <class T> __device__ inline void multiply(float (&sum)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    if constexpr (sizeof(T) == 2) mma_m16n8k16<T>(sum, a, b);
    else mma_m16n8k8_tf32(sum, a, b);
}

// The sums of a warp.
template <class Tile> struct Sums {
    float of[Tile::kTilesDown][Tile::kTilesAcross][4];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < Tile::kTilesDown; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kTilesAcross; ++j)
#pragma unroll
                for (int r = 0; r < 4; ++r) of[i][j][r] = 0;
    }

    __device__ void add(const Sums& other) {
#pragma unroll
        for (int i = 0; i < Tile::kTilesDown; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kTilesAcross; ++j)
#pragma unroll
                for (int r = 0; r < 4; ++r) of[i][j][r] += other.of[i][j][r];
    }
};

// Where a lane reads what a warp multiplies, of which `row` and `column` are the first.
template <class Tile> struct Places {
    int left, right;

    __device__ Places(int row, int column) {
        const int lane = threadIdx.x % kWarpSize;
        left = Tile::left(row + lane % 16, lane / 16);
        right = Tile::kHalves ? Tile::right(lane % 16, column / Tile::kPerChunk + lane / 16)
                              : Tile::right(lane % 4, column / Tile::kPerChunk + lane / 16) + lane / 4 % 4;
    }
};

// Adds the products of one stage.
template <class Tile>
__device__ inline void add_stage(const typename Tile::T* stage, const Places<Tile>& places, Sums<Tile>& sums) {
    using T = typename Tile::T;
#pragma unroll
    for (int k = 0; k < kChunksDeep; k += kChunksOfMma) {
        const int rows = k * Tile::kPerChunk * Tile::kColumns;
        uint32 b[Tile::kTilesAcross][2], b_rest[Tile::kTilesAcross][2];
        if constexpr (Tile::kHalves) {
#pragma unroll
            for (int j = 0; j < Tile::kTilesAcross; j += 2) {
                uint32 both[4];
                ldmatrix_x4_trans(both, stage + rows + Tile::other_chunk(places.right, j));
                b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
            }
        } else {
#pragma unroll
            for (int j = 0; j < Tile::kTilesAcross; ++j) {
                const T* const from = stage + rows + Tile::other_chunk(places.right, 2 * j);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const float value = from[4 * r * Tile::kColumns];
                    b[j][r] = Tile::kRounds ? round_to_tf32(value) : __float_as_uint(value);
                    if constexpr (Tile::kStrict) b_rest[j][r] = take_rest(b[j][r]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < Tile::kTilesDown; ++i) {
            uint32 a[4], a_rest[4];
            ldmatrix_x4(a, stage + 16 * i * Tile::kDepth + Tile::other_chunk(places.left, k));
            if constexpr (!Tile::kHalves) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    if constexpr (Tile::kStrict) a_rest[r] = take_rest(a[r]);
                    else a[r] = round_to_tf32(__uint_as_float(a[r]));
                }
            }
            if constexpr (Tile::kStrict) {  // the small products first; those of one sum are not neighbours
#pragma unroll
                for (int j = 0; j < Tile::kTilesAcross; ++j) multiply<T>(sums.of[i][j], a_rest, b[j]);
#pragma unroll
                for (int j = 0; j < Tile::kTilesAcross; ++j) multiply<T>(sums.of[i][j], a, b_rest[j]);
            }
#pragma unroll
            for (int j = 0; j < Tile::kTilesAcross; ++j) multiply<T>(sums.of[i][j], a, b[j]);
        }
    }
}

// Two sums of neighbouring columns to where they belong. Columns are (channel, tap) where images lie in planes, else
// (tap, channel).
template <bool Planes, class T>
__device__ inline void write(const float (&sums)[2], int32 row, int32 column, T* dw, float* partial, const WeightGradMma& g) {
    if (g.splits > 1) {
        if (column >= g.pitch) return;
        const Pack<float, 2> pack = {sums[0], sums[1]};
        *reinterpret_cast<Pack<float, 2>*>(partial + int64(row) * g.pitch + column) = pack;
        return;
    }
    const int32 taps = g.taps_d * g.taps_h * g.taps_w;
    T* const of_row = dw + int64(row) * g.channels * taps;
    int32 tap = Planes ? 0 : column / g.width, channel = Planes ? 0 : column % g.width;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (Planes) {
            if (column + i < g.channels * taps) of_row[column + i] = narrow<T>(sums[i]);
            continue;
        }
        if (tap < taps && channel < g.channels) of_row[channel * taps + tap] = narrow<T>(sums[i]);
        if (++channel == g.width) channel = 0, ++tap;
    }
}

// Bytes: of a copy from x, 16 or 8 of channels that are last, 4 of floats in planes. Strict: of floats as exactly as floats,
// by three products of their parts (3xTF32).
template <class T, int Rows, int Columns, int WarpRows, int WarpColumns, int Bytes, bool Strict>
__global__ void __launch_bounds__((MmaTile<T, Rows, Columns, WarpRows, WarpColumns, Bytes, Strict>::kThreads),
                                  (MmaTile<T, Rows, Columns, WarpRows, WarpColumns, Bytes, Strict>::kBlocks))
    weight_grad_mma(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dw, float* __restrict__ partial,
                    WeightGradMma g) {
    using Tile = MmaTile<T, Rows, Columns, WarpRows, WarpColumns, Bytes, Strict>;
    constexpr int kDepth = Tile::kDepth;
    DYNAMIC_SHARED(memory);
    T* const stages = reinterpret_cast<T*>(memory);
    __shared__ Seen seen[2][kDepth];
    __shared__ const T* images[2][kDepth];

    const int32 taps = g.taps_d * g.taps_h * g.taps_w;
    const Digits tile = Digits::of(int32(blockIdx.x), divide_up(g.rows, Rows), divide_up(taps * g.width, Columns));
    const int32 first_row = tile.middle * Rows, first_column = tile.low * Columns;
    const int32 group = tile.high % g.groups, split = tile.high / g.groups;
    const int64 begin = int64(split) * g.part;
    const int32 count = int32(min(g.pixels - begin, int64(g.part))), steps = divide_up(count, kDepth);

    // The left tile: this thread copies one chunk of every kRowsAtOnce-th row.
    const int32 left_chunk = threadIdx.x % kChunksDeep, left_row = threadIdx.x / kChunksDeep;
    const int32 to_left = Tile::left(left_row, left_chunk), rows_left = g.rows - first_row - left_row;
    const int64 left_image = (begin + left_chunk * Tile::kPerChunk) / g.plane;
    int32 at = int32(begin + left_chunk * Tile::kPerChunk - left_image * g.plane);
    const T* of_left = dy + group * g.dy_group + (first_row + left_row) * g.dy_row + left_image * g.dy_image + at;

    // The right tile: one copy, of always the same tap and channels, at every kPositionsAtOnce-th position.
    constexpr int kChannels = Bytes / sizeof(T);
    const int32 copy = threadIdx.x % Tile::kCopiesAcross, right_row = threadIdx.x / Tile::kCopiesAcross;
    const int32 to_right =
        Tile::right(right_row, copy * Bytes / kChunk) + copy % (kChunk / Bytes) * kChannels;
    const int32 column = first_column + copy * kChannels;
    const bool in_columns = column < taps * g.width;
    const int32 channel = Tile::kPlanes ? column / taps : column % g.width;
    const int32 tap_number = Tile::kPlanes ? column % taps : column / g.width;
    const Digits tap = Digits::of(in_columns ? tap_number : 0, g.taps_h, g.taps_w);
    const int32 tap_d = in_columns ? tap.high * g.dilation_d : kOutside;
    const int32 tap_h = tap.middle * g.dilation_h, tap_w = tap.low * g.dilation_w;
    const uint32 apart = Tile::kPlanes ? 1 : g.width;  // neighbouring places
    const uint32 source_size = uint32(g.source_d) * g.source_h * g.source_w;
    const auto place_of = [&](int32 d, int32 h, int32 w) {
        return ((uint32(d) * g.source_h + h) * g.source_w + w) * apart;
    };
    const uint32 tap_offset =
        place_of(tap.high * g.dilation_d, tap_h, tap_w) + channel * (Tile::kPlanes ? source_size : 1);

    Position position = Position::of(begin + threadIdx.x, g);
    const auto look_up = [&](int32 number) {
        if (threadIdx.x >= kDepth) return;
        Seen next = {kOutside, 0, 0, 0};
        const T* image = x;
        if (number * kDepth + int32(threadIdx.x) < count) {
            next.d = position.d * g.stride_d + g.first_d;
            next.h = position.h * g.stride_h + g.first_h;
            next.w = position.w * g.stride_w + g.first_w;
            next.offset = place_of(next.d, next.h, next.w);
            image = x + (int64(position.image) * g.groups + group) * (source_size * g.width);
        }
        seen[number % 2][threadIdx.x] = next;
        images[number % 2][threadIdx.x] = image;
        position.add({g.step_image, g.step_d, g.step_h, g.step_w}, g);
    };
    const auto fetch = [&](int32 number) {
        if (number >= steps) return;
        T* const stage = stages + number % kStages * Tile::kStage;
        const bool in_part = number * kDepth + left_chunk * Tile::kPerChunk < count;
#pragma unroll
        for (int i = 0; i < Rows; i += Tile::kRowsAtOnce)
            cp_async<kChunk>(stage + to_left + i * kDepth, of_left + i * g.dy_row, in_part && i < rows_left);
        of_left += kDepth;
        for (at += kDepth; at >= g.plane; at -= g.plane) of_left += g.dy_image - g.plane;
#pragma unroll
        for (int i = 0; i < kDepth; i += Tile::kPositionsAtOnce) {
            const Seen here = seen[number % 2][right_row + i];
            const bool exists = uint32(here.d + tap_d) < uint32(g.source_d) &&
                                inside(here.h + tap_h, here.w + tap_w, g.source_h, g.source_w);
            const T* const from = images[number % 2][right_row + i] + int32(here.offset + tap_offset);
            T* const to = stage + Tile::other_chunk(to_right, Tile::right_shift(i)) + i * Columns;
            cp_async<Bytes>(to, exists ? from : x, exists);
        }
    };

    look_up(0);
    __syncthreads();
#pragma unroll 1
    for (int32 number = 0; number < kStages - 1; ++number) {
        fetch(number);
        cp_async_commit();
        look_up(number + 1);
        __syncthreads();
    }

    const int32 warp = threadIdx.x / kWarpSize;
    const int32 warp_row = warp / Tile::kWarpsAcross * WarpRows;
    const int32 warp_column = warp % Tile::kWarpsAcross * WarpColumns;
    const Places<Tile> places(warp_row, warp_column);
    Sums<Tile> sums, total;
    sums.clear();
    if constexpr (Strict) total.clear();
#pragma unroll 1
    for (int32 number = 0; number < steps; ++number) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        fetch(number + kStages - 1);
        cp_async_commit();
        look_up(number + kStages);
        add_stage(stages + number % kStages * Tile::kStage, places, sums);
        if constexpr (Strict) {
            if ((number + 1) % (kPromoted / kDepth) == 0) {
                total.add(sums);
                sums.clear();
            }
        }
    }
    if constexpr (Strict) sums.add(total);

    const int32 lane = threadIdx.x % kWarpSize, quad = lane / 4, within = lane % 4;
    T* const of_group = dw + int64(group) * g.rows * g.channels * taps;
    float* const of_part = partial + (int64(split) * g.groups + group) * g.rows * g.pitch;
#pragma unroll
    for (int i = 0; i < Tile::kTilesDown; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int32 row = first_row + warp_row + 16 * i + 8 * half + quad;
            if (row >= g.rows) continue;
#pragma unroll
            for (int j = 0; j < Tile::kTilesAcross; ++j) {
                const float pair[2] = {sums.of[i][j][2 * half], sums.of[i][j][2 * half + 1]};
                const int32 first = first_column + warp_column + 8 * j + 2 * within;
                write<Tile::kPlanes>(pair, row, first, of_group, of_part, g);
            }
        }
    }
}
