"""Winograd's convolution (`winograd.py`) tile by tile, on our threads: for images of any size.

A block of tiles at a time is laid out with the channels last, so that each step is a matrix product on long rows, of a
size that BLAS computes on the calling thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry import Pads, Pair, Sizes
from . import conv_choice, parallel, results
from .conv_choice import Problem
from .images import reach
from .parallel import SMALL_PRODUCT
from .products import multiply
from .scratch import Scratch, scratch
from .winograd import B_T, GG, PLACES, SIDE, TAPS, TILE, A

# A small convolution is worth four blocks too, of at least so many tiles.
_LEAST_TILES = 32
# Partial sums of a weight gradient, each as large as the filters' transforms.
_SUMS_BYTES = 20 << 20
_MOST_SUMS = 8
# What is added to them at once.
_PRODUCT_BYTES = 1 << 21


_A_T = np.ascontiguousarray(A.T)


class _Block(NamedTuple):
    """Some rows of tiles of some images."""

    images: slice
    rows: slice

    @property
    def size(self) -> Pair:
        return self.images.stop - self.images.start, self.rows.stop - self.rows.start


class _Buffers:
    """Memory that a thread uses again from block to block."""

    def __init__(self, memory: Scratch) -> None:
        self._memory = memory
        self._held: dict[str, np.ndarray] = {}

    def take(self, name: str, *shape: int) -> np.ndarray:
        size = prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = self._memory.empty((size,), A.dtype)
        return held[:size].reshape(shape)


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray | None:
    """The convolution; None if any of it is not finite."""
    return _convolve(x, weight, bias, problem.y_shape, problem.padding, problem.groups)


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """The input gradient; None if any of it is not finite."""
    seen, around = reach(problem, dy)
    return _convolve(seen, weight, None, problem.x_shape, around, problem.groups, transposed=True)


def _convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: Sizes,
    padding: Pads,
    groups: int,
    transposed: bool = False,
) -> np.ndarray | None:
    """The convolution of `shape`; if `transposed`, by the filters flipped and with inputs and outputs exchanged."""
    with scratch() as memory:
        transforms = memory.empty((PLACES, weight.shape[0] * weight.shape[1]), A.dtype)
        filters = _transform(weight, groups, transposed, transforms)
        return _by_blocks(x, filters if transposed else filters.swapaxes(2, 3), bias, shape, padding)


def _by_blocks(
    x: np.ndarray, filters: np.ndarray, bias: np.ndarray | None, shape: Sizes, padding: Pads
) -> np.ndarray | None:
    """The convolution by the filters' transforms (36, groups, C / groups, K / groups)."""
    groups = filters.shape[1]
    across = -(-shape[3] // TILE)
    before = (padding[0][0], padding[1][0])
    y = results.empty(shape, x.dtype)
    finite = True

    def work(blocks: Iterator[_Block]) -> None:
        nonlocal finite
        with scratch() as memory:
            buffers = _Buffers(memory)
            for block in blocks:
                tiles = _spread(x, block, before, across, B_T, "tiles", buffers)
                products = buffers.take("products", *_held(block, across, y))
                multiply(_grouped(tiles, groups), filters, _grouped(products, groups))
                if not _collect(products, y, block, across, bias, buffers):
                    finite = False
                if not finite:
                    return

    parallel.share(work, _blocks(shape, max(x.shape[1], shape[1])))
    return y if finite else None


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The weight gradient; None if any of it is not finite."""
    weight_shape, padding, groups = problem.weight_shape, problem.padding, problem.groups
    outputs, inside = problem.outputs, problem.inside
    across = -(-dy.shape[3] // TILE)
    before = (padding[0][0], padding[1][0])
    blocks = _blocks(dy.shape, max(x.shape[1], dy.shape[1]))
    # Each run of blocks makes one sum, and the sums are added up in their order, whichever thread made them.
    size = PLACES * prod(weight_shape[:2])
    most = min(_MOST_SUMS, max(1, _SUMS_BYTES // (4 * size)))
    runs = parallel.split(len(blocks), -(-len(blocks) // most))
    with scratch() as memory:
        sums = memory.empty((len(runs), PLACES, groups, outputs, inside), A.dtype)

        def work(numbers: Iterator[int]) -> None:
            with scratch() as memory:
                buffers = _Buffers(memory)
                for number in numbers:
                    for block in blocks[runs[number]]:
                        tiles = _spread(x, block, before, across, B_T, "tiles", buffers)
                        grads = _spread(dy, block, (0, 0), across, A, "grads", buffers)
                        left, right = _grouped(grads, groups).swapaxes(2, 3), _grouped(tiles, groups)
                        for some in parallel.split(outputs, max(1, _PRODUCT_BYTES // (4 * PLACES * x.shape[1]))):
                            target = sums[number, :, :, some]
                            if block is blocks[runs[number].start]:
                                multiply(left[:, :, some], right, target)
                            else:
                                product = buffers.take("product", *target.shape)
                                multiply(left[:, :, some], right, product)
                                np.add(target, product, out=target)

        parallel.share(work, range(len(runs)))
        dw = _shrunk(sums).reshape(weight_shape)
    return dw.astype(dy.dtype, copy=False) if np.isfinite(dw).all() else None


def _shrunk(sums: np.ndarray) -> np.ndarray:
    """Gᵀ dU G for each filter and channel of dU, the sum over sums (count, 36, ...), in float32 (..., 9)."""
    places = sums.reshape(len(sums), PLACES, -1)
    taps = np.empty((places.shape[2], TAPS * TAPS), A.dtype)

    def shrink(parts: Iterator[slice]) -> None:
        for part in parts:
            np.matmul(places[:, :, part].sum(axis=0).T, GG, out=taps[part])

    parallel.share(shrink, parallel.split(len(taps), SMALL_PRODUCT // GG.size))
    return taps


def _transform(weight: np.ndarray, groups: int, flipped: bool, transforms: np.ndarray) -> np.ndarray:
    """The filters' transforms (36, groups, K / groups, C / groups), in memory (36, K * C / groups)."""
    k, c = weight.shape[:2]
    taps = weight.astype(np.float32, copy=False).reshape(k * c, -1)
    matrix = np.ascontiguousarray(GG[:, ::-1]) if flipped else GG

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            np.matmul(matrix, taps[part].T, out=transforms[:, part])

    parallel.share(work, parallel.split(k * c, SMALL_PRODUCT // GG.size))
    return transforms.reshape(PLACES, groups, k // groups, c)


def _blocks(shape: Sizes, channels: int) -> list[_Block]:
    """The tiles of images (N, K, P, Q) in blocks of about one size."""
    n, _, p, q = shape
    down, across = -(-p // TILE), -(-q // TILE)
    fit = conv_choice.TILE_BLOCK_BYTES // (4 * PLACES * channels)
    tiles = max(1, min(fit, max(_LEAST_TILES, n * down * across // 4)))
    rows = max(1, min(tiles // across, down))
    images = max(1, min(tiles // (across * down), n))
    whole, parts = (parallel.split(count, parallel.evenly(count, most)) for count, most in ((n, images), (down, rows)))
    return [_Block(some, part) for some in whole for part in parts]


def _held(block: _Block, across: int, images: np.ndarray) -> tuple[int, int, int]:
    """The shape (36, tiles, channels) of a block."""
    return PLACES, prod(block.size) * across, images.shape[1]


def _grouped(tiles: np.ndarray, groups: int) -> np.ndarray:
    """View (36, groups, tiles, channels / groups) of (36, tiles, channels)."""
    return tiles.reshape(*tiles.shape[:2], groups, -1).swapaxes(1, 2)


def _spread(
    source: np.ndarray,
    block: _Block,
    before: Pair,
    across: int,
    matrix: np.ndarray,
    name: str,
    buffers: _Buffers,
) -> np.ndarray:
    """matrix · d · matrixᵀ for each tile d of a block: (36, tiles, channels), in the buffer of this name."""
    target = buffers.take(name, *_held(block, across, source))
    n, rows = block.size
    seen, channels = matrix.shape[1], source.shape[1]
    height, width, step = TILE * (rows - 1) + seen, TILE * (across - 1) + seen, n * channels
    padded = buffers.take("first", height, width, n, channels)
    _pad(source, block, before, padded)
    columns = buffers.take("second", seen, height, across, step)
    np.copyto(columns, _strided(padded, columns.shape, (step, width * step, TILE * step, 1)))
    row = across * step
    lines = buffers.take("third", SIDE, height, row)
    _combine(matrix, columns.reshape(seen, -1), lines.reshape(SIDE, -1))
    windows = _strided(lines, (SIDE, rows, seen, row), (height * row, TILE * row, row, 1))
    _combine(matrix, windows, target.reshape(SIDE, SIDE, rows, row).transpose(1, 2, 0, 3))
    return target


def _pad(source: np.ndarray, block: _Block, before: Pair, padded: np.ndarray) -> None:
    """Copy what a block sees of (N, C, H, W) into padded (rows, columns, n, C), with zeros around it."""
    first = block.rows.start * TILE - before[0]
    top = min(max(0, -first), padded.shape[0])
    bottom = max(top, min(padded.shape[0], source.shape[2] - first))
    left, right = before[1], before[1] + source.shape[3]
    padded[:top] = 0
    padded[bottom:] = 0
    padded[top:bottom, :left] = 0
    padded[top:bottom, right:] = 0
    image = source[block.images, :, first + top : first + bottom].transpose(2, 3, 0, 1)
    np.copyto(padded[top:bottom, left:right], image, casting="unsafe")


def _collect(
    products: np.ndarray, y: np.ndarray, block: _Block, across: int, bias: np.ndarray | None, buffers: _Buffers
) -> bool:
    """Write the outputs of products (36, tiles, K) to a block of y; whether they are finite."""
    n, rows = block.size
    outputs = y.shape[1]
    half = buffers.take("second", SIDE, TILE, rows * across * n * outputs)
    _combine(_A_T, products.reshape(SIDE, SIDE, -1), half)
    whole = buffers.take("third", TILE, TILE, rows, across, n * outputs)
    _combine(_A_T, half.swapaxes(0, 1), whole.reshape(TILE, TILE, -1).swapaxes(0, 1))
    # A number that is not finite makes the sum so too.
    if not np.isfinite(whole.sum()):
        return False
    pixels = buffers.take("first", rows, TILE, across, TILE, n * outputs)
    tiles = whole.transpose(2, 0, 3, 1, 4)
    if bias is None:
        np.copyto(pixels, tiles)
    else:
        np.add(tiles, np.tile(bias.astype(np.float32), n), out=pixels)
    start = block.rows.start * TILE
    target = y[block.images, :, start : start + rows * TILE]
    image = pixels.reshape(rows * TILE, across * TILE, n, outputs)[: target.shape[2], : target.shape[3]]
    np.copyto(target, image.transpose(2, 3, 0, 1), casting="unsafe")
    return True


def _combine(matrix: np.ndarray, vectors: np.ndarray, target: np.ndarray) -> None:
    """matrix @ vectors into target, on the calling thread."""
    for part in parallel.split(vectors.shape[-1], SMALL_PRODUCT // matrix.size):
        np.matmul(matrix, vectors[..., part], out=target[..., part])


def _strided(array: np.ndarray, shape: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    """A view of a contiguous array, by steps of so many elements."""
    return np.ndarray(shape, array.dtype, array, 0, [step * array.itemsize for step in steps])
