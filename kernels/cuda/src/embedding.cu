// Rows of a matrix by their numbers, and the gradient: for each row of the matrix the sum of the rows of dy where it was
// taken, without atomics.
//
// The gradient goes over the sorted indices in chunks of equal length, however often a row was taken. A run of equal
// indices inside a chunk is a row's sum and is written. Of a run over several chunks each writes its part, and a second
// launch, which also writes the zeros of rows that were never taken, adds these parts in order:
//
//     sorted   2 2 5 5 | 5 5 5 5 | 5 7 9 9        row 2, 7, 9: written by their chunks
//     parts        t       h       h              row 5: the tail of a chunk, then the heads of those that follow
#include "common.cuh"

constexpr int kEmbeddingBlock = 256, kChunk = 32;
constexpr int kAtOnce = 4;  // rows of dy that are on their way together
template <class T> constexpr int kVector = 16 / int(sizeof(T));

struct Embedding {
    int64 count;  // indices
    int64 rows;   // of the matrix
    int dim;
    int by_frequency;  // divide a row by how often it was taken
};

// Which columns a thread takes: one vector where rows can be moved in vectors, else neighbours take neighbours.
template <class T> struct Lanes {
    int first, step, dim;
    bool vectors;

    __device__ Lanes(int dim, bool vectors)
        : first(int(blockIdx.y * blockDim.x) * kVector<T> + int(threadIdx.x) * (vectors ? kVector<T> : 1)),
          step(vectors ? 1 : int(blockDim.x)),
          dim(dim),
          vectors(vectors) {}

    __device__ bool has(int i) const { return first + i * step < dim; }

    template <class S> __device__ void load(const S* row, S (&values)[kVector<T>]) const {
        if (vectors) {
            if (has(0)) copy(row + first, values);
            return;
        }
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            if (has(i)) values[i] = row[first + i * step];
        }
    }

    template <class S> __device__ void store(S* row, const S (&values)[kVector<T>]) const {
        if (vectors) {
            if (has(0)) copy(values, row + first);
            return;
        }
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
            if (has(i)) row[first + i * step] = values[i];
        }
    }

    // By vectors of at most 16 bytes.
    template <class S> __device__ static void copy(const S* from, S* to) {
        constexpr int kPart = kVector<T> < kVector<S> ? kVector<T> : kVector<S>;
#pragma unroll
        for (int i = 0; i < kVector<T>; i += kPart) {
            *reinterpret_cast<Pack<S, kPart>*>(to + i) = *reinterpret_cast<const Pack<S, kPart>*>(from + i);
        }
    }
};

template <class T> __device__ bool vectors_fit(int dim, const T* a, const T* b) {
    const uint64 addresses = reinterpret_cast<uint64>(a) | reinterpret_cast<uint64>(b);
    return dim % kVector<T> == 0 && addresses % 16 == 0;
}

template <class T>
__global__ void __launch_bounds__(kEmbeddingBlock) embedding_rows(
    const T* __restrict__ weight, const int64* __restrict__ indices, T* __restrict__ y, Embedding shape) {
    const Lanes<T> lanes(shape.dim, vectors_fit(shape.dim, weight, y));
    for (int64 at = int64(blockIdx.x) * blockDim.y + threadIdx.y; at < shape.count; at += int64(gridDim.x) * blockDim.y) {
        const int64 index = indices[at];
        alignas(16) T values[kVector<T>];
        if (index >= 0 && index < shape.rows) {
            lanes.load(weight + index * shape.dim, values);
        } else {
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) values[i] = narrow<T>(quiet_nan<Accumulator<T>>());
        }
        lanes.store(y + at * shape.dim, values);
    }
}

// Where the sum of a run goes.
template <class T> struct Target {
    using A = Accumulator<T>;
    T* grad;
    A* parts;  // [chunk][head or tail][column]
    const int* starts;
    const Embedding& shape;

    __device__ A scale(int row) const {
        return shape.by_frequency ? A(1) / A(max(starts[row + 1] - starts[row], 1)) : A(1);
    }

    __device__ A* part(int64 chunk, bool tail) const { return parts + (2 * chunk + tail) * shape.dim; }

    __device__ void write(const Lanes<T>& lanes, int row, const A (&sum)[kVector<T>]) const {
        const A factor = scale(row);
        alignas(16) T values[kVector<T>];
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) values[i] = narrow<T>(sum[i] * factor);
        lanes.store(grad + int64(row) * shape.dim, values);
    }

    __device__ void finish(const Lanes<T>& lanes, int row, int64 chunk, const A (&sum)[kVector<T>]) const {
        const int first = starts[row], stop = starts[row + 1];
        if (first / kChunk == (stop - 1) / kChunk) {
            write(lanes, row, sum);
        } else {
            lanes.store(part(chunk, first >= chunk * kChunk), sum);
        }
    }
};

