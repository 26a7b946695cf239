// Products of larger matrices on tensor cores, which four warps call together (wgmma), and copies of whole tiles that one thread
// starts (bulk tensor copies), whose ends a barrier in shared memory counts. For sm_90a only.
//
// A tile in shared memory has lines of 128 bytes, eight of which are 1024 bytes, at a multiple of 1024: the 16 bytes number i
// of line l lie at place i ^ l % 8 of it.
#include "mma.cuh"

#ifdef __CUDACC_RTC__

// An array as bulk copies see it, made by the driver.
struct alignas(64) TensorMap { uint64 words[16]; };

using Barrier = uint64;

// A barrier whose phase ends when `count` threads have arrived and all bytes that they announced have been copied.
__device__ inline void barrier_init(Barrier* barrier, uint32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Bulk copies see the barriers that this thread has made.
__device__ inline void fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Arrives, and announces so many bytes.
__device__ inline void barrier_expect(Barrier* barrier, uint32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Waits for the end of a phase: the first one has parity 0, the next one 1, and so on in turn.
__device__ inline void barrier_wait(Barrier* barrier, uint32 parity) {
    uint32 ended;
    do {
        asm volatile(
            "{.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;}"
            : "=r"(ended)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!ended);
}

// Starts to copy the map's box at (c0, c1, c2, c3), innermost first; what lies outside of the array is zero.
__device__ inline void copy_box(void* to, const TensorMap* map, Barrier* barrier, int32 c0, int32 c1, int32 c2, int32 c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}

// Starts to copy channels from `c` on of the pixels that follow (n, h, w) in the map's window, each moved by (down, right).
__device__ inline void copy_pixels(void* to, const TensorMap* map, Barrier* barrier, int32 c, int32 w, int32 h, int32 n,
                                   int32 right, int32 down) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, "
        "%8};" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(int16(right)), "h"(int16(down))
        : "memory");
}

// What wgmma knows of a tile: where it begins, and how far groups of eight lines lie apart.
__device__ inline uint64 tile_at(const void* p) {
    const uint64 swizzled_128 = 1, unused = 1;
    return (shared_address(p) & 0x3ffff) >> 4 | unused << 16 | uint64(1024 >> 4) << 32 | swizzled_128 << 62;
}

// Before the first product, and before products whose sums this thread has touched.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the last N groups of products are on their way: only then their sums may be touched, and their tiles
// overwritten.
template <int N> __device__ inline void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// D += A·B, begun by the 128 threads of a warp group: A has 64 lines and B 128 of 16 values each. In the sums lane
// l of warp w, with g = l / 4 and t = l % 4, has d[4j], d[4j + 1] = D[16w + g][8j + 2t, 8j + 2t + 1], and the same of row
// 16w + g + 8 in d[4j + 2], d[4j + 3].
#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA(types)                                                                                              \
    asm volatile(                                                                                                 \
        "{.reg .pred p;\n"                                                                                        \
        "setp.ne.b32 p, 1, 0;\n"                                                                                  \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." types " {"                                                 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                       \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                       \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0;}" \
        : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56)                                            \
        : "l"(a), "l"(b))

template <class T> __device__ inline void wgmma_m64n128k16(float (&d)[64], uint64 a, uint64 b);
template <> __device__ inline void wgmma_m64n128k16<float16>(float (&d)[64], uint64 a, uint64 b) { WGMMA("f16.f16"); }
template <> __device__ inline void wgmma_m64n128k16<bfloat16>(float (&d)[64], uint64 a, uint64 b) { WGMMA("bf16.bf16"); }
#undef WGMMA
#undef D8

#endif
