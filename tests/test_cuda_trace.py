"""What a traced run counts, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adjoint.kernels.cuda import launch
from adjoint.kernels.cuda.kernel import Kernel
from cuda_on_host import HostLauncher, StrayAccess, installed, list_kernels, needs_compiler, sanitizing

pytestmark = [needs_compiler, pytest.mark.skipif(sanitizing(), reason="a traced build has no sanitizers")]

FOLDER = Path(__file__).parent / "cuda_on_host"
NAMES = [
    *("read_strided<float>", "read_strided<double>", "read_strided<float16>", "read_one", "read_row_by_each_block"),
    *("copy_packs<float, 4>", "copy_packs<float16, 8>", "copy_packs<float16, 2>"),
    *("loops_of_different_lengths", "read_between_meetings", "branches", "read_through_table"),
    *("read_shared<float>", "read_shared<double>", "read_shared<float16>", "read_shared_packs", "transpose_tile"),
    "read_beyond_the_end",
]
list_kernels([Kernel("accesses.cu", name, FOLDER) for name in NAMES])


def traced(name, grid, block, *args, shared_bytes=0, reached=()):
    launcher = HostLauncher(trace=True)
    with installed(launcher):
        launch.launch(Kernel("accesses.cu", name, FOLDER), grid, block, args, shared_bytes, reached)
    (trace,) = launcher.traces
    return trace


def loads(trace, shared=False):
    (instruction,) = [i for i in trace.instructions if not i.write and i.shared == shared]
    return instruction.requests, instruction.cost, instruction.least


def stores(trace, shared=False):
    (instruction,) = [i for i in trace.instructions if i.write and i.shared == shared]
    return instruction.requests, instruction.cost, instruction.least


@pytest.mark.parametrize(
    "scalar, dtype, stride, offset, sectors, least",
    [
        ("float", np.float32, 1, 0, 4, 4),
        ("float", np.float32, 1, 1, 5, 4),  # 4 bytes beyond a sector's edge
        ("float", np.float32, 1, 8, 4, 4),  # a whole sector further
        ("float", np.float32, 2, 0, 8, 4),
        ("float", np.float32, 8, 0, 32, 4),
        ("float", np.float32, 32, 0, 32, 4),
        ("float", np.float32, 0, 3, 1, 1),  # all lanes read one
        ("double", np.float64, 1, 0, 8, 8),
        ("double", np.float64, 2, 1, 16, 8),
        ("float16", np.float16, 1, 0, 2, 2),
        ("float16", np.float16, 1, 15, 3, 2),
        ("float16", np.float16, 16, 0, 32, 2),
    ],
)
def test_sectors_of_a_request(scalar, dtype, stride, offset, sectors, least):
    x, y = np.zeros(4096, dtype), np.zeros(64, dtype)
    trace = traced(f"read_strided<{scalar}>", (1,), (64,), x, y, np.int32(stride), np.int32(offset))
    # Two warps: the second one's requests cost the same, but for a misaligned one's share of a sector.
    assert loads(trace) == (2, 2 * sectors, 2 * least)
    assert stores(trace) == (2, 2 * y.itemsize, 2 * y.itemsize)
    assert (trace.requests(), trace.requests(shared=True)) == (4, 0)


def test_a_view_is_as_misaligned_as_on_a_device():
    memory = np.zeros(101, np.float32)
    aligned = traced(
        "read_strided<float>", (1,), (32,), memory[:64], np.zeros(32, np.float32), np.int32(1), np.int32(0)
    )
    shifted = traced("read_strided<float>", (1,), (32,), memory[1:], np.zeros(32, np.float32), np.int32(1), np.int32(0))
    assert (loads(aligned), loads(shifted)) == ((1, 4, 4), (1, 5, 4))


@pytest.mark.parametrize(
    "name, dtype, lanes", [("float, 4", np.float32, 4), ("float16, 8", np.float16, 8), ("float16, 2", np.float16, 2)]
)
def test_a_pack_is_one_access(name, dtype, lanes):
    x = np.arange(64 * lanes).astype(dtype)
    y = np.empty_like(x)
    trace = traced(f"copy_packs<{name}>", (2,), (32,), x, y)
    np.testing.assert_array_equal(y, x + 1)
    sectors = lanes * x.itemsize  # 32 lanes of so many bytes, in sectors of 32 bytes
    assert loads(trace) == stores(trace) == (2, 2 * sectors, 2 * sectors)
    assert [i.bytes for i in trace.instructions] == [lanes * x.itemsize] * 2


def test_traffic_of_arrays():
    x, y = np.zeros(256, np.float32), np.zeros(4 * 64, np.float32)
    trace = traced("read_row_by_each_block", (4,), (64,), x, y)
    row, of_y = sorted(trace.arrays, key=lambda array: array.arguments)
    assert (row.arguments, row.nbytes, row.read, row.written, row.read_by_block) == ((0,), 1024, 256, 0, 4 * 256)
    assert (of_y.arguments, of_y.read, of_y.written, of_y.written_by_block) == ((1,), 0, 1024, 1024)
    assert trace.bytes_moved == 256 + 1024
    assert trace.bytes_by_block == 4 * 256 + 1024


def test_one_value_read_by_all_costs_one_sector():
    trace = traced("read_one", (3,), (64,), np.zeros(64, np.float32), np.zeros(192, np.float32))
    assert loads(trace) == (6, 6, 6)
    assert trace.bytes_moved == 32 + 4 * 192


def test_an_array_given_twice_is_counted_once():
    x = np.zeros(64, np.float32)
    trace = traced("copy_packs<float, 4>", (1,), (16,), x, x)
    (array,) = trace.arrays
    assert (array.arguments, array.read, array.written) == ((0, 1), 256, 256)


def test_lanes_that_leave_a_loop_early():
    trace = traced("loops_of_different_lengths", (1,), (32,), np.zeros(1024, np.float32), np.zeros(32, np.float32))
    # The k-th request has lanes k to 31: rows begin at sectors' edges.
    expected = sum(4 - k // 8 for k in range(32)), sum(-(-(32 - k) * 4 // 32) for k in range(32))
    assert loads(trace) == (32, *expected)


def test_lanes_that_read_between_different_meetings_read_apart():
    x = np.zeros(32, np.float32)
    trace = traced("read_between_meetings", (1,), (32,), x, np.zeros(32, np.float32))
    requests = sum(i.requests for i in trace.instructions if not i.write)
    assert (requests, trace.sectors() - stores(trace)[1]) == (2, 2 * 4)


def test_lanes_in_different_branches_read_apart():
    trace = traced("branches", (1,), (32,), np.zeros(64, np.float32), np.zeros(32, np.float32))
    reads = [i for i in trace.instructions if not i.write]
    assert [(i.requests, i.accesses, i.cost, i.least) for i in reads] == [(1, 16, 2, 2)] * 2


@pytest.mark.parametrize(
    "scalar, dtype, stride, cycles",
    [
        ("float", np.float32, 1, 1),
        ("float", np.float32, 0, 1),
        ("float", np.float32, 2, 2),
        ("float", np.float32, 3, 1),
        ("float", np.float32, 32, 32),
        ("float", np.float32, 33, 1),
        ("double", np.float64, 1, 2),  # half a warp at a time
        ("double", np.float64, 2, 4),
        ("double", np.float64, 0, 2),
        ("float16", np.float16, 1, 1),
        ("float16", np.float16, 2, 1),
        ("float16", np.float16, 4, 2),
    ],
)
def test_conflicts_of_banks(scalar, dtype, stride, cycles):
    y = np.zeros(32, dtype)
    trace = traced(f"read_shared<{scalar}>", (1,), (32,), y, np.int32(stride))
    np.testing.assert_array_equal(y, np.arange(32) * stride % 4096)
    least = 2 if dtype is np.float64 else 1
    assert loads(trace, shared=True) == (1, cycles, least)
    assert trace.conflicts() == cycles - least


@pytest.mark.parametrize("stride, cycles", [(4, 4), (8, 8), (16, 16), (32, 32), (36, 4), (0, 4)])
def test_conflicts_of_16_byte_reads(stride, cycles):
    y = np.zeros(32, np.float32)
    trace = traced("read_shared_packs", (1,), (32,), y, np.int32(stride), shared_bytes=4096)
    start = np.arange(32) * stride % 1024
    np.testing.assert_array_equal(y, 4 * start + 6)
    assert loads(trace, shared=True) == (1, cycles, 4)


@pytest.mark.parametrize("pitch, cycles", [(32, 32), (33, 1)])
def test_conflicts_of_a_transposed_tile(pitch, cycles):
    x = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    y = np.zeros_like(x)
    trace = traced("transpose_tile", (1,), (32, 32), x, y, np.int32(pitch), shared_bytes=4 * 32 * pitch)
    np.testing.assert_array_equal(y, x.T)
    assert loads(trace, shared=True) == (32, 32 * cycles, 32)
    assert stores(trace, shared=True) == (32, 32, 32)
    assert loads(trace) == stores(trace) == (32, 128, 128)


def test_arrays_reached_through_a_table_of_addresses():
    first, second = np.arange(32, dtype=np.float32), np.arange(32, dtype=np.float32) + 100
    table = np.array([first.ctypes.data, second.ctypes.data], np.int64)
    y = np.zeros(32, np.float32)
    trace = traced("read_through_table", (2,), (32,), table, y, reached=[first, second])
    np.testing.assert_array_equal(y, second)
    read = {array.arguments: array.read for array in trace.arrays}
    assert read == {(0,): 32, (1,): 0, (2,): 128, (3,): 128}
    with pytest.raises(StrayAccess, match="reads 4 bytes at 0x"):
        traced("read_through_table", (1,), (32,), table, y)


def test_an_access_beyond_an_array_is_found():
    memory = np.zeros(64, np.float32)
    with pytest.raises(StrayAccess, match=r"read_beyond_the_end .* reads 4 bytes .* outside the arrays"):
        traced("read_beyond_the_end", (1,), (32,), memory[:32], np.zeros(32, np.float32))


def test_traced_runs_are_in_order_and_plain():
    with pytest.raises(ValueError, match="in order"):
        HostLauncher(trace=True, seed=1)
