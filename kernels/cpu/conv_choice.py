"""Which way computes a convolution on NumPy: one table, from the problem's shapes, settings and type.

The first row that applies wins; where that way meets what is not finite, the next one takes over. All thresholds of
the choice are in this file: change them here and nowhere else. They were measured in float32 on two cores with 1 MB of
second-level cache each, against NumPy's OpenBLAS. A module keeps for itself only how large its own pieces are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry import Pads, Sizes
from .arithmetic import compute_dtype
from .parallel import SMALL_PRODUCT

FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input_grad", "weight_grad"

# Depthwise by planes. More taps leave short runs for a small product. For weight gradients rows are to be so many times
# as long as what the taps see beyond their ends, which is found and taken off.
MOST_TAPS = 9
LEAST_WIDTH = 5

# Depthwise: filters of a channel, and phases of the stride.
MOST_FILTERS = 4
MOST_PHASES = 16

# Winograd. With fewer channels or filters a group, the transforms cost more than the products save; in a smaller
# convolution (tiles times filters times channels) the steps are too many for their size. The filters' transforms are
# four times the filters. A block of tiles has 36 numbers for each channel and tile. By lines, each element of an image
# is multiplied by 9 numbers for each tile of its segment of the line.
LEAST_CHANNELS = 32
LEAST_TILES = 64
LEAST_LINE_TILES = 16
LEAST_PRODUCT = 1 << 18
MOST_WEIGHTS = 1 << 16
TILE_BLOCK_BYTES = 5 << 18
LINES_BLOCK_BYTES = 5 << 20
LEAST_LINE, MOST_LINE = 4, 32
LINE_TILES = 4

# Interleaved. To interleave takes time for each element of the output and saves it for each row of an image's columns.
# A product has at least so many columns before it is too large for one thread.
MOST_OUTPUTS = 192
LEAST_COLUMNS = 64
IMAGE_BLOCK_BYTES = 5 << 19

# Joined. Larger images have lines that are long enough without it. One tap needs no columns, and to join images of more
# positions costs more than it saves. A block has so many bytes of columns, and so many are added to a weight gradient
# at once. BLAS sums the weight gradient of few filters sooner with the filters last.
MOST_POSITIONS = 256
MOST_PLAIN = 16
JOINED_BLOCK_BYTES = 4 << 20
JOINED_SUM_BYTES = 2 << 20
MOST_TURNED = 32

# Rows at once: BLAS is quick with so many rows of a matrix, and more than a few rows of the output are more products
# with zeros than columns saved. A block has the columns of enough images for long runs.
FILTER_ROWS = 24
MOST_ROWS = 4
LEAST_IMAGES = 16
ROWS_BLOCK_BYTES = 4 << 20

# Columns of a piece: of small products for one of our threads each, of large ones for the threads of BLAS.
SMALL_PIECE_BYTES = 1 << 20
LARGE_PIECE_BYTES = 4 << 20
# A pitch (`columns.py`) saves about 8 ns for each row of the columns and costs products with what has no meaning.
MOST_WASTE = 350

# Larger convolutions are computed a box of the result at a time, so that no way takes more than 32 MB of its own: by
# the columns of one line of outputs, by the images of one channel with their columns, by whole volumes.
LINE_BYTES = 4 << 20
PLANE_BYTES = 6 << 20
VOLUME_BYTES = 8 << 20


@dataclass(frozen=True)
class Problem:
    """A convolution of x (N, C, *sizes) by (K, C / groups, *taps) to y (N, K, *outputs), or one of its gradients."""

    operation: str
    x_shape: Sizes
    weight_shape: Sizes
    y_shape: Sizes
    stride: Sizes
    padding: Pads
    dilation: Sizes
    groups: int
    dtype: np.dtype  # of the arrays

    @cached_property
    def computed(self) -> np.dtype:
        """The type of products and sums."""
        return compute_dtype(self.dtype)

    @property
    def outputs(self) -> int:
        """Filters of a group."""
        return self.weight_shape[0] // self.groups

    @property
    def inside(self) -> int:
        """Channels of a group."""
        return self.weight_shape[1]

    @property
    def taps(self) -> Sizes:
        return self.weight_shape[2:]

    @property
    def depth(self) -> int:
        """Products of a sum: channels of a group times taps."""
        return prod(self.weight_shape[1:])

    @property
    def made(self) -> Sizes:
        """What is made of another array by a sum over taps: y, or x for the input gradient."""
        return self.x_shape if self.operation == INPUT_GRAD else self.y_shape

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Images, and tiles of 4 x 4 of what is made down and across."""
        n, _, height, width = self.made
        return n, -(-height // 4), -(-width // 4)

    @property
    def image_bytes(self) -> int:
        """The columns of an image, of x and of dy for the input gradient, on average."""
        rows = self.groups * (self.depth + self.outputs * self.taps[1]) // 2
        return self.computed.itemsize * rows * self.y_shape[2] * max(self.y_shape[3], self.x_shape[3])

    @property
    def rows_at_once(self) -> int:
        """Rows of the output that fill a matrix with their filters."""
        return max(1, min(MOST_ROWS, FILTER_ROWS // self.weight_shape[0], self.y_shape[2]))

    @property
    def rows_bytes(self) -> int:
        """The columns of an image and its outputs, taken so many rows at once."""
        rows, taps = self.rows_at_once, self.taps
        depth = self.inside * (taps[0] + rows - 1) * taps[1] + self.weight_shape[0] * rows
        return self.computed.itemsize * depth * -(-self.y_shape[2] // rows) * self.y_shape[3]

    @property
    def columns_bytes(self) -> int:
        """The columns of an image; its padded input or its outputs if they are more."""
        padded = (size + sum(around) for size, around in zip(self.x_shape[2:], self.padding, strict=True))
        positions = prod(self.y_shape[2:])
        rows = max(self.groups * self.depth, self.weight_shape[0])
        return self.computed.itemsize * max(rows * positions, self.x_shape[1] * prod(padded))

    def of(self, **changes: object) -> Problem:
        """The same with some changes."""
        return replace(self, **changes)  # type: ignore[arg-type]


class Row(NamedTuple):
    """A way, by its module's name but for columns, which are in `images`; and when it is chosen."""

    way: str
    applies: Callable[[Problem], bool]


def _has_planes(p: Problem) -> bool:
    """A window for each channel, which keeps the width of an image."""
    if len(p.stride) != 2 or p.groups == 1 or p.inside > 1 or p.outputs > 1 or p.dtype != p.computed:
        return False
    width, ahead = p.x_shape[3], [tap * p.dilation[1] - p.padding[1][0] for tap in range(p.taps[1])]
    same = p.stride == (1, 1) and p.y_shape[3] == width and ahead[-1] - ahead[0] < width
    if not same or p.x_shape[0] == 0 or prod(p.taps) == 1:
        return False
    return LEAST_WIDTH * sum(map(abs, ahead)) <= width if p.operation == WEIGHT_GRAD else prod(p.taps) <= MOST_TAPS


def _is_depthwise(p: Problem) -> bool:
    return p.groups > 1 and p.inside == 1 and p.outputs <= MOST_FILTERS and prod(p.stride) <= MOST_PHASES


def _has_volumes(p: Problem) -> bool:
    return len(p.stride) == 3


def _saves_products(p: Problem) -> bool:
    """3 x 3 taps at stride 1 over enough channels, filters and tiles of 4 x 4 outputs."""
    if p.taps != (3, 3) or p.stride != (1, 1) or p.dilation != (1, 1) or p.computed != np.float32:
        return False
    enough = prod(p.tiles) * prod(p.weight_shape[:2]) >= LEAST_PRODUCT
    return min(p.outputs, p.inside) >= LEAST_CHANNELS and enough


def _has_short_lines(p: Problem) -> bool:
    short = all(LEAST_LINE <= size <= MOST_LINE for size in p.made[2:])
    if not short or not _saves_products(p) or prod(p.tiles) < LEAST_LINE_TILES:
        return False
    weights = prod(p.weight_shape[:2])
    # Filters of groups are not taken in parts, and a weight gradient of half types is summed beside its result.
    most = MOST_WEIGHTS if p.groups > 1 else 4 * MOST_WEIGHTS if p.computed != p.dtype else weights
    image = 4 * 36 * prod(p.tiles[1:]) * max(p.weight_shape[0], p.x_shape[1])
    return weights <= most and image <= LINES_BLOCK_BYTES


def _has_many_tiles(p: Problem) -> bool:
    if not _saves_products(p) or prod(p.weight_shape[:2]) > MOST_WEIGHTS:
        return False
    n, down, across = p.tiles
    # Tiles reach past the edges of images: of 16 outputs at least 10 must be wanted.
    whole = 10 * down * across <= prod(p.made[2:])
    narrow = 4 * 36 * across * max(p.weight_shape[0], p.x_shape[1]) <= 4 * TILE_BLOCK_BYTES
    return n * down * across >= LEAST_TILES and whole and narrow


def _has_few_filters(p: Problem) -> bool:
    """Few filters over a batch of images so small that a block has many."""
    many = p.x_shape[0] >= LEAST_IMAGES and min(*p.x_shape, *p.y_shape) > 0
    return many and p.rows_at_once > 1 and LEAST_IMAGES * p.columns_bytes <= ROWS_BLOCK_BYTES


def _shares_columns(p: Problem) -> bool:
    """Rows of the output that see the same rows of the input, which a product takes at once."""
    dense = p.groups == 1 and {*p.stride, *p.dilation} == {1} and p.taps[0] > 1
    return p.operation != INPUT_GRAD and dense and _has_few_filters(p)


def _fits_one_product(p: Problem) -> bool:
    few = prod(p.y_shape[2:]) <= (MOST_POSITIONS if p.depth > p.inside else MOST_PLAIN) or _has_few_filters(p)
    return few and min(*p.x_shape, *p.y_shape) > 0 and p.columns_bytes <= JOINED_BLOCK_BYTES


def _has_small_images(p: Problem) -> bool:
    elements = prod(p.y_shape[1:])
    few = elements <= MOST_OUTPUTS * (16 + p.groups * p.depth)
    thin = p.outputs * p.depth * LEAST_COLUMNS <= SMALL_PRODUCT
    fits = p.x_shape[0] > 0 and 0 < p.image_bytes <= IMAGE_BLOCK_BYTES
    # dy is unfolded along the width as it is, without zeros between what a stride keeps apart.
    unfolds = p.operation != INPUT_GRAD or p.stride[1] == 1
    return few and thin and fits and unfolds and p.depth > p.inside and not _fits_one_product(p)


def _is_cheaper_unfolded(p: Problem) -> bool:
    """For each tap unfolding dy writes K rows and folding adds C rows, at about twice the price."""
    # What Winograd's way has left over is not finite, and would be left over again.
    if p.operation != INPUT_GRAD or p.stride != (1, 1) or _has_short_lines(p) or _has_many_tiles(p):
        return False
    filters, channels = p.weight_shape[0], p.x_shape[1]
    if not _fits_one_product(p):
        return prod(p.taps) == 1 or filters <= 2 * channels
    # Longer rows are folded sooner; to flip the filters takes time too.
    return p.depth > p.inside and 2 * filters <= channels and 4 * filters <= p.x_shape[0] * prod(p.x_shape[2:])


def _always(p: Problem) -> bool:
    return True


TABLE = (
    Row("planes", _has_planes),
    Row("depthwise", _is_depthwise),
    Row("volumes", _has_volumes),
    Row("winograd lines", _has_short_lines),
    Row("winograd tiles", _has_many_tiles),
    Row("rows at once", _shares_columns),
    Row("interleaved", _has_small_images),
    Row("flipped", _is_cheaper_unfolded),
    Row("joined", _fits_one_product),
    Row("columns", _always),
)


def ways(problem: Problem) -> Iterator[str]:
    """The ways that apply, the best first."""
    return (row.way for row in TABLE if row.applies(problem))


def pitches(problem: Problem) -> bool:
    """Whether columns have the pitch of the padded image."""
    waste = _waste(problem)
    worth = problem.outputs * waste < MOST_WASTE and 2 * problem.depth > 3 * problem.outputs
    return problem.stride == (1, 1) and (waste == 0 or worth)


def small_rows(problem: Problem, pitched: bool, depth: int) -> int:
    """How many rows of the output a product of `depth` may have for one thread; 0 where BLAS's threads share it."""
    width = problem.y_shape[3] + _waste(problem) * pitched
    rows = SMALL_PRODUCT // max(1, problem.outputs * depth * width)
    return rows if rows >= min(4, problem.y_shape[2]) else 0


def box(problem: Problem, way: str) -> tuple[int, Sizes]:
    """The most images, and the largest sizes along the axes, of what is made at once."""
    n, _, *sizes = problem.made
    size = problem.computed.itemsize
    if way == "planes":
        return n, _within(sizes, PLANE_BYTES // (size * (prod(problem.taps) + 2)))
    if way == "depthwise":
        return n, _within(sizes, PLANE_BYTES // (4 * size * prod(problem.stride)))
    if way == "volumes":
        most = VOLUME_BYTES // (size * (problem.x_shape[1] + 2 * problem.y_shape[1]))
        return max(1, min(n, most // max(1, prod(sizes)))), _within(sizes, most)
    if way == "columns" and problem.operation == INPUT_GRAD:
        rows = 1 + -(-(prod(problem.taps) + problem.weight_shape[0]) // prod(problem.stride))
        return n, _within(sizes, PLANE_BYTES // (size * rows))
    if way == "columns":
        rows = problem.dilation[0] * (problem.taps[0] - 1) + 1
        line = size * problem.x_shape[1] * max(prod(problem.taps), rows * problem.stride[1])
        return n, (*sizes[:-1], max(1, min(sizes[-1], LINE_BYTES // max(1, line))))
    return n, tuple(sizes)


def _waste(problem: Problem) -> int:
    """Positions beside each row of the output that a pitch adds."""
    return problem.x_shape[3] + sum(problem.padding[1]) - problem.y_shape[3]


def _within(sizes: list[int], most: int) -> Sizes:
    """The sizes of a box of at most so many elements (or one), cut along the first axes."""
    kept: list[int] = []
    for size in reversed(sizes):
        kept.append(max(1, min(size, most // max(1, prod(kept)))))
    return tuple(reversed(kept))
