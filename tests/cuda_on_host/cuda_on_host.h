// Gives CUDA C++ a meaning on the host, so that the sources in kernels/cuda/src run as they are.
//
// A thread is a fibre (fibres.h): it runs until it waits for others, at a barrier or a warp function, and then another one
// runs. Blocks run one after the other. A block whose threads can never meet ends with a message instead of a hang.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <type_traits>
#include <utility>

#include "fibres.h"
#include "meetings.h"

#ifdef CUDA_ON_HOST_TRACE
// As nvcc does it: a function of the device is part of each kernel, so that each call of it has instructions of its own.
#define __global__ __attribute__((noinline))
#define __device__ __attribute__((always_inline))
#define CUDA_ON_HOST_UNTRACED __attribute__((noinline, no_sanitize("thread")))
#else
#define __global__
#define __device__
#define CUDA_ON_HOST_UNTRACED
#endif
#define __host__
#define __constant__ static const
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// build.py puts it after the declaration of a shared variable.
#define CUDA_ON_HOST_SHARED_VARIABLE(name) static const bool known_##name = cuda_on_host::share(&name, sizeof name)

#define DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_host::dynamic_shared()

// ---- types

struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

// Only storage: arithmetic on halves must go through widen and narrow.
struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };

inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }
inline long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, 8); return y; }

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const unsigned u = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

