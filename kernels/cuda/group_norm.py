"""Group normalisation on CUDA: chooses the way, the variant and the grid of src/group_norm*.cu."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..cpu.arithmetic import compute_dtype
from . import launch
from .kernel import Kernel
from .layer_norm import are_vectors, sum_partials

Array = Any

_SOURCE, _SPLIT_SOURCE = "group_norm.cu", "group_norm_split.cu"
_WARP = 32
_BLOCK = 256
_ROW_BLOCK = 512
_LONG_BLOCK = 1024
_SHARED_BYTES = 32 << 10
_MOST_ELEMENTS = 2**30  # of a group: places in it are int32

# All of these are constants, so that sums have the same order on every device.
_FEW_ROWS = 64  # with fewer, rows from _LEAST_SPLIT elements on are split
_LEAST_SPLIT = 4096
_SPLIT_BLOCKS = 1024
_MOST_PARTS = 32  # of a row: a warp merges them
_GRAD_BLOCKS = 1024

_NORM = np.dtype(
    [
        ("rows", np.int64),
        ("size", np.int64),
        ("slots", np.int64),
        ("eps", np.float64),
        ("groups", np.int32),
        ("depth", np.int32),
        ("length", np.int32),
        ("lanes", np.int32),
        ("per_channel", np.int32),
        ("steps", np.int32),
        ("parts", np.int32),
        ("chunk", np.int32),
        ("vectors", np.int32),
        ("wide", np.int32),
    ],
    align=True,
)


class _Shape(NamedTuple):
    """(N, C, ...) as rows, one for each group of an image: `depth` channels of `length` elements."""

    images: int
    groups: int
    depth: int
    length: int

    @property
    def rows(self) -> int:
        return self.images * self.groups

    @property
    def size(self) -> int:
        return self.depth * self.length

    @property
    def channels(self) -> int:
        return self.groups * self.depth


class _Layout(NamedTuple):
    """How the threads of a row share its channels."""

    threads: int
    lanes: int  # that share a channel
    per_channel: int  # steps of a thread through a channel
    steps: int  # through all its channels

    def shared_bytes(self, depth: int, itemsize: int) -> int:
        """What a block of the gradient keeps: two sums of each channel, and of each warp's part of it."""
        slots = self.threads // self.lanes
        warps = max(1, self.lanes // _WARP) | 1  # as in the kernel, without bank conflicts
        sums = launch.divide_up(depth, slots) * slots * warps + depth
        return max(1, _BLOCK // self.threads) * sums * 2 * itemsize


def _items(scalar: str) -> tuple[int, ...]:
    """How many elements a thread can keep in registers."""
    return (8, 24) if scalar == "double" else (16, 64)


def _grad_items(scalar: str) -> tuple[int, ...]:
    """Likewise of x and of dy."""
    return (8, 16) if scalar == "double" else (16, 32)


def _kernel(name: str, *template: object) -> Kernel:
    return Kernel(_SOURCE, f"group_norm_{name}<{', '.join(map(str, template))}>")


def _split_kernel(name: str, scalar: str) -> Kernel:
    return Kernel(_SPLIT_SOURCE, f"group_norm_{name}<{scalar}>")


@lru_cache(maxsize=1024)
def _layout(depth: int, length: int, vector: int, steps: int | None, least: int, most: int) -> _Layout | None:
    """The fewest threads, at least `least`, that cover a row in so many steps; in any number for None."""
    threads = least
    while threads <= most:
        lanes = min(threads, _power_of_two(launch.divide_up(length, vector)))
        best = None
        while lanes >= 1:
            per_channel = launch.divide_up(length, lanes * vector)
            taken = per_channel * launch.divide_up(depth, threads // lanes)
            if best is None or taken < best.steps:
                best = _Layout(threads, lanes, per_channel, taken)
            lanes //= 2
        if best is not None and (steps is None or best.steps <= steps):
            return best
        threads *= 2
    return None


def _is_split(shape: _Shape) -> bool:
    return shape.rows < _FEW_ROWS and shape.size >= _LEAST_SPLIT


def _choice(scalar: str, vector: int, shape: _Shape) -> tuple[Kernel, _Layout] | None:
    """The forward variant for whole rows, None where they are split."""
    if _is_split(shape):
        return None
    for items in _items(scalar):
        layout = _layout(shape.depth, shape.length, vector, items // vector, 1, _ROW_BLOCK)
        if layout is not None:
            return _kernel("rows", scalar, items), layout
    layout = _layout(shape.depth, shape.length, vector, None, _LONG_BLOCK, _LONG_BLOCK)
    assert layout is not None
    return _kernel("long_rows", scalar), layout


def _grad_choice(scalar: str, vector: int, shape: _Shape, itemsize: int) -> tuple[Kernel, _Layout] | None:
    """The variant of the gradient for whole rows, None where they are split."""
    if _is_split(shape):
        return None
    for items in (*_grad_items(scalar), 0):
        steps, least, most = (items // vector, 1, _ROW_BLOCK) if items else (None, _LONG_BLOCK, _LONG_BLOCK)
        layout = _layout(shape.depth, shape.length, vector, steps, least, most)
        if layout is not None and layout.shared_bytes(shape.depth, itemsize) <= _SHARED_BYTES:
            return _kernel("grad_rows", scalar, items), layout
    return None


def group_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, groups: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    x, weight, bias = (None if array is None else launch.contiguous(array) for array in (x, weight, bias))
    shape = _shape(x, groups)
    scalar, wide = launch.c_type(x.dtype), compute_dtype(x.dtype)
    y = launch.empty(x.shape, x.dtype, x)
    mean, rstd = (launch.empty((shape.images, groups), wide, x) for _ in range(2))
    if not x.size:
        return y, mean, rstd
    vectors = are_vectors(shape.length, x, y)
    settings = {"eps": eps, "vectors": vectors, "wide": (x if weight is None else weight).dtype != x.dtype}
    if weight is None and bias is not None:
        settings["wide"] = bias.dtype != x.dtype
    choice = _choice(scalar, 16 // x.dtype.itemsize, shape)
    if choice is not None:
        kernel, layout = choice
        args = (x, weight, bias, y, mean, rstd, _struct(shape, layout, **settings))
        rows = max(1, _BLOCK // layout.threads)
        launch.launch(kernel, (launch.divide_up(shape.rows, rows),), (layout.threads, rows), args)
        return y, mean, rstd
    parts, chunk = _parts(shape.rows, shape.size, _MOST_PARTS)
    norm = _struct(shape, parts=parts, chunk=chunk, **settings)
    moments = launch.empty((shape.rows, parts, 3), wide, x)
    grid = (shape.rows * parts,)
    launch.launch(_split_kernel("moments", scalar), grid, (_BLOCK,), (x, moments, norm))
    launch.launch(_split_kernel("apply", scalar), grid, (_BLOCK,), (x, moments, weight, bias, y, mean, rstd, norm))
    return y, mean, rstd


def group_norm_grad(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    groups: int,
    with_weight: bool = True,
    with_bias: bool = True,
) -> tuple[Array, Array | None, Array | None]:
    dy, x, weight, mean, rstd = (
        None if array is None else launch.contiguous(array) for array in (dy, x, weight, mean, rstd)
    )
    shape = _shape(x, groups)
    scalar, wide = launch.c_type(x.dtype), compute_dtype(x.dtype)
    kind = x.dtype if weight is None else weight.dtype
    dx = launch.empty(x.shape, x.dtype, x)
    vectors = are_vectors(shape.length, dy, x, dx)
    settings = {"eps": 0.0, "vectors": vectors, "wide": kind != x.dtype}
    choice = _grad_choice(scalar, 16 // x.dtype.itemsize, shape, wide.itemsize)
    if not x.size:
        partials, count = launch.empty((0,), wide, x), 0
    elif choice is None:
        partials, count = _split_grad(dy, x, weight, mean, rstd, dx, shape, settings)
    else:
        kernel, layout = choice
        rows = max(1, _BLOCK // layout.threads)
        count = min(shape.images, launch.divide_up(_GRAD_BLOCKS * rows, groups))
        slots = count * groups
        partials = launch.empty((2, count, shape.channels), wide, x) if with_weight or with_bias else None
        norm = _struct(shape, layout, slots=slots, **settings)
        shared = layout.shared_bytes(shape.depth, wide.itemsize)
        grid, block = (launch.divide_up(slots, rows),), (layout.threads, rows)
        launch.launch(kernel, grid, block, (dy, x, weight, mean, rstd, dx, partials, norm), shared)
    if partials is None or not (with_weight or with_bias):
        return dx, None, None
    size = shape.channels
    return dx, *sum_partials(partials, kind, with_weight, with_bias, count, size, count * size, size)


def _split_grad(
    dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dx: Array, shape: _Shape, settings: dict
) -> tuple[Array, int]:
    """The gradient of rows that are split over blocks: partial sums of each channel, then dx from them."""
    scalar, wide = launch.c_type(x.dtype), compute_dtype(x.dtype)
    runs = shape.rows * shape.depth
    parts, chunk = _parts(runs, shape.length, _MOST_PARTS)
    count = parts * shape.images
    partials = launch.empty((2, count, shape.channels), wide, x)
    threads = min(_BLOCK, max(1, _power_of_two(launch.divide_up(chunk, 16 // x.dtype.itemsize))))
    rows = _BLOCK // threads
    norm = _struct(shape, parts=parts, chunk=chunk, **settings)
    grid = (launch.divide_up(runs, rows), parts)
    launch.launch(_split_kernel("sums", scalar), grid, (threads, rows), (dy, x, mean, rstd, partials, norm))
    row_parts, chunk = _parts(shape.rows, shape.size, _SPLIT_BLOCKS)
    norm = _struct(shape, parts=row_parts, chunk=chunk, **settings)
    args = (dy, x, weight, mean, rstd, partials, dx, norm, np.int32(parts))
    launch.launch(_split_kernel("grad_apply", scalar), (shape.rows * row_parts,), (_BLOCK,), args)
    return partials, count


def _parts(runs: int, length: int, most: int) -> tuple[int, int]:
    """Into how many parts each of `runs` is split, and their length, a whole number of vectors."""
    wanted = min(most, launch.divide_up(_SPLIT_BLOCKS, runs), launch.divide_up(length, _LEAST_SPLIT))
    chunk = launch.divide_up(length, max(1, wanted))
    chunk = launch.divide_up(chunk, _BLOCK) * _BLOCK
    return launch.divide_up(length, chunk), chunk


def _shape(x: Array, groups: int) -> _Shape:
    shape = _Shape(x.shape[0], groups, x.shape[1] // groups, prod(x.shape[2:]))
    if shape.size > _MOST_ELEMENTS:
        raise ValueError(f"group_norm: on CUDA a group may have {_MOST_ELEMENTS} elements, got {shape.size}")
    return shape


def _struct(
    shape: _Shape, layout: _Layout | None = None, slots: int = 0, parts: int = 1, chunk: int = 0, **rest: Any
) -> np.ndarray:
    layout = layout or _Layout(1, 1, 1, 1)
    return launch.struct(
        _NORM,
        rows=shape.rows,
        size=shape.size,
        slots=slots,
        groups=shape.groups,
        depth=shape.depth,
        length=shape.length,
        lanes=layout.lanes,
        per_channel=layout.per_channel,
        steps=layout.steps,
        parts=parts,
        chunk=chunk,
        **rest,
    )


def _power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


VARIANTS = [
    variant
    for scalar in launch.FLOAT_TYPES
    for variant in (
        *(_kernel("rows", scalar, items) for items in _items(scalar)),
        *(_kernel("grad_rows", scalar, items) for items in (*_grad_items(scalar), 0)),
        _kernel("long_rows", scalar),
        *(_split_kernel(name, scalar) for name in ("moments", "apply", "sums", "grad_apply")),
    )
]
