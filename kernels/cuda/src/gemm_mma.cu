// Matrix products on tensor cores, for devices from sm_80 on: halves, tf32, and float by three products in tf32.
//
// A block computes Rows x Columns sums in steps of 64 bytes of each line, kStages of which are on their way to shared memory
// (cp.async) or there. Its warps have 64 x 32 or 32 x 32 sums in registers. A matrix is kept as it lies in memory:
//
//     depth dense     line 0 | 64 bytes of depth       line l's run r of 16 bytes is at place r ^ (l / 2 % 4): the runs
//                     line 1 | ...                     of two lines, and one run of 8 lines, lie in all banks
//     lines dense     depth 0 | Rows elements | free   one run of 8 depths, or 8 floats of 4, lie in all banks by what is
//                     depth 1 | ...                    left free behind each
//
// Exact: a float is the sum of two tf32, of whose four products the one of both small parts is left out. Tensor cores cut
// sums off, so every kPromoted of the depth they are added to sums that are rounded (Ootomo and Yokota, 2022).
#include "gemm.cuh"
#include "mma.cuh"

constexpr int kStages = 4;
constexpr int kLineBytes = 64;
constexpr int kStepBytes = 32;  // of a line in one matrix instruction
constexpr int kPromoted = 64;

template <class T> constexpr int kFree = sizeof(T) == 4 ? 32 : 16;

// By how much runs of a line change places.
__device__ inline int32 turned(int32 line) { return line / 2 % 4; }

// One operand's tile of `Lines` lines in each stage. This thread copies kEach runs of 16 bytes of it.
template <class T, int Lines, int Threads> struct Operand {
    static constexpr int kRun = 16 / sizeof(T), kDepth = kLineBytes / sizeof(T);
    static constexpr int kRunsOfLine = kLineBytes / 16, kRunsOfDepth = Lines / kRun;
    static constexpr int kEach = Lines * kRunsOfLine / Threads;
    static constexpr int kDepthPitch = Lines * sizeof(T) + kFree<T>;  // in bytes, where lines are dense
    static constexpr int kBytes = kDepth * kDepthPitch;                // which is the larger of the two ways
    static_assert(kEach * Threads == Lines * kRunsOfLine && kBytes >= Lines * kLineBytes, "whole runs that fit");

    const T* from;
    int64 apart, step;                      // from this thread's run to its next, and to the next stage's, in elements
    int32 dense_left, across, across_left;  // elements from the run's first to the end; the run's line or depth
    int32 to, to_apart, dense_step, across_step, across_apart;
    bool vectors;

    __device__ Operand(const T* matrix, int64 pitch, bool lines_dense, bool vectors, int32 first_line, int32 lines,
                    int32 begin, int32 end)
        : vectors(vectors) {
        const int32 runs = lines_dense ? kRunsOfDepth : kRunsOfLine;
        const int32 dense = threadIdx.x % runs * kRun, cross = threadIdx.x / runs;
        const int32 first_dense = (lines_dense ? first_line : begin) + dense;
        const int32 first_across = (lines_dense ? begin : first_line) + cross;
        const int32 pitch_bytes = lines_dense ? kDepthPitch : kLineBytes;
        from = matrix + first_across * pitch + first_dense;
        across_apart = Threads / runs;
        apart = across_apart * pitch;
        step = lines_dense ? kDepth * pitch : kDepth;
        dense_left = (lines_dense ? lines : end) - first_dense;
        across_left = (lines_dense ? end : lines) - first_across;
        dense_step = lines_dense ? 0 : kDepth;
        across_step = lines_dense ? kDepth : 0;
        const int32 run = threadIdx.x % runs;  // further runs of this thread are of lines that are turned alike
        to = cross * pitch_bytes + (lines_dense ? run : run ^ turned(cross)) * 16;
        to_apart = across_apart * pitch_bytes;
    }

    // Starts to copy the next stage's tile.
    __device__ void load(unsigned char* tile) {
        if (vectors) {
#pragma unroll
            for (int i = 0; i < kEach; ++i)
                cp_async<16>(tile + to + i * to_apart, from + i * apart, dense_left > 0 && i * across_apart < across_left);
        } else {
#pragma unroll 1
            for (int i = 0; i < kEach; ++i) {
                T* const target = reinterpret_cast<T*>(tile + to + i * to_apart);
                copy(target, from + i * apart, i * across_apart < across_left ? dense_left : 0);
            }
        }
        from += step;
        dense_left -= dense_step;
        across_left -= across_step;
    }

private:
    // A run element by element, as far as it exists.
    __device__ static void copy(T* target, const T* source, int32 left) {
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            if constexpr (sizeof(T) == 4) cp_async<4>(target + i, source + i, i < left);
            else target[i] = i < left ? source[i] : narrow<T>(0);
        }
    }
};

