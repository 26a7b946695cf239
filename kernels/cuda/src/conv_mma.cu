// Convolution on tensor cores, forward and input gradient: an implicit matrix product.
//
// Rows are output channels, columns are pixels, the reduction goes tap by tap over the channels of each. Source and filters
// come channels last (channels_last.cu), so that a copy to shared memory takes whole pieces of a pixel's channels. Copies
// run kStages - 1 stages ahead of the products.
//
//   shared memory, one stage                     a warp's tile of D, in registers
//   filters  Rows x 64 bytes  --ldmatrix--> A    WarpRows x WarpColumns sums of mma.sync
//   pixels   Columns x 64 bytes --ldmatrix--> B
//
// The pixels of a tile stand in such an order that a thread's sums of two neighbouring products are four pixels in a row:
// they leave as one vector.
#include "conv.cuh"
#include "epilogue.cuh"
#include "mma.cuh"

constexpr int kStages = 4;
constexpr int kLineBytes = 64;  // of a row or a pixel in a stage
constexpr int kRun = 4;         // pixels that a thread stores at once
constexpr int kPromoted = 64;   // steps of the reduction in which strict sums are taken

// Where a piece of 16 bytes of a line lies: eight lines that are read together meet all banks, and so do two lines that are
// written together.
__device__ inline int32 place_of(int32 line, int32 piece) { return line * kLineBytes + ((piece ^ (line / 2 % 4)) * 16); }

// The line of a tile's pixel when runs of kRun belong to one thread: n-tile pairs, then threads, then their columns.
__device__ inline int32 line_of_run(int32 pixel) {
    return pixel / 16 * 16 + pixel % 4 / 2 * 8 + pixel % 16 / 4 * 2 + pixel % 2;
}

// The products of a warp. Strict: of floats as exactly as floats, by three products of their parts (3xTF32); tensor cores
// cut off the sums' last bits, so they are moved to other sums before much is lost.
template <class T, int Rows, int Columns, bool Strict> struct WarpProduct {
    static constexpr int kDown = Rows / 16, kAcross = Columns / 8;
    static_assert(Rows % 16 == 0 && Columns % 16 == 0, "whole fragments");

    float sum[kDown][kAcross][4];
    float total[Strict ? kDown : 1][Strict ? kAcross : 1][4];
    int32 left_place, right_place;  // of this lane's line in each load of four matrices

    __device__ WarpProduct(int32 first_row, int32 first_column) {
        const int32 lane = threadIdx.x % kWarpSize;
        left_place = place_of(first_row + lane % 16, lane / 16);
        right_place = place_of(first_column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
        clear(sum);
        if constexpr (Strict) clear(total);
    }

    // left and right: the stage.
    __device__ void add(const uint8* left, const uint8* right) {
#pragma unroll
        for (int32 piece = 0; piece < kLineBytes; piece += 32) {
            uint32 b[kAcross][2];
#pragma unroll
            for (int j = 0; j < kAcross; j += 2) {
                uint32 pair[4];
                ldmatrix_x4(pair, right + j * 8 * kLineBytes + (right_place ^ piece));
#pragma unroll
                for (int r = 0; r < 4; ++r) b[j + r / 2][r % 2] = pair[r];
            }
            if constexpr (Strict) add_strictly(left, piece, b);
            else {
#pragma unroll
                for (int i = 0; i < kDown; ++i) {
                    uint32 a[4];
                    ldmatrix_x4(a, left + i * 16 * kLineBytes + (left_place ^ piece));
#pragma unroll
                    for (int j = 0; j < kAcross; ++j) {
                        if constexpr (sizeof(T) == 2) mma_m16n8k16<T>(sum[i][j], a, b[j]);
                        else mma_m16n8k8_tf32(sum[i][j], a, b[j]);
                    }
                }
            }
        }
    }

    __device__ void promote() {
#pragma unroll
        for (int i = 0; i < kDown; ++i)
#pragma unroll
            for (int j = 0; j < kAcross; ++j)
#pragma unroll
                for (int r = 0; r < 4; ++r) total[i][j][r] += sum[i][j][r], sum[i][j][r] = 0;
    }

    __device__ float result(int i, int j, int r) const {
        if constexpr (Strict) return total[i][j][r];
        else return sum[i][j][r];
    }

private:
    template <int I, int J> __device__ static void clear(float (&sums)[I][J][4]) {
#pragma unroll
        for (int i = 0; i < I; ++i)
#pragma unroll
            for (int j = 0; j < J; ++j)
#pragma unroll
                for (int r = 0; r < 4; ++r) sums[i][j][r] = 0;
    }

    __device__ void add_strictly(const uint8* left, int32 piece, uint32 (&b)[kAcross][2]) {
        uint32 b_rest[kAcross][2];
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
#pragma unroll
            for (int r = 0; r < 2; ++r) b_rest[j][r] = take_rest(b[j][r]);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
            uint32 a[4], a_rest[4];
            ldmatrix_x4(a, left + i * 16 * kLineBytes + (left_place ^ piece));
#pragma unroll
            for (int r = 0; r < 4; ++r) a_rest[r] = take_rest(a[r]);
            // The small products first. Those of one sum are not neighbours: each waits for the one before it.
#pragma unroll
            for (int j = 0; j < kAcross; ++j) mma_m16n8k8_tf32(sum[i][j], a_rest, b[j]);
#pragma unroll
            for (int j = 0; j < kAcross; ++j) mma_m16n8k8_tf32(sum[i][j], a, b_rest[j]);
#pragma unroll
            for (int j = 0; j < kAcross; ++j) mma_m16n8k8_tf32(sum[i][j], a, b[j]);
        }
    }
};

