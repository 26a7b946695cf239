// What the kernels for matrix products share: how a launch is described, which tile a block has, and what follows the sums.
#include "epilogue.cuh"

// For each matrix of a batch: out = activation(a · b + bias). A matrix lies with its rows one after the
// other, or its columns where it is `transposed`, `pitch` elements apart; out has dense rows. Blocks sum `part` of the
// depth; where there are several `splits`, they leave partial sums, which gemm_sum adds up in their order.
struct Gemm {
    int64 a_first, b_first, out_first, a_batch, b_batch, out_batch, a_pitch, b_pitch;
    int32 rows, columns, depth, part, splits, a_transposed, b_transposed;
    int32 a_vectors, b_vectors;       // whether all lines are whole runs of 16 bytes, at multiples of 16
    int32 packed;                     // whether four neighbours in out may be stored at once
    int32 bias_row, bias_column;      // by how much the place in the bias grows with row and column
    int32 activation;                 // kIdentity or an ActivationKind
};

// A number of a block's row tiles are neighbours in the grid, so that blocks that run together share lines in the L2.
constexpr int kTogether = 8;

struct Place {
    int32 row, column, begin, end;  // the tile's first row and column, and its part of the depth
    int64 batch, split;

    __device__ static Place of(const Gemm& g, int rows, int columns) {
        const int32 down = divide_up(g.rows, rows), across = divide_up(g.columns, columns);
        const int64 which = blockIdx.x / (int64(down) * across);
        const int32 tile = int32(blockIdx.x % (int64(down) * across)), group = tile / (kTogether * across);
        const int32 rest = tile - group * kTogether * across, height = min(kTogether, down - group * kTogether);
        Place p;
        p.row = (group * kTogether + rest % height) * rows;
        p.column = rest / height * columns;
        p.batch = which / g.splits;
        p.split = which % g.splits;
        p.begin = int32(p.split) * g.part;
        p.end = min(g.depth, p.begin + g.part);
        return p;
    }
};

// A result from its sum. Not-a-number stays one.
template <class T>
__device__ inline Accumulator<T> finished(Accumulator<T> sum, const T* bias, const Gemm& g, int32 row, int32 column) {
    if (bias) sum += widen(bias[int64(row) * g.bias_row + int64(column) * g.bias_column]);
    Accumulator<T> values[1] = {sum};
    activate_some(g.activation, values);
    return values[0];
}
