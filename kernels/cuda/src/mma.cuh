// Products of small matrices on tensor cores, and what brings their operands near: for devices from sm_80 on.
//
// All lanes of a warp call them together. In a fragment lane l, with g = l / 4 and t = l % 4, holds
//
//     m16n8k16       a[0] = A[g][2t, 2t+1]      a[1] = A[g+8][2t, 2t+1]    b[0] = B[2t, 2t+1][g]     (low half first)
//     (2 bytes)      a[2] = A[g][2t+8, 2t+9]    a[3] = A[g+8][2t+8, 2t+9]  b[1] = B[2t+8, 2t+9][g]
//     m16n8k8_tf32   a[0] = A[g][t]             a[1] = A[g+8][t]           b[0] = B[t][g]
//                    a[2] = A[g][t+4]           a[3] = A[g+8][t+4]         b[1] = B[t+4][g]
//     both           d[0], d[1] = D[g][2t, 2t+1]                           d[2], d[3] = D[g+8][2t, 2t+1]
#include "common.cuh"

#ifdef __CUDACC_RTC__

__device__ inline uint32 shared_address(const void* p) { return uint32(__cvta_generic_to_shared(p)); }

#define MMA(shape, d, a, b)                                                                                    \
    asm("mma.sync.aligned." shape " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// D += A·B, A of 16 x 16 and B of 16 x 8 values of type float16 or bfloat16, summed in float.
template <class T> __device__ inline void mma_m16n8k16(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]);

template <>
__device__ inline void mma_m16n8k16<float16>(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    MMA("m16n8k16.row.col.f32.f16.f16.f32", d, a, b);
}

template <>
__device__ inline void mma_m16n8k16<bfloat16>(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    MMA("m16n8k16.row.col.f32.bf16.bf16.f32", d, a, b);
}

// D += A·B, A of 16 x 8 and B of 8 x 8 values in tf32: floats whose last 13 bits are ignored.
__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    MMA("m16n8k8.row.col.f32.tf32.tf32.f32", d, a, b);
}
#undef MMA

// The nearest tf32, ties away from zero.
__device__ inline uint32 round_to_tf32(float x) {
    uint32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// Matrices of 8 x 8 values of 2 bytes from shared memory: lane 8i + j gives the address of row j of matrix i, a multiple of
// 16, and gets in r[i] two neighbours of it, which are column 2t and 2t + 1 of row g. The addresses of lanes from 8 times
// the number of matrices on are not used. Of 4-byte values a row has 4, and a lane gets column t of row g.
__device__ inline void ldmatrix_x4(uint32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x2(uint32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices: a lane gets rows 2t and 2t + 1 of column g.
__device__ inline void ldmatrix_x4_trans(uint32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x2_trans(uint32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts to copy 4, 8 or 16 bytes to shared memory, which must not be touched before this thread has waited for it, nor by
// other threads before the barrier after that. Both addresses are multiples of `Bytes`. What does not exist is zero, and
// its address is not read.
template <int Bytes> __device__ inline void cp_async(void* shared, const void* global, bool exists = true) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
    if constexpr (Bytes == 16)  // past the L1
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                     "r"(exists ? 16 : 0)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes),
                     "r"(exists ? Bytes : 0)
                     : "memory");
}

// Ends a group: the copies of this thread since the last one.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last `N` groups of this thread are on their way.
template <int N> __device__ inline void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#endif

// Cuts a float down to tf32 and gives the rest, of which tensor cores ignore the last bits. Not rounded: that way the rest
// is exact, and no finite float becomes infinite. Not-a-number stays one in the rest.
__device__ inline uint32 take_rest(uint32& bits) {
    const float whole = __uint_as_float(bits);
    bits &= 0xffffe000u;
    return __float_as_uint(whole - __uint_as_float(bits));
}
