"""The CUDA pooling against plain loops in float64 and against the NumPy kernels, on every device there is."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from naive_pooling import Adaptive, Windows, averages, maxima, norms, scattered, unpooled

from adjoint.kernels import cpu
from adjoint.kernels.cuda import pool_plan, pooling
from cuda_on_host import (
    HostLauncher,
    device_fixture,
    installed,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
EPSILON = {"float32": 2e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class Case:
    name: str
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    ceil: bool = False
    dtypes: tuple[str, ...] = ("float32",)

    @property
    def window(self):
        rank = len(self.kernel)
        return self.kernel, self.stride, self.padding or (0,) * rank, self.dilation or (1,) * rank

    def windows(self, y_shape):
        return Windows(self.x[2:], y_shape[2:], *self.window)


CASES = [
    Case("2x2/2", (2, 3, 8, 12), (2, 2), (2, 2), dtypes=ALL),
    Case("2x2/2, odd, ceil", (2, 2, 7, 9), (2, 2), (2, 2), ceil=True, dtypes=("float32", "float16")),
    Case("3x3/2, padded", (2, 3, 12, 16), (3, 3), (2, 2), (1, 1), dtypes=ALL),
    Case("3x3/2, padded, odd, ceil", (2, 3, 11, 13), (3, 3), (2, 2), (1, 1), ceil=True),
    Case("3x3/1, padded", (2, 3, 6, 7), (3, 3), (1, 1), (1, 1), dtypes=ALL),
    Case("3x3/1, one row", (1, 5, 1, 4), (3, 3), (1, 1), (1, 1)),
    Case("2x3, strides 1 and 2", (2, 3, 6, 9), (2, 3), (1, 2), dtypes=("float32", "float64")),
    Case("5x4, padded, ceil", (1, 3, 13, 11), (5, 4), (3, 3), (2, 1), ceil=True, dtypes=ALL),
    Case("dilated", (2, 2, 13, 15), (3, 2), (2, 1), (1, 0), (2, 3), dtypes=("float32", "bfloat16")),
    Case("dilated, ceil", (1, 2, 12, 14), (3, 3), (2, 3), (1, 1), (3, 2), True),
    Case("one pixel", (3, 2, 1, 1), (1, 1), (1, 1)),
    Case("global", (3, 50, 7, 7), (7, 7), (7, 7), dtypes=("float32", "float16")),
    Case("many planes", (40, 9, 2, 2), (2, 2), (2, 2)),
    Case("more tiles than one", (1, 2, 60, 70), (3, 3), (2, 2), (1, 1), dtypes=("float32", "bfloat16")),
    # Taken directly from memory: too large, too far apart, or too many over one element.
    Case("gaps between windows", (2, 2, 19, 20), (2, 1), (6, 7)),
    Case("global, large: offsets of 2 bytes", (2, 2, 124, 123), (124, 123), (1, 1), dtypes=("float32", "float64")),
    Case("overlapping, 8 lanes", (1, 2, 12, 12), (6, 7), (2, 1), (3, 3), ceil=True),
    Case("offsets of 4 bytes", (1, 1, 182, 182), (182, 181), (1, 1)),
    Case("stride and dilation without use", (1, 2, 4, 4), (1, 1), (2**40, 2**40), dilation=(2**40, 2**35)),
    # One axis.
    Case("1d, 2/2", (3, 4, 37), (2,), (2,), dtypes=ALL),
    Case("1d, 3/2 padded", (2, 3, 700), (3,), (2,), (1,), dtypes=("float32", "float16")),
    Case("1d, dilated", (2, 1, 40), (4,), (3,), (2,), (3,)),
    Case("1d, long window", (2, 2, 900), (600,), (100,)),
    # Three axes.
    Case("3d, 2/2", (2, 3, 4, 6, 8), (2, 2, 2), (2, 2, 2), dtypes=ALL),
    Case("3d, 3/2 padded", (2, 2, 5, 8, 7), (3, 3, 3), (2, 2, 2), (1, 1, 1), dtypes=("float32", "bfloat16")),
    Case("3d, 3/1 padded, ceil", (1, 2, 4, 5, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), ceil=True),
    Case("3d, uneven, dilated", (1, 2, 7, 6, 9), (2, 3, 1), (3, 1, 2), (1, 1, 0), (2, 1, 4)),
    Case("3d, global", (2, 30, 3, 4, 5), (3, 4, 5), (1, 1, 1), dtypes=("float32", "float16")),
]
PARITY = [pytest.param(case, dtype, id=f"{case.name}-{dtype}") for case in CASES for dtype in case.dtypes]
AVERAGES = [row for row in PARITY if set(row.values[0].dilation) <= {1} and "offsets of 4" not in row.values[0].name]
NORMS = [row for row in AVERAGES if not any(row.values[0].padding)]
BY_NAME = {case.name: case for case in CASES}
ADAPTIVE = [
    ((2, 3, 7, 9), (3, 4), "float32"), ((2, 3, 7, 9), (3, 4), "float16"), ((1, 2, 4, 5), (6, 3), "float64"),
    ((2, 2, 6, 8), (3, 1), "bfloat16"), ((2, 5, 40), (7,), "float32"), ((1, 2, 5, 6, 7), (2, 4, 3), "float32"),
    ((1, 1, 60, 90), (7, 50), "float32"), ((1, 2, 64, 65), (2, 2), "float32"), ((2, 2, 3), (5,), "float32"),
]  # fmt: skip


@pytest.fixture(params=["wide", "narrow"])
def tiles(request, monkeypatch):
    """Tiles as on a device, and so small that rows are cut."""
    pool_plan.plan.cache_clear()
    if request.param == "narrow":
        monkeypatch.setattr(pool_plan, "_SHARED", 1500)
        monkeypatch.setattr(pool_plan, "_MOST_SHARED", 3000)
    yield
    pool_plan.plan.cache_clear()


def input_of(case, dtype):
    """Small integers, so that many are equal."""
    return np.random.default_rng(len(case.name)).integers(-6, 7, case.x).astype(dtype)


def gradient_of(shape, dtype):
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


def assert_close(actual, expected, dtype, terms=1):
    assert actual.dtype == np.dtype(dtype)
    assert actual.flags.c_contiguous
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=EPSILON[dtype], atol=terms * EPSILON[dtype])


@pytest.mark.parametrize("case, dtype", PARITY)
def test_parity_max(cuda_device, tiles, case, dtype):
    x = input_of(case, dtype)
    given = x.copy()
    put, get = cuda_device.put, cuda_device.get
    y, offsets = pooling.max_pool(put(x), *case.window, case.ceil)
    expected_y, expected_offsets, positions = maxima(x, case.windows(y.shape))
    np.testing.assert_array_equal(get(y).astype(np.float64), expected_y)
    np.testing.assert_array_equal(get(offsets), expected_offsets)
    on_cpu = cpu.max_pool(x, *case.window, case.ceil)
    assert (y.dtype, offsets.dtype) == (on_cpu[0].dtype, on_cpu[1].dtype)

    indices = get(pooling.max_pool_indices(offsets, case.x, *case.window))
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, positions)
    np.testing.assert_array_equal(get(pooling.max_pool_gather(put(x), offsets, *case.window)), get(y))

    dy = gradient_of(y.shape, dtype)
    dx = get(pooling.max_pool_scatter(put(dy), offsets, case.x, *case.window))
    assert_close(dx, scattered(dy, positions, case.x[2:]), dtype, terms=4)
    np.testing.assert_array_equal(get(put(x)), given)


@pytest.mark.parametrize("setting", ["include", "exclude", "override"])
@pytest.mark.parametrize("case, dtype", AVERAGES)
def test_parity_avg(cuda_device, tiles, case, dtype, setting):
    x = input_of(case, dtype)
    settings = (*case.window[:3], case.ceil, setting != "exclude", -3 if setting == "override" else None)
    y = pooling.avg_pool(cuda_device.put(x), *settings)
    dy = gradient_of(y.shape, dtype)
    dx = pooling.avg_pool_input_grad(cuda_device.put(dy), case.x, *settings)
    expected_y, expected_dx = averages(x, dy, case.windows(y.shape), *settings[4:])
    terms = 10 if dtype == "float32" else 1
    assert_close(cuda_device.get(y), expected_y, dtype, terms)
    assert_close(cuda_device.get(dx), expected_dx, dtype, terms)
    assert_close(cuda_device.get(y), cpu.avg_pool(x, *settings).astype(np.float64), dtype, terms)


@pytest.mark.parametrize("p", [1, 2, 3.5])
@pytest.mark.parametrize("case, dtype", NORMS)
def test_parity_lp(cuda_device, tiles, case, dtype, p):
    x = input_of(case, dtype) if p == 2 else (np.abs(input_of(case, dtype).astype(float)) / 4).astype(dtype)
    x[0, 0] = 0
    settings = (p, *case.window[:2], case.ceil)
    put, get = cuda_device.put, cuda_device.get
    y = pooling.lp_pool(put(x), *settings)
    dy = gradient_of(y.shape, dtype)
    dx = pooling.lp_pool_input_grad(put(dy), put(x), y, *settings)
    expected_y, expected_dx = norms(x, dy, case.windows(y.shape), p)
    assert get(y).dtype == get(dx).dtype == np.dtype(dtype)
    # The half types round y before the gradient uses it: p - 1 times, nearly.
    scale = EPSILON[dtype] * 5
    np.testing.assert_allclose(get(y).astype(float), expected_y, rtol=scale, atol=scale)
    np.testing.assert_allclose(get(dx).astype(float), expected_dx, rtol=2 * scale, atol=4 * scale)


@pytest.mark.parametrize("shape, output, dtype", ADAPTIVE, ids=str)
def test_parity_adaptive(cuda_device, tiles, shape, output, dtype):
    put, get = cuda_device.put, cuda_device.get
    windows = Adaptive(shape[2:], output)
    x = np.random.default_rng(0).integers(-6, 7, shape).astype(dtype)
    y, indices = pooling.adaptive_max_pool(put(x), output)
    expected_y, _, positions = maxima(x, windows)
    np.testing.assert_array_equal(get(y).astype(np.float64), expected_y)
    np.testing.assert_array_equal(get(indices), positions)
    dy = gradient_of(y.shape, dtype)
    dx = pooling.adaptive_max_pool_scatter(put(dy), indices, shape)
    assert_close(get(dx), scattered(dy, positions, shape[2:]), dtype, terms=4)
    np.testing.assert_array_equal(get(pooling.adaptive_max_pool_gather(put(x), indices)), get(y))

    expected_y, expected_dx = averages(x, dy, windows, include_pad=False)
    assert_close(get(pooling.adaptive_avg_pool(put(x), output)), expected_y, dtype, terms=4)
    assert_close(get(pooling.adaptive_avg_pool_input_grad(put(dy), shape)), expected_dx, dtype, terms=4)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape, size", [((2, 3, 7), (9,)), ((1, 2, 60, 50), (70, 80)), ((2, 1, 2, 3, 4), (3, 2, 5))])
def test_parity_unpool(cuda_device, shape, size, dtype):
    put, get = cuda_device.put, cuda_device.get
    rng = np.random.default_rng(0)
    x, indices = gradient_of(shape, dtype), rng.integers(0, np.prod(size), shape)
    y = pooling.max_unpool(put(x), put(indices), size)
    expected, kept = unpooled(x, indices, size)
    assert not kept.all()
    np.testing.assert_array_equal(get(y).astype(np.float64), expected)
    dy = gradient_of(y.shape, dtype)
    taken = np.take_along_axis(dy.reshape(*shape[:2], -1), indices.reshape(*shape[:2], -1), 2).reshape(shape)
    dx = get(pooling.max_unpool_input_grad(put(dy), put(indices)))
    np.testing.assert_array_equal(dx, np.where(kept, taken, np.zeros((), dtype)))


def test_parity_of_positions_outside(cuda_device):
    x = np.ones((1, 1, 4), np.float32)
    indices = np.array([[[-1, 2, 5, 2**40]]])
    y = pooling.max_unpool(cuda_device.put(x), cuda_device.put(indices), (5,))
    np.testing.assert_array_equal(cuda_device.get(y), [[[0, 0, 1, 0, 0]]])
    dx = pooling.max_unpool_input_grad(y, cuda_device.put(indices))
    np.testing.assert_array_equal(cuda_device.get(dx), [[[0, 1, 0, 0]]])


@pytest.mark.parametrize(
    "name", ["2x2/2", "3x3/2, padded", "3x3/1, padded", "5x4, padded, ceil", "overlapping, 8 lanes", "3d, 3/2 padded"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parity_of_nan_and_infinity(cuda_device, name, dtype):
    case = BY_NAME[name]
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([-np.inf, -np.inf, np.inf, np.nan, 1.0]), case.x, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    x[0, 0] = -np.inf
    x = x.astype(dtype)
    y, offsets = pooling.max_pool(cuda_device.put(x), *case.window, case.ceil)
    expected_y, expected_offsets, _ = maxima(x, case.windows(y.shape))
    np.testing.assert_array_equal(cuda_device.get(y).astype(np.float64), expected_y)
    np.testing.assert_array_equal(cuda_device.get(offsets), expected_offsets)


def views_of(x):
    """The same values behind other strides, and from an address that is no multiple of a vector's size."""
    shifted = x.ravel().repeat(2)[: x.size + 1]
    shifted[1:] = x.ravel()
    return {
        "strided": x.repeat(2, axis=3)[..., ::2],
        "reversed": x[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
        "transposed": x.transpose(3, 1, 0, 2).copy().transpose(2, 1, 3, 0),
        "misaligned": shifted[1:].reshape(x.shape),
    }


@pytest.mark.parametrize("view", ["strided", "reversed", "transposed", "misaligned"])
@pytest.mark.parametrize("name", ["2x2/2", "3x3/2, padded", "dilated"])
def test_parity_of_views(cuda_device, name, view):
    case, put, get = BY_NAME[name], cuda_device.put, cuda_device.get
    x = put(input_of(case, "float32"))
    viewed = views_of(x)[view]
    y, offsets = pooling.max_pool(x, *case.window)
    dy = put(gradient_of(y.shape, "float32"))
    dy_view, offsets_view = views_of(dy)[view], views_of(offsets)[view]
    pairs = [
        *zip(pooling.max_pool(viewed, *case.window), (y, offsets), strict=True),
        [pooling.max_pool_scatter(a, o, case.x, *case.window) for a, o in ((dy, offsets), (dy_view, offsets_view))],
    ]
    settings = (*case.window[:3], False, True, None)
    if not any(case.dilation):
        norm = (2, *case.window[:2])
        p = pooling.lp_pool(x, *norm)
        pairs += [
            [pooling.avg_pool(a, *settings) for a in (x, viewed)],
            [pooling.avg_pool_input_grad(a, case.x, *settings) for a in (dy, dy_view)],
            [pooling.lp_pool(a, *norm) for a in (x, viewed)],
            [pooling.lp_pool_input_grad(p, a, p, *norm, False) for a in (x, viewed)],
            [pooling.adaptive_avg_pool(a, (3, 5)) for a in (x, viewed)],
        ]
    for one, other in pairs:
        np.testing.assert_array_equal(get(one), get(other))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (0, 2, 4, 4, 4)])
