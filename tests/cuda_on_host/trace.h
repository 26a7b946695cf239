// Counts what a kernel's memory accesses would cost a GPU (trace.cpp). The runner says which thread's code runs; in an
// untraced build these are nothing.
#pragma once
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)
namespace cuda_on_host::trace {

struct Memory {
    void* start;
    size_t bytes;
};

#ifdef CUDA_ON_HOST_TRACE
void share(Memory variable);
void begin_launch(int threads, Memory dynamic_shared, Memory of_runner);
void begin_block();
void end_block();
void resume(int thread, Memory stack);  // the code that follows is the kernel's
void pause();                           // the code that follows is the runner's
void threads_met(int first, int count);
void access(const void* p, size_t bytes, bool write);  // that the compiler does not see
#else
inline void share(Memory) {}
inline void begin_launch(int, Memory, Memory) {}
inline void begin_block() {}
inline void end_block() {}
inline void resume(int, Memory) {}
inline void pause() {}
inline void threads_met(int, int) {}
inline void access(const void*, size_t, bool) {}
#endif

}  // namespace cuda_on_host::trace
#pragma GCC visibility pop
