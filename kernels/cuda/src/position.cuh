// Walking along the positions (n, o, p, q) of a convolution's result without divisions.
#include "common.cuh"

struct Position {
    int32 image, d, h, w;

    // Number `number`, of a result described by G's out_d, out_h and out_w.
    template <class G> __device__ static Position of(int64 number, const G& g) {
        const int32 plane = g.out_h * g.out_w;
        const int64 image = number / (int64(g.out_d) * plane);
        int32 rest = int32(number - image * g.out_d * plane);
        const int32 d = rest / plane;
        rest -= d * plane;
        return {int32(image), d, rest / g.out_w, rest % g.out_w};
    }

    template <class G> __device__ void add(const Position& step, const G& g) {
        w += step.w;
        h += step.h;
        d += step.d;
        image += step.image;
        if (w >= g.out_w) w -= g.out_w, ++h;
        if (h >= g.out_h) h -= g.out_h, ++d;
        if (d >= g.out_d) d -= g.out_d, ++image;
    }
};
