"""Which kernel and tile runs a convolution: one table, from the problem's shape, type, precision and device.

The first row that applies wins. A row names the variant, what it can run at all, and from which sizes on it is chosen:
change the numbers here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .launch import FLOAT_TYPES, Kernel, divide_up

FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input_grad", "weight_grad"
GATHERS = (FORWARD, INPUT_GRAD)


@dataclass(frozen=True)
class Problem:
    """A convolution as a matrix product of each group: rows x columns results, sums of `reduction` products.

    Forward: filters x pixels over channels and taps. Input gradient: channels x pixels over filters and taps, for the
    largest of its residue classes. Weight gradient: filters x (channels and taps) over pixels.
    """

    operation: str
    c_type: str
    precision: str  # of float: "highest" or "high"
    capability: int  # of the device, 10 times its compute capability
    groups: int
    rows: int
    channels: int  # of a group: those of the source, summed over in the first two, columns of the weight gradient
    taps: int
    pixels: int  # of all images
    volumes: bool = False  # whether there is more than one place or tap along the depth

    @property
    def columns(self) -> int:
        return self.channels * self.taps if self.operation == WEIGHT_GRAD else self.pixels

    @property
    def reduction(self) -> int:
        return self.pixels if self.operation == WEIGHT_GRAD else self.channels * self.taps


@dataclass(frozen=True)
class Direct:
    """One result for each thread, or for each block of a weight gradient."""

    def kernel(self, operation: str, c_type: str) -> Kernel:
        name = "gather_direct" if operation in GATHERS else "weight_grad_direct"
        return Kernel("conv_direct.cu", f"{name}<{c_type}>")


@dataclass(frozen=True)
class Tile:
    """What a block and each of its threads compute. All tiles have 256 threads and walk in steps of 8."""

    rows: int
    columns: int
    rows_each: int
    columns_each: int

    def kernel(self, operation: str, c_type: str) -> Kernel:
        name = "gather_gemm" if operation in GATHERS else "weight_grad_gemm"
        sizes = f"{self.rows}, {self.columns}, {self.rows_each}, {self.columns_each}"
        return Kernel("conv_gemm.cu", f"{name}<{c_type}, {sizes}>")


Variant = Direct | Tile


@dataclass(frozen=True)
class Row:
    """A variant, what it can run, and the least sizes for which it is chosen."""

    variant: Variant
    operations: Sequence[str]
    types: Sequence[str] = FLOAT_TYPES
    volumes: bool = True
    # Chosen from here on:
    rows: int = 0
    columns: int = 0
    reduction: int = 0
    blocks: int = 0

    def can_run(self, problem: Problem) -> bool:
        return (
            problem.operation in self.operations
            and problem.c_type in self.types
            and (self.volumes or not problem.volumes)
        )

    def is_chosen(self, problem: Problem) -> bool:
        return (
            problem.rows >= self.rows
            and problem.columns >= self.columns
            and problem.reduction >= self.reduction
            and (not self.blocks or blocks(self.variant, problem) >= self.blocks)
        )


def blocks(tile: Tile, problem: Problem) -> int:
    """How many tiles cover the results of all groups."""
    return problem.groups * divide_up(problem.rows, tile.rows) * divide_up(problem.columns, tile.columns)


_NO_DOUBLE = tuple(c_type for c_type in FLOAT_TYPES if c_type != "double")
_FEW = 8  # rows, columns or steps: with fewer, most of the narrowest tile would be empty
_FILLED = 128  # blocks; fewer leave multiprocessors of a large GPU idle

# Widest first. A wide tile loads less for each multiplication; a narrow one leaves less of itself empty and gives more
# blocks. The sums of the widest tiles of doubles would not fit into the registers.
TABLE = (
    Row(Tile(128, 128, 8, 8), GATHERS, _NO_DOUBLE, volumes=False, rows=65, reduction=_FEW, blocks=_FILLED),
    Row(Tile(64, 128, 4, 8), GATHERS, volumes=False, rows=33, reduction=_FEW, blocks=_FILLED),
    Row(Tile(32, 128, 4, 4), GATHERS, volumes=False, rows=_FEW, reduction=_FEW),
    # Enough blocks of a weight gradient come from its parts.
    Row(Tile(128, 128, 8, 8), (WEIGHT_GRAD,), _NO_DOUBLE, volumes=False, rows=65, columns=65),
    Row(Tile(64, 64, 4, 4), (WEIGHT_GRAD,), volumes=False, rows=_FEW, columns=_FEW),
    Row(Direct(), (*GATHERS, WEIGHT_GRAD)),
)  # fmt: skip

VARIANTS = [
    *(row.variant.kernel(operation, t) for row in TABLE for operation in row.operations for t in row.types),
]


def choose(problem: Problem) -> Variant:
    """The first variant of the table that can run the problem and is worth it."""
    return next(row.variant for row in TABLE if row.can_run(problem) and row.is_chosen(problem))


def candidates(problem: Problem) -> list[Variant]:
    """All variants that can run the problem, whatever its sizes."""
    return list(dict.fromkeys(row.variant for row in TABLE if row.can_run(problem)))
