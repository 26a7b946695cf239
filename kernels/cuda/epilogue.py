"""What follows a sum: the activation of it and of what is added to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import activation as geometry
from . import launch
from .kernel import Kernel
from .launch import FLOAT_TYPES, divide_up

Array = Any

_THREADS = 256
_AT_ONCE = 8  # kAtOnce in epilogue.cu

VARIANTS = [Kernel("epilogue.cu", f"finish<{t}>") for t in FLOAT_TYPES]


def kind(activation: str | None) -> int:
    """The number of an activation in epilogue.cuh."""
    return -1 if activation is None else geometry.KINDS[activation].code


def finish(y: Array, activation: str | None, residual: Array | None) -> None:
    """y = activation(y + residual), in place; residual contiguous, of y's shape, or None."""
    if activation is None and residual is None:
        return
    kernel = Kernel("epilogue.cu", f"finish<{launch.c_type(y.dtype)}>")
    blocks = divide_up(y.size, _THREADS * _AT_ONCE)
    launch.launch(kernel, (blocks,), (_THREADS,), [y, residual, np.int64(y.size), np.int32(kind(activation))])
