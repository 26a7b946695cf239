"""Every activation written out in float64, with settings, for the tests of both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np

Array = Any

erf = np.vectorize(math.erf, otypes=[float])

# Settings under which every kind shows all of its branches.
SETTINGS: dict[str, tuple[float, float]] = {
    "leaky_relu": (0.25, 0),
    "elu": (1.5, 0),
    "celu": (0.75, 0),
    "softplus": (2.0, 3.0),
    "hardtanh": (-0.75, 1.25),
    "softshrink": (0.375, 0),
    "hardshrink": (0.375, 0),
    "threshold": (0.25, -2.0),
}
ALPHA, SCALE = 1.6732632423543772848, 1.0507009873554804934  # Klambauer et al., 2017
# Where a slope or its own slope jumps, for the kinds that have such points under SETTINGS.
KINKS: dict[str, tuple[float, ...]] = {
    "relu": (0,), "leaky_relu": (0,), "elu": (0,), "selu": (0,), "celu": (0,), "softplus": (1.5,),
    "hardtanh": (-0.75, 1.25),
    "hardsigmoid": (-3, 3), "hardswish": (-3, 3), "softshrink": (-0.375, 0.375), "hardshrink": (-0.375, 0.375),
    "threshold": (0.25,), "softsign": (0,),
}  # fmt: skip

VALUES: dict[str, Callable[[Array, float, float], Array]] = {
    "relu": lambda x, a, b: np.where(x > 0, x, 0),
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "elu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "selu": lambda x, a, b: SCALE * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
    "celu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0) / a)),
    "gelu": lambda x, a, b: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x, a, b: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x, a, b: x / (1 + np.exp(-x)),
    "mish": lambda x, a, b: x * np.tanh(np.logaddexp(0, x)),
    "softplus": lambda x, a, b: np.where(a * x > b, x, np.logaddexp(0, a * x) / a),
    "hardtanh": lambda x, a, b: np.minimum(np.maximum(x, a), b),
    "hardsigmoid": lambda x, a, b: np.minimum(np.maximum(x + 3, 0), 6) / 6,
    "hardswish": lambda x, a, b: x * np.minimum(np.maximum(x + 3, 0), 6) / 6,
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "tanh": lambda x, a, b: np.tanh(x),
    "logsigmoid": lambda x, a, b: -np.logaddexp(0, -x),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softshrink": lambda x, a, b: np.where(x > a, x - a, np.where(x < -a, x + a, 0)),
    "hardshrink": lambda x, a, b: np.where(np.abs(x) > a, x, 0),
    "tanhshrink": lambda x, a, b: x - np.tanh(x),
    "threshold": lambda x, a, b: np.where(x > a, x, b),
}
KINDS = list(VALUES)


def value(kind: str, x: Array, a: float | None = None, b: float = 0.0) -> Array:
    """f(x) in float64, under SETTINGS unless a is given."""
    a, b = SETTINGS.get(kind, (0.0, 0.0)) if a is None else (a, b)
    with np.errstate(all="ignore"):
        return VALUES[kind](np.asarray(x, np.float64), a, b)


def slope(kind: str, x: Array, a: float | None = None, b: float = 0.0) -> Array:
    """f'(x) by central differences of fourth order, right to about 1e-11; x must be away from kinks."""
    x, h = np.asarray(x, np.float64), 1e-3
    near, far = ((value(kind, x + d, a, b) - value(kind, x - d, a, b)) / (2 * d) for d in (h, 2 * h))
    return (4 * near - far) / 3


def numbers(kind: str, shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> np.ndarray:
    """Normal numbers of deviation 3, none within 1/64 of a kink."""
    rng = np.random.default_rng(seed)
    x = 3 * rng.standard_normal(shape)
    for kink in KINKS.get(kind, ()):
        x = np.where(np.abs(x - kink) < 1 / 64, kink + 1 / 32, x)
    return np.asarray(x).astype(dtype)


# (relative, absolute): float32's exponentials are off by an ulp or two, and the slope of tanh, 1 - t², is a difference.
TOLERANCE = {
    "float32": (1e-5, 2e-5),
    "float64": (1e-9, 1e-9),  # of the differences that `slope` takes
    "float16": (1e-3, 1e-4),
    "bfloat16": (8e-3, 1e-4),
}


def assert_close(actual: np.ndarray, expected: Array, dtype: str) -> None:
    """Equal within what the dtype allows, and of that dtype."""
    assert actual.dtype == np.dtype(dtype)
    rtol, atol = TOLERANCE[dtype]
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=rtol, atol=atol)


def layouts(array: np.ndarray) -> list[np.ndarray]:
    """The same numbers backwards in memory, with gaps, columns first, and at an address that vectors do not fit."""
    gaps = np.empty((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)[..., 1::2]
    gaps[...] = array
    shifted = np.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    shifted[...] = array
    return [np.ascontiguousarray(array[..., ::-1])[..., ::-1], gaps, np.asfortranarray(array), shifted]
