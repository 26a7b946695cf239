"""Layer and RMS normalisation on CUDA: chooses the variant and the grid of src/layer_norm.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cpu.arithmetic import compute_dtype
from . import launch
from .kernel import Kernel

Array = Any

_SOURCE = "layer_norm.cu"
_WARP = 32
_BLOCK = 256
_ROW_BLOCK = 512
_VECTOR_BYTES = 16
_MOST_COLUMNS = 2**30  # columns are int32
# Blocks that leave sums for weight and bias, and the turns that each takes if there are rows enough: constants, so that
# the sums are added in the same order on every device.
_MOST_PARTIALS = 256
_TURNS = 4

_NORM = np.dtype(
    [
        ("rows", np.int64),
        ("eps", np.float64),
        ("size", np.int32),
        ("centred", np.int32),
        ("vectors", np.int32),
        ("wide", np.int32),
        ("partial_stride", np.int64),
    ],
    align=True,
)


def _items(scalar: str) -> tuple[int, ...]:
    """How many columns a thread can keep in registers; the first for rows of less than a warp's threads."""
    return (8, 32) if scalar == "double" else (8, 32, 64)


def _grad_items(scalar: str) -> tuple[int, ...]:
    """Likewise for the gradient, which keeps x, dy, the weight and two sums of each column."""
    return (4, 6) if scalar == "double" else (8, 16)


def _rows(scalar: str, items: int) -> Kernel:
    return Kernel(_SOURCE, f"layer_norm_rows<{scalar}, {items}>")


def _long_rows(scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"layer_norm_long_rows<{scalar}>")


def _grad_rows(scalar: str, items: int) -> Kernel:
    return Kernel(_SOURCE, f"layer_norm_grad_rows<{scalar}, {items}>")


def _grad_long_rows(scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"layer_norm_grad_long_rows<{scalar}>")


def _sum_partials(scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"sum_partials<{scalar}>")


def _choice(scalar: str, size: int) -> tuple[Kernel, int]:
    """The forward variant for rows of `size` columns, and the threads that share a row."""
    few, *many = _items(scalar)
    if size <= few * _WARP:
        return _rows(scalar, few), _power_of_two(launch.divide_up(size, few))
    for items in many:
        threads = _WARP * launch.divide_up(size, items * _WARP)
        if threads <= _ROW_BLOCK:
            return _rows(scalar, items), threads
    return _long_rows(scalar), _ROW_BLOCK


def _grad_choice(scalar: str, size: int) -> tuple[Kernel, int]:
    """The variant of the gradient for rows of `size` columns, and the threads that share a row."""
    few, many = _grad_items(scalar)
    if size <= few * _WARP:
        return _grad_rows(scalar, few), _power_of_two(launch.divide_up(size, few))
    for items, most in ((few, _BLOCK), (many, _ROW_BLOCK)):
        threads = _WARP * launch.divide_up(size, items * _WARP)
        if threads <= most:
            return _grad_rows(scalar, items), threads
    return _grad_long_rows(scalar), _ROW_BLOCK


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    mean = launch.empty((len(x),), compute_dtype(x.dtype), x)
    y, rstd = _normalize(x, weight, bias, eps, mean)
    return y, mean, rstd


def rms_norm(x: Array, weight: Array | None = None, eps: float = 1e-5) -> tuple[Array, Array]:
    return _normalize(x, weight, None, eps, None)


def layer_norm_grad(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    with_weight: bool = True,
    with_bias: bool = True,
) -> tuple[Array, Array | None, Array | None]:
    return _gradients(dy, x, weight, mean, rstd, with_weight, with_bias)


def rms_norm_grad(
    dy: Array, x: Array, weight: Array | None, rstd: Array, with_weight: bool = True
) -> tuple[Array, Array | None]:
    return _gradients(dy, x, weight, None, rstd, with_weight, False)[:2]


