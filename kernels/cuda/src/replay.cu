// Numbers of the host for the replay of a captured graph, whose own parameters are those of its capture.
#include "common.cuh"

constexpr int kWords = 448;

struct ReplayWords {
    int64 word[kWords];
};

// They come as a parameter of this launch, which is before the replay: nothing on the host has to wait or to stay.
__global__ void __launch_bounds__(kWords) put_words(const __grid_constant__ ReplayWords words, int64* out, int count) {
    const int i = threadIdx.x;
    if (i < count) out[i] = words.word[i];
}
