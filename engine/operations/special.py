"""The error function and its relatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels.cpu import error_function
from ..dtypes import is_half
from .define import unary


def _on_each_device(name: str) -> Callable[[Any], Any]:
    on_numpy = getattr(error_function, name)

    def compute(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return on_numpy(x)
        from cupyx.scipy import special

        wide = x.astype(np.float32) if is_half(x.dtype) else x
        return getattr(special, name)(wide).astype(x.dtype, copy=False)

    return compute


_SCALE = 2 / math.sqrt(math.pi)

erf = unary(
    "erf",
    "The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.",
    _on_each_device("erf"),
    from_input=lambda grad, x: grad * (-x * x).exp() * _SCALE,
)
erfc = unary(
    "erfc",
    "1 - erf(x), exact where erf(x) is nearly 1.",
    _on_each_device("erfc"),
    from_input=lambda grad, x: grad * (-x * x).exp() * -_SCALE,
)
erfinv = unary(
    "erfinv",
    "The inverse of erf, for x from -1 to 1.",
    _on_each_device("erfinv"),
    from_output=lambda grad, y: grad * (y * y).exp() / _SCALE,
)
