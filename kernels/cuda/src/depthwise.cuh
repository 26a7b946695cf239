// What the depthwise kernels share: the description of a launch, source tiles in shared memory, and target tiles written.
//
// A block brings a tile of the source, with the zeros around it, into shared memory as accumulators, each element once.
// Each thread then makes a patch of ROWS x COLUMNS targets from the rows of the tile above it, which it reads as vectors.
// Threads stand in rows of `lanes`, a power of two.
#include "conv.cuh"

constexpr int kVector = 4;
// Columns of a tile in front of its first source column, at least as many as a fixed window's padding.
constexpr int kMargin = 4;
constexpr int kDepthwiseBlock = 256;

// Images (channels, d, h, w), and how many elements lie between planes, channels and images.
struct Images {
    int64 plane, channel, image;
    int32 d, h, w;
};

// How source or target planes lie in shared memory: `rows` rows of `pitch` elements, planes `plane` elements apart.
struct Layout { int32 rows, pitch, plane; };

struct Depthwise {
    Images source, target;
    int32 pad_d, pad_h, pad_w;
    int32 planes, filters, multiplier;   // planes: images * filters; filter k reads channel k / multiplier
    int32 planes_at_once;                // of a block
    int32 bands, column_tiles, chunks;   // of a plane, by height, width and depth
    int32 depths;                        // of a chunk
    int32 lanes, lanes_used, tile_rows;  // threads of a plane
    int32 taps_w;                        // of a window of one row
    int32 flipped;                       // whether the filters are read backwards
    Layout tile, patch;
    // For the weight gradient.
    int32 images, units, units_of_part;
};

// The next digit of a block's number, which mostly has one value only.
__device__ inline int32 take_digit(int32& number, int32 size) {
    if (size == 1) return 0;
    const int32 rest = number / size, digit = number - rest * size;
    number = rest;
    return digit;
}

// Where this thread's patch lies: in which plane of the block, and at which row and column of patches.
struct Spot {
    int32 plane, row, lane;

    __device__ explicit Spot(const Depthwise& g) {
        lane = threadIdx.x & (g.lanes - 1);
        row = threadIdx.x / g.lanes;
        plane = 0;
        if (g.planes_at_once > 1) {
            plane = row / g.tile_rows;
            row -= plane * g.tile_rows;
        }
    }

    __device__ bool works(const Depthwise& g, int32 planes) const {
        return lane < g.lanes_used && row < g.tile_rows && plane < planes;
    }
};

// The nearest place inside [0, size).
__device__ inline int32 clamped(int32 place, int32 size) { return max(0, min(place, size - 1)); }

// Brings rows [top, top + rows) and columns [left, left + pitch) of some planes (height, width) to shared memory, zero
// where they are outside. Lanes of a warp read neighbouring elements, across the ends of rows too.
template <class T>
__device__ void stage(const T* __restrict__ source, int64 plane_step, int32 planes, int32 height, int32 width, int32 top,
                      int32 left, const Layout& to, Accumulator<T>* tile) {
    using A = Accumulator<T>;
    const bool vectors =
        (left | width) % kVector == 0 && reinterpret_cast<uint64>(source) % sizeof(Pack<T, kVector>) == 0 &&
        (planes == 1 || plane_step % kVector == 0);
    if (vectors) {
        // Lanes outside read the nearest element: so no load waits for the one before it.
        const int32 packs = to.pitch / kVector;
        const Digits step = Digits::of(blockDim.x, to.rows, packs);
#pragma unroll 2
        for (Digits at = Digits::of(threadIdx.x, to.rows, packs); at.high < planes; at.add(step, to.rows, packs)) {
            const int32 h = top + at.middle, w = left + at.low * kVector;
            const int32 from = clamped(h, height) * width + min(clamped(w, width), width - kVector);
            const auto given = *reinterpret_cast<const Pack<T, kVector>*>(source + at.high * plane_step + from);
            const bool exists = inside(h, w, height, width);
            Pack<A, kVector> values;
#pragma unroll
            for (int i = 0; i < kVector; ++i) values.value[i] = exists ? widen(given.value[i]) : A(0);
            A* const place = tile + at.high * to.plane + at.middle * to.pitch + at.low * kVector;
            *reinterpret_cast<Pack<A, kVector>*>(place) = values;
        }
        return;
    }
    for (int32 i = threadIdx.x * kVector; i < planes * to.plane; i += blockDim.x * kVector)
        *reinterpret_cast<Pack<A, kVector>*>(tile + i) = {};
    __syncthreads();
    const int32 first_row = max(0, top), rows = min(height, top + to.rows) - first_row;
    const int32 first_column = max(0, left), columns = min(width, left + to.pitch) - first_column;
    if (rows <= 0 || columns <= 0) return;
    source += first_row * width + first_column;
    tile += (first_row - top) * to.pitch + first_column - left;
    const Digits step = Digits::of(blockDim.x, rows, columns);
#pragma unroll 2
    for (Digits at = Digits::of(threadIdx.x, rows, columns); at.high < planes; at.add(step, rows, columns))
        tile[at.high * to.plane + at.middle * to.pitch + at.low] =
            widen(source[at.high * plane_step + at.middle * width + at.low]);
}

