"""Rows that threads share: the host's side of src/softmax.cuh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import launch
from .kernel import Kernel

Array = Any

WARP = 32
BLOCK = 256
ROW_BLOCK = 512
MOST_COLUMNS = 2**30  # columns are int32
# A constant, so that sums have the same order on every device.
MOST_BLOCKS = 2048

_VECTOR_BYTES = 16
_STATIC_SHARED = 2048  # bytes that kernels with `TwiceRead` may take for other things


def choice(
    columns: int, items: Sequence[int], in_registers: Callable[[int], Kernel], long: Kernel, *arrays: Array
) -> tuple[Kernel, int]:
    """The variant for rows of so many columns of `arrays`, and the threads that share a row.

    `in_registers(n)` keeps n columns a thread, for each n of `items`; the first for rows of up to a warp's threads.
    """
    vector = _VECTOR_BYTES // arrays[0].dtype.itemsize
    if columns % vector or not all(launch.aligned(array, _VECTOR_BYTES) for array in arrays):
        columns += vector - 1  # a row's first vector may begin before the row
    few, *many = items
    if columns <= few * WARP:
        return in_registers(few), power_of_two(launch.divide_up(columns, few))
    for count in many:
        threads = WARP * launch.divide_up(columns, count * WARP)
        if threads <= ROW_BLOCK:
            return in_registers(count), threads
    return long, ROW_BLOCK


def blocks(rows: int, threads: int) -> tuple[int, int]:
    """The blocks of a grid, and the rows of one block, where so many threads share a row."""
    together = max(1, BLOCK // threads)
    return min(MOST_BLOCKS, launch.divide_up(rows, together)), together


def shared_steps(columns: int, *arrays: Array) -> tuple[int, int]:
    """For `TwiceRead`: how many steps it keeps in shared memory, and how many bytes that takes."""
    itemsize = arrays[0].dtype.itemsize
    step_bytes = ROW_BLOCK * _VECTOR_BYTES * len(arrays)
    wanted = launch.divide_up(columns * itemsize + _VECTOR_BYTES, ROW_BLOCK * _VECTOR_BYTES)
    steps = min(wanted, (launch.shared_bytes(arrays[0]) - _STATIC_SHARED) // step_bytes)
    return steps, steps * step_bytes


def power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << (n - 1).bit_length()