// What a warp reads from a tile: N fragments of 16 lines, for A (Left), or two fragments of 8 lines each, for B.
template <class T, int Lines, bool Left> struct Reader {
    static constexpr int kDepthPitch = Lines * sizeof(T) + kFree<T>;

    int32 first;  // this lane's place in the tile, in bytes
    bool lines_dense;

    __device__ Reader(int32 line, bool lines_dense) : lines_dense(lines_dense) {
        const int32 lane = threadIdx.x % kWarpSize, low = lane % 8, middle = lane / 8 % 2, high = lane / 16;
        const int32 lines_of_lane = low + 8 * (Left ? middle : high), run = Left ? high : middle;
        if (!lines_dense) first = (line + lines_of_lane) * kLineBytes + (run ^ turned(lines_of_lane)) * 16;
        else if constexpr (sizeof(T) == 4) first = lane % 4 * kDepthPitch + (line + lane / 4) * 4;
        else first = (low + 8 * run) * kDepthPitch + (line + 8 * (Left ? middle : high)) * 2;
    }

    // The fragments of lines 16 `number` and on, at step `k` of the stage.
    __device__ void read(uint32 (&to)[4], const unsigned char* tile, int number, int k) const {
        if (!lines_dense) {
            ldmatrix_x4(to, tile + number * (16 * kLineBytes) + (first ^ k * kStepBytes));
            return;
        }
        const unsigned char* const at = tile + first + number * int(16 * sizeof(T)) + k * (kStepBytes / int(sizeof(T)) * kDepthPitch);
        if constexpr (sizeof(T) == 2) {
            ldmatrix_x4_trans(to, at);
        } else {
            const auto element = [at](int line, int depth) {
                return *reinterpret_cast<const uint32*>(at + line * 4 + depth * kDepthPitch);
            };
            to[0] = element(0, 0);
            to[1] = Left ? element(8, 0) : element(0, 4);
            to[2] = Left ? element(0, 4) : element(8, 0);
            to[3] = element(8, 4);
        }
    }
};

// Tensor cores ignore the last 13 bits of a float in tf32: with half of what they count for added, they round to nearest.
// (cvt.rna would be four instructions on sm_80.)
constexpr uint32 kHalf = 1 << 12;

template <int N> __device__ inline void round_all(uint32 (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (fabsf(__uint_as_float(values[i])) < infinity<float>()) values[i] += kHalf;  // not-a-number would become zero
}

// Floats into what tf32 holds of them, and the rest.
template <int N> __device__ inline void split(uint32 (&large)[N], uint32 (&small)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) small[i] = take_rest(large[i]);
}

// Where sums go: to `out`, or to the partial sums of this split.
template <class T> struct Output {
    const T* bias;
    T* target;
    float* sums;
    const Gemm& g;

    __device__ Output(const T* bias, T* out, float* partial, const Gemm& g, const Place& at) : bias(bias), g(g) {
        target = out + g.out_first + at.batch * g.out_batch;
        sums = g.splits > 1 ? partial + (at.batch * g.splits + at.split) * g.rows * g.columns : nullptr;
    }

    // Two neighbours of a row, from `column` on, and those 8 columns further. All lanes call it together.
    __device__ void store(int32 row, int32 column, const float* near, const float* far) const {
        const int64 of_row = int64(row) * g.columns;
        if (sums) {
            pair(sums + of_row, row, column, near[0], near[1]);
            pair(sums + of_row, row, column + 8, far[0], far[1]);
            return;
        }
        const T near_0 = value(row, column, near[0]), near_1 = value(row, column + 1, near[1]);
        const T far_0 = value(row, column + 8, far[0]), far_1 = value(row, column + 9, far[1]);
        if (sizeof(T) == 4 || !g.packed) {
            pair(target + of_row, row, column, near_0, near_1);
            pair(target + of_row, row, column + 8, far_0, far_1);
            return;
        }
        // Even lanes take four of the near ones, odd lanes four of the far ones: 4 lanes then write 32 bytes of a row.
        const bool odd = threadIdx.x % 2;
        const uint32 near_pair = bits(near_0, near_1), far_pair = bits(far_0, far_1);
        const uint32 mine = odd ? far_pair : near_pair;
        const uint32 other = __shfl_xor_sync(kFullWarp, odd ? near_pair : far_pair, 1);
        const int32 first = odd ? column + 6 : column;
        const Pack<uint32, 2> four{odd ? other : mine, odd ? mine : other};
        if (row < g.rows && first < g.columns) *reinterpret_cast<Pack<uint32, 2>*>(target + of_row + first) = four;
    }

private:
    __device__ T value(int32 row, int32 column, float sum) const {
        const bool exists = row < g.rows && column < g.columns;
        return narrow<T>(exists ? finished<T>(sum, bias, g, row, column) : 0.0f);
    }

    template <class U> __device__ void pair(U* of_row, int32 row, int32 column, U first, U second) const {
        if (row >= g.rows || column >= g.columns) return;
        if (g.packed) {
            const Pack<U, 2> pack{first, second};
            *reinterpret_cast<Pack<U, 2>*>(of_row + column) = pack;
            return;
        }
        of_row[column] = first;
        if (column + 1 < g.columns) of_row[column + 1] = second;
    }

    __device__ static uint32 bits(T low, T high) {
        const Pack<T, 2> pair{low, high};
        return *reinterpret_cast<const uint32*>(&pair);
    }
};

