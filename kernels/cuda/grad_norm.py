"""Norms of gradients on CUDA: the launches of src/grad_norm.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from . import launch
from .kernel import Kernel
from .multi_tensor import BLOCK, Array, batches, contiguous

_SOURCE = "grad_norm.cu"
_MOST_BLOCKS = 1024  # a constant, so that sums have the same order on every device
_MAXIMUM, _SUM, _SQUARES, _POWERS = range(4)

_NORM = np.dtype(
    [("order", np.float64), ("max_norm", np.float64), ("kind", np.int32), ("partials", np.int32)], align=True
)


def _partials_kernel(scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"grad_norm_partials<{scalar}>")


def _finish(result: str) -> Kernel:
    return Kernel(_SOURCE, f"grad_norm_finish<{result}>")


def _clip(scalar: str, result: str) -> Kernel:
    return Kernel(_SOURCE, f"grad_norm_clip<{scalar}, {result}>")


def _clamp(scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"grad_clamp<{scalar}>")


def grad_norm(grads: Sequence[Array], norm_type: float = 2.0) -> Array:
    partials, norm = _partials(grads, norm_type)
    result = launch.empty((), _result_dtype(grads), grads[0])
    launch.launch(_finish(launch.c_type(result.dtype)), (1,), (BLOCK,), (partials, result, norm))
    return result


def clip_grads(grads: Sequence[Array], max_norm: float, total_norm: Array) -> None:
    # A norm that is known is the maximum of one partial result.
    partials = total_norm.reshape(1).astype(np.float64)
    norm = _norm(math.inf, 1, max_norm)
    _scale(grads, partials, None, np.dtype(total_norm.dtype if total_norm.dtype == np.float64 else np.float32), norm)


def clip_grad_norm(grads: Sequence[Array], max_norm: float, norm_type: float = 2.0) -> Array:
    partials, norm = _partials(grads, norm_type)
    norm["max_norm"] = max_norm
    result = launch.empty((), _result_dtype(grads), grads[0])
    if not _scale(grads, partials, result, result.dtype, norm):
        launch.launch(_finish(launch.c_type(result.dtype)), (1,), (BLOCK,), (partials, result, norm))
    return result


def clamp_grads(grads: Sequence[Array], limit: float) -> None:
    with contiguous([grads], (0,)) as (dense,):
        for same in _by_dtype(dense):
            kernel = _clamp(launch.c_type(same[0].dtype))
            for struct, chunks, arrays in batches([same]):
                launch.launch(kernel, (chunks,), (BLOCK,), (struct, np.float64(limit)), reached=arrays)


def _partials(grads: Sequence[Array], norm_type: float) -> tuple[Array, np.ndarray]:
    """The partial sums of all gradients, and the norm that they are to become."""
    launches = []
    norm = _norm(norm_type, 0)
    count = 0
    dense = [launch.contiguous(grad) for grad in grads]
    for same in _by_dtype(dense):
        for batch in batches([same]):
            blocks = min(_MOST_BLOCKS, batch.chunks)
            launches.append((_partials_kernel(launch.c_type(same[0].dtype)), batch, count, blocks))
            count += blocks
    partials = launch.empty((count,), np.float64, grads[0])
    for kernel, (struct, _, arrays), start, blocks in launches:
        args = (struct, partials[start : start + blocks], norm)
        launch.launch(kernel, (blocks,), (BLOCK,), args, reached=arrays)
    norm["partials"] = count
    return partials, norm


def _scale(
    grads: Sequence[Array], partials: Array, result: Array | None, result_dtype: np.dtype, norm: np.ndarray
) -> bool:
    """Multiply all gradients; the first launch also stores the norm. Whether there was one."""
    with contiguous([grads], (0,)) as (dense,):
        launched = False
        for same in _by_dtype(dense):
            kernel = _clip(launch.c_type(same[0].dtype), launch.c_type(result_dtype))
            for struct, chunks, arrays in batches([same]):
                args = (struct, partials, None if launched else result, norm)
                launch.launch(kernel, (min(_MOST_BLOCKS, chunks),), (BLOCK,), args, reached=arrays)
                launched = True
    return launched


def _norm(norm_type: float, partials: int, max_norm: float = 0.0) -> np.ndarray:
    kind = {math.inf: _MAXIMUM, 1.0: _SUM, 2.0: _SQUARES}.get(float(norm_type), _POWERS)
    return launch.struct(_NORM, order=norm_type, max_norm=max_norm, kind=kind, partials=partials)


def _by_dtype(arrays: Sequence[Array]) -> list[list[Array]]:
    ordered = sorted(arrays, key=lambda array: array.dtype.name)
    return [list(same) for _, same in groupby(ordered, key=lambda array: array.dtype.name)]


def _result_dtype(grads: Sequence[Array]) -> np.dtype:
    return np.dtype(np.float64 if any(grad.dtype == np.float64 for grad in grads) else np.float32)


VARIANTS: list[Any] = [
    *(_clamp(scalar) for scalar in launch.FLOAT_TYPES),
    *(_partials_kernel(scalar) for scalar in launch.FLOAT_TYPES),
    *(_finish(result) for result in ("float", "double")),
    *(_clip(scalar, result) for scalar in launch.FLOAT_TYPES for result in ("float", "double")),
]
