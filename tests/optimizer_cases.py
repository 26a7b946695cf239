"""Settings, arrays and plain formulas in float64 that the tests of the optimizers' kernels share."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np

EPSILON = {"float32": 3e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1.6e-2}

# A scalar, nothing, less than a vector, not whole vectors, more than one chunk of 4096.
SHAPES = [(), (3, 0), (3,), (5, 7), (1, 2, 3, 4), (64,), (4099,)]

SGD = {
    "plain": {"lr": 0.1},
    "decay": {"lr": 0.1, "weight_decay": 0.2, "maximize": True},
    "momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "grad_scale": 8.0},
}
ADAM = {
    "plain": {"lr": 0.01},
    "decay": {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1, "grad_scale": 4.0},
    "decoupled": {"lr": 0.1, "weight_decay": 0.3, "decoupled": True, "maximize": True},
    "amsgrad": {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1},
}


def arrays(seed, dtype, positive=False, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal(shape) for shape in shapes]
    return [np.asarray(abs(array) if positive else array).astype(dtype) for array in drawn]


def _wide(arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def sgd_by_hand(
    params, grads, buffers, first, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
    maximize=False, grad_scale=1.0,
):  # fmt: skip
    """The parameters and buffers after the step, in float64."""
    new_params, new_buffers = [], []
    for p, g, v in zip(_wide(params), _wide(grads), _wide(buffers), strict=True):
        g = (-g if maximize else g) / grad_scale + weight_decay * p
        if momentum:
            v = g if first else momentum * v + (1 - dampening) * g
            g = g + momentum * v if nesterov else v
        new_params.append(p - lr * g)
        new_buffers.append(v)
    return new_params, new_buffers


def adam_by_hand(
    params, grads, means, squares, largest, step, amsgrad, lr, beta1=0.9, beta2=0.999, eps=1e-8,
    weight_decay=0.0, decoupled=False, maximize=False, grad_scale=1.0,
):  # fmt: skip
    """The parameters, running means and largest squares after the step, in float64."""
    results: tuple[list, ...] = ([], [], [], [])
    for p, g, m, v, top in zip(*map(_wide, (params, grads, means, squares, largest)), strict=True):
        g = (-g if maximize else g) / grad_scale
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        top = np.maximum(top, v) if amsgrad else top
        corrected = (top if amsgrad else v) / (1 - beta2**step)
        p = p - lr * (m / (1 - beta1**step)) / (np.sqrt(corrected) + eps)
        for result, value in zip(results, (p, m, v, top), strict=True):
            result.append(value)
    return results


def norm_by_hand(arrays, order):
    flat = np.concatenate([array.ravel() for array in _wide(arrays)])
    return float(np.linalg.norm(flat, order)) if order != 0.5 else float((abs(flat) ** 0.5).sum() ** 2)


def assert_close(got, wanted, dtype):
    for array, expected in zip(got, wanted, strict=True):
        assert array.dtype == np.dtype(dtype) and array.shape == expected.shape
        tolerance = EPSILON[dtype]
        np.testing.assert_allclose(array.astype(np.float64), expected, rtol=tolerance, atol=tolerance)
