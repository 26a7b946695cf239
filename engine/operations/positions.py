"""Where an index points to in memory, and sums over equal positions, the same at every run. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import array_module
from ..dtypes import is_half


def flat_positions(indices: Sequence[Any], shape: Sequence[int]) -> Any:
    """The positions in C order of the elements at `indices` (one array for each dim) of such a shape."""
    positions: Any = 0
    for index, size in zip(indices, shape, strict=True):
        module = array_module(index)
        positions = positions * size + module.where(index < 0, index + size, index)
    return positions


def along(index: Any, dim: int) -> list[Any]:
    """The indices of `gather` and `scatter`, one for each dim: `index` in `dim`, elsewhere the own place."""
    module = array_module(index)
    places = []
    for d, size in enumerate(index.shape):
        place = module.arange(size).reshape([-1 if i == d else 1 for i in range(index.ndim)])
        places.append(index if d == dim else place)
    return list(module.broadcast_arrays(*places))


def sums_at(positions: Any, values: Any, size: int) -> Any:
    """An array (size, ...) of zeros to which each row of `values` (n, ...) is added at its position (n,).

    Atomic adds would give other sums at every run, so on the GPU equal positions are brought together first.
    """
    wide = values.astype(np.float32) if is_half(values.dtype) else values
    if not isinstance(values, np.ndarray):
        result = sorted_sums(positions, wide, size)
    elif values.ndim == 1:
        result = np.zeros(size, wide.dtype)
        np.add.at(result, positions, wide)
    else:
        result = _row_sums(positions, wide, size)
    return result if result.dtype == values.dtype else result.astype(values.dtype)


def _row_sums(positions: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    result = np.zeros((size, *values.shape[1:]), values.dtype)
    if positions.size:
        order = np.argsort(positions, kind="stable")
        ordered = positions[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        result[ordered[starts]] = np.add.reduceat(values[order], starts, axis=0)
    return result


def sorted_sums(positions: Any, values: Any, size: int) -> Any:
    """`sums_at` from steps on whole arrays that never wait for the GPU: a segmented sum by doubling."""
    module = array_module(values)
    order = module.argsort(positions, kind="stable")
    ordered, sums = positions[order], values[order]
    column = (-1, *(1,) * (values.ndim - 1))
    step = 1
    while step < len(ordered):
        together = (ordered[step:] == ordered[:-step]).reshape(column)
        added = module.where(together, sums[:-step], 0).astype(sums.dtype, copy=False)
        sums = module.concatenate([sums[:step], sums[step:] + added])
        step *= 2
    last = module.ones(len(ordered), bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    result = module.zeros((size + 1, *values.shape[1:]), values.dtype)  # the last row takes the unfinished sums
    result[module.where(last, ordered, size)] = sums
    return result[:size]


def winners(positions: Any, size: int) -> Any:
    """For each of `positions`, the number of the one that wins among its equals."""
    module = array_module(positions)
    written = module.empty(size, np.int64)
    written[positions.ravel()] = module.arange(positions.size)
    return written[positions]
