// Threads of a CUDA block as fibres of one operating-system thread.
//
// setjmp and longjmp switch between fibres; makecontext only starts one. A fibre whose thread has ended runs the next
// thread that has not begun, so a kernel in which threads never wait needs one fibre and no switch.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "trace.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct CudaIndex { unsigned x, y, z; };
static CudaIndex threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_host {

constexpr size_t kStackBytes = 256 * 1024, kGuardBytes = 64 * 1024;

struct Fibre {
    jmp_buf place;
    char* stack = nullptr;
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;  // AddressSanitizer's
};

// A copy to shared memory that has begun and is not seen yet.
struct Copy {
    void* to;
    size_t bytes;
    uint64_t group;
    unsigned char data[16];
};

// A copy that a barrier of a block waits for.
struct BulkCopy {
    const void* barrier;
    void* to;
    std::vector<unsigned char> data;
};

// A thread's part of a product of tiles that has begun.
struct Product {
    uint64_t a, b, group;
    void (*run)(const Product&, float* sums);
};

struct Thread {
    CudaIndex index;
    Fibre* fibre = nullptr;  // null before it begins
    bool ended = false;
    const char* waits_at = nullptr;  // a function's name; null while it may run
    const char* file = nullptr;
    int line = 0;
    unsigned mask = 0;
    uint64_t value = 0;     // brought to the meeting
    int count = 0;          // taken from a meeting of the block
    uint64_t values[32];    // taken from a meeting of the warp
    void* registers = nullptr;  // brought to a meeting of the warp whose last lane works for all
    std::vector<Copy> copies;
    uint64_t groups = 0;  // of copies, that have been committed
    std::vector<Product> products;
    uint64_t product_groups = 0;
    float *sums_at = nullptr, sums[64];  // of products that have begun
    bool fenced = false;
};

struct State {
    Fibre main;
    std::vector<std::unique_ptr<Fibre>> fibres;
    std::vector<Fibre*> idle;
    std::vector<Thread> threads;
    std::vector<int> ready;  // threads that may run; in plain order those before `next` have been taken
    size_t next = 0;
    int held_warp = -1;      // in shuffled order: one that runs only when no other thread can
    std::vector<int> held;   // its threads that may run
    std::vector<uint64_t> blocks;  // order of the blocks
    size_t block = 0;
    int ended = 0, arrived = 0;
    Thread* current = nullptr;
    Fibre* running = nullptr;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    std::vector<trace::Memory> shared_variables;
    std::vector<BulkCopy> bulk_copies;
    uint64_t random = 0;  // zero: plain order
    void (*body)(const void*) = nullptr;
    const void* context = nullptr;
    std::string error;
};
static State state;

// xorshift64*: seeds that differ little give numbers that differ much.
inline unsigned random_below(unsigned n) {
    state.random ^= state.random >> 12;
    state.random ^= state.random << 25;
    state.random ^= state.random >> 27;
    return unsigned((state.random * 0x2545f4914f6cdd1dull >> 33) % n);
}

inline unsigned char* dynamic_shared() { return state.shared; }

inline bool in_shared(const void* p, size_t bytes) {
    const auto holds = [=](const void* start, size_t size) {
        const size_t offset = size_t(uintptr_t(p) - uintptr_t(start));
        return offset < size && bytes <= size - offset;
    };
    for (const trace::Memory& variable : state.shared_variables)
        if (holds(variable.start, variable.bytes)) return true;
    return holds(state.shared, state.shared_bytes);
}

inline int lane() { return int(state.current - state.threads.data()) % 32; }

// ---- switching

[[noreturn]] inline void jump_to(Fibre* to) {
    state.running = to;
    _longjmp(to->place, 1);
}

// Returns when another fibre jumps back here.
inline __attribute__((noinline)) void switch_to(Fibre* to) {
    Fibre* const from = state.running;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
    if (!_setjmp(from->place)) jump_to(to);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

[[noreturn]] inline void fail(std::string message) {
    trace::pause();
    const CudaIndex b = blockIdx, t = threadIdx;
    const auto text = [](CudaIndex i) {
        return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
    };
    state.error = "block " + text(b) + ", thread " + text(t) + ": " + message;
    switch_to(&state.main);
    abort();
}

void run_threads();

inline void fibre_begins() {
#ifdef __SANITIZE_ADDRESS__
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (!state.main.stack)  // the first fibre is begun from there
        state.main.stack = static_cast<char*>(const_cast<void*>(stack)), state.main.stack_bytes = bytes;
#endif
    run_threads();
}

inline Fibre* new_fibre() {
    auto fibre = std::make_unique<Fibre>();
    const size_t bytes = kStackBytes + kGuardBytes;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for a fibre's stack");
    mprotect(memory, kGuardBytes, PROT_NONE);
    fibre->stack = static_cast<char*>(memory) + kGuardBytes;
    fibre->stack_bytes = kStackBytes;
    state.fibres.push_back(std::move(fibre));
    return state.fibres.back().get();
}

// Begins `fibre` on its stack; returns when another fibre jumps back here.
inline __attribute__((noinline)) void start(Fibre* fibre) {
    Fibre* const from = state.running;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fibre->stack;
    context.uc_stack.ss_size = fibre->stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, fibre_begins, 0);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from->fake_stack, fibre->stack, fibre->stack_bytes);
#endif
    if (!_setjmp(from->place)) {
        state.running = fibre;
        setcontext(&context);
    }
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

// ---- which thread runs next

inline int number_of(const Thread& thread) { return int(&thread - state.threads.data()); }

inline void make_ready(Thread& thread) {
    thread.waits_at = nullptr;
    const int number = number_of(thread);
    (number / warpSize == state.held_warp ? state.held : state.ready).push_back(number);
}

// The kernel's code goes on in this thread.
inline void resume(const Thread& thread) {
    trace::resume(number_of(thread), {thread.fibre->stack, thread.fibre->stack_bytes});
}

[[noreturn]] inline void fail_stuck() {
    std::map<std::tuple<std::string, std::string, int>, int> places;
    for (const Thread& thread : state.threads)
        if (!thread.ended) ++places[{thread.waits_at, thread.file, thread.line}];
    std::string message = "divergent barrier: ";
    for (const auto& [place, count] : places) {
        const auto& [name, file, line] = place;
        message += std::to_string(count) + " threads wait in " + name + " (" + file.substr(file.rfind('/') + 1) + ":" +
                   std::to_string(line) + "), ";
    }
    fail(message + std::to_string(state.ended) + " have ended");
}

inline Thread* take_ready() {
    if (state.next == state.ready.size() && state.held.empty()) fail_stuck();
    int taken;
    if (state.random) {
        std::vector<int>& from = state.ready.empty() ? state.held : state.ready;
        std::swap(from[random_below(unsigned(from.size()))], from.back());
        taken = from.back();
        from.pop_back();
    } else {
        taken = state.ready[state.next++];
    }
    if (state.next == state.ready.size()) state.ready.clear(), state.next = 0;
    Thread* thread = &state.threads[size_t(taken)];
    state.current = thread;
    threadIdx = thread->index;
    return thread;
}

inline void begin_block() {
    const uint64_t i = state.blocks[state.block], row = i / gridDim.x;
    blockIdx = {unsigned(i % gridDim.x), unsigned(row % gridDim.y), unsigned(row / gridDim.y)};
    state.ended = state.arrived = 0;
    state.ready.clear();
    state.held.clear();
    state.bulk_copies.clear();
    state.next = 0;
    // No warp in every other block: there all of them are shuffled alike.
    state.held_warp = state.random && random_below(2) ? int(random_below(unsigned(state.threads.size()))) / warpSize : -1;
    for (Thread& thread : state.threads) {
        thread.fibre = nullptr;
        thread.ended = false;
        thread.copies.clear();
        thread.products.clear();
        thread.groups = thread.product_groups = 0;
        thread.fenced = false;
        make_ready(thread);
    }
    // Not-a-number in every floating type.
    memset(state.shared, 0xff, state.shared_bytes);
    for (const trace::Memory& variable : state.shared_variables) memset(variable.start, 0xff, variable.bytes);
    trace::begin_block();
}

// The first thread that comes to a shared variable makes it known: a block must not find what the last one left there.
inline __attribute__((noinline)) bool share(void* variable, size_t bytes) {
    trace::pause();
    state.shared_variables.push_back({variable, bytes});
    memset(variable, 0xff, bytes);
    trace::share(state.shared_variables.back());
    resume(*state.current);
    return true;
}

// The calling thread has said what it waits for; others run until it is ready again.
inline void wait() {
    Thread* const me = state.current;
    Thread* const next = take_ready();
    if (next == me) return;
    if (next->fibre) return switch_to(next->fibre);
    if (state.idle.empty()) {
        next->fibre = new_fibre();
        return start(next->fibre);
    }
    next->fibre = state.idle.back();
    state.idle.pop_back();
    switch_to(next->fibre);
}

// Others run, also those of a warp that is held back.
inline void yield() {
    (state.random ? state.held : state.ready).push_back(number_of(*state.current));
    wait();
}

// What a fibre does: it runs the current thread, then others.
inline void run_threads() {
    for (Fibre* const me = state.running;;) {
        state.current->fibre = me;
        resume(*state.current);
        state.body(state.context);
        trace::pause();
        state.current->ended = true;
        if (++state.ended == int(state.threads.size())) {
            trace::end_block();
            if (++state.block == state.blocks.size()) {
                state.idle.push_back(me);
                switch_to(&state.main);
                continue;
            }
            begin_block();
        }
        Thread* const next = take_ready();
        if (next->fibre) {
            state.idle.push_back(me);
            switch_to(next->fibre);
        }
    }
}

// ---- a launch. Returns null, or what went wrong.

struct Launch {
    unsigned grid[3], block[3];
    uint64_t shared_bytes;
    uint64_t seed;           // zero: plain order
    const uint64_t* blocks;  // the numbers of those to run; null: all
    uint64_t block_count;
};

inline void choose_blocks(const Launch& launch) {
    if (launch.blocks) {
        state.blocks.assign(launch.blocks, launch.blocks + launch.block_count);
    } else {
        state.blocks.resize(size_t(gridDim.x) * gridDim.y * gridDim.z);
        for (size_t i = 0; i < state.blocks.size(); ++i) state.blocks[i] = i;
    }
    for (size_t i = state.blocks.size(); launch.seed && i > 1; --i)
        std::swap(state.blocks[i - 1], state.blocks[random_below(unsigned(i))]);
}

inline const char* run_grid(const Launch& launch, void (*body)(const void*), const void* context) {
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    blockDim = {launch.block[0], launch.block[1], launch.block[2]};
    state.random = launch.seed * 0x9e3779b97f4a7c15ull;  // odd, so that only 0 is 0
    state.body = body, state.context = context;
    state.error.clear();
    state.threads.resize(size_t(blockDim.x) * blockDim.y * blockDim.z);
    for (unsigned i = 0; i < state.threads.size(); ++i)
        state.threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    choose_blocks(launch);
    const size_t shared_bytes = launch.shared_bytes;
    // A block of its own, so that AddressSanitizer sees accesses beyond its end.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes ? shared_bytes : 1)) return "no memory for dynamic shared memory";
    state.shared = static_cast<unsigned char*>(memory), state.shared_bytes = shared_bytes;
    state.block = 0;
    trace::begin_launch(int(state.threads.size()), {memory, shared_bytes},
                        {state.threads.data(), state.threads.size() * sizeof(Thread)});
    begin_block();
    state.running = &state.main;
    take_ready();
    if (state.idle.empty()) {
        start(new_fibre());
    } else {
        Fibre* const fibre = state.idle.back();
        state.idle.pop_back();
        switch_to(fibre);
    }
    free(memory);
    if (state.error.empty()) return nullptr;
    // Fibres that still wait are given up, with their stacks.
    for (const auto& fibre : state.fibres) {
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(fibre->stack, fibre->stack_bytes);
#endif
        munmap(fibre->stack - kGuardBytes, kStackBytes + kGuardBytes);
    }
    state.fibres.clear();
    state.idle.clear();
    return state.error.c_str();
}

}  // namespace cuda_on_host
