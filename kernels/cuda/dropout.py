"""Dropout on CUDA: the launch of src/dropout.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import geometry
from . import launch
from .kernel import Kernel
from .random import Philox

Array = Any

_SOURCE = "dropout.cu"
_BLOCK = 256
_WORDS = 4  # for each value of the counter, and each decides about an element

_SETTINGS = np.dtype(
    [
        ("count", np.int64),
        ("scale", np.float64),
        ("kept_shift", np.float64),
        ("dropped_shift", np.float64),
        ("threshold", np.uint32),
        ("shifts", np.int32),
    ],
    align=True,
)


def _dropout(scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"dropout<{scalar}>")


def dropout(x: Array, p: float, random: Any, alpha: bool = False) -> tuple[Array, Array]:
    if not isinstance(random, Philox):
        raise TypeError(f"dropout: random must be a Philox, got {random!r}")
    taken = random.take(launch.divide_up(x.size, _WORDS))
    return _run(x, p, taken, alpha, shifts=alpha), taken


def dropout_grad(dy: Array, p: float, kept: Array, alpha: bool = False) -> Array:
    return _run(dy, p, kept, alpha, shifts=False)


def _run(x: Array, p: float, taken: Array, alpha: bool, shifts: bool) -> Array:
    x = launch.contiguous(x)
    y = launch.empty(x.shape, x.dtype, x)
    scale, kept_shift, dropped_shift = geometry.dropout_factors(p, alpha)
    settings = launch.struct(
        _SETTINGS,
        count=x.size,
        scale=scale,
        kept_shift=kept_shift,
        dropped_shift=dropped_shift,
        threshold=min(round(p * 2**32), 2**32 - 1),
        shifts=shifts,
    )
    each = max(_WORDS, 16 // x.dtype.itemsize)
    kernel = _dropout(launch.c_type(x.dtype))
    launch.launch(kernel, (launch.divide_up(x.size, _BLOCK * each),), (_BLOCK,), (x, taken, y, settings))
    return y


VARIANTS = [_dropout(scalar) for scalar in launch.FLOAT_TYPES]
