"""Softmax-cross-entropy on CUDA: chooses the variant and the grid of src/softmax_cross_entropy.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import launch, rows
from .kernel import Kernel

Array = Any

_SOURCE = "softmax_cross_entropy.cu"
_MOST_DENOMINATORS = 128  # a constant, so that sums have the same order on every device

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


def _choice(logits: Array, spread: bool) -> tuple[Kernel, int]:
    """The variant for these rows, and the threads that share a row."""
    scalar = launch.c_type(logits.dtype)
    return rows.choice(
        logits.shape[1],
        _items(scalar, spread),
        lambda items: _rows(scalar, spread, items),
        _long_rows(scalar, spread),
        logits,
    )


def softmax_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    with_grad: bool = False,
    inplace_grad: bool = False,
) -> tuple[Array, Array | None]:
    n, classes = logits.shape
    if classes > rows.MOST_COLUMNS:
        raise ValueError(f"softmax_cross_entropy: on CUDA there may be {rows.MOST_COLUMNS} classes, got {classes}")
    probabilities = target.ndim == 2
    grad = None
    if with_grad:
        grad = logits if inplace_grad else launch.empty(logits.shape, logits.dtype, logits)
    logits = launch.contiguous(logits)
    target = launch.contiguous(target if probabilities else target.astype(np.int64, copy=False))
    weight = None if weight is None else launch.contiguous(weight)
    mean = reduction == "mean"
    weighted = mean and not probabilities
    weight_sums = min(_MOST_DENOMINATORS, launch.divide_up(n, 4 * rows.BLOCK))
    denominators = launch.empty((weight_sums,), np.float64, logits) if weighted else None
    loss = launch.struct(
        _LOSS,
        rows=n,
        ignore_index=ignore_index,
        smoothing=label_smoothing,
        classes=classes,
        denominators=weight_sums,
        mean=mean,
        probabilities=probabilities,
    )
    if weighted:
        kernel = _helper("denominators", launch.c_type(logits.dtype))
        launch.launch(kernel, (weight_sums,), (rows.BLOCK,), (target, weight, denominators, loss))

    kernel, threads = _choice(logits, probabilities or label_smoothing != 0)
    blocks, together = rows.blocks(n, threads)
    each = reduction == "none"
    result = launch.empty((n,) if each else (), logits.dtype, logits)
    partials = None if each else launch.empty((blocks,), np.float64, logits)
    args = (logits, target, weight, denominators, result if each else None, partials, grad, loss)
    if "long_rows" in kernel.name:
        steps, shared = rows.shared_steps(classes, logits)
        launch.launch(kernel, (blocks,), (threads,), (*args, np.int32(steps)), shared)
    else:
        launch.launch(kernel, (blocks,), (threads, together), args)

    if not each:
        kernel = _helper("reduce", launch.c_type(logits.dtype))
        launch.launch(kernel, (1,), (rows.BLOCK,), (partials, denominators, result, loss, np.int32(blocks)))
    return result, grad


def softmax_cross_entropy_scale(grad: Array, upstream: Array, in_place: bool = False) -> Array:
    grad, upstream = launch.contiguous(grad), launch.contiguous(upstream)
    n, classes = grad.shape
    result = grad if in_place else launch.empty(grad.shape, grad.dtype, grad)
    threads = min(rows.BLOCK, rows.power_of_two(max(1, classes)))
    if classes == 0:
        return result
    blocks, together = rows.blocks(n, threads)
    args = (grad, upstream, result, np.int64(n), np.int32(classes), np.int32(upstream.ndim))
    launch.launch(_helper("scale", launch.c_type(grad.dtype)), (blocks,), (threads, together), args)
    return result


VARIANTS = [
    variant
    for scalar in launch.FLOAT_TYPES
    for variant in (
        *(_rows(scalar, spread, items) for spread in (False, True) for items in _items(scalar, spread)),
        *(_long_rows(scalar, spread) for spread in (False, True)),
        *(_helper(name, scalar) for name in ("denominators", "reduce", "scale")),
    )
]
