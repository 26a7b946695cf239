// Division by a number that the host knows.
#include "common.cuh"

// n / divisor for 0 <= n < 2^31 as a multiplication: multiplier = 2^shift / divisor + 1, shift = 31 + ceil(log2(divisor)).
struct Divisor {
    uint32 multiplier;
    int shift;

    __device__ int divide(int n) const { return int(uint64(n) * multiplier >> shift); }
};