template <int Rows, int Columns> constexpr int kThreads = Rows * Columns <= 4096 ? 128 : 256;
// On a multiprocessor: registers are shared out so that none are spilled.
template <class T, int Rows, int Columns>
constexpr int kBlocks = Rows * Columns <= 4096 ? 4 : Rows * Columns <= 8192 || sizeof(T) == 2 ? 2 : 1;

template <class T, bool Exact, int Rows, int Columns>
__global__ void __launch_bounds__(kThreads<Rows, Columns>, kBlocks<T, Rows, Columns>)
    gemm_mma(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ out,
             float* __restrict__ partial, Gemm g) {
    constexpr int Threads = kThreads<Rows, Columns>;
    constexpr int Down = Rows * Columns > 8192 ? 64 : 32, Across = 32;  // a warp's sums
    constexpr int N = Down / 16, M = Across / 8, Steps = kLineBytes / kStepBytes;
    static_assert(Rows / Down * (Columns / Across) * kWarpSize == Threads, "each warp has sums");
    using Left = Operand<T, Rows, Threads>;
    using Right = Operand<T, Columns, Threads>;
    constexpr int StageBytes = Left::kBytes + Right::kBytes;
    DYNAMIC_SHARED(stages);

    const Place at = Place::of(g, Rows, Columns);
    Left left(a + g.a_first + at.batch * g.a_batch, g.a_pitch, g.a_transposed, g.a_vectors, at.row, g.rows, at.begin, at.end);
    Right right(b + g.b_first + at.batch * g.b_batch, g.b_pitch, !g.b_transposed, g.b_vectors, at.column, g.columns,
                at.begin, at.end);
    const int32 lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int32 warp_row = warp % (Rows / Down) * Down, warp_column = warp / (Rows / Down) * Across;
    const Reader<T, Rows, true> read_left(warp_row, g.a_transposed);
    const Reader<T, Columns, false> read_right(warp_column, !g.b_transposed);

    // Exact: `part` of the sums, since the last time that they were added to `sum`.
    float sum[N][M][4] = {}, part[Exact ? N : 1][Exact ? M : 1][4] = {};
    const int32 rounds = divide_up(at.end - at.begin, Left::kDepth);
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
        if (stage < rounds) {
            left.load(stages + stage * StageBytes);
            right.load(stages + stage * StageBytes + Left::kBytes);
        }
        cp_async_commit();
    }
    int32 stage = 0, next = kStages - 1;
    for (int32 round = 0; round < rounds; ++round) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        if (round + kStages - 1 < rounds) {
            left.load(stages + next * StageBytes);
            right.load(stages + next * StageBytes + Left::kBytes);
        }
        cp_async_commit();
        const unsigned char* const left_tile = stages + stage * StageBytes;
        const unsigned char* const right_tile = left_tile + Left::kBytes;
#pragma unroll 1
        for (int k = 0; k < Steps; ++k) {
            uint32 x[N][4], small_x[Exact ? N : 1][4];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                read_left.read(x[i], left_tile, i, k);
                if constexpr (Exact) split(x[i], small_x[i]);
                else if constexpr (sizeof(T) == 4) round_all(x[i]);
            }
#pragma unroll
            for (int j = 0; j < M; j += 2) {
                uint32 both[4], small_both[4];
                read_right.read(both, right_tile, j / 2, k);
                if constexpr (Exact) split(both, small_both);
                else if constexpr (sizeof(T) == 4) round_all(both);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32 y[2] = {both[2 * half], both[2 * half + 1]};
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        if constexpr (Exact) {
                            const uint32 small_y[2] = {small_both[2 * half], small_both[2 * half + 1]};
                            mma_m16n8k8_tf32(part[i][j + half], small_x[i], y);
                            mma_m16n8k8_tf32(part[i][j + half], x[i], small_y);
                            mma_m16n8k8_tf32(part[i][j + half], x[i], y);
                        } else if constexpr (sizeof(T) == 4) {
                            mma_m16n8k8_tf32(sum[i][j + half], x[i], y);
                        } else {
                            mma_m16n8k16<T>(sum[i][j + half], x[i], y);
                        }
                    }
                }
            }
        }
        if constexpr (Exact) {
            if ((round + 1) % (kPromoted / Left::kDepth) == 0 || round + 1 == rounds) {
#pragma unroll
                for (int i = 0; i < N; ++i)
#pragma unroll
                    for (int j = 0; j < M; ++j)
#pragma unroll
                        for (int v = 0; v < 4; ++v) sum[i][j][v] += part[i][j][v], part[i][j][v] = 0;
            }
        }
        stage = stage + 1 == kStages ? 0 : stage + 1;
        next = next + 1 == kStages ? 0 : next + 1;
    }

    const Output<T> output(bias, out, partial, g, at);
    const int32 row = at.row + warp_row + lane / 4, column = at.column + warp_column + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int j = 0; j < M; j += 2)
                output.store(row + i * 16 + half * 8, column + j * 8, sum[i][j] + 2 * half, sum[i][j + 1] + 2 * half);
}