// What a thread copies of a stage: one piece of `Bytes` bytes of every kLines-th line.
template <class T, int Rows, int Columns, int Threads, int Bytes> struct Loader {
    static constexpr int kPieces = kLineBytes / Bytes, kLines = Threads / kPieces;
    static constexpr int kLeft = Rows / kLines, kRight = Columns / kLines;
    static constexpr int kDepth = kLineBytes / sizeof(T);
    static_assert(kLeft * kLines == Rows && kRight * kLines == Columns && kLines % 16 == 0, "whole passes");

    const Gather& g;
    const T *source, *filter;  // this group's filters, from this thread's row on
    int64 base[kRight];        // of the pixel's first tap and channel, which may lie outside of the source
    int32 d0[kRight], h0[kRight], w0[kRight];
    int32 rows, left_place, right_place;
    ChannelsOfTap at;

    __device__ Loader(const T* source, const T* filter, const Gather& g, int32 group, int32 first_row, int64 first_pixel)
        : g(g), source(source) {
        const int32 line = threadIdx.x / kPieces, byte = threadIdx.x % kPieces * Bytes;
        this->filter = filter + g.filter_first + group * g.filter_group + (first_row + line) * g.filter_row;
        rows = g.rows - first_row - line;
        left_place = place_of(line, byte / 16) + byte % 16;
        right_place = place_of(g.packed ? line_of_run(line) : line, byte / 16) + byte % 16;
        at = ChannelsOfTap::of(byte / sizeof(T), g);

        const FirstPixel first(first_pixel, g);
        const int64 source_volume = int64(g.source_d) * g.source_h * g.source_w * g.channels;
#pragma unroll
        for (int j = 0; j < kRight; ++j) {
            const int32 column = line + j * kLines;
            const Pixel p = first.and_then(column, g);
            d0[j] = first_pixel + column < g.pixels ? p.l * g.step_d + g.first_d : -(1 << 30);  // outside for every tap
            h0[j] = p.i * g.step_h + g.first_h;
            w0[j] = p.j * g.step_w + g.first_w;
            const int32 within = ((p.l * g.step_d + g.first_d) * g.source_h + h0[j]) * g.source_w + w0[j];
            base[j] = (p.image * g.groups + group) * source_volume + int64(within) * g.channels;
        }
    }

    __device__ void load(uint8* left, uint8* right) {
        const bool exists = at.t < g.taps_d;
        const T* const f = filter + at.t * g.filter_d + at.r * g.filter_h + at.s * g.filter_w + at.channel;
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
            const bool in_rows = exists && i * kLines < rows;
            cp_async<Bytes>(left + left_place + i * kLines * kLineBytes, in_rows ? f + i * kLines * g.filter_row : filter,
                            in_rows);
        }
        const int32 d = at.t * g.tap_d, h = at.r * g.tap_h, w = at.s * g.tap_w;
        const int32 offset = ((d * g.source_h + h) * g.source_w + w) * g.channels + at.channel;
#pragma unroll
        for (int j = 0; j < kRight; ++j) {
            const bool in_source = exists && uint32(d0[j] + d) < uint32(g.source_d) &&
                                   inside(h0[j] + h, w0[j] + w, g.source_h, g.source_w);
            cp_async<Bytes>(right + right_place + j * kLines * kLineBytes, in_source ? source + base[j] + offset : source, in_source);
        }
        at.add_stage(g);
    }
};

constexpr int threads_of(int rows, int columns, int warp_rows, int warp_columns) {
    return rows / warp_rows * (columns / warp_columns) * kWarpSize;
}

