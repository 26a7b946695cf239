"""Matrix products in CUDA: how operands lie and what is one product, then cuBLASLt or, where it has none, `gemm.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import precision
from ..geometry import matmul as geometry
from ..geometry.matmul import Batch, Lines
from . import gemm, launch
from .activation import activation as activated
from .bias_activation import bias_activation
from .cublaslt import Pointers, Product

Array = Any
Shape = tuple[int, ...]

# For leading dims that are no single run of matrices in an operand: with more products than this it is copied.
_MOST_LAUNCHES = 4
_MOST_SIZE = 2**31 - 256  # with what fills up the last tile and part still a number of 32 bits
_BIAS_ALIGNMENT = 16  # cuBLASLt is told how the operands are aligned, but cannot be told of the bias
_ONE = Batch(1, 0, 0, 0)


def matmul(a: Array, b: Array, bias: Array | None = None, activation: str | None = None) -> Array:
    shape = geometry.matmul(a.shape, b.shape, None, None)
    a, b = a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None]
    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    if max(rows, depth, columns) > _MOST_SIZE:
        raise ValueError(f"matmul: dims of at most {_MOST_SIZE} elements are supported, got {a.shape} and {b.shape}")
    leading = geometry.matmul(a.shape, b.shape, None, None)[:-2]
    out = launch.empty((*leading, rows, columns), a.dtype, a)
    bias = None if bias is None else launch.contiguous(bias)
    if out.size and depth:
        done_bias, done_activation = _multiply(_task(a, b, out, bias), bias, activation)
    else:
        out.fill(0)
        done_bias = done_activation = False
    return _followed(out, None if done_bias else bias, None if done_activation else activation).reshape(shape)


class _Task(NamedTuple):
    """Products of matrices of `rows`, for each of the leading dims in `dims`, outermost first."""

    a: Array
    b: Array
    out: Array
    a_lines: Lines
    b_lines: Lines
    rows: int
    dims: list[Batch]

    def product(self, has_bias: bool, gelu_tanh: bool) -> Product:
        c_type = launch.c_type(self.a.dtype)
        tf32 = c_type == "float" and precision.get_float32_matmul_precision() == "high"
        depth, columns = self.b.shape[-2:]
        sizes = (self.rows, columns, depth, self.a_lines, self.b_lines)
        return Product(c_type, tf32, *sizes, self._widest(), has_bias, gelu_tanh)

    def firsts(self) -> Iterator[tuple[int, int, int]]:
        """How many elements of a, b and out lie before each launch."""
        others = list(self.dims)
        if others:
            others.remove(self._widest())
        for index in itertools.product(*(range(dim.times) for dim in others)):
            steps = list(zip(index, others, strict=True))
            yield tuple(sum(i * dim[operand] for i, dim in steps) for operand in (1, 2, 3))  # type: ignore[misc]

    def launches(self) -> int:
        return math.prod(dim.times for dim in self.dims) // self._widest().times

    def _widest(self) -> Batch:
        return max(self.dims, key=lambda dim: dim.times, default=_ONE)


def _task(a: Array, b: Array, out: Array, bias: Array | None) -> _Task:
    task = _described(a, b, out)
    if task.launches() > _MOST_LAUNCHES:
        task = _described(launch.contiguous(a), launch.contiguous(b), out)
    return task if bias is not None and bias.ndim == 2 else _joined(task)


def _described(a: Array, b: Array, out: Array) -> _Task:
    leading = out.shape[:-2]
    a, a_lines, a_strides = _in_lines(a)
    b, b_lines, b_strides = _in_lines(b)
    out_strides = _strides(out)[:-2]
    dims = geometry.batches(leading, _spread(a_strides, leading), _spread(b_strides, leading), out_strides)
    return _Task(a, b, out, a_lines, b_lines, out.shape[-2], dims)


def _joined(task: _Task) -> _Task:
    """The rows of all matrices that share a right-hand one as the rows of one matrix, where they lie so."""
    rows, pitch, dims = task.rows, task.a_lines.pitch, list(task.dims)
    while dims and not task.a_lines.transposed and dims[-1].b == 0:
        count, step, _, _ = dims[-1]
        if rows == 1 and step >= task.a.shape[-1]:
            pitch = step
        elif step != rows * pitch:
            break
        rows *= count
        dims.pop()
    if rows > _MOST_SIZE:
        return task
    return task._replace(rows=rows, a_lines=task.a_lines._replace(pitch=pitch), dims=dims)


def _in_lines(array: Array) -> tuple[Array, Lines, Shape]:
    """The array, or a copy where its rows and columns are no dense lines, how its matrices lie, and their distances."""
    strides = _strides(array)
    found = geometry.lines(array.shape[-2:], strides[-2:]) if min(strides) >= 0 else None
    if found is None or any(stride % array.dtype.itemsize for stride in array.strides):
        array = launch.contiguous(array)
        strides = _strides(array)
        found = geometry.lines(array.shape[-2:], strides[-2:])
        assert found is not None
    return array, found, strides[:-2]


def _strides(array: Array) -> Shape:
    """In elements; 0 along dims of one element, whose stride means nothing."""
    itemsize = array.dtype.itemsize
    return tuple(s // itemsize if size > 1 else 0 for size, s in zip(array.shape, array.strides, strict=True))


def _spread(strides: Shape, leading: Shape) -> Shape:
    return (0,) * (len(leading) - len(strides)) + strides


def _multiply(task: _Task, bias: Array | None, activation: str | None) -> tuple[bool, bool]:
    """Queue the products; whether bias and activation are in the result."""
    pointer, itemsize = launch.launcher.pointer, task.a.dtype.itemsize
    starts = [pointer(array) for array in (task.a, task.b, task.out)]

    def by_library(has_bias: bool, gelu_tanh: bool) -> bool:
        product, of_bias = task.product(has_bias, gelu_tanh), pointer(bias) if has_bias else 0
        for firsts in task.firsts():
            a, b, out = (start + itemsize * first for start, first in zip(starts, firsts, strict=True))
            if not launch.multiply(product, Pointers(a, b, out, of_bias), task.a):
                return False
        return True

    has_bias = bias is not None and bias.ndim == 1 and launch.aligned(bias, _BIAS_ALIGNMENT)
    # The library's GELU is the one by tanh. Its ReLU is not asked for: nothing says that it keeps not-a-number.
    gelu_tanh = activation == "gelu_tanh" and (bias is None or has_bias)
    if task.a.dtype != "float64" and (has_bias or gelu_tanh) and by_library(has_bias, gelu_tanh):
        return has_bias, gelu_tanh
    if by_library(False, False):
        return False, False
    fused = activation if activation in gemm.FUSED else None
    product = task.product(False, False)
    for firsts in task.firsts():
        gemm.multiply(product, (task.a, task.b, task.out), firsts, bias, fused)
    return True, fused is not None


def _followed(out: Array, bias: Array | None, activation: str | None) -> Array:
    if bias is None:
        return out if activation is None else activated(out, activation)
    dim = out.ndim - bias.ndim
    # A leaky ReLU of slope 1 changes nothing.
    kind, slope = ("leaky_relu", 1.0) if activation is None else (activation, 0.0)
    return bias_activation(out, bias.reshape(-1), kind, dim, slope)
