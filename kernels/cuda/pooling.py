"""Pooling on CUDA: describes the pooling to the kernels in src/max_pool.cu, src/avg_pool.cu and src/max_unpool.cu."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..geometry import pooling as geometry
from ..geometry.pooling import Sizes
from . import launch
from .kernel import Kernel
from .pool_plan import BLOCK, DIVISOR, LARGEST_PLANE, Plan, Pooling, divisor, plan

Array = Any

# What moves elements needs to know their size only.
_BITS = {2: "int16", 4: "int32", 8: "int64"}

_UNPOOL_CHUNK = 2048
_PLANES = np.dtype(
    [
        ("planes", np.int64),
        *((name, np.int32) for name in ("planes_per_block", "elements", "others", "chunk", "chunks")),
        ("by_elements", DIVISOR),
        ("by_chunks", DIVISOR),
    ],
    align=True,
)


def max_pool(
    x: Array, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool = False
) -> tuple[Array, Array]:
    shape = geometry.max_pool(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    offset = _offset_dtype(kernel_size)
    pooling = Pooling(
        "max_pool", x.shape, shape, kernel_size, stride, padding, dilation, x.dtype.itemsize,
        offset_bytes=offset.itemsize,
    )  # fmt: skip
    return _maxima(x, pooling, offset)


def max_pool_scatter(
    dy: Array,
    offsets: Array,
    input_shape: Sizes,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> Array:
    pooling = Pooling(
        "max_pool_scatter", input_shape, dy.shape, kernel_size, stride, padding, dilation, dy.dtype.itemsize,
        offset_bytes=offsets.dtype.itemsize,
    )  # fmt: skip
    return _scattered(dy, offsets, pooling)


def max_pool_gather(
    x: Array, offsets: Array, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Array:
    size = x.dtype.itemsize
    pooling = Pooling(
        "max_pool_gather", x.shape, offsets.shape, kernel_size, stride, padding, dilation, size,
        offset_bytes=offsets.dtype.itemsize,
    )  # fmt: skip
    how = _plan(pooling, "places")
    x, offsets = launch.contiguous(x), launch.contiguous(offsets)
    y = launch.empty(offsets.shape, x.dtype, x)
    if how is not None:
        _run(Kernel("max_pool.cu", f"max_pool_gather<{_BITS[size]}>"), how, _bits(x), offsets, _bits(y))
    return y


def max_pool_indices(
    offsets: Array, input_shape: Sizes, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Array:
    pooling = Pooling(
        "max_pool_indices", input_shape, offsets.shape, kernel_size, stride, padding, dilation, 8,
        offset_bytes=offsets.dtype.itemsize,
    )  # fmt: skip
    how = _plan(pooling, "places")
    offsets = launch.contiguous(offsets)
    indices = launch.empty(offsets.shape, np.int64, offsets)
    if how is not None:
        _run(Kernel("max_pool.cu", "max_pool_indices<int64>"), how, offsets, indices)
    return indices


def avg_pool(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    shape = geometry.avg_pool(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    pooling = _averages(
        "avg_pool", x.shape, shape, x.dtype, kernel_size, stride, padding, count_include_pad, divisor_override
    )
    return _averaged(x, pooling)


def avg_pool_input_grad(
    dy: Array,
    input_shape: Sizes,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Array:
    pooling = _averages(
        "avg_pool_input_grad", input_shape, dy.shape, dy.dtype, kernel_size, stride, padding, count_include_pad,
        divisor_override,
    )  # fmt: skip
    return _spread(dy, pooling)


def lp_pool(x: Array, norm_type: float, kernel_size: Sizes, stride: Sizes, ceil_mode: bool = False) -> Array:
    shape = geometry.lp_pool(x.shape, norm_type, kernel_size, stride, ceil_mode)
    return _averaged(x, _norms("lp_pool", x.shape, shape, x.dtype, norm_type, kernel_size, stride))


def lp_pool_input_grad(
    dy: Array, x: Array, y: Array, norm_type: float, kernel_size: Sizes, stride: Sizes, ceil_mode: bool
) -> Array:
    return _spread(dy, _norms("lp_pool_input_grad", x.shape, dy.shape, dy.dtype, norm_type, kernel_size, stride), x, y)


def adaptive_max_pool(x: Array, output_size: Sizes) -> tuple[Array, Array]:
    shape = geometry.adaptive_pool("adaptive_max_pool", x.shape, output_size)
    pooling = _adaptive("adaptive_max_pool", x.shape, shape, x.dtype)._replace(offset_bytes=8)
    return _maxima(x, pooling, np.dtype(np.int64))


def adaptive_max_pool_scatter(dy: Array, indices: Array, input_shape: Sizes) -> Array:
    pooling = _adaptive("adaptive_max_pool_scatter", input_shape, dy.shape, dy.dtype)._replace(offset_bytes=8)
    return _scattered(dy, indices, pooling)


def adaptive_max_pool_gather(x: Array, indices: Array) -> Array:
    return _gathered("adaptive_max_pool_gather", x, launch.contiguous(indices), None)


def adaptive_avg_pool(x: Array, output_size: Sizes) -> Array:
    shape = geometry.adaptive_pool("adaptive_avg_pool", x.shape, output_size)
    return _averaged(x, _adaptive("adaptive_avg_pool", x.shape, shape, x.dtype))


def adaptive_avg_pool_input_grad(dy: Array, input_shape: Sizes) -> Array:
    return _spread(dy, _adaptive("adaptive_avg_pool_input_grad", input_shape, dy.shape, dy.dtype))


def max_unpool(x: Array, indices: Array, output_size: Sizes) -> Array:
    size = x.dtype.itemsize
    x, indices = launch.contiguous(x), launch.contiguous(indices)
    y = launch.empty((*x.shape[:2], *output_size), x.dtype, x)
    if y.size:
        winners = _winners("max_unpool", indices, y)
        kernel = Kernel("max_unpool.cu", f"max_unpool<{_BITS[size]}>")
        _over_planes(kernel, "max_unpool", y.shape, x.shape, _bits(x), winners, _bits(y))
    return y


def max_unpool_input_grad(dy: Array, indices: Array) -> Array:
    dy, indices = launch.contiguous(dy), launch.contiguous(indices)
    return _gathered("max_unpool_input_grad", dy, indices, _winners("max_unpool_input_grad", indices, dy))


def _maxima(x: Array, pooling: Pooling, offset: np.dtype) -> tuple[Array, Array]:
    how = _plan(pooling, "max")
    x = launch.contiguous(x)
    y = launch.empty(pooling.y_shape, x.dtype, x)
    offsets = launch.empty(pooling.y_shape, offset, x)
    if how is not None:
        _run(_variant("max_pool", launch.c_type(x.dtype), how.staged), how, x, y, offsets)
    return y, offsets


def _scattered(dy: Array, offsets: Array, pooling: Pooling) -> Array:
    how = _plan(pooling, "scatter")
    dy, offsets = launch.contiguous(dy), launch.contiguous(offsets)
    dx = launch.empty(pooling.x_shape, dy.dtype, dy)
    if how is None:
        dx.fill(0)
        return dx
    name = "max_pool_scatter" if how.staged else "max_pool_scatter_large"
    _run(Kernel("max_pool.cu", f"{name}<{launch.c_type(dy.dtype)}>"), how, dy, offsets, dx)
    return dx


def _averaged(x: Array, pooling: Pooling) -> Array:
    how = _plan(pooling, "average")
    x = launch.contiguous(x)
    y = launch.empty(pooling.y_shape, x.dtype, x)
    if how is not None:
        _run(_variant("avg_pool", launch.c_type(x.dtype), how.staged), how, x, y)
    return y


def _spread(dy: Array, pooling: Pooling, x: Array | None = None, y: Array | None = None) -> Array:
    how = _plan(pooling, "spread")
    dy = launch.contiguous(dy)
    dx = launch.empty(pooling.x_shape, dy.dtype, dy)
    if how is None:
        dx.fill(0)
        return dx
    x, y = (None if array is None else launch.contiguous(array) for array in (x, y))
    _run(_variant("avg_pool_input_grad", launch.c_type(dy.dtype), how.staged), how, dy, x, y, dx)
    return dx


def _plan(pooling: Pooling, direction: str) -> Plan | None:
    """The plan, None where there is nothing to launch."""
    return plan(pooling, direction) if prod(pooling.y_shape) else None


def _run(kernel: Kernel, how: Plan, *arrays: Array | None) -> None:
    launch.launch(kernel, how.grid, (BLOCK,), (*arrays, how.pool), how.shared_bytes)


def _variant(name: str, scalar: str, staged: bool) -> Kernel:
    source = "max_pool.cu" if name == "max_pool" else "avg_pool.cu"
    return Kernel(source, f"{name}<{scalar}, {'true' if staged else 'false'}>")


def _averages(
    operation: str,
    x_shape: Sizes,
    y_shape: Sizes,
    dtype: Any,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Pooling:
    inside = all(
        (count - 1) * step + taps <= size + 2 * pad
        for count, step, taps, size, pad in zip(y_shape[2:], stride, kernel_size, x_shape[2:], padding, strict=True)
    )
    if divisor_override is not None:
        common = float(divisor_override)
    else:
        common = float(prod(kernel_size)) if inside and (count_include_pad or not any(padding)) else 0.0
    ones = (1,) * len(kernel_size)
    return Pooling(
        operation, tuple(x_shape), tuple(y_shape), kernel_size, stride, padding, ones, dtype.itemsize,
        count_include_pad=count_include_pad, divisor=common,
    )  # fmt: skip


def _norms(
    operation: str, x_shape: Sizes, y_shape: Sizes, dtype: Any, norm_type: float, kernel_size: Sizes, stride: Sizes
) -> Pooling:
    padding = (0,) * len(kernel_size)
    pooling = _averages(operation, x_shape, y_shape, dtype, kernel_size, stride, padding, False, None)
    return pooling._replace(norm=float(norm_type))


def _adaptive(operation: str, x_shape: Sizes, y_shape: Sizes, dtype: Any) -> Pooling:
    """Its kernel size is the largest window's, which numbers the taps."""
    sizes = zip(x_shape[2:], y_shape[2:], strict=True)
    kernel = tuple(min(size, -(-size // max(1, count)) + (size % max(1, count) > 0)) for size, count in sizes)
    ones = (1,) * len(kernel)
    return Pooling(
        operation, tuple(x_shape), tuple(y_shape), kernel, ones, (0,) * len(kernel), ones, dtype.itemsize,
        adaptive=True,
    )  # fmt: skip


def _offset_dtype(kernel_size: Sizes) -> np.dtype:
    window = prod(kernel_size)
    return np.dtype(np.uint8 if window <= 256 else np.int16 if window <= 32768 else np.int32)


def _bits(array: Array) -> Array:
    return array.view(np.dtype(_BITS[array.dtype.itemsize]))


def _winners(operation: str, indices: Array, like: Array) -> Array:
    """For each place of an array like `like` the last element that goes there, -1 where there is none."""
    winners = launch.empty(like.shape, np.int32, indices)
    winners.fill(-1)
    if indices.size and winners.size:
        kernel = Kernel("max_unpool.cu", "max_unpool_winners<int64>")
        _over_planes(kernel, operation, indices.shape, like.shape, indices, winners)
    return winners


def _gathered(operation: str, x: Array, indices: Array, winners: Array | None) -> Array:
    x = launch.contiguous(x)
    y = launch.empty(indices.shape, x.dtype, x)
    if y.size:
        kernel = Kernel("max_unpool.cu", f"max_unpool_gather<{_BITS[x.dtype.itemsize]}>")
        _over_planes(kernel, operation, y.shape, x.shape, _bits(x), indices, winners, _bits(y))
    return y


def _over_planes(kernel: Kernel, operation: str, shape: Sizes, other_shape: Sizes, *arrays: Array | None) -> None:
    """Launch over the elements of arrays of `shape`, whose planes belong to those of `other_shape`."""
    planes, elements, others = shape[0] * shape[1], prod(shape[2:]), prod(other_shape[2:])
    if max(elements, others) > LARGEST_PLANE:
        raise ValueError(
            f"{operation}: on CUDA one plane may have {LARGEST_PLANE} elements, got {max(elements, others)}"
        )
    together = max(1, min(_UNPOOL_CHUNK // elements, planes))
    chunk = elements if together > 1 else min(elements, _UNPOOL_CHUNK)
    chunks = launch.divide_up(elements, chunk)
    settings = launch.struct(
        _PLANES,
        planes=planes,
        planes_per_block=together,
        elements=elements,
        others=others,
        chunk=chunk,
        chunks=chunks,
        by_elements=divisor(elements),
        by_chunks=divisor(chunks),
    )
    launch.launch(kernel, (launch.divide_up(planes, together) * chunks,), (BLOCK,), (*arrays, settings))


VARIANTS = [
    Kernel("max_pool.cu", "max_pool_indices<int64>"),
    *(Kernel("max_pool.cu", f"max_pool_gather<{bits}>") for bits in _BITS.values()),
    *(
        variant
        for scalar in launch.FLOAT_TYPES
        for variant in (
            *(
                _variant(name, scalar, staged)
                for name in ("max_pool", "avg_pool", "avg_pool_input_grad")
                for staged in (True, False)
            ),
            Kernel("max_pool.cu", f"max_pool_scatter<{scalar}>"),
            Kernel("max_pool.cu", f"max_pool_scatter_large<{scalar}>"),
        )
    ),
    Kernel("max_unpool.cu", "max_unpool_winners<int64>"),
    *(
        Kernel("max_unpool.cu", f"{name}<{bits}>")
        for name in ("max_unpool", "max_unpool_gather")
        for bits in _BITS.values()
    ),
]
