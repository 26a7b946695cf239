// The twins of kernels/cuda/src/wgmma.cuh, as late as a device may be: a bulk copy is seen when a thread has waited for its
// barrier, products when a thread has waited for their group, and before that there is not-a-number. Products read their
// tiles at the wait, so a tile that is overwritten too early is seen too.
#pragma once
#include "mma.h"

// `TensorMap` of tensor_map.py.
struct TensorMap {
    int64_t address, strides[3];  // strides of all dims but the first, in bytes
    int dims[4], box[4];          // box: of a tile; or how many channels and pixels
    int lower[2], upper[2], steps[2];  // of the window of first pixels: (w, h)
    int window, padding[9];
};
static_assert(sizeof(TensorMap) == 128, "as large as the driver's");

// In the eight bytes of a device's. A phase ends when nobody is waited for any more, thread or byte.
struct Barrier {
    uint8_t count, pending;
    uint16_t parity;
    int bytes;
};
static_assert(sizeof(Barrier) == 8, "as large as a device's");

namespace cuda_on_host {

constexpr int kSwizzledLine = 128, kSwizzledLines = 8;
constexpr size_t kSwizzleBytes = kSwizzledLine * kSwizzledLines;

// Where the window of shared addresses begins: they are aligned as the pointers are.
inline uintptr_t shared_window() { return uintptr_t(state.shared) / kSwizzleBytes * kSwizzleBytes; }

// Of 16 bytes in tiles whose lines have 128.
inline uintptr_t swizzled(uintptr_t address) { return address ^ (address / kSwizzledLine % kSwizzledLines) * 16; }

// ---- barriers and bulk copies

inline Barrier& checked(const char* name, Barrier* barrier) {
    require_aligned(name, barrier, 8);
    require_shared(name, barrier, 8);
    if (barrier->parity > 1) fail(std::string(name) + ": the barrier is not made");
    return *barrier;
}

inline void end_phase(Barrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.parity ^= 1;
    barrier.pending = barrier.count;
}

CUDA_ON_HOST_UNTRACED inline void wait_for_phase(Barrier* barrier, unsigned parity) {
    trace::pause();
    checked("barrier_wait", barrier);
    for (int tries = 0; barrier->parity == parity; ++tries) {
        auto& copies = state.bulk_copies;
        for (size_t i = 0; i < copies.size();) {
            if (copies[i].barrier != barrier) {
                ++i;
                continue;
            }
            memcpy(copies[i].to, copies[i].data.data(), copies[i].data.size());
            barrier->bytes -= int(copies[i].data.size());
            copies.erase(copies.begin() + long(i));
        }
        end_phase(*barrier);
        if (barrier->parity != parity) break;
        if (tries > 10000) fail("barrier_wait: nobody ends the phase");
        yield();
    }
    resume(*state.current);
}

// A copy of lines of 128 bytes; `line_at` gives the address of each in the array, or null, and which bytes exist.
template <class LineAt>
CUDA_ON_HOST_UNTRACED inline void begin_bulk_copy(const char* name, void* to, Barrier* barrier, int lines, LineAt line_at) {
    trace::pause();
    checked(name, barrier);
    const size_t bytes = size_t(lines) * kSwizzledLine;
    require_aligned(name, to, kSwizzleBytes);
    require_shared(name, to, bytes);
    BulkCopy copy = {barrier, to, std::vector<unsigned char>(bytes)};
    for (int line = 0; line < lines; ++line)
        for (int piece = 0; piece < kSwizzledLine / 16; ++piece) {
            const void* const from = line_at(line, piece * 16);
            const uintptr_t place = swizzled(uintptr_t(line) * kSwizzledLine + uintptr_t(piece) * 16);
            if (!from) continue;
            require_aligned(name, from, 16);
            memcpy(&copy.data[place], from, 16);
            resume(*state.current);
            trace::access(from, 16, false);
            trace::pause();
        }
    memset(to, 0xff, bytes);
    state.bulk_copies.push_back(std::move(copy));
    resume(*state.current);
}

// ---- wgmma

struct TileOfDescriptor {
    uintptr_t start, groups_apart;

    explicit TileOfDescriptor(uint64_t bits) {
        start = uintptr_t(bits & 0x3fff) << 4, groups_apart = uintptr_t(bits >> 32 & 0x3fff) << 4;
        if (bits >> 62 != 1 || bits >> 49 & 7) fail("wgmma: the tile is not described as swizzled over 128 bytes");
    }

