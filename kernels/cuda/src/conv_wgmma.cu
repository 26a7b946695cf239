// Convolution on tensor cores of sm_90a, forward and input gradient: an implicit matrix product whose tiles come by bulk
// tensor copies and go to wgmma straight from shared memory.
//
// As conv_mma.cu, from the same copies with channels last, but no thread computes an address in the inner loop: one of them
// starts two copies a step, kStages - 1 steps ahead.
//
//     stage   filters  128 lines of 64 channels of a tap   copy_box       A of wgmma, 64 lines for each warp group
//             pixels   128 lines of 64 channels of a tap   copy_pixels    B of wgmma, for both
//
// The sums leave through shared memory, so that a warp writes neighbouring pixels of one row.
#include "conv.cuh"
#include "epilogue.cuh"
#include "wgmma.cuh"

constexpr int kStages = 4;
constexpr int kLines = 128;      // filters and pixels of a tile
constexpr int kLineBytes = 128;  // of a step
constexpr int kTileBytes = kLines * kLineBytes, kStageBytes = 2 * kTileBytes;
constexpr int kThreads = 256;
constexpr int kPitch = kLines + 8;  // of a row of sums: 4 rows of 8 floats, written at once, meet all banks

// The channels of a tap, in steps of whole lines; and where copies of them begin.
struct Steps {
    int32 channel, r, s;

    __device__ void next(const Gather& g) {
        channel += kLineBytes / 2;
        if (channel >= g.channels) channel = 0, ++s;
        if (s >= g.taps_w) s = 0, ++r;
    }
};

// The offset of a tap from the first one in memory, which is the last one where taps go backward.
__device__ inline int32 offset_of(int32 tap, int32 taps, int32 distance) {
    return distance < 0 ? (tap - taps + 1) * distance : tap * distance;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_wgmma(const __grid_constant__ TensorMap source, const __grid_constant__ TensorMap filter,
                 const T* __restrict__ bias, const T* __restrict__ residual, T* __restrict__ target, Gather g) {
    __shared__ Barrier loaded[kStages];
    DYNAMIC_SHARED(shared);
    uint8* const stages = shared + (1024 - shared_address(shared) % 1024) % 1024;

    const int32 row_tiles = divide_up(g.rows, kLines);
    const int32 first_row = int32(blockIdx.x % row_tiles) * kLines;
    const int64 first_pixel = int64(blockIdx.x / row_tiles) * kLines;
    const FirstPixel first(first_pixel, g);
    const Pixel p = first.and_then(0, g);
    const int32 w = p.j * g.step_w + g.first_w - offset_of(0, g.taps_w, g.tap_w);
    const int32 h = p.i * g.step_h + g.first_h - offset_of(0, g.taps_h, g.tap_h);
    const int32 steps = divide_up(g.channels, kLineBytes / 2) * g.taps_d * g.taps_h * g.taps_w;

    if (threadIdx.x == 0) {
        for (int32 stage = 0; stage < kStages; ++stage) barrier_init(loaded + stage, 1);
        fence_barriers();
    }
    __syncthreads();
    Steps ahead = {};
    const auto load = [&](int32 step) {
        if (threadIdx.x != 0 || step >= steps) return;
        uint8* const stage = stages + step % kStages * kStageBytes;
        Barrier* const barrier = loaded + step % kStages;
        barrier_expect(barrier, kStageBytes);
        copy_box(stage, &filter, barrier, ahead.channel, ahead.s, ahead.r, first_row);
        copy_pixels(stage + kTileBytes, &source, barrier, ahead.channel, w, h, int32(p.image),
                    offset_of(ahead.s, g.taps_w, g.tap_w), offset_of(ahead.r, g.taps_h, g.tap_h));
        ahead.next(g);
    };
    for (int32 step = 0; step < kStages - 1; ++step) load(step);

    const int32 warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, group = warp / 4;
    float sum[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = 0;
    for (int32 step = 0; step < steps; ++step) {
        const int32 number = step % kStages;
        barrier_wait(loaded + number, step / kStages % 2);
        const uint8* const stage = stages + number * kStageBytes;
        const uint64 a = tile_at(stage + group * (kTileBytes / 2)), b = tile_at(stage + kTileBytes);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kLineBytes / 32; ++k) wgmma_m64n128k16<T>(sum, a + 2 * k, b + 2 * k);  // 32 bytes further
        wgmma_commit();
        wgmma_wait<1>();
        __syncthreads();  // none reads the stage before this one, which is loaded next
        load(step + kStages - 1);
    }
    wgmma_wait<0>();
    __syncthreads();

    float* const sums = reinterpret_cast<float*>(stages);
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int32 row = warp * 16 + half * 8 + lane / 4;
            const Pack<float, 2> pair = {sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1]};
            *reinterpret_cast<Pack<float, 2>*>(sums + row * kPitch + 8 * j + lane % 4 * 2) = pair;
        }
    __syncthreads();

    int64 at[4];  // of this lane's pixels, -1 where there is none
#pragma unroll
    for (int v = 0; v < 4; ++v) {
        const int32 column = lane * 4 + v;
        const Pixel pixel = first.and_then(column, g);
        const int64 of_image = pixel.image * g.rows * g.target_plane;
        at[v] = first_pixel + column < g.pixels ? of_image + pixel.in_target(g) : -1;
    }

    for (int32 line = warp; line < kLines && first_row + line < g.rows; line += kThreads / kWarpSize) {
        const int32 row = first_row + line;
        const int64 of_row = int64(row) * g.target_plane;
        const float b = bias ? widen(bias[row]) : 0;
        const Pack<float, 4> run = *reinterpret_cast<const Pack<float, 4>*>(sums + line * kPitch + lane * 4);
        float values[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) values[v] = run.value[v] + b;
        if (g.packed) {
            if (at[0] >= 0) finish_run<4>(g.activation, values, residual, target, of_row + at[0]);
            continue;
        }
#pragma unroll
        for (int v = 0; v < 4; ++v)
            if (at[v] >= 0) finish_one(g.activation, values[v], residual, target, of_row + at[v]);
    }
}