inline float __half2float(__half x) {
    const unsigned sign = unsigned(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // The exponent's bias differs by 112; the product is exact for subnormal numbers too.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

inline __half __float2half_rn(float x) {
    const unsigned sign = (__float_as_uint(x) >> 16) & 0x8000, u = __float_as_uint(x) & 0x7fffffff;
    if (u > 0x7f800000) return {0x7fff};
    if (u >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to 65520 or more
    if (u < 0x38800000)  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the last bits
        return {uint16_t(sign | (__float_as_uint(__uint_as_float(u) + 0.5f) - 0x3f000000))};
    return {uint16_t(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13))};
}

// ---- functions of one thread

using ::isinf;
using ::isnan;
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline void sincospi(double x, double* s, double* c) { *s = sin(M_PI * x); *c = cos(M_PI * x); }
inline void sincospi(float x, float* s, float* c) { *s = float(sin(M_PI * x)); *c = float(cos(M_PI * x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
template <class T> inline T __ldg(const T* p) { return *p; }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { cuda_on_host::fail("__trap was called"); }

// Atomics: nothing interrupts a thread here.
template <class T> inline T atomicExch(T* p, std::common_type_t<T> x) { T old = *p; *p = x; return old; }
template <class T> inline T atomicAdd(T* p, std::common_type_t<T> x) { T old = *p; *p = old + x; return old; }
template <class T> inline T atomicMax(T* p, std::common_type_t<T> x) { T old = *p; *p = max(old, x); return old; }
template <class T> inline T atomicMin(T* p, std::common_type_t<T> x) { T old = *p; *p = min(old, x); return old; }
template <class T> inline T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> x) {
    T old = *p;
    if (old == expected) *p = x;
    return old;
}

// ---- functions in which threads meet. The caller's line tells one meeting place from another.

#define CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CALLER) { cuda_on_host::meet_block("__syncthreads", 0, file, line); }
inline int __syncthreads_or(int x, CALLER) { return cuda_on_host::meet_block("__syncthreads_or", x != 0, file, line) > 0; }
inline int __syncthreads_count(int x, CALLER) {
    return cuda_on_host::meet_block("__syncthreads_count", x != 0, file, line);
}
inline int __syncthreads_and(int x, CALLER) { return cuda_on_host::meet_block("__syncthreads_and", x == 0, file, line) == 0; }

inline void __syncwarp(unsigned mask = 0xffffffff, CALLER) { cuda_on_host::meet_warp("__syncwarp", mask, 0, file, line); }
inline unsigned __ballot_sync(unsigned mask, int x, CALLER) {
    const uint64_t* all = cuda_on_host::meet_warp("__ballot_sync", mask, x != 0, file, line);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= unsigned(mask >> lane & 1 && all[lane]) << lane;
    return bits;
}
inline int __any_sync(unsigned mask, int x, CALLER) { return __ballot_sync(mask, x, file, line) != 0; }
inline int __all_sync(unsigned mask, int x, CALLER) { return __ballot_sync(mask, x, file, line) == mask; }

template <class T> inline T cuda_on_host_shuffle(const char* name, unsigned mask, T x, int source, const char* file, int line) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof(T));
    const uint64_t* all = cuda_on_host::meet_warp(name, mask, bits, file, line);
    if (!(mask >> source & 1)) cuda_on_host::fail(std::string(name) + " reads from a lane that is not in its mask");
    memcpy(&x, &all[source], sizeof(T));
    return x;
}

// A lane whose source lies outside its part of `width` lanes keeps its own value.
template <class T> inline T __shfl_sync(unsigned mask, T x, int source, int width = 32, CALLER) {
    const int lane = cuda_on_host::lane(), first = lane & ~(width - 1);
    return cuda_on_host_shuffle("__shfl_sync", mask, x, first + (source & (width - 1)), file, line);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T x, unsigned d, int width = 32, CALLER) {
    const int lane = cuda_on_host::lane(), source = lane - int(d);
    return cuda_on_host_shuffle("__shfl_up_sync", mask, x, source < (lane & ~(width - 1)) ? lane : source, file, line);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T x, unsigned d, int width = 32, CALLER) {
    const int lane = cuda_on_host::lane(), source = lane + int(d);
    return cuda_on_host_shuffle("__shfl_down_sync", mask, x, source > (lane | (width - 1)) ? lane : source, file, line);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T x, int d, int width = 32, CALLER) {
    const int lane = cuda_on_host::lane(), source = lane ^ d;
    return cuda_on_host_shuffle("__shfl_xor_sync", mask, x, source > (lane | (width - 1)) ? lane : source, file, line);
}
#undef CALLER

#include "mma.h"
#include "wgmma.h"

// ---- the entry points that Python calls

namespace cuda_on_host {

// A parameter's type in NumPy's words: "*float32" is a pointer, "struct24" a struct of 24 bytes.
template <class T> std::string type_name() {
    if constexpr (std::is_pointer_v<T>) return "*" + type_name<std::remove_cv_t<std::remove_pointer_t<T>>>();
    else if constexpr (std::is_void_v<T>) return "void";
    else if constexpr (std::is_same_v<T, bool>) return "bool";
    else if constexpr (std::is_same_v<T, __half>) return "float16";
    else if constexpr (std::is_same_v<T, __nv_bfloat16>) return "bfloat16";
    else if constexpr (std::is_floating_point_v<T>) return "float" + std::to_string(8 * sizeof(T));
    else if constexpr (std::is_integral_v<T>)
        return (std::is_unsigned_v<T> ? "uint" : "int") + std::to_string(8 * sizeof(T));
    else return "struct" + std::to_string(sizeof(T));
}

template <class... P> const char* signature(void (*)(P...)) {
    static const std::string text = ((type_name<std::remove_cv_t<P>>() + " ") + ... + "");
    return text.c_str();
}

template <class... P, size_t... I>
CUDA_ON_HOST_UNTRACED void call(void (*kernel)(P...), void* const* args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<P>*>(args[I])...);
}

template <class... P> const char* launch(void (*kernel)(P...), const Launch* launch, void* const* args) {
    const auto thread = [=]() CUDA_ON_HOST_UNTRACED { call(kernel, args, std::index_sequence_for<P...>()); };
    const auto body = [](const void* f) CUDA_ON_HOST_UNTRACED { (*static_cast<const decltype(thread)*>(f))(); };
    return run_grid(*launch, body, &thread);
}

}  // namespace cuda_on_host

// `number` tells the entry points of one library apart; the rest is the kernel's name expression.
#define CUDA_ON_HOST_ENTRY(number, ...)                                                                       \
    extern "C" const char* signature_##number() { return cuda_on_host::signature(&__VA_ARGS__); }            \
    extern "C" const char* launch_##number(const cuda_on_host::Launch* launch, void* const* args) {          \
        return cuda_on_host::launch(&__VA_ARGS__, launch, args);                                             \
    }
