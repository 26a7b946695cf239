// Matrix products without tensor cores: for doubles, and for devices that have none for a type.
#include "gemm.cuh"
#include "product.cuh"

// The elements of a tile of `Lines` lines that this thread loads: neighbouring threads those that lie dense.
template <class T, int Lines> struct Part {
    static constexpr int kEach = Lines * kDepth / kThreads;

    const T* from;
    int64 line_step, depth_step;
    int32 line, depth, lines_between, depth_between, lines_left;
    T value[kEach];

    __device__ Part(const T* matrix, int64 pitch, bool dense_depth, int32 first_line, int32 lines, int32 begin) {
        line = dense_depth ? threadIdx.x / kDepth : threadIdx.x % Lines;
        depth = dense_depth ? threadIdx.x % kDepth : threadIdx.x / Lines;
        lines_between = dense_depth ? kThreads / kDepth : 0;
        depth_between = dense_depth ? 0 : kThreads / Lines;
        line_step = dense_depth ? pitch : 1;
        depth_step = dense_depth ? 1 : pitch;
        lines_left = lines - first_line - line;
        from = matrix + (first_line + line) * line_step + (begin + depth) * depth_step;
    }

    // The elements from position `k` of the depth on, where the sum ends at `end`.
    __device__ void load(int32 k, int32 end) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            const bool exists = i * lines_between < lines_left && k + depth + i * depth_between < end;
            value[i] = exists ? from[i * (lines_between * line_step + depth_between * depth_step)] : narrow<T>(0);
        }
        from += kDepth * depth_step;
    }

    template <int Padded> __device__ void store(Accumulator<T> (&tile)[kDepth][Padded]) const {
#pragma unroll
        for (int i = 0; i < kEach; ++i) tile[depth + i * depth_between][line + i * lines_between] = widen(value[i]);
    }
};

template <class T, int Rows, int Columns, int RowsEach, int ColumnsEach>
__global__ void __launch_bounds__(kThreads, Rows * Columns > 8192 ? 1 : 2)
    gemm_simt(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ out,
              Accumulator<T>* __restrict__ partial, Gemm g) {
    using P = Product<T, Rows, Columns, RowsEach, ColumnsEach>;
    __shared__ typename P::Tiles tiles;
    const Place at = Place::of(g, Rows, Columns);
    Part<T, Rows> left(a + g.a_first + at.batch * g.a_batch, g.a_pitch, !g.a_transposed, at.row, g.rows, at.begin);
    Part<T, Columns> right(b + g.b_first + at.batch * g.b_batch, g.b_pitch, g.b_transposed, at.column, g.columns, at.begin);

    P product;
    const auto load = [&](int32 k) {
        left.load(k, at.end);
        right.load(k, at.end);
    };
    const auto store = [&](int half) {
        left.store(tiles.left[half]);
        right.store(tiles.right[half]);
    };
    product.run(tiles, at.begin, at.end, load, store);

    const int64 size = int64(g.rows) * g.columns;
    T* const target = out + g.out_first + at.batch * g.out_batch;
    Accumulator<T>* const sums = partial + (at.batch * g.splits + at.split) * size;
#pragma unroll
    for (int i = 0; i < RowsEach; ++i) {
        const int32 row = at.row + P::row(i);
        if (row >= g.rows) continue;
#pragma unroll
        for (int j = 0; j < ColumnsEach; j += P::Width) {
            const int32 column = at.column + P::column(j);
            const int64 place = int64(row) * g.columns + column;
            if (g.splits > 1) {
#pragma unroll
                for (int v = 0; v < P::Width; ++v)
                    if (column + v < g.columns) sums[place + v] = product.sum[i][j + v];
                continue;
            }
            Pack<T, P::Width> pack;
#pragma unroll
            for (int v = 0; v < P::Width; ++v)
                if (column + v < g.columns)
                    pack.value[v] = narrow<T>(finished<T>(product.sum[i][j + v], bias, g, row, column + v));
            if (g.packed) {
                if (column < g.columns) *reinterpret_cast<Pack<T, P::Width>*>(target + place) = pack;
                continue;
            }
#pragma unroll
            for (int v = 0; v < P::Width; ++v)
                if (column + v < g.columns) target[place + v] = pack.value[v];
        }
    }
}

// Adds up the parts of each sum, first to last.
template <class T>
__global__ void __launch_bounds__(256)
    gemm_sum(const Accumulator<T>* __restrict__ partial, const T* __restrict__ bias, T* __restrict__ out, Gemm g,
             int64 count) {
    const int64 i = global_index(), size = int64(g.rows) * g.columns;
    if (i >= count) return;
    const int64 batch = i / size, place = i - batch * size;
    const Accumulator<T>* const first = partial + batch * g.splits * size + place;
    Accumulator<T> sum = 0;
    for (int32 split = 0; split < g.splits; ++split) sum += first[split * size];
    const int32 row = int32(place / g.columns), column = int32(place - int64(row) * g.columns);
    out[g.out_first + batch * g.out_batch + place] = narrow<T>(finished<T>(sum, bias, g, row, column));
}