def test_parity_of_empty_arrays(cuda_device, shape):
    rank = len(shape) - 2
    window = ((2,) * rank, (2,) * rank, (0,) * rank, (1,) * rank)
    x = cuda_device.put(np.zeros(shape, np.float32))
    y, offsets = pooling.max_pool(x, *window)
    assert y.shape == offsets.shape == (*shape[:2], *y.shape[2:])
    assert pooling.max_pool_scatter(y, offsets, shape, *window).shape == shape
    assert pooling.max_pool_gather(x, offsets, *window).shape == y.shape
    indices = pooling.max_pool_indices(offsets, shape, *window)
    assert indices.dtype == np.int64
    assert pooling.max_unpool(y, indices, shape[2:]).shape == shape
    assert pooling.max_unpool_input_grad(x, indices).shape == y.shape
    assert pooling.avg_pool(x, *window[:3]).shape == pooling.lp_pool(x, 2, *window[:2]).shape == y.shape
    assert pooling.avg_pool_input_grad(y, shape, *window[:3], False, True, None).shape == shape
    assert pooling.adaptive_avg_pool_input_grad(y, shape).shape == shape


def test_parity_of_adaptive_pooling_to_nothing(cuda_device):
    x = cuda_device.put(np.ones((2, 3, 4, 5), np.float32))
    y, indices = pooling.adaptive_max_pool(x, (0, 2))
    assert y.shape == indices.shape == pooling.adaptive_avg_pool(x, (0, 2)).shape == (2, 3, 0, 2)
    assert not cuda_device.get(pooling.adaptive_max_pool_scatter(y, indices, x.shape)).any()
    assert not cuda_device.get(pooling.adaptive_avg_pool_input_grad(y, x.shape)).any()


