"""Softmax-cross-entropy on CUDA: chooses the variant and the grid of src/softmax_cross_entropy.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import launch
from .launch import Kernel

Array = Any

_SOURCE = "softmax_cross_entropy.cu"
_WARP = 32
_BLOCK = 256
_ROW_BLOCK = 512
_VECTOR_BYTES = 16
_MOST_CLASSES = 2**30  # columns are int32
# Constants, so that sums have the same order on every device.
_MOST_BLOCKS = 2048
_MOST_DENOMINATORS = 128

_LOSS = np.dtype(
    [
        ("rows", np.int64),
        ("ignore_index", np.int64),
        ("smoothing", np.float64),
        ("classes", np.int32),
        ("denominators", np.int32),
        ("mean", np.int32),
        ("probabilities", np.int32),
    ],
    align=True,
)


def _items(scalar: str, spread: bool) -> tuple[int, ...]:
    """How many logits a thread can keep in registers; the first for rows of less than a warp's threads."""
    if scalar == "double":
        return (8, 16) if spread else (8, 32)
    return (8, 32) if spread else (8, 32, 64)


def _rows(scalar: str, spread: bool, items: int) -> Kernel:
    return Kernel(_SOURCE, f"softmax_cross_entropy_rows<{scalar}, {str(spread).lower()}, {items}>")


def _long_rows(scalar: str, spread: bool) -> Kernel:
    return Kernel(_SOURCE, f"softmax_cross_entropy_long_rows<{scalar}, {str(spread).lower()}>")


def _helper(name: str, scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"softmax_cross_entropy_{name}<{scalar}>")


def _choice(dtype: Any, spread: bool, classes: int) -> tuple[Kernel, int]:
    """The variant for rows of so many classes, and the threads that share a row."""
    scalar = launch.c_type(dtype)
    # A row's first vector may begin before the row.
    columns = classes + _VECTOR_BYTES // dtype.itemsize - 1
    few, *many = _items(scalar, spread)
    if columns <= few * _WARP:
        return _rows(scalar, spread, few), _power_of_two(launch.divide_up(columns, few))
    for items in many:
        threads = _WARP * launch.divide_up(columns, items * _WARP)
        if threads <= _ROW_BLOCK:
            return _rows(scalar, spread, items), threads
    return _long_rows(scalar, spread), _ROW_BLOCK


def softmax_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    with_grad: bool = False,
) -> tuple[Array, Array | None]:
    rows, classes = logits.shape
    if classes > _MOST_CLASSES:
        raise ValueError(f"softmax_cross_entropy: on CUDA there may be {_MOST_CLASSES} classes, got {classes}")
    probabilities = target.ndim == 2
    logits = launch.contiguous(logits)
    target = launch.contiguous(target if probabilities else target.astype(np.int64, copy=False))
    weight = None if weight is None else launch.contiguous(weight)
    mean = reduction == "mean"
    weighted = mean and not probabilities
    weight_sums = min(_MOST_DENOMINATORS, launch.divide_up(rows, 4 * _BLOCK))
    denominators = launch.empty((weight_sums,), np.float64, logits) if weighted else None
    loss = launch.struct(
        _LOSS,
        rows=rows,
        ignore_index=ignore_index,
        smoothing=label_smoothing,
        classes=classes,
        denominators=weight_sums,
        mean=mean,
        probabilities=probabilities,
    )
    if weighted:
        kernel = _helper("denominators", launch.c_type(logits.dtype))
        launch.launch(kernel, (weight_sums,), (_BLOCK,), (target, weight, denominators, loss))

    kernel, threads = _choice(logits.dtype, probabilities or label_smoothing != 0, classes)
    rows_per_block = max(1, _BLOCK // threads)
    blocks = min(_MOST_BLOCKS, launch.divide_up(rows, rows_per_block))
    each = reduction == "none"
    result = launch.empty((rows,) if each else (), logits.dtype, logits)
    partials = None if each else launch.empty((blocks,), np.float64, logits)
    grad = launch.empty(logits.shape, logits.dtype, logits) if with_grad else None
    args = (logits, target, weight, denominators, result if each else None, partials, grad, loss)
    launch.launch(kernel, (blocks,), (threads, rows_per_block), args)

    if not each:
        kernel = _helper("reduce", launch.c_type(logits.dtype))
        launch.launch(kernel, (1,), (_BLOCK,), (partials, denominators, result, loss, np.int32(blocks)))
    return result, grad


def softmax_cross_entropy_scale(grad: Array, upstream: Array, in_place: bool = False) -> Array:
    grad, upstream = launch.contiguous(grad), launch.contiguous(upstream)
    rows, classes = grad.shape
    result = grad if in_place else launch.empty(grad.shape, grad.dtype, grad)
    threads = min(_BLOCK, _power_of_two(max(1, classes)))
    rows_per_block = _BLOCK // threads
    blocks = launch.divide_up(rows, rows_per_block)
    if classes == 0 or blocks == 0:
        return result
    args = (grad, upstream, result, np.int64(rows), np.int32(classes), np.int32(upstream.ndim))
    kernel = _helper("scale", launch.c_type(grad.dtype))
    launch.launch(kernel, (min(_MOST_BLOCKS, blocks),), (threads, rows_per_block), args)
    return result


def _power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << (n - 1).bit_length()


VARIANTS = [
    variant
    for scalar in launch.FLOAT_TYPES
    for variant in (
        *(_rows(scalar, spread, items) for spread in (False, True) for items in _items(scalar, spread)),
        *(_long_rows(scalar, spread) for spread in (False, True)),
        *(_helper(name, scalar) for name in ("denominators", "reduce", "scale")),
    )
]
