"""Reads compiled kernels: which share of the instructions in their inner loop are products on tensor cores.

A cubin is an ELF file with a section for each kernel. From Volta on an instruction has 16 bytes, the operation in
its lowest 12 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate

_INSTRUCTION_BYTES = 16
_OPERATION = 0xFFF
_NOP = 0x918
_EXIT = 0x94D
_BRANCH = 0x947
_UNIFORM_BRANCH = 0x547  # from sm_100 on, at a condition that a warp has in common
_PRODUCTS = (0x23C, 0x9F0)  # HMMA, all products of halves, bfloat16 and tf32 with float sums; HGMMA, those of wgmma
_ALWAYS = 7  # the predicate of an instruction that has none

_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, ...
_WITHOUT_BYTES = 8  # a section's type


def tensor_share(cubin: bytes, symbol: str, capability: int) -> tuple[float, float] | None:
    """Products on tensor cores over the instructions of the innermost loop that has most of them, between two bounds.

    The lower one counts all instructions of the loop, also those that only some blocks or steps run; the upper one
    those on the shortest way through it that meets most products. None where the kernel has no product in a loop. A
    loop is what lies between a branch backward and its target.
    """
    code = _words(_section(cubin, f".text.{symbol}"))
    operations = [low & _OPERATION for low, _ in code]
    products = [0, *accumulate(operation in _PRODUCTS for operation in operations)]
    instructions = [0, *accumulate(operation != _NOP for operation in operations)]
    loops = [loop for loop in _loops(code, capability) if products[loop.stop] > products[loop.start]]
    innermost = [loop for loop in loops if not any(_within(other, loop) for other in loops)]
    if not innermost:
        return None
    loop = max(innermost, key=lambda loop: products[loop.stop] - products[loop.start])
    count, total = products[loop.stop] - products[loop.start], instructions[loop.stop] - instructions[loop.start]
    passed, shortest = _shortest_way(code, loop, capability) or (count, total)
    return count / total, passed / shortest


def _shortest_way(code: Sequence[tuple[int, int]], loop: range, capability: int) -> tuple[int, int] | None:
    """The products and the instructions from a loop's first one to its last: most of the former, then fewest of these.

    None where the way leads through code outside of the loop.
    """
    best = {loop.start: (0, 0)}  # before an instruction, products negative
    for number in loop:
        if number not in best:
            continue
        low, high = code[number]
        operation, always = low & _OPERATION, low >> 12 & 0xF == _ALWAYS
        products, instructions = best[number]
        after = products - (operation in _PRODUCTS), instructions + (operation != _NOP)
        if number == loop.stop - 1:
            return -after[0], after[1]
        following = []
        if operation in (_BRANCH, _UNIFORM_BRANCH):
            following.append(_target(number, low, high, capability))
        if not always or operation not in (_BRANCH, _EXIT):
            following.append(number + 1)
        for other in following:
            if number < other < loop.stop and after < best.get(other, (1, 0)):
                best[other] = after
    return None


def _within(inner: range, outer: range) -> bool:
    return inner != outer and outer.start <= inner.start and inner.stop <= outer.stop


def _loops(code: Sequence[tuple[int, int]], capability: int) -> Iterator[range]:
    """The numbers of the instructions in each loop."""
    for number, (low, high) in enumerate(code):
        if low & _OPERATION not in (_BRANCH, _UNIFORM_BRANCH):
            continue
        target = _target(number, low, high, capability)
        if 0 <= target < number:  # a kernel ends with a branch to itself
            yield range(target, number + 1)


def _target(number: int, low: int, high: int, capability: int) -> int:
    """The number of the instruction that a branch leads to, whose own number is `number`."""
    upper = (low >> 32 | (high & 0x3FFFF) << 32) & ~3
    if upper >> 49:
        upper -= 1 << 50
    distance = upper if capability < 90 else upper << 8 | (low >> 16 & 0xFF) << 2
    return number + 1 + distance // _INSTRUCTION_BYTES


def _words(code: bytes) -> Sequence[tuple[int, int]]:
    """The lower and upper half of each instruction."""
    return list(struct.iter_unpack("<QQ", code[: len(code) // _INSTRUCTION_BYTES * _INSTRUCTION_BYTES]))


def _section(elf: bytes, name: str) -> bytes:
    if elf[:5] != b"\x7fELF\x02":
        raise ValueError("the compiler's output is no ELF file of 64 bits")
    (headers,) = struct.unpack_from("<Q", elf, 40)
    size, count, of_names = struct.unpack_from("<HHH", elf, 58)
    sections = [_SECTION.unpack_from(elf, headers + i * size) for i in range(count)]
    names_at = sections[of_names][4]
    for section in sections:
        at = names_at + section[0]
        if section[1] != _WITHOUT_BYTES and elf[at : elf.index(b"\0", at)].decode() == name:
            return elf[section[4] : section[4] + section[5]]
    raise ValueError(f"the compiler's output has no section {name}")