def test_parity_of_offsets_of_another_type(cuda_device, tiles):
    case = BY_NAME["3x3/2, padded"]
    x = cuda_device.put(input_of(case, "float32"))
    y, offsets = pooling.max_pool(x, *case.window)
    dx = pooling.max_pool_scatter(y, offsets, case.x, *case.window)
    for dtype in (np.int16, np.int32):
        other = pooling.max_pool_scatter(y, offsets.astype(dtype), case.x, *case.window)
        np.testing.assert_array_equal(cuda_device.get(other), cuda_device.get(dx))
        gathered = pooling.max_pool_gather(x, offsets.astype(dtype), *case.window)
        np.testing.assert_array_equal(cuda_device.get(gathered), cuda_device.get(y))


def test_parity_of_offsets_that_point_beyond_the_edge(cuda_device):
    case = BY_NAME["3x3/2, padded"]
    x = input_of(case, "float32")
    y = cpu.max_pool(x, *case.window)[0]
    offsets = np.random.default_rng(0).integers(0, 255, y.shape).astype(np.uint8)
    gathered = pooling.max_pool_gather(cuda_device.put(x), cuda_device.put(offsets), *case.window)
    dx = pooling.max_pool_scatter(cuda_device.put(y), cuda_device.put(offsets), case.x, *case.window)
    assert np.isin(cuda_device.get(gathered), [*np.unique(x), 0]).all()
    assert np.isfinite(cuda_device.get(dx)).all()


