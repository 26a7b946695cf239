"""How much of a multiprocessor a kernel can fill.

Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". How registers and shared
memory are handed out: NVIDIA's cuda_occupancy.h. Shared memory is taken to be as large as it can be configured.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTERS = 64 * 1024
MOST_REGISTERS = 255  # of a thread
_REGISTER_UNIT = 256  # registers are handed out to warps in such pieces
_PARTS = 4  # of a multiprocessor, each with a quarter of the registers


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor holds. Bytes are those of shared memory."""

    warps: int
    blocks: int
    shared_bytes: int
    block_bytes: int  # that a block can ask for
    reserved_bytes: int = 1024  # for the system, in each block
    unit_bytes: int = 128


_KB = 1024
LIMITS = {
    "sm_70": Multiprocessor(64, 32, 96 * _KB, 96 * _KB, reserved_bytes=0, unit_bytes=256),
    "sm_75": Multiprocessor(32, 16, 64 * _KB, 64 * _KB, reserved_bytes=0, unit_bytes=256),
    "sm_80": Multiprocessor(64, 32, 164 * _KB, 163 * _KB),
    "sm_86": Multiprocessor(48, 16, 100 * _KB, 99 * _KB),
    "sm_89": Multiprocessor(48, 24, 100 * _KB, 99 * _KB),
    "sm_90": Multiprocessor(64, 32, 228 * _KB, 227 * _KB),
    "sm_100": Multiprocessor(64, 32, 228 * _KB, 227 * _KB),
    "sm_120": Multiprocessor(48, 24, 100 * _KB, 99 * _KB),
}


def resident_blocks(arch: str, threads: int, registers: int, shared_bytes: int) -> int:
    """The blocks of so many threads that one multiprocessor runs at a time; 0 where none can be launched.

    `registers` are a thread's, `shared_bytes` a block's, static and dynamic together.
    """
    limits = LIMITS[arch]
    warps = -(-threads // WARP)
    registers_of_warp = _round_up(max(registers, 1) * WARP, _REGISTER_UNIT)
    checked = registers_of_warp * _round_up(warps, _PARTS)
    if registers > MOST_REGISTERS or checked > REGISTERS or shared_bytes > limits.block_bytes:
        return 0
    warps_by_registers = REGISTERS // _PARTS // registers_of_warp * _PARTS
    bytes_of_block = _round_up(shared_bytes + limits.reserved_bytes, limits.unit_bytes)
    return min(
        limits.blocks,
        limits.warps // warps,
        warps_by_registers // warps,
        limits.shared_bytes // bytes_of_block if bytes_of_block else limits.blocks,
    )


def occupancy(arch: str, threads: int, registers: int, shared_bytes: int) -> float:
    """The part of a multiprocessor's warps that can run at a time."""
    warps = -(-threads // WARP)
    return resident_blocks(arch, threads, registers, shared_bytes) * warps / LIMITS[arch].warps


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
