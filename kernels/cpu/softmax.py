"""Softmax and its logarithm, with their gradients, in pieces that stay in the cache.

The elements of one softmax are a row where `dim` is the last dimension; else they are a column of a plane
(size, inner), and the pieces are parts of planes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from . import parallel
from .arithmetic import compute_dtype
from .rows import dots, largest, narrow_buffer, split_rows, sums
from .scratch import scratch

_PIECE_BYTES = 1 << 20
_NARROW = 16  # planes with fewer columns are transposed first

# From the pieces of the arrays given to the result's, in the type of the computation.
Compute = Callable[..., None]


def softmax(x: np.ndarray, dim: int) -> np.ndarray:
    return _along((x,), dim, _softmax_rows, _softmax_columns)


def softmax_input_grad(y: np.ndarray, dy: np.ndarray, dim: int) -> np.ndarray:
    return _along((y, dy), dim, _softmax_grad_rows, _softmax_grad_columns)


def log_softmax(x: np.ndarray, dim: int) -> np.ndarray:
    return _along((x,), dim, _log_softmax_rows, _log_softmax_columns)


def log_softmax_input_grad(y: np.ndarray, dy: np.ndarray, dim: int) -> np.ndarray:
    return _along((y, dy), dim, _log_softmax_grad_rows, _log_softmax_grad_columns)


def _softmax_rows(x: np.ndarray, out: np.ndarray) -> None:
    np.subtract(x, largest(x, np.arange(len(x))), out=out)
    np.exp(out, out=out)
    out *= (1 / sums(out))[:, None]


def _softmax_columns(x: np.ndarray, out: np.ndarray) -> None:
    np.subtract(x, x.max(axis=-2, keepdims=True), out=out)
    np.exp(out, out=out)
    out *= 1 / out.sum(axis=-2, keepdims=True)


def _softmax_grad_rows(y: np.ndarray, dy: np.ndarray, out: np.ndarray) -> None:
    np.subtract(dy, dots(y, dy)[:, None], out=out)
    out *= y


def _softmax_grad_columns(y: np.ndarray, dy: np.ndarray, out: np.ndarray) -> None:
    np.multiply(y, dy, out=out)
    np.subtract(dy, out.sum(axis=-2, keepdims=True), out=out)
    out *= y


def _log_softmax_rows(x: np.ndarray, out: np.ndarray) -> None:
    np.subtract(x, largest(x, np.arange(len(x))), out=out)
    with scratch() as memory:
        powers = np.exp(out, out=memory.empty(out.shape, out.dtype))
        out -= np.log(sums(powers))[:, None]


def _log_softmax_columns(x: np.ndarray, out: np.ndarray) -> None:
    np.subtract(x, x.max(axis=-2, keepdims=True), out=out)
    with scratch() as memory:
        powers = np.exp(out, out=memory.empty(out.shape, out.dtype))
        out -= np.log(powers.sum(axis=-2, keepdims=True))


def _log_softmax_grad_rows(y: np.ndarray, dy: np.ndarray, out: np.ndarray) -> None:
    np.exp(y, out=out)
    out *= sums(dy)[:, None]
    np.subtract(dy, out, out=out)


def _log_softmax_grad_columns(y: np.ndarray, dy: np.ndarray, out: np.ndarray) -> None:
    np.exp(y, out=out)
    out *= dy.sum(axis=-2, keepdims=True)
    np.subtract(dy, out, out=out)


def _along(given: tuple[np.ndarray, ...], dim: int, by_rows: Compute, by_columns: Compute) -> np.ndarray:
    shape = given[0].shape
    size, inner = shape[dim], prod(shape[dim + 1 :])
    if not given[0].size:
        return np.empty(shape, given[0].dtype)
    if inner >= _NARROW:
        return _by_columns([array.reshape(-1, size, inner) for array in given], by_columns).reshape(shape)
    if inner == 1:
        return _by_rows([array.reshape(-1, size) for array in given], by_rows).reshape(shape)
    turned = [array.reshape(-1, size, inner).swapaxes(1, 2) for array in given]
    result = _by_rows([array.reshape(-1, size) for array in turned], by_rows)
    return np.ascontiguousarray(result.reshape(turned[0].shape).swapaxes(1, 2)).reshape(shape)


def _by_rows(given: list[np.ndarray], compute: Compute) -> np.ndarray:
    result = np.empty(given[0].shape, given[0].dtype)
    n, size = result.shape

    def work(parts: Iterator[slice]) -> None:
        narrow_buffer(size)
        for part in parts:
            _compute(compute, [array[part] for array in given], result[part])

    parallel.share(work, split_rows(n, size, compute_dtype(result.dtype)))
    return result


def _by_columns(given: list[np.ndarray], compute: Compute) -> np.ndarray:
    result = np.empty(given[0].shape, given[0].dtype)
    outer, size, inner = result.shape
    dtype = compute_dtype(result.dtype)
    step = max(_NARROW, _PIECE_BYTES // (size * dtype.itemsize))
    planes = max(1, step // inner)

    def work(parts: Iterator[tuple[slice, slice]]) -> None:
        for some, part in parts:
            _compute(compute, [array[some, :, part] for array in given], result[some, :, part])

    pieces = [(some, part) for some in parallel.split(outer, planes) for part in parallel.split(inner, step)]
    parallel.share(work, pieces)
    return result


def _compute(compute: Compute, given: list[np.ndarray], result: np.ndarray) -> None:
    """`compute`, by way of scratch memory for a type that is not computed in."""
    dtype = compute_dtype(result.dtype)
    if dtype == result.dtype:
        compute(*given, result)
        return
    with scratch() as memory:
        wide = [memory.empty(result.shape, dtype) for _ in range(len(given) + 1)]
        for array, copy in zip(given, wide, strict=False):
            copy[...] = array
        compute(*wide)
        result[...] = wide[-1]