// COUNT elements of shared memory from an address that is a multiple of WIDTH elements.
template <int COUNT, int WIDTH, class A> __device__ void read_row(const A* from, A (&to)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += WIDTH) {
        const auto pack = *reinterpret_cast<const Pack<A, WIDTH>*>(from + i);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) to[i + j] = pack.value[j];
    }
}

// Writes each thread's patch to planes (height, width) of the target: as vectors where they fit, else through shared
// memory, so that lanes write neighbouring elements. All threads of the block must call it.
template <class T, int ROWS, int COLUMNS>
__device__ void write(const Depthwise& g, const Spot& spot, int32 planes, const Accumulator<T> (&sum)[ROWS][COLUMNS],
                      T* __restrict__ target, int64 plane_step, int32 top, int32 left, Accumulator<T>* shared) {
    using A = Accumulator<T>;
    const int32 row = spot.row * ROWS, column = spot.lane * COLUMNS;
    const int32 height = g.target.h, width = g.target.w;
    if (width % COLUMNS == 0 && reinterpret_cast<uint64>(target) % sizeof(Pack<T, COLUMNS>) == 0 &&
        (planes == 1 || plane_step % COLUMNS == 0)) {
        if (!spot.works(g, planes) || left + column >= width) return;
        T* const place = target + spot.plane * plane_step + (top + row) * width + left + column;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            if (top + row + i >= height) break;
            Pack<T, COLUMNS> pack;
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) pack.value[j] = narrow<T>(sum[i][j]);
            *reinterpret_cast<Pack<T, COLUMNS>*>(place + i * width) = pack;
        }
        return;
    }
    __syncthreads();
    if (spot.works(g, planes)) {
        A* const place = shared + spot.plane * g.patch.plane + row * g.patch.pitch + column;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            Pack<A, COLUMNS> pack;
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) pack.value[j] = sum[i][j];
            *reinterpret_cast<Pack<A, COLUMNS>*>(place + i * g.patch.pitch) = pack;
        }
    }
    __syncthreads();
    const int32 columns = g.lanes_used * COLUMNS;
    const Digits step = Digits::of(blockDim.x, g.patch.rows, columns);
    for (Digits at = Digits::of(threadIdx.x, g.patch.rows, columns); at.high < planes; at.add(step, g.patch.rows, columns)) {
        const int32 h = top + at.middle, w = left + at.low;
        if (h < height && w < width)
            target[at.high * plane_step + h * width + w] =
                narrow<T>(shared[at.high * g.patch.plane + at.middle * g.patch.pitch + at.low]);
    }
}

// The window of a kernel: D x R x S taps, the stride along height and width, the padding along the width for which the
// source moves as vectors, and the rows of a thread's patch. A window of one row has up to S taps.
template <int D_, int R_, int S_, int STRIDE_, int PAD_, int ROWS_> struct Window {
    static constexpr int D = D_, R = R_, S = S_, STRIDE = STRIDE_, PAD = PAD_, ROWS = ROWS_;
    static constexpr int COLUMNS = kVector / STRIDE;
    static constexpr int kTaps = D * R * S;
    static constexpr bool kAnyWidth = R == 1;
    // Whether every source row of an image meets every row of taps.
    static constexpr bool kRowByRow = D == 1 && R > 1 && STRIDE == 1;
    // Where the first tap of a patch lies in the row that its thread reads from a multiple of kVector on.
    static constexpr int kFirst = kMargin - PAD;
    static constexpr int kSpan = divide_up(kFirst + (COLUMNS - 1) * STRIDE + S, kVector) * kVector;
    static constexpr int kSourceRows = (ROWS - 1) * STRIDE + R;
    // So few blocks of a multiprocessor that the taps, or their sums, stay in registers.
    static constexpr int kBlocks = kTaps > 9 ? 2 : 3;

    __device__ static bool has_tap(int s, const Depthwise& g) { return !kAnyWidth || s < g.taps_w; }
};
