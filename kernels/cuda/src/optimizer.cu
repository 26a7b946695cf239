// Steps of SGD and Adam over all parameters of a group in one launch: each array is read once and written once.
//
// The numbers that change from step to step come as a parameter of the launch, or from device memory, where a kernel of
// one thread has put them: the replay of a captured graph has the parameters of its capture.
#include "multi_tensor.cuh"

struct SgdNumbers {
    double lr;
    double momentum;
    double taken;  // what the momentum buffer takes of a gradient
    double weight_decay;
    double grad_factor;
    int nesterov;
    int first;  // the momentum buffers hold nothing yet
    int skip;   // change nothing
};

struct AdamNumbers {
    double lr;
    double beta1;
    double beta2;
    double taken1;  // 1 - beta1, what the running means take of g and g²
    double taken2;
    double correction1;  // 1 - beta1^step
    double root2;        // sqrt(1 - beta2^step)
    double eps;
    double weight_decay;
    double grad_factor;
    int decoupled;  // weight decay shrinks the parameter instead of entering the gradient
    int skip;
};

template <class Numbers>
__device__ void put_common(Numbers* numbers, const double* lr, const double* grad_scale, const double* found_inf) {
    if (lr) numbers->lr = *lr;
    if (grad_scale) numbers->grad_factor /= *grad_scale;
    if (found_inf) numbers->skip = *found_inf != 0;
}

// `given`, or what is `refreshed` before each replay of a graph, with what lies in device memory in its place.
__global__ void sgd_numbers(const double* lr, const double* grad_scale, const double* found_inf, const void* refreshed,
                            void* numbers, const SgdNumbers given) {
    SgdNumbers* const result = static_cast<SgdNumbers*>(numbers);
    *result = refreshed ? *static_cast<const SgdNumbers*>(refreshed) : given;
    put_common(result, lr, grad_scale, found_inf);
}

__global__ void adam_numbers(const double* lr, const double* step, const double* grad_scale, const double* found_inf,
                             const void* refreshed, void* numbers, const AdamNumbers given) {
    AdamNumbers* const result = static_cast<AdamNumbers*>(numbers);
    *result = refreshed ? *static_cast<const AdamNumbers*>(refreshed) : given;
    put_common(result, lr, grad_scale, found_inf);
    if (step) {
        result->correction1 = 1 - pow(result->beta1, *step);
        result->root2 = sqrt(1 - pow(result->beta2, *step));
    }
}

// Lists: parameters, gradients and, with MOMENTUM, its buffers.
template <class T, bool MOMENTUM>
__global__ void __launch_bounds__(kBlock) sgd(const __grid_constant__ ArrayLists<MOMENTUM ? 3 : 2> lists,
                                              const void* __restrict__ replaced, const SgdNumbers given) {
    using A = Accumulator<T>;
    const SgdNumbers n = replaced ? *static_cast<const SgdNumbers*>(replaced) : given;
    if (n.skip) return;
    const A lr = n.lr, momentum = n.momentum, taken = n.taken, decay = n.weight_decay, factor = n.grad_factor;
    const auto change = [&](A* values) {
        A g = values[1] * factor;
        if (decay != 0) g += decay * values[0];
        if (MOMENTUM) {
            const A v = n.first ? g : momentum * values[2] + taken * g;
            values[2] = v;
            g = n.nesterov ? g + momentum * v : v;
        }
        values[0] -= lr * g;
    };
    for_each_element<0b101u>(Chunk<T, MOMENTUM ? 3 : 2>(lists, blockIdx.x), change);
}

// Lists: parameters, gradients, running means of g and of g² and, with AMSGRAD, the largest of the latter.
template <class T, bool AMSGRAD>
__global__ void __launch_bounds__(kBlock) adam(const __grid_constant__ ArrayLists<AMSGRAD ? 5 : 4> lists,
                                               const void* __restrict__ replaced, const AdamNumbers given) {
    using A = Accumulator<T>;
    const AdamNumbers n = replaced ? *static_cast<const AdamNumbers*>(replaced) : given;
    if (n.skip) return;
    // sqrt(v / c) + eps = (sqrt(v) + eps sqrt(c)) / sqrt(c): the correction c of v goes into numbers.
    const A root = n.root2, size = A(n.lr) * root / A(n.correction1), eps = A(n.eps) * root;
    const A beta2 = n.beta2, taken1 = n.taken1, taken2 = n.taken2, factor = n.grad_factor;
    const A decay = n.decoupled ? 0 : n.weight_decay, shrink = n.decoupled ? 1 - n.lr * n.weight_decay : 1;
    const auto change = [&](A* values) {
        A p = values[0] * shrink;
        A g = values[1] * factor;
        if (decay != 0) g += decay * p;
        const A m = values[2] + taken1 * (g - values[2]);
        A v = beta2 * values[3] + taken2 * g * g;
        values[2] = m;
        values[3] = v;
        if (AMSGRAD) values[4] = v = values[4] > v || values[4] != values[4] ? values[4] : v;
        values[0] = p - size * (m / (sqrt(v) + eps));
    };
    for_each_element<0b11101u>(Chunk<T, AMSGRAD ? 5 : 4>(lists, blockIdx.x), change);
}
