// What every kernel may use: names of types, conversion between a storage type and the type it is computed in, index
// helpers, and wrappers of everything that the host build needs to see.
//
// The same sources are compiled by NVRTC and, in the tests, by a host compiler (tests/cuda_on_host).

#ifdef __CUDACC_RTC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Dynamic shared memory: declares `name` as a pointer to the bytes that the launch asked for.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

using uint8 = unsigned char;
using int16 = short;
using int32 = int;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;
using float16 = __half;
using bfloat16 = __nv_bfloat16;

static_assert(sizeof(int64) == 8 && sizeof(int32) == 4 && sizeof(int16) == 2, "the wrappers pass these sizes");

constexpr int kWarpSize = 32;
constexpr uint32 kFullWarp = 0xffffffffu;

// The type to compute in: half types accumulate in float.
template <class T> struct AccumulatorOf { using type = T; };
template <> struct AccumulatorOf<float16> { using type = float; };
template <> struct AccumulatorOf<bfloat16> { using type = float; };
template <class T> using Accumulator = typename AccumulatorOf<T>::type;

__device__ inline float widen(float16 x) { return __half2float(x); }
__device__ inline float widen(bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }

// Rounds to nearest even, the only conversion from a computed value to a stored one.
template <class T> __device__ inline T narrow(Accumulator<T> x) { return x; }
template <> __device__ inline float16 narrow<float16>(float x) { return __float2half_rn(x); }
template <> __device__ inline bfloat16 narrow<bfloat16>(float x) { return __float2bfloat16_rn(x); }

template <class T> __device__ inline T infinity();
template <> __device__ inline float infinity<float>() { return __int_as_float(0x7f800000); }
template <> __device__ inline double infinity<double>() { return __longlong_as_double(0x7ff0000000000000ll); }

template <class T> __device__ inline T quiet_nan();
template <> __device__ inline float quiet_nan<float>() { return __int_as_float(0x7fc00000); }
template <> __device__ inline double quiet_nan<double>() { return __longlong_as_double(0x7ff8000000000000ll); }

// N values that are loaded and stored by one instruction; the address must be a multiple of its size.
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T value[N]; };

constexpr __host__ __device__ int divide_up(int a, int b) { return (a + b - 1) / b; }

// This thread's number in a one-dimensional launch.
__device__ inline int64 global_index() { return int64(blockIdx.x) * blockDim.x + threadIdx.x; }

// The number of threads in a one-dimensional launch, for loops that stride over the grid.
__device__ inline int64 grid_size() { return int64(gridDim.x) * blockDim.x; }

// Sum and maximum over a warp by halving: the same order at every run. Every lane gets the result.
template <class T> __device__ inline T warp_sum(T x) {
#pragma unroll
    for (int d = kWarpSize / 2; d > 0; d /= 2) x += __shfl_xor_sync(kFullWarp, x, d);
    return x;
}

template <class T> __device__ inline T warp_max(T x) {
#pragma unroll
    for (int d = kWarpSize / 2; d > 0; d /= 2) {
        const T other = __shfl_xor_sync(kFullWarp, x, d);
        x = other > x ? other : x;
    }
    return x;
}
