// Where the threads of a block or the lanes of a warp meet: barriers, votes, shuffles.
#pragma once
#include "fibres.h"

namespace cuda_on_host {

inline bool same_text(const char* a, const char* b) { return a == b || !strcmp(a, b); }

inline bool same_place(const Thread& a, const Thread& b) {
    return b.waits_at && a.line == b.line && a.mask == b.mask && same_text(a.waits_at, b.waits_at) && same_text(a.file, b.file);
}

// Waits for all threads of the block at the same line; returns in how many of them `value` was true.
inline int meet_block(const char* name, uint64_t value, const char* file, int line) {
    trace::pause();
    Thread& me = *state.current;
    me.waits_at = name, me.file = file, me.line = line, me.mask = 0, me.value = value;
    if (++state.arrived == int(state.threads.size())) {
        int count = 0;
        for (const Thread& thread : state.threads) {
            if (!same_place(me, thread)) fail_stuck();
            count += thread.value != 0;
        }
        state.arrived = 0;
        trace::threads_met(0, int(state.threads.size()));
        for (Thread& thread : state.threads) thread.count = count, make_ready(thread);
    }
    wait();
    resume(me);
    return me.count;
}

// Waits for the lanes in `mask` at the same line. The last one to come calls `work` with the warp's first thread.
template <class Work>
inline void meet_lanes(const char* name, unsigned mask, const char* file, int line, const Work& work) {
    trace::pause();
    Thread& me = *state.current;
    const size_t position = size_t(&me - state.threads.data()), first = position / 32 * 32;
    const size_t lanes = state.threads.size() - first;
    if (!(mask >> (position - first) & 1)) fail(std::string(name) + " is called by a lane that is not in its mask");
    if (lanes < 32 && mask >> lanes) fail(std::string(name) + ": the mask names lanes that the block does not have");
    me.waits_at = name, me.file = file, me.line = line, me.mask = mask;
    bool all = true;
    for (size_t i = 32; all && i-- > 0;)  // in order the last lane comes last
        if (mask >> i & 1) all = same_place(me, state.threads[first + i]);
    if (all) {
        if (unsigned(__builtin_popcount(mask)) == (lanes < 32 ? lanes : 32)) trace::threads_met(int(first), 32);
        work(&state.threads[first]);
        for (size_t i = 0; i < 32; ++i)
            if (mask >> i & 1) make_ready(state.threads[first + i]);
    }
    wait();
    resume(me);
}

// As above; returns what each lane brought.
inline const uint64_t* meet_warp(const char* name, unsigned mask, uint64_t value, const char* file, int line) {
    Thread& me = *state.current;
    me.value = value;
    meet_lanes(name, mask, file, line, [mask, &me](Thread* lanes) {
        for (size_t i = 0; i < 32; ++i)
            if (mask >> i & 1) me.values[i] = lanes[i].value;
        for (size_t i = 0; i < 32; ++i)
            if (mask >> i & 1 && &lanes[i] != &me) memcpy(lanes[i].values, me.values, sizeof me.values);
    });
    return me.values;
}

}  // namespace cuda_on_host
