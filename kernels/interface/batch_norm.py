"""Batch normalisation (Ioffe & Szegedy, 2015) with a residual sum and ReLU in the same pass."""

from __future__ import annotations

import numpy as np

from .. import geometry
from .checks import Array, all_like, check_arrays, check_vectors, is_plain, same_kind, side

_FLOAT32 = np.dtype(np.float32)

Normalised = tuple[Array, Array, Array]
Gradients = tuple[Array | None, Array | None, Array | None, Array | None]


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    relu: bool = False,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float | None = 0.1,
    num_batches_tracked: Array | None = None,
) -> Normalised:
    """(x - mean) / sqrt(var + eps) * weight + bias + residual for x (N, C, ...), then ReLU where wanted.

    Mean and biased variance are those of each channel of x. Returns the result, the mean and 1 / sqrt(var + eps),
    (C,), in float32 for half types. Vectors (C,) have the dtype of x, or float32 beside a half type.

    Changes its last arrays in place: running_mean and running_var move towards the mean and the variance with
    N - 1 by `momentum`; num_batches_tracked, 0-d int64, counts the call first, and momentum None stands for its
    reciprocal. An empty x only counts.
    """
    operation = "batch_norm"
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    _check(operation, x, vectors, {"residual": residual})
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{operation}: running_mean and running_var must be given both or neither")
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError(f"{operation}: momentum=None needs num_batches_tracked")
    if num_batches_tracked is not None:
        same_kind(operation, x=x, num_batches_tracked=num_batches_tracked)
        if num_batches_tracked.shape != () or num_batches_tracked.dtype != "int64":
            raise ValueError(
                f"{operation}: num_batches_tracked must be int64 with the shape (), "
                f"got {num_batches_tracked.dtype} with {num_batches_tracked.shape}"
            )
    return side(x).batch_norm(
        x, weight, bias, eps, residual, relu, running_mean, running_var, momentum, num_batches_tracked
    )


def batch_norm_inference(
    x: Array,
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    relu: bool = False,
) -> Normalised:
    """`batch_norm` with the given mean and variance, which stay; returns the same three arrays."""
    operation = "batch_norm"
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    _check(operation, x, vectors, {"residual": residual})
    return side(x).batch_norm_inference(x, running_mean, running_var, weight, bias, eps, residual, relu)


def batch_norm_grad(
    dy: Array,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    inverse_std: Array,
    y: Array | None = None,
    residual: bool = False,
    inference: bool = False,
    needs: tuple[bool, bool] = (True, True),
) -> Gradients:
    """The gradients of x, weight, bias and residual, from what `batch_norm` or `batch_norm_inference` returned.

    `y` is given where ReLU was fused: its zeros stop the gradient. `needs` says whether the gradient of x and those
    of weight and bias are wanted; the others are None. The gradient of the residual is None where nothing was
    added, and without ReLU, where it is dy.
    """
    operation = "batch_norm_grad"
    _check(operation, x, {"weight": weight, "bias": bias}, {"dy": dy, "y": y})
    statistics = x.dtype if x.dtype.itemsize > 2 else _FLOAT32
    for name, vector in (("mean", mean), ("inverse_std", inverse_std)):
        if type(vector) is not type(x):
            same_kind(operation, **{"x": x, name: vector})
        if vector.dtype != statistics or vector.shape != x.shape[1:2]:
            raise ValueError(
                f"{operation}: {name} must be {statistics} with the shape {x.shape[1:2]}, "
                f"got {vector.dtype} with {vector.shape}"
            )
    return side(x).batch_norm_grad(dy, x, weight, bias, mean, inverse_std, y, residual, inference, needs)


def _check(operation: str, x: Array, vectors: dict[str, Array | None], images: dict[str, Array | None]) -> None:
    # Nearly every call is all right; what follows finds out what is wrong, and knows half types.
    if is_plain(x) and x.ndim > 1:
        shape = x.shape
        if all_like(x, images.values(), shape) and all_like(x, vectors.values(), shape[1:2]):
            return
    check_arrays(operation, x=x, **images)
    check_vectors(operation, x, **vectors)
    geometry.batch_norm(
        operation,
        x.shape,
        {name: vector.shape for name, vector in vectors.items() if vector is not None},
        {name: image.shape for name, image in images.items() if image is not None},
    )