// Blocks of a multiprocessor, so that a thread has as many registers as it needs and no more: 128 for twice as many sums or
// copies, 168 for that in a small block, else 80 or 96.
constexpr int blocks_of(int threads, bool large, bool strict) {
    if (threads <= 128) return strict ? 3 : 5;
    return (large || strict ? 512 : 768) / threads;
}

template <class T, int Rows, int Columns, int WarpRows, int WarpColumns, int Bytes, bool Strict>
__global__ void __launch_bounds__(threads_of(Rows, Columns, WarpRows, WarpColumns),
                                  blocks_of(threads_of(Rows, Columns, WarpRows, WarpColumns),
                                            WarpRows > 32 || Bytes < 16, Strict))
    gather_mma(const T* __restrict__ source, const T* __restrict__ filter, const T* __restrict__ bias,
               const T* __restrict__ residual, T* __restrict__ target, Gather g) {
    constexpr int kThreads = threads_of(Rows, Columns, WarpRows, WarpColumns), kWarpsAcross = Columns / WarpColumns;
    constexpr int kLeftBytes = Rows * kLineBytes, kStageBytes = kLeftBytes + Columns * kLineBytes;
    using L = Loader<T, Rows, Columns, kThreads, Bytes>;
    DYNAMIC_SHARED(shared);

    const int32 row_tiles = divide_up(g.rows, Rows), rows_of_all = row_tiles * g.groups;
    const int32 group = int32(blockIdx.x % rows_of_all) / row_tiles;
    const int32 first_row = int32(blockIdx.x % rows_of_all) % row_tiles * Rows;
    const int64 first_pixel = int64(blockIdx.x / rows_of_all) * Columns;
    const int32 warp = threadIdx.x / kWarpSize;
    const int32 warp_row = warp / kWarpsAcross * WarpRows, warp_column = warp % kWarpsAcross * WarpColumns;

    L loader(source, filter, g, group, first_row, first_pixel);
    WarpProduct<T, WarpRows, WarpColumns, Strict> product(warp_row, warp_column);
    const int32 steps = divide_up(g.channels * g.taps_d * g.taps_h * g.taps_w, L::kDepth);
    const auto load = [&](int32 step) {
        uint8* const stage = shared + step % kStages * kStageBytes;
        if (step < steps) loader.load(stage, stage + kLeftBytes);
        cp_async_commit();
    };
#pragma unroll
    for (int32 step = 0; step < kStages - 1; ++step) load(step);
    for (int32 step = 0; step < steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // all see this stage, and none reads the one that is loaded next
        load(step + kStages - 1);
        const uint8* const stage = shared + step % kStages * kStageBytes;
        product.add(stage, stage + kLeftBytes);
        if constexpr (Strict)
            if ((step + 1) % (kPromoted / L::kDepth) == 0) product.promote();
    }
    if constexpr (Strict) product.promote();

    // Where the pixels of the tile go, -1 where there is none.
    __syncthreads();
    int64* const target_of = reinterpret_cast<int64*>(shared);
    const FirstPixel first(first_pixel, g);
    for (int32 column = threadIdx.x; column < Columns; column += kThreads) {
        const Pixel p = first.and_then(column, g);
        const int64 of_group = (p.image * g.groups + group) * g.rows * g.target_plane;
        target_of[column] = first_pixel + column < g.pixels ? of_group + p.in_target(g) : -1;
    }
    __syncthreads();

    const int32 lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int i = 0; i < WarpRows / 16; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int32 row = first_row + warp_row + i * 16 + half * 8 + lane / 4;
            if (row >= g.rows) continue;
            const float b = bias ? widen(bias[group * g.rows + row]) : 0;
            const int64 of_row = int64(row) * g.target_plane;
#pragma unroll
            for (int j = 0; j < WarpColumns / 8; j += 2) {
                float values[kRun];
#pragma unroll
                for (int v = 0; v < kRun; ++v) values[v] = product.result(i, j + v / 2, half * 2 + v % 2) + b;
                const int64* const of_pair = target_of + warp_column + j * 8;
                if (g.packed) {
                    const int64 at = of_pair[lane % 4 * kRun];
                    if (at >= 0) finish_run<kRun>(g.activation, values, residual, target, of_row + at);
                    continue;
                }
#pragma unroll
                for (int v = 0; v < kRun; ++v) {
                    const int64 at = of_pair[v / 2 * 8 + lane % 4 * 2 + v % 2];
                    if (at >= 0) finish_one(g.activation, values[v], residual, target, of_row + at);
                }
            }
        }
    }
}