template <class T>
__global__ void __launch_bounds__(kEmbeddingBlock) embedding_grad_chunks(
    const T* __restrict__ dy, const int* __restrict__ sorted, const int* __restrict__ positions,
    const int* __restrict__ starts, T* __restrict__ grad, Accumulator<T>* __restrict__ parts, Embedding shape) {
    using A = Accumulator<T>;
    const Lanes<T> lanes(shape.dim, vectors_fit(shape.dim, dy, grad));
    const Target<T> target{grad, parts, starts, shape};
    const int kept = starts[shape.rows];  // what was dropped comes last
    for (int64 chunk = int64(blockIdx.x) * blockDim.y + threadIdx.y; chunk * kChunk < kept;
         chunk += int64(gridDim.x) * blockDim.y) {
        const int begin = int(chunk * kChunk), end = min(int64(kept), (chunk + 1) * kChunk);
        int row = sorted[begin];
        alignas(16) A sum[kVector<T>] = {};
        for (int first = begin; first < end; first += kAtOnce) {
            int rows[kAtOnce];
            alignas(16) T values[kAtOnce][kVector<T>] = {};
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (first + i >= end) break;
                rows[i] = sorted[first + i];
                lanes.load(dy + int64(positions[first + i]) * shape.dim, values[i]);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (first + i >= end) break;
                if (rows[i] != row) {
                    target.finish(lanes, row, chunk, sum);
                    row = rows[i];
#pragma unroll
                    for (int j = 0; j < kVector<T>; ++j) sum[j] = 0;
                }
#pragma unroll
                for (int j = 0; j < kVector<T>; ++j) sum[j] += widen(values[i][j]);
            }
        }
        target.finish(lanes, row, chunk, sum);
    }
}

// The rows that no chunk wrote.
template <class T>
__global__ void __launch_bounds__(kEmbeddingBlock) embedding_grad_rest(
    const T* __restrict__ dy, const int* __restrict__ starts, T* __restrict__ grad,
    const Accumulator<T>* __restrict__ parts, Embedding shape) {
    using A = Accumulator<T>;
    const Lanes<T> lanes(shape.dim, vectors_fit(shape.dim, dy, grad));
    const Target<T> target{grad, const_cast<A*>(parts), starts, shape};
    for (int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y; row < shape.rows; row += int64(gridDim.x) * blockDim.y) {
        const int first = starts[row], stop = starts[row + 1];
        if (first < stop && first / kChunk == (stop - 1) / kChunk) continue;
        alignas(16) A sum[kVector<T>] = {};
        for (int chunk = first / kChunk; first < stop && chunk <= (stop - 1) / kChunk; ++chunk) {
            alignas(16) A part[kVector<T>] = {};
            lanes.load(target.part(chunk, chunk == first / kChunk), part);
#pragma unroll
            for (int i = 0; i < kVector<T>; ++i) sum[i] += part[i];
        }
        target.write(lanes, int(row), sum);
    }
}

// Notes which rows are taken. Several threads may write the same byte.
template <class Flag>
__global__ void __launch_bounds__(kEmbeddingBlock)
    embedding_mark(const int64* __restrict__ indices, Flag* __restrict__ taken, Embedding shape) {
    for (int64 at = global_index(); at < shape.count; at += grid_size()) {
        const int64 index = indices[at];
        if (index >= 0 && index < shape.rows) taken[index] = 1;
    }
}

// Scales each row taken to a norm of at most `most`; a warp a row.
template <class T>
__global__ void __launch_bounds__(kEmbeddingBlock) embedding_renorm(
    T* __restrict__ weight, const uint8* __restrict__ taken, Embedding shape, double most, double norm_type) {
    using A = Accumulator<T>;
    const A power = A(norm_type);
    for (int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y; row < shape.rows; row += int64(gridDim.x) * blockDim.y) {
        if (!taken[row]) continue;
        T* values = weight + row * shape.dim;
        A norm = 0;
        for (int column = threadIdx.x; column < shape.dim; column += kWarpSize) {
            const A size = fabs(widen(values[column]));
            if (isinf(power)) {
                norm = size > norm || size != size ? size : norm;
            } else {
                norm += power == 2 ? size * size : power == 1 ? size : pow(size, power);
            }
        }
        if (isinf(power)) {
            norm = warp_max(norm);
        } else {
            norm = warp_sum(norm);
            norm = power == 2 ? sqrt(norm) : power == 1 ? norm : pow(norm, 1 / power);
        }
        if (!(norm > A(most))) continue;
        const A factor = A(most) / (norm + A(1e-7));
        for (int column = threadIdx.x; column < shape.dim; column += kWarpSize) {
            values[column] = narrow<T>(widen(values[column]) * factor);
        }
    }
}
