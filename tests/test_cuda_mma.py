"""The wrappers of tensor-core instructions: fragments, rounding, asynchronous copies, and what a traced run counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from adjoint.kernels.cuda import launch
from adjoint.kernels.cuda.kernel import Kernel
from cuda_on_host import (
    CudaOnHostError,
    HostLauncher,
    device_fixture,
    installed,
    list_kernels,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

FOLDER = Path(__file__).parent / "cuda_on_host"
TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
COPIES = [f"{nbytes}, true, true" for nbytes in (4, 8, 16)]
NAMES = [
    *(f"multiply<{t}>" for t in TYPES),
    "round_all",
    *(f"load_and_store<{n}, {transposed}>" for n in (4, 2) for transposed in ("false", "true")),
    *(f"reverse_rows_ahead<{copy}>" for copy in [*COPIES, "16, false, true", "16, true, false"]),
    *("product_of_half_a_warp", "load_from_global", "copy_misaligned<4>", "copy_misaligned<16>"),
]


def _kernel(name):
    return Kernel("tensor_cores.cu", name, FOLDER, least=80)


list_kernels([_kernel(name) for name in NAMES])
cuda_device = device_fixture()


def run(name, grid, block, *args, shared_bytes=0):
    launch.launch(_kernel(name), grid, block, args, shared_bytes)


def _as_tf32(x):
    """What tensor cores see of floats."""
    return (x.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32)


@pytest.mark.parametrize("name", TYPES)
def test_products_are_those_of_matrices(cuda_device, name):
    depth, steps = 8 if name == "float" else 16, 3
    rng = np.random.default_rng(0)
    a = rng.standard_normal((steps, 16, depth)).astype(TYPES[name])
    b = rng.standard_normal((steps, 8, depth)).astype(TYPES[name])
    c = rng.standard_normal((16, 8)).astype(np.float32)
    d = cuda_device.put(np.zeros((16, 8), np.float32))
    run(f"multiply<{name}>", (1,), (32,), *map(cuda_device.put, (a, b, c)), d, np.int32(steps))
    if name == "float":
        a, b = _as_tf32(a), _as_tf32(b)
    expected = c + np.einsum("sik,sjk->ij", a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(cuda_device.get(d), expected, rtol=0, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("name", TYPES)
def test_sums_are_cut_off_not_rounded(name):
    """Small addends vanish one by one where their sum would not; a sum between two floats goes toward zero."""
    depth = 8 if name == "float" else 16
    b = np.full((1, 8, depth), 2.0**-12, TYPES[name])
    many_below, one_above = np.zeros((2, 1, 16, depth), TYPES[name])
    many_below[:] = 0.75 * 2.0**-12
    one_above[..., 0] = 1.5 * 2.0**-12
    for a, sign in itertools.product((many_below, one_above), (1, -1)):
        d = np.zeros((16, 8), np.float32)
        c = np.full_like(d, sign)
        with installed(HostLauncher()):
            run(f"multiply<{name}>", (1,), (32,), (sign * a).astype(a.dtype), b, c, d, np.int32(1))
        np.testing.assert_array_equal(d, c)


@needs_compiler
def test_products_with_infinity_and_nan():
    a, b = np.ones((1, 16, 16), np.float16), np.ones((1, 8, 16), np.float16)
    a[0, 0, 3], a[0, 1, 4], a[0, 2, 5:7] = np.inf, np.nan, (np.inf, -np.inf)
    d = np.zeros((16, 8), np.float32)
    with installed(HostLauncher()):
        run("multiply<float16>", (1,), (32,), a, b, np.zeros_like(d), d, np.int32(1))
    assert (d[0] == np.inf).all() and np.isnan(d[1:3]).all() and (d[3:] == 16).all()


def test_rounding_to_tf32(cuda_device):
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    bits[:8] = [0, 0x3F801000, 0xBF801000, 0x3F800FFF, 0x3F803000, 0x7F800000, 0x7F7FFFFF, 0x00001000]
    x = bits.view(np.float32)
    x = np.where(np.isnan(x) | (x != 0) & (abs(x) < 2.0**-126), np.float32(0), x)  # -ftz on a device
    y = cuda_device.put(np.zeros(4096, np.int32))
    run("round_all", (16,), (256,), cuda_device.put(x), y)
    seen = cuda_device.get(y).view(np.uint32) & ~np.uint32(0x1FFF)
    half = x.view(np.uint32).astype(np.uint64) + 0x1000  # ties away from zero; infinity stays
    expected = np.where(np.isinf(x), x.view(np.uint32), half & ~np.uint64(0x1FFF)).astype(np.uint32)
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("pitch, offset", [(8, 0), (24, 8)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n", [4, 2])
def test_matrices_from_shared_memory(cuda_device, n, transposed, pitch, offset):
    x = np.random.default_rng(0).integers(-(2**15), 2**15, (8 * n, pitch), dtype=np.int16)
    y = cuda_device.put(np.zeros((32, n), np.int32))
    name = f"load_and_store<{n}, {'true' if transposed else 'false'}>"
    sizes = np.int32(pitch), np.int32(offset)
    run(name, (1,), (32,), cuda_device.put(x), y, *sizes, shared_bytes=x.nbytes)
    matrices = x[:, offset : offset + 8].reshape(n, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    # Lane 4g + t: columns 2t and 2t + 1 of row g.
    seen = cuda_device.get(y).view(np.int16).reshape(8, 4, n, 2)
    np.testing.assert_array_equal(seen, matrices.reshape(n, 8, 4, 2).transpose(1, 2, 0, 3))


@pytest.mark.parametrize("copy", COPIES)
def test_copies_that_are_waited_for(cuda_device, copy):
    nbytes, threads, rows, exist = int(copy.split(",")[0]), 96, 7, 5
    x = np.random.default_rng(0).integers(0, 256, (rows, threads, nbytes), dtype=np.uint8)
    y = cuda_device.put(np.zeros_like(x))
    sizes = np.int32(rows), np.int32(exist)
    arrays = cuda_device.put(x), y
    run(f"reverse_rows_ahead<{copy}>", (1,), (threads,), *arrays, *sizes, shared_bytes=2 * nbytes * threads)
    np.testing.assert_array_equal(cuda_device.get(y)[:exist], x[:exist, ::-1])
    assert not cuda_device.get(y)[exist:].any()


@needs_compiler
@pytest.mark.parametrize("copy", ["16, false, true", "16, true, false"])
def test_a_missing_wait_or_barrier_shows_in_every_order(copy):
    x = np.ones((4, 96, 16), np.uint8)
    for seed in (None, 0, 1, 2):
        y = np.zeros_like(x)
        with installed(HostLauncher(seed=seed)):
            sizes = np.int32(4), np.int32(4)
            run(f"reverse_rows_ahead<{copy}>", (1,), (96,), x, y, *sizes, shared_bytes=2 * 16 * 96)
        assert (y == 0xFF).any()


MISTAKES = [
    ("product_of_half_a_warp", np.float32, [], "16 threads wait in mma_m16n8k16 .*, 16 have ended"),
    ("load_from_global", np.int32, [], "ldmatrix_x2: 16 bytes at .* are not in shared memory"),
    ("load_and_store<4, false>", np.int32, [12, 0], "ldmatrix_x4: the address .* is no multiple of 16"),
    ("load_and_store<4, false>", np.int32, [16, 16], "ldmatrix_x4: .* not in shared memory"),
    ("copy_misaligned<16>", np.uint8, [8, 0], "cp_async: the address .* is no multiple of 16"),
    ("copy_misaligned<4>", np.uint8, [0, 2], "cp_async: .* no multiple of 4"),
    ("copy_misaligned<4>", np.uint8, [0, 1024], "cp_async: 4 bytes at .* not in shared memory"),
]


@needs_compiler
@pytest.mark.parametrize("name, dtype, sizes, message", MISTAKES)
def test_what_a_device_would_fault_at_is_an_error(name, dtype, sizes, message):
    x, y = _aligned(np.zeros(2048, np.uint8)), np.zeros(128, dtype)
    arrays = [y] if name == "product_of_half_a_warp" else [x if "copy" in name else x.view(np.int16), y]
    with installed(HostLauncher()), pytest.raises(CudaOnHostError, match=message):
        run(name, (1,), (32,), *arrays, *map(np.int32, sizes), shared_bytes=1024)


def _aligned(array):
    memory = np.zeros(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_right_kernels_pass_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "matrices or waited or rounding")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout


# ---- traced runs


def traced(name, grid, block, *args, shared_bytes=0):
    launcher = HostLauncher(trace=True)
    with installed(launcher):
        run(name, grid, block, *args, shared_bytes=shared_bytes)
    (trace,) = launcher.traces
    return trace


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="a traced build has no sanitizers")
@pytest.mark.parametrize(
    "n, pitch, cycles",
    [
        (4, 8, 4),  # rows of 16 bytes one after the other: 8 of them are all banks
        (4, 16, 8),  # rows 0 and 4 begin at the same bank
        (4, 32, 16),
        (4, 64, 32),  # rows of 128 bytes: all 8 at one bank
        (4, 72, 4),  # 16 bytes of padding
        (2, 64, 16),
        (2, 72, 2),
    ],
)
def test_conflicts_of_ldmatrix(n, pitch, cycles):
    x, y = np.zeros((8 * n, pitch), np.int16), np.zeros((32, n), np.int32)
    trace = traced(
        f"load_and_store<{n}, false>", (1,), (32,), x, y, np.int32(pitch), np.int32(0), shared_bytes=x.nbytes
    )
    (load,) = [i for i in trace.instructions if i.shared and not i.write]
    assert (load.requests, load.accesses, load.bytes, load.cost, load.least) == (1, 8 * n, 16, cycles, n)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="a traced build has no sanitizers")
@pytest.mark.parametrize("copy, cycles", [("4, true, true", 1), ("8, true, true", 2), ("16, true, true", 4)])
def test_copies_are_a_read_and_a_shared_store(copy, cycles):
    nbytes, rows, exist = int(copy.split(",")[0]), 5, 3
    x, y = np.zeros((rows, 64, nbytes), np.uint8), np.zeros((rows, 64, nbytes), np.uint8)
    trace = traced(
        f"reverse_rows_ahead<{copy}>", (1,), (64,), x, y, np.int32(rows), np.int32(exist), shared_bytes=2 * x[0].nbytes
    )
    reads = [i for i in trace.instructions if not i.shared and not i.write]
    stores = [i for i in trace.instructions if i.shared and i.write]
    # Two warps; a row is read where it exists and stored where there is one.
    assert sum(i.requests for i in reads) == 2 * exist
    assert sum(i.cost for i in reads) == sum(i.least for i in reads) == 2 * exist * nbytes
    assert {i.bytes for i in (*reads, *stores)} == {nbytes}
    assert sum(i.requests for i in stores) == 2 * rows
    assert sum(i.cost for i in stores) == 2 * rows * cycles
    assert trace.conflicts() == 0
    (of_x,) = [array for array in trace.arrays if array.arguments == (0,)]
    assert (of_x.read, of_x.written) == (exist * 64 * nbytes, 0)