def _normalize(
    x: Array, weight: Array | None, bias: Array | None, eps: float, mean: Array | None
) -> tuple[Array, Array]:
    x, weight, bias = (None if array is None else launch.contiguous(array) for array in (x, weight, bias))
    rows, size = x.shape
    scalar = launch.c_type(x.dtype)
    kernel, threads = _choice(scalar, size)
    y = launch.empty(x.shape, x.dtype, x)
    rstd = launch.empty((rows,), compute_dtype(x.dtype), x)
    norm = _struct(x, weight, bias, y, eps=eps, centred=mean is not None)
    rows_per_block = max(1, _BLOCK // threads)
    blocks = launch.divide_up(rows, rows_per_block)
    launch.launch(kernel, (blocks,), (threads, rows_per_block), (x, weight, bias, y, mean, rstd, norm))
    return y, rstd


def _gradients(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    rstd: Array,
    with_weight: bool,
    with_bias: bool,
) -> tuple[Array, Array | None, Array | None]:
    dy, x, weight, mean, rstd = (
        None if array is None else launch.contiguous(array) for array in (dy, x, weight, mean, rstd)
    )
    rows, size = x.shape
    wide = compute_dtype(x.dtype)
    kernel, threads = _grad_choice(launch.c_type(x.dtype), size)
    rows_per_block = max(1, _BLOCK // threads)
    blocks = launch.divide_up(rows, rows_per_block)
    sums = with_weight or with_bias
    if sums:
        blocks = min(_MOST_PARTIALS, launch.divide_up(blocks, _TURNS))
    stride = launch.divide_up(size, 4) * 4
    dx = launch.empty(x.shape, x.dtype, x)
    partials = launch.empty((blocks, 2, stride), wide, x) if sums else None
    norm = _struct(x, weight, dy, dx, eps=0.0, centred=mean is not None, partial_stride=stride)
    launch.launch(kernel, (blocks,), (threads, rows_per_block), (dy, x, weight, mean, rstd, dx, partials, norm))
    if partials is None:
        return dx, None, None
    kind = x.dtype if weight is None else weight.dtype
    return dx, *sum_partials(partials, kind, with_weight, with_bias, blocks, size, stride, 2 * stride)


def sum_partials(
    partials: Array, dtype: Any, with_weight: bool, with_bias: bool, count: int, size: int, bias_at: int, step: int
) -> tuple[Array | None, Array | None]:
    """The sums of `count` rows of `size` values, `step` apart: for weight, and `bias_at` further on for bias."""
    by_weight, by_bias = (
        launch.empty((size,), dtype, partials) if wanted else None for wanted in (with_weight, with_bias)
    )
    args = (partials, by_weight, by_bias, np.int32(count), np.int32(size), np.int64(bias_at), np.int64(step))
    grid = launch.divide_up(size, _WARP), 2
    launch.launch(_sum_partials(launch.c_type(dtype)), grid, (_WARP, _BLOCK // _WARP), args)
    return by_weight, by_bias


def are_vectors(size: int, *arrays: Array | None) -> bool:
    """Whether runs of `size` elements are whole vectors, and all arrays begin at one."""
    given = [array for array in arrays if array is not None]
    vector = _VECTOR_BYTES // min(array.dtype.itemsize for array in given)
    return size % vector == 0 and all(launch.aligned(array, _VECTOR_BYTES) for array in given)


def _struct(
    x: Array, weight: Array | None, *others: Array | None, eps: float, centred: bool, partial_stride: int = 0
) -> np.ndarray:
    rows, size = x.shape
    if size > _MOST_COLUMNS:
        raise ValueError(f"layer_norm: on CUDA there may be {_MOST_COLUMNS} columns, got {size}")
    vector = next((array for array in (weight, *others) if array is not None), x)
    return launch.struct(
        _NORM,
        rows=rows,
        eps=eps,
        size=size,
        centred=centred,
        vectors=are_vectors(size, x, weight, *others),
        wide=vector.dtype != x.dtype,
        partial_stride=partial_stride,
    )


def _power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


VARIANTS = [
    variant
    for scalar in launch.FLOAT_TYPES
    for variant in (
        *(_rows(scalar, items) for items in _items(scalar)),
        _long_rows(scalar),
        *(_grad_rows(scalar, items) for items in _grad_items(scalar)),
        _grad_long_rows(scalar),
        _sum_partials(scalar),
    )
]
