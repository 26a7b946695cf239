// The twins of kernels/cuda/src/mma.cuh: the same fragments, and what a device may do at the worst.
//
// An asynchronous copy overwrites its target with not-a-number at once and is seen only after the wait, so a kernel that
// does not wait, or reads what other threads copy without a barrier, has wrong numbers.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <type_traits>

#include "meetings.h"

#define CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace cuda_on_host {

constexpr unsigned kAllLanes = 0xffffffff;

inline std::string hex(const void* p) {
    char text[32];
    snprintf(text, sizeof text, "%#llx", (unsigned long long)(uintptr_t(p)));
    return text;
}

inline void require_aligned(const char* name, const void* p, size_t bytes) {
    if (uintptr_t(p) % bytes) fail(std::string(name) + ": the address " + hex(p) + " is no multiple of " + std::to_string(bytes));
}

inline void require_shared(const char* name, const void* p, size_t bytes) {
    if (!in_shared(p, bytes))
        fail(std::string(name) + ": " + std::to_string(bytes) + " bytes at " + hex(p) + " are not in shared memory");
}

// ---- mma

// Rounds toward zero.
inline float cut_to_float(double x) {
    if (!(fabs(x) < 0x1p128)) return x != x ? float(x) : x > 0 ? INFINITY : -INFINITY;
    const float nearest = float(x);
    return fabs(double(nearest)) > fabs(x) ? nextafterf(nearest, 0) : nearest;
}

// sum + a·b over `n` values as Ampere's tensor cores add them, which keep least of all that run these kernels: products
// are exact, all addends are cut off below 2^-24 of the largest one, and their sum is cut off to a float.
template <int n> CUDA_ON_HOST_UNTRACED inline float add_products(float sum, const float* a, const float* b) {
    double addends[n + 1] = {sum}, largest = fabs(sum), plain = sum;
    for (int k = 0; k < n; ++k) {
        const double product = double(a[k]) * b[k];
        addends[k + 1] = product;
        plain += product;
        largest = fabs(product) > largest ? fabs(product) : largest;
    }
    if (plain - plain != 0 || largest == 0) return float(plain);  // infinity, not-a-number, or nothing to add
    uint64_t bits;
    memcpy(&bits, &largest, 8);
    bits = uint64_t(2 * 1023 + 24) - (bits >> 52) << 52;  // both are normal numbers
    double scale;
    memcpy(&scale, &bits, 8);
    int total = 0;
    for (double addend : addends) total += int(addend * scale);
    return cut_to_float(total / scale);
}

// What the lanes bring to one product, whose operands have K values in a register for each row.
struct MmaRegisters {
    float* d;
    const unsigned *a, *b;
};

template <int K, class Value> CUDA_ON_HOST_UNTRACED inline void multiply_matrices(const Thread* lanes, Value value) {
    constexpr int kPerRegister = K / 8, kAtOnce = K / 2;  // what one step of the hardware adds: 32 bytes
    float a[16][K], b[8][K];
    for (int lane = 0; lane < 32; ++lane) {
        const auto& registers = *static_cast<const MmaRegisters*>(lanes[lane].registers);
        const int g = lane / 4, first = lane % 4 * kPerRegister;
        for (int i = 0; i < kPerRegister; ++i) {
            for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][first + r / 2 * (K / 2) + i] = value(registers.a[r], i);
            for (int r = 0; r < 2; ++r) b[g][first + r * (K / 2) + i] = value(registers.b[r], i);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* const d = static_cast<const MmaRegisters*>(lanes[lane].registers)->d;
        for (int r = 0; r < 4; ++r) {
            const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
            for (int k = 0; k < K; k += kAtOnce) d[r] = add_products<kAtOnce>(d[r], &a[row][k], &b[column][k]);
        }
    }
}

template <int K, class Value>
inline void mma(const char* name, float* d, const unsigned* a, const unsigned* b, const char* file, int line, Value value) {
    MmaRegisters registers = {d, a, b};
    state.current->registers = &registers;
    meet_lanes(name, kAllLanes, file, line, [=](Thread* lanes) { multiply_matrices<K>(lanes, value); });
}

// ---- ldmatrix

struct LdmatrixRegisters {
    unsigned* r;
    const void* row;
};

