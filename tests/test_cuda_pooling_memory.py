"""How the CUDA pooling reads memory: in whole sectors, once, and beyond 2^31 elements."""

from __future__ import annotations

import numpy as np
import pytest

from adjoint.kernels import cpu
from adjoint.kernels.cuda import pool_plan, pooling
from cuda_on_host import HostLauncher, installed, needs_compiler, sanitizing


def test_divisions_by_multiplication_are_exact():
    divisors = [*range(1, 200), 2**16 - 1, 2**16, 2**16 + 1, 2**30 - 1, 2**30, 2**31 - 1, 46341, 1_000_003]
    for divisor in divisors:
        multiplier, shift = pool_plan.divisor(divisor)
        assert multiplier < 2**32
        near = [k * divisor + d for k in (0, 1, 2, 3, (2**31 - 1) // divisor) for d in (-1, 0, 1)]
        for n in (*near, 2**31 - 1, 2**31 - 2, 2**30, 123_456_789):
            if 0 <= n < 2**31:
                assert n * multiplier >> shift == n // divisor


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="traced runs are without sanitizers")
@pytest.mark.parametrize("width", [56, 35, 14, 7])
def test_rows_of_any_width_are_read_in_whole_sectors_and_once(width):
    shape = (4, 64, width, width)
    x = np.zeros(shape, np.float32)
    window = ((3, 3), (2, 2), (1, 1), (1, 1))
    launcher = HostLauncher(trace=True)
    with installed(launcher):
        y, offsets = pooling.max_pool(x, *window)
        pooling.max_pool_scatter(y, offsets, shape, *window)
        halved = ((2, 2), (2, 2), (0, 0), False, True, None)
        pooling.avg_pool_input_grad(pooling.avg_pool(x, *halved), shape, *halved)
    for trace in launcher.traces:
        assert trace.sectors() <= 1.2 * trace.least_sectors(), trace.kernel
        assert trace.bytes_moved <= 1.01 * sum(array.nbytes for array in trace.arrays), trace.kernel


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="touches pages here and there of more memory than there may be")
@pytest.mark.parametrize("size", [(256, 256), (16, 64, 64)], ids=str)
def test_ends_of_arrays_beyond_2_31_elements(size):
    rank, planes = len(size), 33_000
    shape = (1, planes, *size)
    window = ((2,) * rank, (2,) * rank, (0,) * rank)
    x = np.empty(shape, np.float16)
    assert x.size > 2**31
    rng = np.random.default_rng(0)
    for plane in (0, -1):
        x[0, plane] = rng.standard_normal(size)
    launcher = HostLauncher(ends_only=60)
    with installed(launcher):
        y, offsets = pooling.max_pool(x, *window, (1,) * rank)
        indices = pooling.max_pool_indices(offsets, shape, *window, (1,) * rank)
        gathered = pooling.max_pool_gather(x, offsets, *window, (1,) * rank)
        dx = pooling.max_pool_scatter(y, offsets, shape, *window, (1,) * rank)
        mean = pooling.avg_pool(x, *window)
        share = pooling.avg_pool_input_grad(mean, shape, *window, False, True, None)
    exact = [cpu.max_pool(x[:, -1:], *window, (1,) * rank), cpu.avg_pool(x[:, -1:], *window)]
    rows = slice(-1, None)  # of the last plane: what the last blocks made
    wanted = cpu.max_pool_indices(exact[0][1], (1, 1, *size), *window, (1,) * rank)
    results = (y, exact[0][0]), (offsets, exact[0][1]), (gathered, exact[0][0]), (indices, wanted), (mean, exact[1])
    for got, want in results:
        np.testing.assert_array_equal(got[0, -1, rows], want[0, 0, rows])
    back = cpu.max_pool_scatter(exact[0][0], exact[0][1], (1, 1, *size), *window, (1,) * rank)
    np.testing.assert_array_equal(dx[0, -1, -2:], back[0, 0, -2:])
    spread = cpu.avg_pool_input_grad(exact[1], (1, 1, *size), *window, False, True, None)
    np.testing.assert_array_equal(share[0, -1, -2:], spread[0, 0, -2:])


@needs_compiler
def test_a_plane_beyond_int32_is_an_error_before_anything_is_allocated():
    x = np.broadcast_to(np.float32(0), (1, 1, 2**16, 2**15))
    with (
        installed(HostLauncher()),
        pytest.raises(ValueError, match=r"avg_pool: on CUDA one plane .* 2147483647 elements, got 65536 x 32768"),
    ):
        pooling.avg_pool(x, (2, 2), (2, 2), (0, 0))
