"""The host build of the CUDA sources: what it means, and that its checks find mistakes."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from adjoint.kernels import cuda
from adjoint.kernels.cuda import launch
from adjoint.kernels.cuda import rows as cuda_rows
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
AFFINE = np.dtype([("scale", np.float32), ("offset", np.int64)], align=True)
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]

NAMES = [
    *(f"affine<{launch.c_type(dtype)}>" for dtype in FLOATS),
    *(
        "convert<float, float16>",
        "convert<float, bfloat16>",
        "convert<float16, float>",
        "convert<bfloat16, float>",
    ),
    *("optional", "block_sums", "reverse_rows", "warp_functions", "where_am_i", "uninitialized_shared<float>"),
    *("missing_barrier", "missing_barrier_hidden_by_order", "one_barrier_a_row", "divergent_barrier"),
    "barriers_at_two_places",
    *("shuffle_without_all_lanes", "write_beyond_array", "write_beyond_shared"),
    *("write_beyond_shared_of_template<float>", "read_beyond_dynamic_shared", "signed_overflow"),
]
list_kernels([Kernel("checks.cu", name, FOLDER) for name in NAMES])

cuda_device = device_fixture()


def run(name, grid, block, *args, shared_bytes=0):
    launch.launch(Kernel("checks.cu", name, FOLDER), grid, block, args, shared_bytes)


def test_right_kernels_are_right_on_every_device(cuda_device):
    x = np.arange(512, dtype=np.float32)
    sums = launch.empty((4,), np.float32, cuda_device.put(x))
    run("block_sums", (4,), (128,), cuda_device.put(x), sums)
    np.testing.assert_array_equal(cuda_device.get(sums), x.reshape(4, 128).sum(1))

    rows = np.arange(600, dtype=np.int32)
    reversed_rows = cuda_device.put(np.zeros_like(rows))
    run("reverse_rows", (6,), (100,), cuda_device.put(rows), reversed_rows, shared_bytes=400)
    np.testing.assert_array_equal(cuda_device.get(reversed_rows), rows.reshape(6, 100)[:, ::-1].ravel())


def test_every_thread_and_block_runs_once_with_its_indices(cuda_device):
    y = cuda_device.put(np.zeros(24 * 12, np.int32))
    run("where_am_i", (4, 3, 2), (2, 3, 2), y)
    expected = np.add.outer(1000 * np.arange(24), np.arange(12)).ravel()
    np.testing.assert_array_equal(cuda_device.get(y), expected)


def test_warp_and_block_functions(cuda_device):
    y = cuda_device.put(np.zeros((32, 8), np.int32))
    run("warp_functions", (1,), (32,), y)
    lane = np.arange(32)
    columns = cuda_device.get(y).T
    np.testing.assert_array_equal(columns[0], 50 + 0 * lane)
    np.testing.assert_array_equal(columns[1], 10 * np.where(lane < 3, lane, lane - 3))
    np.testing.assert_array_equal(columns[2], 10 * np.where(lane % 8 > 5, lane, lane + 2))
    np.testing.assert_array_equal(columns[3], 10 * (lane ^ 1))
    np.testing.assert_array_equal(columns[4].view(np.uint32), sum(1 << i for i in range(0, 32, 3)))
    np.testing.assert_array_equal(columns[5], 2 + 0 * lane)
    np.testing.assert_array_equal(columns[6], 107 + 0 * lane)
    np.testing.assert_array_equal(columns[7], np.where(lane < 16, 15 - lane, 47 - lane))


@pytest.mark.parametrize("dtype", FLOATS)
def test_structs_and_every_float_type(cuda_device, dtype):
    x = np.linspace(-3, 3, 37).astype(dtype)
    y = launch.empty(x.shape, dtype, cuda_device.put(x))
    f = launch.struct(AFFINE, scale=0.5, offset=-2)
    run(f"affine<{launch.c_type(dtype)}>", (2,), (32,), cuda_device.put(x), y, f, np.int32(37))
    computed_in = np.float64 if dtype is np.float64 else np.float32
    expected = (x.astype(computed_in) * computed_in(0.5) - computed_in(2)).astype(dtype)
    np.testing.assert_array_equal(cuda_device.get(y).astype(np.float64), expected.astype(np.float64))


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_conversions_agree_with_numpy_for_all_bit_patterns(dtype):
    halves = np.arange(2**16, dtype=np.uint16).view(dtype)
    patterns = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        finite = np.sort(halves[np.isfinite(halves)].astype(np.float64))
    between = (finite[:-1] + finite[1:]) / 2
    with installed(HostLauncher()), np.errstate(all="ignore"):
        for x in (halves.astype(np.float32), patterns, between.astype(np.float32)):
            y = _converted_on_host(x, dtype)
            np.testing.assert_array_equal(y.astype(np.float32), x.astype(dtype).astype(np.float32))
        widened = _converted_on_host(halves, np.float32)
        np.testing.assert_array_equal(widened, halves.astype(np.float32))


def _converted_on_host(x, dtype):
    y = np.empty(x.shape, dtype)
    name = f"convert<{launch.c_type(x.dtype)}, {launch.c_type(dtype)}>"
    run(name, (launch.divide_up(x.size, 256),), (256,), x, y, np.int32(x.size))
    return y


@needs_compiler
def test_optional_pointer():
    x = np.arange(8, dtype=np.float32)
    with installed(HostLauncher()):
        for bias in (None, np.ones(8, np.float32)):
            y = launch.empty((8,), np.float32, x)
            run("optional", (1,), (8,), x, bias, y)
            np.testing.assert_array_equal(y, x if bias is None else x + 1)


@needs_compiler
def test_new_arrays_and_dynamic_shared_memory_hold_nan():
    with installed(HostLauncher()):
        like = np.zeros(1)
        for dtype in FLOATS:
            assert np.isnan(launch.empty((2, 3), dtype, like).astype(np.float64)).all()
        y = np.zeros(32, np.int32)
        run("read_beyond_dynamic_shared", (1,), (32,), y, shared_bytes=128)
        assert (y == -1).all()


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="touches pages here and there of more memory than there may be")
def test_ends_of_an_array_beyond_2_31_elements():
    planes, size = 33_000, 256
    x = np.empty((1, planes, size, size), np.float16)
    assert x.size > 2**31
    rng = np.random.default_rng(0)
    for plane in (0, -1):
        x[0, plane] = rng.standard_normal((size, size))
    with installed(HostLauncher(ends_only=2)):
        y, offsets = cuda.max_pool(x, (2, 2), (2, 2), (0, 0), (1, 1))
    # Two blocks of 256 threads, each of which makes at least one value.
    for plane, rows in ((0, slice(0, 4)), (-1, slice(-4, None))):
        windows = x[0, plane].reshape(128, 2, 128, 2).swapaxes(1, 2).reshape(128, 128, 4)[rows]
        np.testing.assert_array_equal(y[0, plane, rows], windows.max(2))
        np.testing.assert_array_equal(offsets[0, plane, rows], windows.argmax(2))


@needs_compiler
def test_chosen_blocks():
    y = np.full(24 * 12, -1, np.int32)
    with installed(HostLauncher(ends_only=lambda grid: [(grid[0] - 1, 0, 1), (0, 2, 0)])):
        run("where_am_i", (4, 3, 2), (2, 3, 2), y)
    blocks = y.reshape(24, 12)
    assert np.flatnonzero((blocks >= 0).any(1)).tolist() == [8, 15]
    np.testing.assert_array_equal(blocks[15], 15_000 + np.arange(12))
    y[:] = -1
    with installed(HostLauncher(ends_only=3)):
        run("where_am_i", (4, 3, 2), (2, 3, 2), y)
        assert np.flatnonzero((blocks >= 0).any(1)).tolist() == [0, 1, 2, 21, 22, 23]
        run("where_am_i", (1,), (2, 3, 2), y)
    with installed(HostLauncher(ends_only=lambda grid: [grid])), pytest.raises(ValueError, match="beyond the grid"):
        run("where_am_i", (4, 3, 2), (2, 3, 2), y)


# ---- mistakes are found


@needs_compiler
def test_shared_variables_that_the_runner_would_miss_are_refused(tmp_path):
    (tmp_path / "two.cu").write_text("__global__ void two(int* y) { __shared__ int a[4], b[4]; y[0] = a[1] + b[1]; }")
    with installed(HostLauncher()), pytest.raises(ValueError, match=r"two.cu: declare shared variables one by one"):
        launch.launch(Kernel("two.cu", "two", tmp_path), (1,), (1,), [np.zeros(1, np.int32)])


@needs_compiler
def test_a_missing_barrier_shows():
    x = np.arange(64, dtype=np.int32) + 1000
    y = np.zeros_like(x)
    with installed(HostLauncher()):
        run("missing_barrier", (1,), (64,), x, y)
        assert (y != np.roll(x, -32)).any()
        run("missing_barrier_hidden_by_order", (1,), (64,), x, y)
        assert (y == x[np.arange(64) // 2]).all()
    with installed(HostLauncher(seed=1)):
        run("missing_barrier_hidden_by_order", (1,), (64,), x + 1, y)
        assert (y != x[np.arange(64) // 2] + 1).any()


@needs_compiler
def test_a_warp_that_is_held_back_shows_a_missing_second_barrier():
    x = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)

    def wrong(seed):
        sums = np.zeros((len(x), 4), np.float32)
        with installed(HostLauncher(seed=seed)):
            run("one_barrier_a_row", (1,), (128,), x, sums, np.int32(len(x)))
        return not np.allclose(sums, x.sum(1)[:, None], atol=1e-4)

    assert not wrong(None)
    # A warp is held back in every other block.
    assert 3 < sum(wrong(seed) for seed in range(16)) < 16


class _Elsewhere(HostLauncher):
    """Takes the sources from another folder."""

    def __init__(self, seed, folder):
        super().__init__(seed=seed)
        self.folder = folder

    def run(self, kernel, *args):
        super().run(replace(kernel, folder=self.folder), *args)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="builds sources of its own")
def test_softmax_cross_entropy_without_its_second_barrier_is_found_out(tmp_path, monkeypatch):
    whole, without = tmp_path / "whole", tmp_path / "without"
    text = Kernel("softmax_cross_entropy.cu", "").text()
    fewer, removed = re.subn(r"__syncthreads\(\);  // before the next row's are written", "", text)
    assert removed == 1
    for folder, content in ((whole, text), (without, fewer)):
        folder.mkdir()
        (folder / "softmax_cross_entropy.cu").write_text(content)

    # All rows in one block, more than one warp to a row.
    monkeypatch.setattr(cuda_rows, "MOST_BLOCKS", 1)
    logits = np.random.default_rng(0).standard_normal((32, 4000)).astype(np.float32)
    target = np.arange(32)
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials / exponentials.sum(1, keepdims=True) - np.eye(32, 4000)

    def right(seed, folder):
        with installed(_Elsewhere(seed, folder)):
            _, grad = cuda.softmax_cross_entropy(logits, target, reduction="sum", with_grad=True)
        return np.allclose(grad, expected, atol=1e-6)

    assert all(right(seed, whole) for seed in range(8))
    assert not all(right(seed, without) for seed in range(8))


@needs_compiler
def test_a_block_does_not_find_what_another_left_in_shared_memory():
    y = np.zeros(64, np.float32)
    with installed(HostLauncher()):
        run("uninitialized_shared<float>", (2,), (32,), y)
    assert (y[:32] == 1).all() and np.isnan(y[32:]).all()


@needs_compiler
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(
    "name, message",
    [
        ("divergent_barrier", r"40 threads wait in __syncthreads \(checks.cu:\d+\), 24 have ended"),
        ("barriers_at_two_places", r"40 threads .*, 24 threads wait in __syncthreads .*, 0 have ended"),
        ("shuffle_without_all_lanes", r"60 threads wait in __shfl_sync .*, 4 have ended"),
    ],
)
def test_threads_that_cannot_meet_are_an_error_and_the_next_launch_works(name, message, seed):
    y = np.zeros(64, np.int32)
    with installed(HostLauncher(seed=seed)):
        for _ in range(2):
            with pytest.raises(CudaOnHostError, match="divergent barrier: " + message):
                run(name, (1,), (64,), y)
        run("reverse_rows", (1,), (64,), np.arange(64, dtype=np.int32), y, shared_bytes=256)
    np.testing.assert_array_equal(y, np.arange(64)[::-1])


@needs_compiler
def test_arguments_must_have_the_exact_types_of_the_parameters():
    x, y = np.zeros(8, np.float32), np.zeros(8, np.float32)
    f = launch.struct(AFFINE, scale=1, offset=0)
    with installed(HostLauncher()):
        for args in (
            [x, y.astype(np.float64), f, np.int32(8)],
            [x, y, f, np.int64(8)],
            [x, y, f],
            [x, y, np.float32(1), np.int32(8)],
        ):
            with pytest.raises(TypeError, match="its parameters are"):
                run("affine<float>", (1,), (8,), *args)


MISTAKES = {
    "write_beyond_array": ("heap-buffer-overflow", np.zeros(63, np.int32), 63, 0),
    "write_beyond_shared": ("overflow|out of bounds", np.zeros(64, np.int32), 4, 0),
    "write_beyond_shared_of_template<float>": ("overflow|insufficient space", np.zeros(64, np.float32), 4, 0),
    "read_beyond_dynamic_shared": ("heap-buffer-overflow", np.zeros(64, np.int32), None, 252),
    "signed_overflow": ("signed integer overflow", np.zeros(64, np.int32), 65536, 0),
}


@pytest.mark.skipif(not sanitizing(), reason="runs in the process that test_sanitizers_find starts")
def test_mistakes():
    """Each mistake ends its process, so each gets a fork of this one."""
    for name, (_, array, number, shared_bytes) in MISTAKES.items():
        print(f"\n<{name}>", file=sys.stderr, flush=True)
        child = os.fork()
        if child == 0:
            args = [array] if number is None else [array, np.int32(number)]
            with installed(HostLauncher(sanitize=True)):
                run(name, (1,), (64,), *args, shared_bytes=shared_bytes)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"\nended with {os.waitstatus_to_exitcode(status)}\n</{name}>", file=sys.stderr, flush=True)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_sanitizers_find():
    found = run_under_sanitizers(f"{__file__}::test_mistakes").stderr
    for name, (message, *_) in MISTAKES.items():
        report = found.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
        assert re.search(message, report), (name, found)
        assert "ended with 0" not in report


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_right_kernels_pass_under_sanitizers():
    names = "every_device or once or functions or structs or optional or meet"
    result = run_under_sanitizers(__file__, "-k", names)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