template <int N, bool kTransposed> CUDA_ON_HOST_UNTRACED inline void load_matrices(Thread* lanes) {
    uint16_t values[N][8][8];
    for (int i = 0; i < 8 * N; ++i)
        memcpy(values[i / 8][i % 8], static_cast<LdmatrixRegisters*>(lanes[i].registers)->row, 16);
    for (int lane = 0; lane < 32; ++lane) {
        unsigned* const r = static_cast<LdmatrixRegisters*>(lanes[lane].registers)->r;
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < N; ++i) {
            const uint16_t low = kTransposed ? values[i][2 * t][g] : values[i][g][2 * t];
            const uint16_t high = kTransposed ? values[i][2 * t + 1][g] : values[i][g][2 * t + 1];
            r[i] = low | unsigned(high) << 16;
        }
    }
}

// Eight rows of 16 bytes are one cycle of the banks, as of any other request of 16 bytes by each lane.
template <int N, bool kTransposed>
__device__ inline void ldmatrix(const char* name, unsigned* r, const void* row, const char* file, int line) {
    const bool used = lane() < 8 * N;
    if (used) trace::access(row, 16, false);
    trace::pause();
    if (used) {
        require_aligned(name, row, 16);
        require_shared(name, row, 16);
    }
    LdmatrixRegisters registers = {r, row};
    state.current->registers = &registers;
    meet_lanes(name, kAllLanes, file, line, [](Thread* lanes) { load_matrices<N, kTransposed>(lanes); });
}

// ---- cp.async

template <int kBytes> CUDA_ON_HOST_UNTRACED inline void begin_copy(void* shared, const void* global, bool exists) {
    trace::pause();
    Thread& me = *state.current;
    require_aligned("cp_async", shared, kBytes);
    require_aligned("cp_async", global, kBytes);
    require_shared("cp_async", shared, kBytes);
    me.copies.push_back({shared, kBytes, me.groups, {}});
    if (exists) memcpy(me.copies.back().data, global, kBytes);
    memset(shared, 0xff, kBytes);
    resume(me);
}

// The copies of all groups but the last `on_their_way`.
CUDA_ON_HOST_UNTRACED inline void end_copies(uint64_t on_their_way) {
    trace::pause();
    Thread& me = *state.current;
    size_t done = 0;
    for (; done < me.copies.size() && me.copies[done].group + on_their_way < me.groups; ++done)
        memcpy(me.copies[done].to, me.copies[done].data, me.copies[done].bytes);
    me.copies.erase(me.copies.begin(), me.copies.begin() + long(done));
    resume(me);
}

}  // namespace cuda_on_host

// ---- what kernels call

template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], CALLER) {
    cuda_on_host::mma<16>("mma_m16n8k16", d, a, b, file, line, [](unsigned bits, int i) {
        const uint16_t half = uint16_t(bits >> 16 * i);
        if constexpr (std::is_same_v<T, __half>) return __half2float({half});
        else return __bfloat162float({half});
    });
}

__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], CALLER) {
    const auto value = [](unsigned bits, int) { return __uint_as_float(bits & ~0x1fffu); };
    cuda_on_host::mma<8>("mma_m16n8k8_tf32", d, a, b, file, line, value);
}

inline unsigned round_to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    return x - x != 0 ? bits & ~0x1fffu | (x != x) << 22 : bits + 0x1000 & ~0x1fffu;
}

__device__ inline void ldmatrix_x4(unsigned (&r)[4], const void* row, CALLER) {
    cuda_on_host::ldmatrix<4, false>("ldmatrix_x4", r, row, file, line);
}
__device__ inline void ldmatrix_x2(unsigned (&r)[2], const void* row, CALLER) {
    cuda_on_host::ldmatrix<2, false>("ldmatrix_x2", r, row, file, line);
}
__device__ inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, CALLER) {
    cuda_on_host::ldmatrix<4, true>("ldmatrix_x4_trans", r, row, file, line);
}
__device__ inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row, CALLER) {
    cuda_on_host::ldmatrix<2, true>("ldmatrix_x2_trans", r, row, file, line);
}

template <int Bytes> __device__ inline void cp_async(void* shared, const void* global, bool exists = true) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
    if (exists) cuda_on_host::trace::access(global, Bytes, false);
    cuda_on_host::trace::access(shared, Bytes, true);
    cuda_on_host::begin_copy<Bytes>(shared, global, exists);
}

inline void cp_async_commit() { ++cuda_on_host::state.current->groups; }

template <int N> inline void cp_async_wait() { cuda_on_host::end_copies(N); }

#undef CALLER
