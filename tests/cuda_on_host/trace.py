"""What the memory accesses of a launch would cost on a GPU, counted by trace.cpp in a traced run on the host."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adjoint.kernels.cuda.kernel import Kernel

SECTOR_BYTES = 32
_ALLOCATION_BYTES = 512  # the alignment of CuPy's allocations

_ARRAY = np.dtype([("start", np.uint64), ("bytes", np.uint64), ("place", np.uint64)])
_STRAY = np.dtype([("address", np.uint64), ("bytes", np.uint64), ("write", np.uint64)])
_TRAFFIC = np.dtype([(name, np.uint64) for name in ("read", "written", "read_by_block", "written_by_block")])
_INSTRUCTION = np.dtype(
    [
        ("address", np.uint64),
        ("bytes", np.uint32),
        ("write", np.bool_),
        ("shared", np.bool_),
        *((name, np.uint64) for name in ("requests", "accesses", "cost", "least")),
    ],
    align=True,
)


@dataclass(frozen=True)
class Instruction:
    """One load or store in the compiled code.

    `cost` and `least` are sums over its requests. In global memory: the sectors of 32 bytes that are touched, and
    the fewest that hold as many bytes. In shared memory: the cycles that the banks take, and those without
    conflicts.
    """

    address: int  # in the library
    bytes: int  # of one thread
    write: bool
    shared: bool
    requests: int
    accesses: int  # of single threads
    cost: int
    least: int


@dataclass(frozen=True)
class Traffic:
    """Distinct bytes of an array, in whole sectors, that a launch touches.

    `read` and `written` are the traffic with device memory if the L2 keeps everything; `read_by_block` and
    `written_by_block` are sums over the blocks, the traffic with the L2 if a block loads everything once.
    """

    arguments: tuple[int, ...]  # positions of the arguments that lie in one allocation; those reached come last
    nbytes: int
    read: int
    written: int
    read_by_block: int
    written_by_block: int


@dataclass(frozen=True)
class Trace:
    """One launch."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int  # dynamic
    instructions: tuple[Instruction, ...]
    arrays: tuple[Traffic, ...]

    @property
    def bytes_moved(self) -> int:
        """To and from device memory, if the L2 keeps everything."""
        return sum(array.read + array.written for array in self.arrays)

    @property
    def bytes_by_block(self) -> int:
        """To and from the L2, if a block loads everything once."""
        return sum(array.read_by_block + array.written_by_block for array in self.arrays)

    def requests(self, shared: bool = False) -> int:
        return self._total("requests", shared)

    def sectors(self) -> int:
        return self._total("cost", False)

    def least_sectors(self) -> int:
        return self._total("least", False)

    def conflicts(self) -> int:
        """Cycles of shared memory beyond those that its requests need."""
        return self._total("cost", True) - self._total("least", True)

    def _total(self, name: str, shared: bool) -> int:
        return sum(getattr(i, name) for i in self.instructions if i.shared == shared)


class StrayAccess(RuntimeError):
    """A kernel touched memory outside the arrays that the launch was given."""


class Tracer:
    """Traces the next launch in `library`, whose arrays are `arrays`, by position."""

    def __init__(self, library: ctypes.CDLL, arrays: Mapping[int, np.ndarray]) -> None:
        self.library = library
        self.arrays = arrays
        self.regions, self.arguments, size = _regions(arrays)
        start = library["trace_start"]
        start.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64]
        start(self.regions.ctypes.data, len(self.regions), size)

    def result(
        self, kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int
    ) -> Trace:
        self._raise_if_strayed(kernel)
        traffic = np.zeros(len(self.regions), _TRAFFIC)
        self.library["trace_traffic"](ctypes.c_void_p(traffic.ctypes.data))
        arrays = [
            Traffic(arguments, int(region["bytes"]), *(SECTOR_BYTES * int(sectors) for sectors in of))
            for arguments, region, of in zip(self.arguments, self.regions, traffic.tolist(), strict=True)
        ]
        instructions = [Instruction(*row) for row in self._instructions().tolist()]
        return Trace(kernel, grid, block, shared_bytes, tuple(instructions), tuple(arrays))

    def _instructions(self) -> np.ndarray:
        fetch = self.library["trace_instructions"]
        fetch.restype = ctypes.c_size_t
        pointer = ctypes.c_void_p()
        count = fetch(ctypes.byref(pointer))
        if not count:
            return np.zeros(0, _INSTRUCTION)
        assert pointer.value is not None
        return np.frombuffer(ctypes.string_at(pointer.value, count * _INSTRUCTION.itemsize), _INSTRUCTION)

    def _raise_if_strayed(self, kernel: Kernel) -> None:
        stray = np.zeros(1, _STRAY)
        self.library["trace_stray"](ctypes.c_void_p(stray.ctypes.data))
        ((address, nbytes, write),) = stray.tolist()
        if address:
            what = f"{'writes' if write else 'reads'} {nbytes} bytes at {address:#x}"
            arrays = ", ".join(f"{a.ctypes.data:#x} to {a.ctypes.data + a.nbytes:#x}" for a in self.arrays.values())
            raise StrayAccess(f"{kernel}: {what}, outside the arrays of the launch ({arrays})")


def _regions(arrays: Mapping[int, np.ndarray]) -> tuple[np.ndarray, list[tuple[int, ...]], int]:
    """The memory of the arrays, where it would lie on a device, which arguments lie in each piece, the size in all.

    Arrays of one allocation are one region. On a device allocations are aligned more than NumPy's are.
    """
    owners: dict[int, list[int]] = {}
    for position, array in arrays.items():
        if array.nbytes:
            owners.setdefault(_owner(array).ctypes.data, []).append(position)
    rows, arguments, place = [], [], 0
    for owner, positions in sorted(owners.items()):
        start = min(arrays[i].ctypes.data for i in positions)
        stop = max(arrays[i].ctypes.data + arrays[i].nbytes for i in positions)
        rows.append((start, stop - start, place + start - owner))
        arguments.append(tuple(positions))
        place += -(-(stop - owner) // _ALLOCATION_BYTES) * _ALLOCATION_BYTES
    return np.array(rows, _ARRAY), arguments, place


def _owner(array: Any) -> np.ndarray:
    """The array whose memory this one is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
