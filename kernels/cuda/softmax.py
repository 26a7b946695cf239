"""Softmax on CUDA: chooses the variant and the grid of src/softmax.cu."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from . import launch, rows
from .kernel import Kernel

Array = Any

_SOURCE = "softmax.cu"
_COLUMN_ITEMS = 16  # what a thread keeps of a column in registers
_SHARING_COLUMN = 16  # threads, at most

_SHAPE = np.dtype(
    [
        ("outer", np.int64),
        ("inner", np.int64),
        ("size", np.int32),
        ("log", np.int32),
        ("shared_steps", np.int32),
    ],
    align=True,
)


def softmax(x: Array, dim: int) -> Array:
    return _along("softmax", (x,), dim, False)


def softmax_input_grad(y: Array, dy: Array, dim: int) -> Array:
    return _along("softmax_input_grad", (y, dy), dim, False)


def log_softmax(x: Array, dim: int) -> Array:
    return _along("softmax", (x,), dim, True)


def log_softmax_input_grad(y: Array, dy: Array, dim: int) -> Array:
    return _along("softmax_input_grad", (y, dy), dim, True)


def _along(name: str, given: tuple[Array, ...], dim: int, log: bool) -> Array:
    given = tuple(launch.contiguous(array) for array in given)
    first, scalar = given[0], launch.c_type(given[0].dtype)
    result = launch.empty(first.shape, first.dtype, first)
    if not first.size:
        return result
    size, inner = first.shape[dim], prod(first.shape[dim + 1 :])
    outer = first.size // (size * inner)
    if size > rows.MOST_COLUMNS:
        raise ValueError(f"{name}: on CUDA a dim may have {rows.MOST_COLUMNS} elements, got {size}")
    steps, shared = 0, 0
    if inner > 1:
        kernel = _columns(name, scalar)
        lanes, sharing = _column_block(size)
        blocks, block = min(rows.MOST_BLOCKS, launch.divide_up(outer * inner, lanes)), (lanes, sharing)
    else:
        kernel, threads = rows.choice(
            size, _items(scalar), lambda items: _rows(name, scalar, items), _long_rows(name, scalar), *given
        )
        blocks, together = rows.blocks(outer, threads)
        block = (threads, together)
        if "long_rows" in kernel.name:
            steps, shared = rows.shared_steps(size, *given)
    shape = launch.struct(_SHAPE, outer=outer, inner=inner, size=size, log=log, shared_steps=steps)
    launch.launch(kernel, (blocks,), block, (*given, result, shape), shared)
    return result


def _column_block(size: int) -> tuple[int, int]:
    """How many columns a block takes at once, and how many threads share each."""
    sharing = min(_SHARING_COLUMN, rows.power_of_two(launch.divide_up(size, _COLUMN_ITEMS)))
    return max(rows.WARP, rows.BLOCK // sharing), sharing


def _items(scalar: str) -> tuple[int, int]:
    """How many columns a thread can keep in registers; the first for rows of less than a warp's threads."""
    return (8, 16) if scalar == "double" else (8, 32)


def _rows(name: str, scalar: str, items: int) -> Kernel:
    return Kernel(_SOURCE, f"{name}_rows<{scalar}, {items}>")


def _long_rows(name: str, scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"{name}_long_rows<{scalar}>")


def _columns(name: str, scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"{name}_columns<{scalar}>")


VARIANTS = [
    variant
    for scalar in launch.FLOAT_TYPES
    for name in ("softmax", "softmax_input_grad")
    for variant in (
        *(_rows(name, scalar, items) for items in _items(scalar)),
        _long_rows(name, scalar),
        _columns(name, scalar),
    )
]
