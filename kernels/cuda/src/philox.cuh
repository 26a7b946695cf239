// Philox4x32-10, a generator without state: four random words for each value of a counter of 128 bits, under a key of 64.
// J. Salmon, M. Moraes, R. Dror and D. Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
#include "common.cuh"

struct Words { uint32 word[4]; };

__device__ inline Words philox(uint64 key, uint64 low, uint64 high = 0) {
    uint32 a = uint32(low), b = uint32(low >> 32), c = uint32(high), d = uint32(high >> 32);
    uint32 key0 = uint32(key), key1 = uint32(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64 first = uint64(0xD2511F53u) * a, second = uint64(0xCD9E8D57u) * c;
        a = uint32(second >> 32) ^ b ^ key0;
        b = uint32(second);
        c = uint32(first >> 32) ^ d ^ key1;
        d = uint32(first);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
}

// Where a stream of numbers is: the key, and the next value of the counter.
struct Place {
    uint64 key;
    uint64 counter;

    __device__ explicit Place(const int64* words) : key(uint64(words[0])), counter(uint64(words[1])) {}
    __device__ Words at(int64 i) const { return philox(key, counter + uint64(i)); }
};
