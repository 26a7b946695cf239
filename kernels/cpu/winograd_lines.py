"""Winograd's convolution (`winograd.py`) of small images, a whole line at a time, on the threads of BLAS.

Images become tiles by two products with banded matrices (`winograd_bands.py`), and come back by two. BLAS takes what is
transposed as it lies, so nothing is copied:

    lines     (6, across, n, C, H)        = band of the width · imagesᵀ (W, n C H)
    tiles     (6, 6, down, across, n, C)  = band of the height · linesᵀ
    products  (6, 6, down, across, n, K)  = tiles · filters, at each of the 36 places
    lines     (6, across, n, K, P)        = productsᵀ · band of the height
    images    (n, K, P, Q)                = linesᵀ · band of the width

Most of a band is zeros, which are multiplied all the same: images of longer lines are for `winograd_tiles`.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from ..geometry import Pads, Sizes
from . import conv_choice, parallel, results, winograd_bands
from .conv_choice import Problem
from .images import reach
from .scratch import Scratch, scratch
from .winograd import GG, PLACES, SIDE, TAPS, TILE, A
from .winograd_bands import Tiles

_F32 = A.dtype
# The place along the width comes first here.
_GG = np.ascontiguousarray(GG.reshape(SIDE, SIDE, -1).swapaxes(0, 1).reshape(PLACES, -1))
_GG_FLIPPED = np.ascontiguousarray(_GG[:, ::-1])


class _Filters:
    """The transforms of filters (K, C / groups, 3, 3), part by part: made once, or for each block if they are many.

    Of the input gradient's, `flipped`, the channels are what is made and the filters what is summed.
    """

    def __init__(self, weight: np.ndarray, groups: int, flipped: bool, memory: Scratch) -> None:
        self._weight, self._groups, self._flipped = weight, groups, flipped
        self._parts = _parts(weight.shape, groups)
        self._memory = memory.empty((PLACES * len(weight[self._parts[0]]) * weight.shape[1],), _F32)
        self._held: slice | None = None

    def multiply(self, tiles: list[Tiles], products: list[Tiles], memory: np.ndarray) -> None:
        """Make products with K channels of tiles with C, or the other way round."""
        k, c = len(self._weight), self._groups * self._weight.shape[1]
        seen, made = (k, c) if self._flipped else (c, k)
        for part in self._parts:
            filters = self._transforms(part)
            for left, right in zip(tiles, products, strict=True):
                pairs = zip(left.at_places(seen, self._groups), right.at_places(made, self._groups), strict=True)
                for (places, source), (_, target) in pairs:
                    if not self._flipped:
                        np.matmul(source, filters[places].swapaxes(-1, -2), out=target[..., part])
                    elif part.start == 0:
                        np.matmul(source[..., part], filters[places], out=target)
                    else:
                        _add_product(source[..., part], filters[places], target, memory)

    def _transforms(self, part: slice) -> np.ndarray:
        """(6, 6, groups, filters of a group, C / groups)"""
        weight = self._weight[part]
        transforms = _start(self._memory, SIDE, SIDE, self._groups, len(weight) // self._groups, weight.shape[1])
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
    inputs, outputs = winograd_bands.of_inputs(x.shape[2:], shape[2:], before), winograd_bands.of_outputs(shape[2:])
    y = results.empty(shape, x.dtype)
    blocks, most = _blocks(shape, x.shape[1])
    with scratch() as memory:
        first, second, spare = (memory.empty((size,), _F32) for size in (most, most, most // SIDE))

        def convolve(block: slice) -> bool:
            images = _exact(x[block])
            target = y[block] if y.dtype == _F32 else np.empty(y[block].shape, _F32)
            for seen, made in zip(inputs.width, outputs.width, strict=True):
                tiles = inputs.spread(images, seen, first, second)
                products = outputs.tiles(made, len(images) * shape[1], first)
                filters.multiply(tiles, products, spare)
                outputs.collect(products, second, target)
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
    inputs = winograd_bands.of_inputs(x.shape[2:], dy.shape[2:], before)
    outputs = winograd_bands.of_outputs(dy.shape[2:])
    dw = results.empty(problem.weight_shape, _F32)
    begun = False
    with scratch() as memory:
        first, second = memory.empty((most,), _F32), memory.empty((most,), _F32)
        for block, (seen, made) in product(blocks, zip(inputs.width, outputs.width, strict=True)):
            tiles = inputs.spread(_exact(x[block]), seen, shared, first)
            grads = outputs.spread(_exact(dy[block]), made, shared, second)
            for right, left in zip(tiles, grads, strict=True):
                for part in parts:
                    target = dw[part].reshape(-1, TAPS * TAPS)
                    sums = _start(shared, SIDE, SIDE, groups, dw[part].shape[0] // groups, inside)
                    pairs = zip(left.at_places(dy.shape[1], groups), right.at_places(x.shape[1], groups), strict=True)
                    for (places, grad), (_, seen_there) in pairs:
                        np.matmul(grad[..., part].swapaxes(-1, -2), seen_there, out=sums[places])
                    shrunk = sums.reshape(PLACES, -1).T
                    if begun:
                        target += shrunk @ _GG
                    else:
                        np.matmul(shrunk, _GG, out=target)
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
    image = PLACES * -(-p // TILE) * winograd_bands.cut(q)[0].stop * max(k, channels)
    images = parallel.evenly(n, conv_choice.LINES_BLOCK_BYTES // (_F32.itemsize * image))
    return parallel.split(n, images), images * image


def _add_product(a: np.ndarray, b: np.ndarray, target: np.ndarray, memory: np.ndarray) -> None:
    """Add a @ b to the target, the products of some places at a time."""
    for left, right, places in zip(a, b, target, strict=True):
        places += np.matmul(left, right, out=_start(memory, *places.shape))


def _exact(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images, _F32)


def _start(memory: np.ndarray, *shape: int) -> np.ndarray:
    """An array of this shape at the start of some memory."""
    return memory[: prod(shape)].reshape(shape)
