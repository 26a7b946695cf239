"""Tiles of images (`winograd.py`) and back, as products of lines with banded matrices.

What all tiles of a line see is one product of the line with a matrix whose band has Bᵀ once for each tile; padding is
columns that the band has lost. A line of more than a few tiles is cut into segments, since the longer a band, the more
of it is zeros. Where the last tile has fewer than four outputs, it has fewer places too, the first ones: the rows of
the others are a group of their own, with one tile less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry import Pair
from . import conv_choice, parallel
from .winograd import SIDE, TILE, A, input_matrix, output_matrix

Places = tuple[slice, slice]


class Group(NamedTuple):
    """Places that equally many tiles have, and their rows (places * tiles) of a band."""

    places: slice
    tiles: int
    rows: slice


class Segment(NamedTuple):
    """Some elements of a line, and the band (rows, elements) between them and the tiles that see or make them."""

    elements: slice
    band: np.ndarray
    groups: tuple[Group, ...]


class Tiles(NamedTuple):
    """The tiles of a segment of the width and one of the height, an array for each group across.

    The arrays are (places across, rows of the height's band, tiles across * images * channels).
    """

    across: Segment
    down: Segment
    arrays: list[np.ndarray]

    def at_places(self, channels: int, groups: int) -> Iterator[tuple[Places, np.ndarray]]:
        """Views (places across, places down, groups, tiles, channels / groups), and which places these are."""
        for across, array in zip(self.across.groups, self.arrays, strict=True):
            for down in self.down.groups:
                places = down.places.stop - down.places.start
                view = array[:, down.rows].reshape(len(array), places, -1, groups, channels // groups)
                yield (across.places, down.places), view.swapaxes(2, 3)


class Bands(NamedTuple):
    """Both axes in segments."""

    height: tuple[Segment, ...]
    width: tuple[Segment, ...]

    def tiles(self, across: Segment, vectors: int, memory: np.ndarray) -> list[Tiles]:
        """Tiles of a segment of the width, of so many images times channels, in some memory."""
        made, start = [], 0
        for down in self.height:
            arrays = []
            for group in across.groups:
                shape = (group.places.stop - group.places.start, len(down.band), group.tiles * vectors)
                arrays.append(memory[start : start + prod(shape)].reshape(shape))
                start += prod(shape)
            made.append(Tiles(across, down, arrays))
        return made

    def spread(self, images: np.ndarray, across: Segment, lines: np.ndarray, memory: np.ndarray) -> list[Tiles]:
        """The tiles of a segment of the width of images, in memory for lines and for tiles."""
        n, channels, height, width = images.shape
        vectors = n * channels
        lines = lines[: len(across.band) * vectors * height].reshape(len(across.band), vectors * height)
        np.matmul(across.band, images.reshape(vectors * height, width)[:, across.elements].T, out=lines)
        tiles = self.tiles(across, vectors, memory)
        for _, down, arrays in tiles:
            for group, array in zip(across.groups, arrays, strict=True):
                columns = lines[group.rows].reshape(len(array), array.shape[2], height)[..., down.elements]
                np.matmul(down.band, columns.swapaxes(1, 2), out=array)
        return tiles

    def collect(self, tiles: list[Tiles], lines: np.ndarray, images: np.ndarray) -> None:
        """Make the elements of images (n, channels, P, Q) that these are all tiles of, in memory for lines."""
        n, channels, height, width = images.shape
        across, vectors = tiles[0].across, n * channels
        lines = lines[: len(across.band) * vectors * height].reshape(len(across.band), vectors * height)
        for _, down, arrays in tiles:
            for group, array in zip(across.groups, arrays, strict=True):
                target = lines[group.rows].reshape(len(array), array.shape[2], height)[..., down.elements]
                np.matmul(array.swapaxes(1, 2), down.band, out=target)
        np.matmul(lines.T, across.band, out=images.reshape(vectors * height, width)[:, across.elements])


@lru_cache(maxsize=256)
def of_inputs(sizes: Pair, made: Pair, before: Pair) -> Bands:
    """What makes tiles of images of these sizes, with zeros before them, for outputs of the sizes `made`."""
    return Bands(*map(partial(_line, input_matrix), sizes, made, before))


@lru_cache(maxsize=256)
def of_outputs(made: Pair) -> Bands:
    """What makes images of tiles, or tiles of an image's gradient."""
    return Bands(*map(partial(_line, output_matrix), made, made, (0, 0)))


def cut(made: int) -> list[slice]:
    """The tiles of a line of so many outputs, in segments of about one size."""
    tiles = -(-made // TILE)
    return parallel.split(tiles, parallel.evenly(tiles, conv_choice.LINE_TILES))


def _line(matrix: Callable[[int], np.ndarray], size: int, made: int, before: int) -> tuple[Segment, ...]:
    """A line that has zeros before it, whose tiles see or make elements by the matrix for their number of outputs."""
    return tuple(_segment(matrix, size, made, before, tiles) for tiles in cut(made))


def _segment(matrix: Callable[[int], np.ndarray], size: int, made: int, before: int, tiles: slice) -> Segment:
    count = tiles.stop - tiles.start
    # Every place has one tile at least.
    last = min(TILE, made - TILE * (tiles.stop - 1)) if count > 1 else TILE
    matrices = [*[matrix(TILE)] * (count - 1), matrix(last)]
    groups = _groups(count, len(matrices[-1]))
    band = np.zeros((groups[-1].rows.stop, TILE * (count - 1) + matrices[-1].shape[1]), A.dtype)
    places = ((place, group.tiles) for group in groups for place in range(group.places.start, group.places.stop))
    pairs = [(place, tile) for place, having in places for tile in range(having)]
    for row, (place, tile) in zip(band, pairs, strict=True):
        row[TILE * tile :][: matrices[tile].shape[1]] = matrices[tile][place]
    first = TILE * tiles.start - before
    start, stop = (min(max(element, 0), size) for element in (first, first + band.shape[1]))
    seen = band[:, start - first : stop - first] if start < stop else band[:, :0]
    return Segment(slice(start, stop), np.ascontiguousarray(seen), groups)


def _groups(tiles: int, of_last: int) -> tuple[Group, ...]:
    """The places of so many tiles, of which the last one has only the first ones."""
    rows, rest = of_last * tiles, (SIDE - of_last) * (tiles - 1)
    all_have = Group(slice(0, of_last), tiles, slice(0, rows))
    return (all_have, Group(slice(of_last, SIDE), tiles - 1, slice(rows, rows + rest))) if rest else (all_have,)
