"""Winograd's convolution (`winograd.py`) of small images, a whole line at a time, on the threads of BLAS.

What all tiles of a line see is one product of the line with a banded matrix, whose band has Bᵀ once for each tile;
padding is columns that the band has lost. A line of more than a few tiles is cut into segments. Images become tiles by
two such products, and come back by two. BLAS takes what is transposed as it lies, so nothing is copied:

    lines     (6, across, n, C, H)        = band of the width · imagesᵀ (W, n C H)
    tiles     (6, 6, down, across, n, C)  = band of the height · linesᵀ
    products  (6, 6, down, across, n, K)  = tiles · filters, at each of the 36 places
    lines     (6, across, n, K, P)        = productsᵀ · band of the height
    images    (n, K, P, Q)                = linesᵀ · band of the width

Most of a band is zeros, which are multiplied all the same: images of longer lines are for `winograd_tiles`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate, product
from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry import Pads, Pair, Sizes
from . import conv_choice, parallel, results
from .conv_choice import Problem
from .images import reach
from .scratch import Scratch, scratch
from .winograd import B_T, GG, PLACES, SIDE, TAPS, TILE, A

_F32 = A.dtype
# The place along the width comes first here.
_GG = np.ascontiguousarray(GG.reshape(SIDE, SIDE, -1).swapaxes(0, 1).reshape(PLACES, -1))
_GG_FLIPPED = np.ascontiguousarray(_GG[:, ::-1])


class _Segment(NamedTuple):
    """Some places of a line, and the matrix (6 * tiles, places) between them and the tiles that see or make them."""

    places: slice
    band: np.ndarray


class _Bands(NamedTuple):
    """Both axes in segments, since the longer a band, the more of it is zeros."""

    height: tuple[_Segment, ...]
    width: tuple[_Segment, ...]

    def spread(self, images: np.ndarray, across: _Segment, lines: np.ndarray, memory: np.ndarray) -> list[np.ndarray]:
        """Of images the tiles (36, tiles, channels) of a segment of the width, by segments of the height."""
        n, channels, height, width = images.shape
        count = n * channels * height
        lines = _start(lines, len(across.band), count)
        np.matmul(across.band, images.reshape(count, width)[:, across.places].T, out=lines)
        columns = lines.reshape(SIDE, len(across.band) // SIDE * n * channels, height).swapaxes(1, 2)
        tiles = _cut(memory, [(SIDE, len(down.band), columns.shape[2]) for down in self.height])
        for down, part in zip(self.height, tiles, strict=True):
            np.matmul(down.band, columns[:, down.places], out=part)
        return [part.reshape(PLACES, -1, channels) for part in tiles]

    def collect(self, tiles: list[np.ndarray], across: _Segment, lines: np.ndarray, images: np.ndarray) -> None:
        """Make a segment of the width of images (n, channels, P, Q) from tiles by segments of the height."""
        n, channels, height, width = images.shape
        lines = _start(lines, SIDE, len(across.band) // SIDE * n * channels, height)
        for down, part in zip(self.height, tiles, strict=True):
            rows = part.reshape(SIDE, len(down.band), -1).swapaxes(1, 2)
            np.matmul(rows, down.band, out=lines[..., down.places])
        columns = images.reshape(-1, width)[:, across.places]
        np.matmul(lines.reshape(len(across.band), -1).T, across.band, out=columns)


class _Filters:
    """The transforms of filters (K, C / groups, 3, 3), part by part: made once, or for each block if they are many.

    Of the input gradient's, `flipped`, the channels are what is made and the filters what is summed.
    """

    def __init__(self, weight: np.ndarray, groups: int, flipped: bool, memory: Scratch) -> None:
        self._weight, self._groups, self._flipped = weight, groups, flipped
        self._parts = _parts(weight.shape, groups)
        self._memory = memory.empty((PLACES * len(weight[self._parts[0]]) * weight.shape[1],), _F32)
        self._held: slice | None = None

    def multiply(self, tiles: list[np.ndarray], products: list[np.ndarray], memory: np.ndarray) -> None:
        """Make each of the products (36, T, K) of tiles (36, T, C), or the other way round."""
        first = self._parts[0]
        for part in self._parts:
            filters = self._transforms(part)
            for left, target in zip(tiles, products, strict=True):
                left, target = _grouped(left, self._groups), _grouped(target, self._groups)
                if not self._flipped:
                    np.matmul(left, filters.swapaxes(2, 3), out=target[..., part])
                elif part is first:
                    np.matmul(left[..., part], filters, out=target)
                else:
                    _add_product(left[..., part], filters, target, memory)

    def _transforms(self, part: slice) -> np.ndarray:
        """(36, groups, filters of a group, C / groups)"""
        weight = self._weight[part]
        transforms = _start(self._memory, PLACES, self._groups, len(weight) // self._groups, weight.shape[1])
        if self._held != part:
            taps = np.ascontiguousarray(weight, _F32).reshape(-1, TAPS * TAPS)
            np.matmul(_GG_FLIPPED if self._flipped else _GG, taps.T, out=transforms.reshape(PLACES, -1))
            self._held = part
        return transforms


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray | None:
    """The convolution; None if any of it is not finite."""
    with scratch() as memory:
        filters = _Filters(weight, problem.groups, False, memory)
        return _convolve(x, filters, bias, problem.y_shape, problem.padding)


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """The input gradient; None if any of it is not finite."""
    seen, around = reach(problem, dy)
    with scratch() as memory:
        filters = _Filters(weight, problem.groups, True, memory)
        return _convolve(seen, filters, None, problem.x_shape, around)


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The weight gradient; None if any of it is not finite."""
    blocks, most = _blocks(dy.shape, x.shape[1])
    parts = _parts(problem.weight_shape, problem.groups)
    with scratch() as memory:
        # Lines have become tiles when their sums are made, in the same memory.
        shared = memory.empty((max(most, PLACES * (parts[0].stop * problem.inside)),), _F32)
        dw = _sum(problem, dy, x, blocks, parts, most, shared)
    return dw.astype(dy.dtype, copy=False) if np.isfinite(dw).all() else None