@needs_compiler
@pytest.mark.parametrize("name", ["3x3/1, padded", "overlapping, 8 lanes", "more tiles than one", "3d, 3/2 padded"])
def test_results_are_the_same_bits_in_every_order(name):
    case = BY_NAME[name]
    x = np.random.default_rng(0).standard_normal(case.x).astype(np.float32)
    results = set()
    for seed in (None, None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            mean = pooling.avg_pool(x, *case.window[:3], case.ceil)
            dx = pooling.avg_pool_input_grad(mean, case.x, *case.window[:3], case.ceil, False, None)
            y, offsets = pooling.max_pool(x, *case.window, case.ceil)
            back = pooling.max_pool_scatter(mean, offsets, case.x, *case.window)
            again = pooling.max_unpool(mean, np.zeros(mean.shape, np.int64), (3,) * (x.ndim - 2))
        results.add(b"".join(array.tobytes() for array in (mean, dx, y, back, again)))
    assert len(results) == 1


@needs_compiler
def test_variants():
    """Windows without common elements need no second pass; those that fit no tile go without staging."""
    launcher = HostLauncher()
    with installed(launcher):
        for name in ("3x3/2, padded", "global, large: offsets of 2 bytes", "gaps between windows"):
            case = BY_NAME[name]
            x = np.zeros(case.x, np.float16)
            y, offsets = pooling.max_pool(x, *case.window)
            pooling.max_pool_scatter(y, offsets, x.shape, *case.window)
    assert [kernel.name for kernel in launcher.launches] == [
        "max_pool<float16, true>", "max_pool_scatter<float16>",
        "max_pool<float16, true>", "max_pool_scatter<float16>",
        "max_pool<float16, false>", "max_pool_scatter_large<float16>",
    ]  # fmt: skip


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    chosen = "parity and not float64 and not float16 and not exclude and not large"
    result = run_under_sanitizers(__file__, "-k", chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
