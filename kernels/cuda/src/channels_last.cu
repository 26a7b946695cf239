// Copies (images, channels, plane) to (images, plane, padded): a pixel's channels side by side, with zeros behind them.
#include "divisor.cuh"
#include "mma.cuh"

constexpr int kThreads = 256;
constexpr int kVector = 4;      // values of a store
constexpr int kTileSize = 2112;  // values in shared memory

// A block copies `across` pixels of `down` channels. Lines of `pitch` values let both directions use all banks.
struct ChannelsLast {
    int32 channels, padded, plane, across, down, pitch, column_tiles, row_tiles;
    Divisor by_across, by_vectors;  // across, down / kVector
};

// Rounded: to tf32, so that nothing is left to do where the values are used.
template <class T, bool Rounded>
__global__ void __launch_bounds__(kThreads) channels_last(const T* __restrict__ x, T* __restrict__ y, ChannelsLast s) {
    __shared__ T tile[kTileSize];
    const int32 tiles = s.column_tiles * s.row_tiles;
    const int32 image = int32(blockIdx.x / tiles), of_image = int32(blockIdx.x % tiles);
    const int32 first_channel = of_image / s.column_tiles * s.down, first_pixel = of_image % s.column_tiles * s.across;
    const T* const from = x + int64(image) * s.channels * s.plane;
    T* const to = y + int64(image) * s.plane * s.padded;

#pragma unroll 8
    for (int32 i = threadIdx.x; i < s.down * s.across; i += kThreads) {
        const int32 row = s.by_across.divide(i), column = i - row * s.across;
        const int32 channel = first_channel + row, pixel = first_pixel + column;
        T value = narrow<T>(0);
        if (channel < s.channels && pixel < s.plane) value = from[channel * s.plane + pixel];
        if constexpr (Rounded) value = __uint_as_float(round_to_tf32(value));
        tile[row * s.pitch + column] = value;
    }
    __syncthreads();

    const int32 vectors = s.down / kVector;
    for (int32 i = threadIdx.x; i < vectors * s.across; i += kThreads) {
        const int32 column = s.by_vectors.divide(i), row = (i - column * vectors) * kVector;
        const int32 channel = first_channel + row, pixel = first_pixel + column;
        if (channel >= s.padded || pixel >= s.plane) continue;
        Pack<T, kVector> pack;
#pragma unroll
        for (int v = 0; v < kVector; ++v) pack.value[v] = tile[(row + v) * s.pitch + column];
        *reinterpret_cast<Pack<T, kVector>*>(to + pixel * s.padded + channel) = pack;
    }
}
