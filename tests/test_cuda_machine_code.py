"""The share of tensor-core instructions, read from compiled kernels and from instructions made up here."""

from __future__ import annotations

import struct

import pytest

from adjoint.kernels.cuda import compile as cuda_compile
from adjoint.kernels.cuda import machine_code
from adjoint.kernels.cuda.kernel import Kernel

# Operations, from NVIDIA's disassembler.
HMMA, NOP, IADD, BRANCH, UNIFORM_BRANCH = 0x23C, 0x918, 0x810, 0x947, 0x547


def _branch(distance, capability=90, operation=BRANCH):
    """A branch to so many instructions from its end."""
    upper, low = (16 * distance, 0) if capability < 90 else (16 * distance >> 10 << 2, 16 * distance >> 2 & 0xFF)
    upper &= (1 << 50) - 1
    return operation | 0x1000 | low << 16 | (upper & 0xFFFFFFFF) << 32, upper >> 32 | 0xFEA00 << 32


def _cubin(code, symbol="f"):
    """An ELF file of 64 bits with the sections that are read."""
    text = b"".join(struct.pack("<QQ", *(word if isinstance(word, tuple) else (word, 0))) for word in code)
    names = f"\0.shstrtab\0.nv.shared.{symbol}\0.text.{symbol}\0".encode()
    headers, body = [bytes(64)], b""
    for name, kind, content in ((".shstrtab", 3, names), (".nv.shared", 8, bytes(16)), (".text", 1, text)):
        at = names.index(name.encode())
        headers.append(struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, 64 + len(body), len(content), 0, 0, 1, 0))
        body += content if kind != 8 else b""
    elf = b"\x7fELF\x02\x01\x01" + bytes(33) + struct.pack("<QIHHHHHH", 64 + len(body), 0, 64, 0, 0, 64, 4, 1)
    return elf + body + b"".join(headers)


def _share(code, capability=90):
    return machine_code.tensor_share(_cubin(code), "f", capability)


@pytest.mark.parametrize("capability", [75, 80, 89, 90, 100, 120])
def test_products_over_instructions_of_the_loop(capability):
    loop = [IADD, HMMA, IADD, NOP, HMMA, IADD]
    assert _share([HMMA] * 5 + loop + [_branch(-7, capability)] + [HMMA] * 5, capability) == (2 / 6, 2 / 6)
    assert _share(loop, capability) is None
    assert _share([HMMA, _branch(-1, capability)], capability) is None  # a branch to itself is a kernel's end
    assert _share([HMMA, _branch(1, capability), IADD, IADD], capability) is None  # forward
    assert _share([IADD, IADD, _branch(-3, capability), HMMA], capability) is None


def test_the_innermost_loop_with_most_products():
    inner = [HMMA] * 6 + [IADD, _branch(-8)]
    outer = [IADD] * 50 + inner
    nested = [*outer, _branch(-len(outer) - 1)]
    rest = [IADD, HMMA, _branch(-3, operation=UNIFORM_BRANCH)]
    assert _share(nested) == _share(nested + rest) == _share(rest + nested) == (6 / 8, 6 / 8)
    assert _share(rest) == (1 / 3, 1 / 3)
    # A loop without products in one with them.
    assert _share([HMMA, HMMA, IADD, _branch(-2), _branch(-5)]) == (2 / 5, 2 / 5)


def test_the_shortest_way_meets_most_products():
    always = 0x7000
    skip = [_branch(3), IADD, IADD, IADD]
    assert _share([*skip, HMMA, HMMA, _branch(-7)]) == (2 / 7, 2 / 4)
    # A way around products is none, also where it is shorter.
    assert _share([_branch(2), HMMA, IADD, HMMA, _branch(-5)]) == (2 / 5, 2 / 5)
    # Either or: after the first part an unconditional branch over the second one.
    low, high = _branch(4)
    other = [_branch(3), IADD, IADD, (low | always, high), *[IADD] * 4]
    assert _share([*other, HMMA, _branch(-10)]) == (1 / 10, 1 / 6)
    # A way that ends, or leaves the loop.
    assert _share([_branch(2), IADD, 0x94D | always, HMMA, _branch(-5)]) == (1 / 5, 1 / 3)
    low, high = _branch(40)
    assert _share([(low | always, high), HMMA, _branch(-3)]) == (1 / 3, 1 / 3)


def test_what_is_no_kernel_is_an_error():
    with pytest.raises(ValueError, match=r"no section \.text\.g"):
        machine_code.tensor_share(_cubin([IADD]), "g", 90)
    with pytest.raises(ValueError, match="no ELF file"):
        machine_code.tensor_share(b"// PTX", "f", 90)


def _missing():
    try:
        cuda_compile.require_compiler()
    except RuntimeError as error:
        return str(error)
    return ""


SOURCE = """
#include "mma.cuh"

// For each of the steps: kProducts products, then kOther dependent additions.
template <int kProducts, int kOther, bool kLoop> __global__ void work(float* p, int steps) {
    float d[4][4] = {}, sum = p[threadIdx.x];
    const uint32 a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3}, b[2] = {a[1], a[3]};
#pragma unroll 1
    for (int step = 0; step < (kLoop ? steps : 1); ++step) {
#pragma unroll
        for (int i = 0; i < kProducts; ++i) mma_m16n8k16<float16>(d[i % 4], a, b);
#pragma unroll
        for (int i = 0; i < kOther; ++i) sum = __fadd_rn(sum, d[i % 4][i / 4 % 4]);
    }
    p[threadIdx.x] = sum + d[0][0] + d[1][1] + d[2][2] + d[3][3];
}
"""


@pytest.mark.skipif(bool(_missing()), reason=_missing())
def test_of_compiled_kernels(tmp_path):
    (tmp_path / "work.cu").write_text(SOURCE)
    sizes = [(8, 0), (8, 24), (16, 112), (0, 16)]
    names = [*(f"work<{products}, {other}, true>" for products, other in sizes), "work<8, 8, false>"]
    kernels = [Kernel("work.cu", name, tmp_path, least=80) for name in names]
    rows = list(cuda_compile.compile_kernels(kernels, ["sm_75", "sm_80", "sm_90", "sm_100"], together=len(names)))
    assert len(rows) == 3 * len(names)  # none for sm_75
    for row in rows:
        number = kernels.index(row.kernel)
        products, other = sizes[number] if number < len(sizes) else (0, 0)
        if not products:
            assert row.least_tensor_share is row.most_tensor_share is None
            continue
        # Besides: the counter, its comparison, the branch, and what the scheduler leaves to wait for results.
        assert row.least_tensor_share == row.most_tensor_share
        assert products / (products + other + 8) <= row.most_tensor_share <= products / (products + other + 2), row
