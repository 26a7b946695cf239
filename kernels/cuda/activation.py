"""Activations on CUDA: the launches of src/activation.cu. Variants differ in dtype only."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry.activation import KINDS, planes
from . import launch
from .kernel import Kernel

Array = Any

_SOURCE = "activation.cu"
_BLOCK = 256
# Bytes that a thread takes of an array, as Tile in src/activation.cuh: two vectors, one of halves.
_THREAD_BYTES = {2: 16, 4: 32, 8: 32}

ACTIVATION = np.dtype([("a", np.float64), ("b", np.float64), ("kind", np.int32)], align=True)


def described(kind: str, a: float, b: float) -> np.ndarray:
    """The struct Activation."""
    return launch.struct(ACTIVATION, a=a, b=b, kind=KINDS[kind].code)


def tiles(size: int, dtype: Any) -> int:
    """How many blocks cover `size` elements."""
    return launch.divide_up(size, _BLOCK * _THREAD_BYTES[dtype.itemsize] // dtype.itemsize)


def activation(x: Array, kind: str, a: float = 0.0, b: float = 0.0) -> Array:
    x = launch.contiguous(x)
    y = launch.empty(x.shape, x.dtype, x)
    _launch("activation", y, (x, y, np.int64(x.size), described(kind, a, b)))
    return y


def activation_with_slope(x: Array, kind: str, a: float = 0.0, b: float = 0.0) -> tuple[Array, Array | None]:
    # To write and read the slope takes longer than to compute it again.
    return activation(x, kind, a, b), None


def activation_input_grad(dy: Array, saved: Array, kind: str, a: float = 0.0, b: float = 0.0) -> Array:
    dy, saved = launch.contiguous(dy), launch.contiguous(saved)
    dx = launch.empty(dy.shape, dy.dtype, dy)
    _launch("activation_input_grad", dx, (dy, saved, dx, np.int64(dy.size), described(kind, a, b)))
    return dx


def activation_scale(slope: Array, dy: Array, in_place: bool = False) -> Array:
    # No slope was made here: it came from elsewhere.
    return slope * dy


def glu(x: Array, dim: int) -> Array:
    _, size, inner = planes(x.shape, dim)
    x = launch.contiguous(x)
    y = launch.empty((*x.shape[:dim], size // 2, *x.shape[dim + 1 :]), x.dtype, x)
    _launch("glu", y, (x, y, np.int64(y.size), np.int64(size // 2 * inner)))
    return y


def glu_input_grad(dy: Array, x: Array, dim: int) -> Array:
    _, size, inner = planes(x.shape, dim)
    dy, x = launch.contiguous(dy), launch.contiguous(x)
    dx = launch.empty(x.shape, x.dtype, x)
    _launch("glu_input_grad", dy, (dy, x, dx, np.int64(dy.size), np.int64(size // 2 * inner)))
    return dx


def _launch(name: str, over: Array, args: tuple[Any, ...]) -> None:
    launch.launch(_kernel(name, launch.c_type(over.dtype)), (tiles(over.size, over.dtype),), (_BLOCK,), args)


def _kernel(name: str, scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"{name}<{scalar}>")


VARIANTS = [
    _kernel(name, scalar)
    for name in ("activation", "activation_input_grad", "glu", "glu_input_grad")
    for scalar in launch.FLOAT_TYPES
]
