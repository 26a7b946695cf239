"""Winograd's convolution (`winograd.py`) of small images, a whole line at a time, on the threads of BLAS.

What all tiles of a line see is one product of the line with a banded matrix, whose band has Bᵀ once for each tile;
padding is columns that the band has lost. Images become tiles by two such products, and come back by two. BLAS takes
what is transposed as it lies, so nothing is copied:

    lines     (6, across, n, C, H)        = band of the width · imagesᵀ (W, n C H)
    tiles     (6, 6, down, across, n, C)  = band of the height · linesᵀ
    products  (6, 6, down, across, n, K)  = tiles · filters, at each of the 36 places
    lines     (6, across, n, K, P)        = productsᵀ · band of the height
    images    (n, K, P, Q)                = linesᵀ · band of the width

Most of a band is zeros, which are multiplied all the same: longer lines are for `winograd_tiles`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry import Pads, Pair, Sizes
from . import conv_choice, parallel
from .conv_choice import Problem
from .images import reach
from .scratch import Scratch, scratch
from .winograd import B_T, GG, PLACES, SIDE, TAPS, TILE, A

_F32 = A.dtype
# The place along the width comes first here.
_GG = np.ascontiguousarray(GG.reshape(SIDE, SIDE, -1).swapaxes(0, 1).reshape(PLACES, -1))
_GG_FLIPPED = np.ascontiguousarray(_GG[:, ::-1])
# Places at which products are added at once.
_ADDED = SIDE


class _Bands(NamedTuple):
    """A matrix (6 * tiles, size) for the height and one for the width."""

    height: np.ndarray
    width: np.ndarray

    def spread(self, images: np.ndarray, lines: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """The tiles (36, tiles of all images, channels) of images, in memory for lines and for tiles."""
        n, channels, height, width = images.shape
        count = n * channels * height
        lines = _start(lines, len(self.width), count)
        np.matmul(self.width, images.reshape(count, width).T, out=lines)
        columns = lines.reshape(SIDE, len(self.width) // SIDE * n * channels, height).swapaxes(1, 2)
        tiles = _start(tiles, SIDE, len(self.height), columns.shape[2])
        np.matmul(self.height, columns, out=tiles)
        return tiles.reshape(PLACES, -1, channels)

    def collect(self, tiles: np.ndarray, lines: np.ndarray, images: np.ndarray) -> None:
        """Make images (n, channels, P, Q) of their tiles, in memory for lines."""
        height, width = images.shape[2:]
        rows = tiles.reshape(SIDE, len(self.height), -1).swapaxes(1, 2)
        lines = _start(lines, *rows.shape[:2], height)
        np.matmul(rows, self.height, out=lines)
        np.matmul(lines.reshape(len(self.width), -1).T, self.width, out=images.reshape(-1, width))


class _Filters:
    """The transforms of filters (K, C / groups, 3, 3), part by part: made once, or for each block if they are many.

    Of the input gradient's, `flipped`, the channels are what is made and the filters what is summed.
    """

    def __init__(self, weight: np.ndarray, groups: int, flipped: bool, memory: Scratch) -> None:
        self._weight, self._groups, self._flipped = weight, groups, flipped
        self._parts = _parts(weight.shape, groups)
        self._memory = memory.empty((PLACES * len(weight[self._parts[0]]) * weight.shape[1],), _F32)
        self._held: slice | None = None

    def multiply(self, tiles: np.ndarray, products: np.ndarray, memory: Scratch) -> None:
        """Make products (36, T, K) of tiles (36, T, C), or the other way round."""
        tiles, products = _grouped(tiles, self._groups), _grouped(products, self._groups)
        if not self._flipped:
            for part in self._parts:
                np.matmul(tiles, self._transforms(part).swapaxes(2, 3), out=products[..., part])
            return
        first, *others = self._parts
        np.matmul(tiles[..., first], self._transforms(first), out=products)
        spare = memory.empty(products[:_ADDED].shape, _F32) if others else products
        for part in others:
            transforms = self._transforms(part)
            for places in parallel.split(PLACES, _ADDED):
                np.matmul(tiles[places, ..., part], transforms[places], out=spare)
                products[places] += spare

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
    y = np.empty(shape, x.dtype)
    blocks, most = _blocks(shape, x.shape[1])
    with scratch() as memory, np.errstate(all="ignore"):
        first, second = memory.empty((most,), _F32), memory.empty((most,), _F32)
        for block in blocks:
            tiles = inputs.spread(_exact(x[block]), first, second)
            products = _start(first, PLACES, tiles.shape[1], shape[1])
            filters.multiply(tiles, products, memory)
            target = y[block] if y.dtype == _F32 else np.empty(y[block].shape, _F32)
            outputs.collect(products, second, target)
            # A number that is not finite makes the sum so too.
            if not np.isfinite(target.sum()):
                return None
            if bias is not None:
                target += bias.astype(_F32, copy=False)[:, None, None]
            if y.dtype != _F32:
                np.copyto(y[block], target, casting="unsafe")
    return y


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
    dw = np.empty(problem.weight_shape, _F32)
    with scratch() as memory, np.errstate(all="ignore"):
        first, second = memory.empty((most,), _F32), memory.empty((most,), _F32)
        for block in blocks:
            tiles = _grouped(inputs.spread(_exact(x[block]), shared, first), groups)
            grads = _grouped(outputs.spread(_exact(dy[block]), shared, second), groups)
            for part in parts:
                some = grads[..., part].swapaxes(2, 3)
                sums = _start(shared, PLACES, groups, some.shape[2], inside)
                np.matmul(some, tiles, out=sums)
                target, places = dw[part].reshape(-1, TAPS * TAPS), sums.reshape(PLACES, -1).T
                if block.start == 0:
                    np.matmul(places, _GG, out=target)
                else:
                    target += places @ _GG
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
    image = PLACES * -(-p // TILE) * -(-q // TILE) * max(k, channels)
    images = parallel.evenly(n, conv_choice.LINES_BLOCK_BYTES // (_F32.itemsize * image))
    return parallel.split(n, images), images * image


@lru_cache(maxsize=256)
def _inputs(sizes: Pair, made: Pair, before: Pair) -> _Bands:
    """What makes tiles of images of these sizes, with zeros before them, for outputs of the sizes `made`."""
    return _Bands(*map(partial(_band, B_T), sizes, made, before))


@lru_cache(maxsize=256)
def _outputs(made: Pair) -> _Bands:
    """What makes images of tiles, or tiles of an image's gradient."""
    return _Bands(*map(partial(_band, A), made, made, (0, 0)))


def _band(matrix: np.ndarray, size: int, made: int, before: int) -> np.ndarray:
    """`matrix` once for each tile of a line that has zeros before it: (6 * tiles, size)."""
    tiles, seen = -(-made // TILE), matrix.shape[1]
    band = np.zeros((SIDE, tiles, max(before + size, TILE * (tiles - 1) + seen)), _F32)
    for tile in range(tiles):
        band[:, tile, TILE * tile : TILE * tile + seen] = matrix
    return np.ascontiguousarray(band[..., before : before + size]).reshape(SIDE * tiles, size)


def _exact(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images, _F32)


def _start(memory: np.ndarray, *shape: int) -> np.ndarray:
    """An array of this shape at the start of some memory."""
    return memory[: prod(shape)].reshape(shape)


def _grouped(tiles: np.ndarray, groups: int) -> np.ndarray:
    """View (36, groups, tiles, channels / groups) of (36, tiles, channels)."""
    return tiles.reshape(*tiles.shape[:2], groups, -1).swapaxes(1, 2)
