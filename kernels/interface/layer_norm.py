"""Layer normalisation (Ba, Kiros & Hinton, 2016) and RMS normalisation (Zhang & Sennrich, 2019) of rows."""

from __future__ import annotations

from .. import geometry
from .checks import Array, check_arrays, check_vectors, side

Optional = Array | None


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + eps) * weight + bias for each row of x (rows, size); weight and bias (size,).

    Returns also the mean and 1 / sqrt(var + eps) of each row with the biased variance, (rows,), in float32 for half
    types. Vectors have the dtype of x, or float32 beside a half type.
    """
    operation = "layer_norm"
    check_arrays(operation, x=x)
    check_vectors(operation, x, weight=weight, bias=bias)
    geometry.layer_norm(operation, x.shape, {"weight": _shape(weight), "bias": _shape(bias)})
    return side(x).layer_norm(x, weight, bias, eps)


def layer_norm_grad(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    with_weight: bool = True,
    with_bias: bool = True,
) -> tuple[Array, Optional, Optional]:
    """The gradients of x, weight and bias, from what `layer_norm` returned; the last two only where asked for.

    Those of weight and bias have the dtype of `weight`, or of x where there is none.
    """
    operation = "layer_norm_grad"
    check_arrays(operation, dy=dy, x=x)
    check_vectors(operation, x, weight=weight)
    check_arrays(operation, mean=mean, rstd=rstd)
    geometry.layer_norm_grad(operation, x.shape, dy.shape, _shape(weight), {"mean": mean.shape, "rstd": rstd.shape})
    return side(x).layer_norm_grad(dy, x, weight, mean, rstd, with_weight, with_bias)


def rms_norm(x: Array, weight: Array | None = None, eps: float = 1e-5) -> tuple[Array, Array]:
    """x / sqrt(mean(x²) + eps) * weight for each row of x (rows, size); weight (size,).

    Returns also 1 / sqrt(mean(x²) + eps) of each row. Types as in `layer_norm`.
    """
    operation = "rms_norm"
    check_arrays(operation, x=x)
    check_vectors(operation, x, weight=weight)
    geometry.layer_norm(operation, x.shape, {"weight": _shape(weight)})
    return side(x).rms_norm(x, weight, eps)


def rms_norm_grad(
    dy: Array, x: Array, weight: Array | None, rstd: Array, with_weight: bool = True
) -> tuple[Array, Optional]:
    """The gradients of x and, where asked for, of weight, from what `rms_norm` returned."""
    operation = "rms_norm_grad"
    check_arrays(operation, dy=dy, x=x)
    check_vectors(operation, x, weight=weight)
    check_arrays(operation, rstd=rstd)
    geometry.layer_norm_grad(operation, x.shape, dy.shape, _shape(weight), {"rstd": rstd.shape})
    return side(x).rms_norm_grad(dy, x, weight, rstd, with_weight)


def _shape(vector: Array | None) -> tuple[int, ...] | None:
    return None if vector is None else vector.shape
