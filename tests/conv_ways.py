"""What the tests of single ways of convolution share: operands, problems, and how close to naive loops a result is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from naive_conv import naive

from adjoint.kernels.cpu.conv_choice import Problem

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def operands(
    case: tuple[Any, ...], dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """x, weight, bias and dy of (x shape, weight shape, *settings), and y, dx and dw of naive loops in float64."""
    x_shape, weight_shape, *settings = case
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    x, weight = normal(x_shape), normal(weight_shape)
    y, dy, dx, dw = naive(x, weight, normal, *settings)
    bias = normal(weight_shape[:1])
    return x, weight, bias, dy, [y + bias.astype(np.float64)[:, None, None], dx, dw]


def problem(operation: str, x: np.ndarray, weight: np.ndarray, dy: np.ndarray, settings: Sequence[Any]) -> Problem:
    stride, padding, dilation, groups = settings
    return Problem(operation, x.shape, weight.shape, dy.shape, stride, padding, dilation, groups, x.dtype)


def strided(*arrays: np.ndarray) -> list[np.ndarray]:
    """The same values with negative steps in the other order."""
    back = (slice(None, None, -1),) * 4
    return [np.asfortranarray(array[back])[back] for array in arrays]


def check(results: Sequence[np.ndarray], wanted: Sequence[np.ndarray], dtype: Any) -> None:
    """Compare results of this type, of normal numbers, with those of naive loops."""
    half = 0.5 * float(ml_dtypes.finfo(dtype).eps) * 1.001  # rounded once
    rtol, atol = {2: (half, 1e-4), 4: (1e-5, 1e-5), 8: (1e-12, 1e-12)}[np.dtype(dtype).itemsize]
    for result, value in zip(results, wanted, strict=True):
        assert result.dtype == dtype and result.flags.c_contiguous
        np.testing.assert_allclose(result.astype(np.float64), value, rtol, atol)