    // 16 values of 2 bytes of a line.
    template <class Value> void read(int line, float (&values)[16], Value value) const {
        const uintptr_t first = start + uintptr_t(line / kSwizzledLines) * groups_apart + uintptr_t(line % kSwizzledLines) * kSwizzledLine;
        for (int piece = 0; piece < 2; ++piece) {
            const void* const p = reinterpret_cast<const void*>(shared_window() + swizzled(first + uintptr_t(piece) * 16));
            require_shared("wgmma", p, 16);
            uint16_t bits[8];
            memcpy(bits, p, 16);
            for (int i = 0; i < 8; ++i) values[piece * 8 + i] = value(bits[i]);
        }
    }
};

template <class Value> CUDA_ON_HOST_UNTRACED inline void multiply_tiles(const Product& product, float* sums, Value value) {
    const TileOfDescriptor a(product.a), b(product.b);
    const int number = number_of(*state.current), row = number / 32 % 4 * 16 + number % 32 / 4;
    float of_rows[2][16], of_column[16];
    for (int half = 0; half < 2; ++half) a.read(row + 8 * half, of_rows[half], value);
    for (int column = 0; column < 128; ++column) {
        if (column % 8 / 2 != number % 4) continue;
        b.read(column, of_column, value);
        for (int half = 0; half < 2; ++half) {
            float& sum = sums[column / 8 * 4 + half * 2 + column % 2];
            for (int k = 0; k < 16; k += 8) sum = add_products<8>(sum, &of_rows[half][k], &of_column[k]);
        }
    }
}

CUDA_ON_HOST_UNTRACED inline void begin_product(float* d, uint64_t a, uint64_t b, void (*run)(const Product&, float*)) {
    trace::pause();
    Thread& me = *state.current;
    if (!me.fenced) fail("wgmma: no wgmma_fence before it");
    if (me.products.empty()) {
        me.sums_at = d;
        memcpy(me.sums, d, sizeof me.sums);
        memset(d, 0xff, sizeof me.sums);
    }
    if (me.sums_at != d) fail("wgmma: this build follows one set of sums at a time");
    me.products.push_back({a, b, me.product_groups, run});
    resume(me);
}

CUDA_ON_HOST_UNTRACED inline void end_products(uint64_t on_their_way) {
    trace::pause();
    Thread& me = *state.current;
    size_t done = 0;
    for (; done < me.products.size() && me.products[done].group + on_their_way < me.product_groups; ++done)
        me.products[done].run(me.products[done], me.sums);
    me.products.erase(me.products.begin(), me.products.begin() + long(done));
    if (done && me.products.empty()) memcpy(me.sums_at, me.sums, sizeof me.sums);
    me.fenced = false;
    resume(me);
}

}  // namespace cuda_on_host

// ---- what kernels call

#define CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline unsigned shared_address(const void* p) { return unsigned(uintptr_t(p) - cuda_on_host::shared_window()); }

inline void barrier_init(Barrier* barrier, unsigned count) {
    cuda_on_host::trace::pause();
    cuda_on_host::require_shared("barrier_init", barrier, 8);
    *barrier = {uint8_t(count), uint8_t(count), 0, 0};
    cuda_on_host::resume(*cuda_on_host::state.current);
}

inline void fence_barriers() {}

inline void barrier_expect(Barrier* barrier, unsigned bytes) {
    cuda_on_host::trace::pause();
    Barrier& b = cuda_on_host::checked("barrier_expect", barrier);
    if (!b.pending) cuda_on_host::fail("barrier_expect: all threads have arrived already");
    b.bytes += int(bytes);
    --b.pending;
    cuda_on_host::end_phase(b);
    cuda_on_host::resume(*cuda_on_host::state.current);
}

inline void barrier_wait(Barrier* barrier, unsigned parity) { cuda_on_host::wait_for_phase(barrier, parity); }

inline void copy_box(void* to, const TensorMap* map, Barrier* barrier, int c0, int c1, int c2, int c3) {
    const TensorMap& m = *map;
    if (m.window) cuda_on_host::fail("copy_box: the map is one of pixels");
    cuda_on_host::begin_bulk_copy("copy_box", to, barrier, m.box[1] * m.box[2] * m.box[3], [=, &m](int line, int byte) {
        const int at[4] = {c0 + byte / 2, c1 + line % m.box[1], c2 + line / m.box[1] % m.box[2], c3 + line / m.box[1] / m.box[2]};
        int64_t address = m.address + at[0] * 2;
        for (int i = 0; i < 4; ++i) {
            if (unsigned(at[i]) >= unsigned(m.dims[i])) return (const void*)nullptr;
            if (i) address += at[i] * m.strides[i - 1];
        }
        return reinterpret_cast<const void*>(address);
    });
}

inline void copy_pixels(void* to, const TensorMap* map, Barrier* barrier, int c, int w, int h, int n, int right, int down) {
    const TensorMap& m = *map;
    if (!m.window) cuda_on_host::fail("copy_pixels: the map is one of boxes");
    if (unsigned(right) > 255 || unsigned(down) > 255) cuda_on_host::fail("copy_pixels: offsets are 0 to 255");
    const int across = (m.dims[1] - 1 + m.upper[0] - m.lower[0]) / m.steps[0] + 1;
    const int lines = (m.dims[2] - 1 + m.upper[1] - m.lower[1]) / m.steps[1] + 1;
    const int first = (w - m.lower[0]) / m.steps[0] + (h - m.lower[1]) / m.steps[1] * across;
    cuda_on_host::begin_bulk_copy("copy_pixels", to, barrier, m.box[1], [=, &m](int line, int byte) {
        const int number = first + line, in_image = number % (across * lines);
        const int at[4] = {c + byte / 2, m.lower[0] + in_image % across * m.steps[0] + right,
                           m.lower[1] + in_image / across * m.steps[1] + down, n + number / (across * lines)};
        int64_t address = m.address + at[0] * 2;
        for (int i = 0; i < 4; ++i) {
            if (unsigned(at[i]) >= unsigned(m.dims[i])) return (const void*)nullptr;
            if (i) address += at[i] * m.strides[i - 1];
        }
        return reinterpret_cast<const void*>(address);
    });
}

inline uint64_t tile_at(const void* p) {
    return shared_address(p) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

inline void wgmma_fence(CALLER) {
    cuda_on_host::meet_lanes("wgmma_fence", cuda_on_host::kAllLanes, file, line, [](cuda_on_host::Thread*) {});
    cuda_on_host::state.current->fenced = true;
}
inline void wgmma_commit() { ++cuda_on_host::state.current->product_groups; }
template <int N> inline void wgmma_wait() { cuda_on_host::end_products(N); }

template <class T> inline void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b) {
    cuda_on_host::begin_product(d, a, b, [](const cuda_on_host::Product& product, float* sums) {
        cuda_on_host::multiply_tiles(product, sums, [](uint16_t bits) {
            if constexpr (std::is_same_v<T, __half>) return __half2float({bits});
            else return __bfloat162float({bits});
        });
    });
}

#undef CALLER