def _convolve(
    x: np.ndarray, filters: _Filters, bias: np.ndarray | None, shape: Sizes, padding: Pads
) -> np.ndarray | None:
    """The convolution of `shape`."""
    before = (padding[0][0], padding[1][0])
    inputs, outputs = _inputs(x.shape[2:], shape[2:], before), _outputs(shape[2:])
    y = results.empty(shape, x.dtype)
    blocks, most = _blocks(shape, x.shape[1])
    with scratch() as memory, np.errstate(all="ignore"):
        first, second, spare = (memory.empty((size,), _F32) for size in (most, most, most // SIDE))

        def convolve(block: slice) -> bool:
            images = _exact(x[block])
            target = y[block] if y.dtype == _F32 else np.empty(y[block].shape, _F32)
            for seen, made in zip(inputs.width, outputs.width, strict=True):
                tiles = inputs.spread(images, seen, first, second)
                products = _cut(first, [(*part.shape[:2], shape[1]) for part in tiles])
                filters.multiply(tiles, products, spare)
                outputs.collect(products, made, second, target)
            # A number that is not finite makes the sum so too.
            finite = bool(np.isfinite(target.sum()))
            if bias is not None:
                target += bias.astype(_F32, copy=False)[:, None, None]
            if y.dtype != _F32:
                np.copyto(y[block], target, casting="unsafe")
            return finite

        return y if all(map(convolve, blocks)) else None


def _sum(
    problem: Problem,
    dy: np.ndarray,
    x: np.ndarray,
    blocks: list[slice],
    parts: list[slice],
    most: int,
    shared: np.ndarray,
) -> np.ndarray:
    """The weight gradient in float32."""
    groups, inside = problem.groups, problem.inside
    before = (problem.padding[0][0], problem.padding[1][0])
    inputs, outputs = _inputs(x.shape[2:], dy.shape[2:], before), _outputs(dy.shape[2:])
    dw = results.empty(problem.weight_shape, _F32)
    begun = False
    with scratch() as memory, np.errstate(all="ignore"):
        first, second = memory.empty((most,), _F32), memory.empty((most,), _F32)
        for block, (seen, made) in product(blocks, zip(inputs.width, outputs.width, strict=True)):
            tiles = inputs.spread(_exact(x[block]), seen, shared, first)
            grads = outputs.spread(_exact(dy[block]), made, shared, second)
            for right, left in zip(tiles, grads, strict=True):
                right, left = _grouped(right, groups), _grouped(left, groups)
                for part in parts:
                    some = left[..., part].swapaxes(2, 3)
                    sums = _start(shared, PLACES, groups, some.shape[2], inside)
                    np.matmul(some, right, out=sums)
                    target, places = dw[part].reshape(-1, TAPS * TAPS), sums.reshape(PLACES, -1).T
                    if begun:
                        target += places @ _GG
                    else:
                        np.matmul(places, _GG, out=target)
                begun = True
    return dw


def _parts(shape: Sizes, groups: int) -> list[slice]:
    """Filters (K, C / groups, ...) in parts whose transforms are kept at once; those of groups are one part."""
    k, inside = shape[:2]
    if groups > 1 or k * inside <= conv_choice.MOST_WEIGHTS:
        return [slice(0, k)]
    return parallel.split(k, parallel.evenly(k, conv_choice.MOST_WEIGHTS // (2 * inside)))


def _blocks(shape: Sizes, channels: int) -> tuple[list[slice], int]:
    """Images (N, K, P, Q) in blocks of about one size, and how many numbers the tiles of a block have at the most."""
    n, k, p, q = shape
    image = PLACES * -(-p // TILE) * _tiles(q)[0].stop * max(k, channels)
    images = parallel.evenly(n, conv_choice.LINES_BLOCK_BYTES // (_F32.itemsize * image))
    return parallel.split(n, images), images * image


def _tiles(made: int) -> list[slice]:
    """The tiles of a line of so many outputs, in segments of about one size."""
    tiles = -(-made // TILE)
    return parallel.split(tiles, parallel.evenly(tiles, conv_choice.LINE_TILES))


@lru_cache(maxsize=256)
def _inputs(sizes: Pair, made: Pair, before: Pair) -> _Bands:
    """What makes tiles of images of these sizes, with zeros before them, for outputs of the sizes `made`."""
    return _Bands(*map(partial(_line, B_T), sizes, made, before))


@lru_cache(maxsize=256)
def _outputs(made: Pair) -> _Bands:
    """What makes images of tiles, or tiles of an image's gradient."""
    return _Bands(*map(partial(_line, A), made, made, (0, 0)))


def _line(matrix: np.ndarray, size: int, made: int, before: int) -> tuple[_Segment, ...]:
    """A line that has zeros before it, for tiles that each see so many places as `matrix` has columns."""
    return tuple(_segment(matrix, size, tiles, before) for tiles in _tiles(made))


def _segment(matrix: np.ndarray, size: int, tiles: slice, before: int) -> _Segment:
    count, seen = tiles.stop - tiles.start, matrix.shape[1]
    first = TILE * tiles.start - before
    band = np.zeros((SIDE, count, TILE * (count - 1) + seen), _F32)
    for tile in range(count):
        band[:, tile, TILE * tile : TILE * tile + seen] = matrix
    start, stop = (min(max(place, 0), size) for place in (first, first + band.shape[2]))
    inside = band[..., start - first : stop - first] if start < stop else band[..., :0]
    return _Segment(slice(start, stop), np.ascontiguousarray(inside).reshape(SIDE * count, stop - start))


def _add_product(a: np.ndarray, b: np.ndarray, target: np.ndarray, memory: np.ndarray) -> None:
    """Add a @ b to the target (36, ...), some places at a time."""
    spare = _start(memory, SIDE, *target.shape[1:])
    for places in parallel.split(PLACES, SIDE):
        np.matmul(a[places], b[places], out=spare)
        target[places] += spare


def _exact(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images, _F32)


def _start(memory: np.ndarray, *shape: int) -> np.ndarray:
    """An array of this shape at the start of some memory."""
    return memory[: prod(shape)].reshape(shape)


def _cut(memory: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Arrays of these shapes one after the other in some memory."""
    ends = list(accumulate(map(prod, shapes), initial=0))
    return [memory[start:end].reshape(shape) for start, end, shape in zip(ends, ends[1:], shapes, strict=False)]


def _grouped(tiles: np.ndarray, groups: int) -> np.ndarray:
    """View (36, groups, tiles, channels / groups) of (36, tiles, channels)."""
    return tiles.reshape(*tiles.shape[:2], groups, -1).swapaxes(1, 2)
