"""Batch normalisation by its definition in float64, and inputs for it."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np

EPS = 1e-5
# Of a result, relative to its largest element.
TOLERANCE = {"float32": 3e-6, "float64": 1e-13, "float16": 1.5e-3, "bfloat16": 1e-2}


@dataclass
class Inputs:
    """What one call gets; vectors and the residual may be None."""

    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    residual: np.ndarray | None
    relu: bool
    running: tuple[np.ndarray, np.ndarray]


def inputs(shape, dtype, residual=False, relu=False, affine=True, offset=0.0, seed=0, vectors=None):
    """Normal numbers."""
    rng = np.random.default_rng(seed)
    channels = shape[1]

    def normal(*size):
        return rng.standard_normal(size)

    vectors = vectors or dtype
    return Inputs(
        (normal(*shape) + offset).astype(dtype),
        normal(*shape).astype(dtype),
        (normal(channels) + 0.5).astype(vectors) if affine else None,
        normal(channels).astype(vectors) if affine else None,
        normal(*shape).astype(dtype) if residual else None,
        relu,
        (normal(channels).astype(vectors), rng.uniform(0.5, 2, channels).astype(vectors)),
    )


def by_definition(of, inference=False, y=None):
    """y, mean, 1 / std, the biased variance, dx, dweight, dbias and dresidual in float64.

    ReLU's mask is that of `y` where it is given: a result that rounds to zero or past it may have another one.
    """
    x, g = of.x.astype(np.float64), of.dy.astype(np.float64)
    axes = (0, *range(2, x.ndim))
    count = x.size // max(1, x.shape[1])

    def column(vector):
        return vector.astype(np.float64).reshape(1, -1, *(1,) * (x.ndim - 2))

    if inference:
        mean, var = (vector.astype(np.float64) for vector in of.running)
    else:
        mean, var = x.mean(axes), x.var(axes)
    inverse_std = 1 / np.sqrt(var + EPS)
    normal = (x - column(mean)) * column(inverse_std)
    weight = np.ones(x.shape[1]) if of.weight is None else of.weight
    result = normal * column(weight)
    if of.bias is not None:
        result = result + column(of.bias)
    if of.residual is not None:
        result = result + of.residual.astype(np.float64)
    if of.relu:
        g = np.where((result if y is None else y.astype(np.float64)) <= 0, 0, g)
        result = np.maximum(result, 0)
    by_bias, by_weight = g.sum(axes), (g * normal).sum(axes)
    by_x = g
    if not inference:
        by_x = g - column(by_bias / count) - normal * column(by_weight / count)
    by_x = by_x * column(weight) * column(inverse_std)
    return result, mean, inverse_std, var, by_x, by_weight, by_bias, g


def assert_near(actual, wanted, dtype, factor=1.0, scale=None):
    """Equal up to the tolerance of the type, relative to `scale` or the largest element wanted."""
    assert actual.shape == wanted.shape
    scale = abs(wanted).max(initial=0) + 1e-30 if scale is None else scale
    np.testing.assert_allclose(
        actual.astype(np.float64) / scale, wanted / scale, rtol=0, atol=factor * TOLERANCE[str(dtype)]
    )
