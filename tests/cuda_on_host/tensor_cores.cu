// What mma.cuh offers, each by itself, for tests of its host twins (and, on a GPU, of the wrappers); then mistakes.
#include "mma.cuh"

template <class T> struct Product;  // of A (16, kDepth) and B (kDepth, 8)

template <> struct Product<float16> {
    static constexpr int kDepth = 16;
    static __device__ void add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k16<float16>(d, a, b); }
};
template <> struct Product<bfloat16> {
    static constexpr int kDepth = 16;
    static __device__ void add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k16<bfloat16>(d, a, b); }
};
template <> struct Product<float> {
    static constexpr int kDepth = 8;
    static __device__ void add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) { mma_m16n8k8_tf32(d, a, b); }
};

// D (16, 8) = C + A·B, A (steps, 16, depth) row by row, B (steps, 8, depth) column by column. Fragments as PTX lays them out.
template <class T> __global__ void multiply(const T* a, const T* b, const float* c, float* d, int32 steps) {
    constexpr int kDepth = Product<T>::kDepth, kPerRegister = 4 / sizeof(T);
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    float sums[4];
    for (int r = 0; r < 4; ++r) sums[r] = c[(g + r / 2 * 8) * 8 + 2 * t + r % 2];
    for (int step = 0; step < steps; ++step, a += 16 * kDepth, b += 8 * kDepth) {
        uint32 a_registers[4], b_registers[2];
        for (int r = 0; r < 4; ++r)
            a_registers[r] = *reinterpret_cast<const uint32*>(a + (g + r % 2 * 8) * kDepth + t * kPerRegister + r / 2 * kDepth / 2);
        for (int r = 0; r < 2; ++r)
            b_registers[r] = *reinterpret_cast<const uint32*>(b + g * kDepth + t * kPerRegister + r * kDepth / 2);
        Product<T>::add(sums, a_registers, b_registers);
    }
    for (int r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sums[r];
}

__global__ void round_all(const float* x, int32* y) { y[global_index()] = round_to_tf32(x[global_index()]); }

template <int N, bool kTransposed> __device__ inline void load_matrices(uint32 (&r)[N], const void* row) {
    if constexpr (N == 4 && kTransposed) ldmatrix_x4_trans(r, row);
    else if constexpr (N == 4) ldmatrix_x4(r, row);
    else if constexpr (kTransposed) ldmatrix_x2_trans(r, row);
    else ldmatrix_x2(r, row);
}

// Row j of matrix i begins at shared value (8i + j) * pitch + offset. y is (lane, register).
template <int N, bool kTransposed> __global__ void load_and_store(const int16* x, int32* y, int32 pitch, int32 offset) {
    DYNAMIC_SHARED(bytes);
    int16* const values = reinterpret_cast<int16*>(bytes);
    for (int i = threadIdx.x; i < 8 * N * pitch; i += 32) values[i] = x[i];
    __syncthreads();
    uint32 r[N];
    load_matrices<N, kTransposed>(r, values + threadIdx.x % (8 * N) * pitch + offset);
#pragma unroll
    for (int i = 0; i < N; ++i) y[threadIdx.x * N + i] = r[i];
}

// Reverses each row of blockDim.x pieces of `Bytes`, the next row on its way while one is stored. Rows from `exist` on are
// zero. kWaits, kBarriers: false leaves them out.
template <int Bytes, bool kWaits, bool kBarriers>
__global__ void reverse_rows_ahead(const unsigned char* x, unsigned char* y, int32 rows, int32 exist) {
    DYNAMIC_SHARED(bytes);
    struct alignas(Bytes) Piece { unsigned char bytes[Bytes]; };
    Piece* const stages = reinterpret_cast<Piece*>(bytes);
    const int n = blockDim.x, i = threadIdx.x;
    const auto begin = [&](int row) {
        if (row < rows) cp_async<Bytes>(stages + row % 2 * n + i, x + (row < exist ? int64(row * n + i) * Bytes : 0), row < exist);
        cp_async_commit();
    };
    begin(0);
    for (int row = 0; row < rows; ++row) {
        begin(row + 1);
        if (kWaits) cp_async_wait<1>();
        if (kBarriers) __syncthreads();
        reinterpret_cast<Piece*>(y)[row * n + i] = stages[row % 2 * n + n - 1 - i];
        __syncthreads();
    }
}

// ---- mistakes

__global__ void product_of_half_a_warp(float* d) {
    float sums[4] = {};
    const uint32 a[4] = {}, b[2] = {};
    if (threadIdx.x < 16) mma_m16n8k16<float16>(sums, a, b);
    d[threadIdx.x] = sums[0];
}

__global__ void load_from_global(const int16* x, int32* y) {
    uint32 r[2];
    ldmatrix_x2(r, x + threadIdx.x * 8);
    y[threadIdx.x] = r[0];
}

template <int Bytes> __global__ void copy_misaligned(const unsigned char* x, unsigned char* y, int32 from, int32 to) {
    DYNAMIC_SHARED(bytes);
    cp_async<Bytes>(bytes + to, x + from);
    cp_async_commit();
    cp_async_wait<0>();
    y[0] = bytes[to];
}
