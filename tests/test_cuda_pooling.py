"""The CUDA pooling against plain loops in float64 and against the NumPy kernels, on every device there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint.kernels import cpu
from adjoint.kernels.cuda import pooling
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
EPSILON = {"float32": 2e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class Case:
    name: str
    x: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil: bool = False
    dtypes: tuple[str, ...] = ("float32",)

    @property
    def window(self):
        return self.kernel, self.stride, self.padding, self.dilation


CASES = [
    # Windows with kernels of their own: rows of whole vectors, then rows that are not.
    Case("2x2/2", (2, 3, 8, 12), (2, 2), (2, 2), dtypes=ALL),
    Case("2x2/2, odd", (2, 3, 7, 9), (2, 2), (2, 2)),
    Case("2x2/2, ceil", (2, 2, 7, 9), (2, 2), (2, 2), ceil=True, dtypes=("float32", "float16")),
    Case("3x3/2", (2, 3, 9, 16), (3, 3), (2, 2), dtypes=ALL),
    Case("3x3/2, ceil", (1, 3, 8, 14), (3, 3), (2, 2), ceil=True),
    Case("3x3/2, padded", (2, 3, 12, 16), (3, 3), (2, 2), (1, 1), dtypes=ALL),
    Case("3x3/2, padded, ceil", (3, 2, 8, 8), (3, 3), (2, 2), (1, 1), ceil=True),
    Case("3x3/2, padded, odd", (2, 3, 11, 13), (3, 3), (2, 2), (1, 1)),
    Case("3x3/1, padded", (2, 3, 6, 8), (3, 3), (1, 1), (1, 1), dtypes=ALL),
    Case("3x3/1, padded, odd", (2, 3, 5, 7), (3, 3), (1, 1), (1, 1)),
    Case("3x3/1, one row", (1, 5, 1, 4), (3, 3), (1, 1), (1, 1)),
    # Any window.
    Case("2x3, strides 1 and 2", (2, 3, 6, 9), (2, 3), (1, 2), dtypes=("float32", "float64")),
    Case("gaps between windows", (2, 2, 9, 10), (2, 1), (3, 4)),
    Case("5x4, padded, ceil", (1, 3, 13, 11), (5, 4), (3, 3), (2, 1), ceil=True, dtypes=ALL),
    Case("dilated", (2, 2, 13, 15), (3, 2), (2, 1), (1, 0), (2, 3), dtypes=("float32", "bfloat16")),
    Case("dilated, ceil", (1, 2, 12, 14), (3, 3), (2, 3), (1, 1), (3, 2), True),
    Case("one pixel", (3, 2, 1, 1), (1, 1), (1, 1)),
    Case("global", (3, 5, 7, 6), (7, 6), (7, 6)),
    Case("global, large: 32 lanes, offsets of 2 bytes", (2, 2, 24, 23), (24, 23), (1, 1), dtypes=ALL),
    Case("overlapping, 8 lanes", (1, 2, 12, 12), (6, 7), (2, 1), (3, 3), ceil=True),
    Case("many planes", (40, 9, 2, 2), (2, 2), (2, 2)),
    Case("offsets of 4 bytes", (1, 1, 182, 182), (182, 181), (1, 1)),
    Case(
        "stride and dilation that no window uses",
        (1, 2, 4, 4),
        (1, 1),
        (2**40, 2**40),
        dilation=(2**40, 2**35),
    ),
]
PARITY = [pytest.param(case, dtype, id=f"{case.name}-{dtype}") for case in CASES for dtype in case.dtypes]
AVERAGES = [row for row in PARITY if row.values[0].dilation == (1, 1)]
BY_NAME = {case.name: case for case in CASES}


def taps_of(case, p, q):
    """The offset and the position of each element of the input in the window of (p, q)."""
    for i, j in product(range(case.kernel[0]), range(case.kernel[1])):
        h = p * case.stride[0] - case.padding[0] + i * case.dilation[0]
        w = q * case.stride[1] - case.padding[1] + j * case.dilation[1]
        if 0 <= h < case.x[2] and 0 <= w < case.x[3]:
            yield i * case.kernel[1] + j, h, w


def max_by_loops(case, x, y_shape):
    y, offsets, indices = np.zeros(y_shape), np.zeros(y_shape, int), np.zeros(y_shape, int)
    for n, c, p, q in np.ndindex(y_shape):
        best = None
        for offset, h, w in taps_of(case, p, q):
            value = float(x[n, c, h, w])
            if best is None or value > best or np.isnan(value):
                best = value
                y[n, c, p, q], offsets[n, c, p, q], indices[n, c, p, q] = value, offset, h * case.x[3] + w
    return y, offsets, indices


def avg_by_loops(case, x, dy, count_include_pad, divisor_override):
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    size = np.array(case.x[2:]) + case.padding
    for p, q in np.ndindex(dy.shape[2:]):
        taps = [(h, w) for _, h, w in taps_of(case, p, q)]
        start = np.array((p, q)) * case.stride - case.padding
        padded = np.prod(np.minimum(start + case.kernel, size) - start)
        divisor = divisor_override or (padded if count_include_pad else len(taps))
        for h, w in taps:
            y[:, :, p, q] += x[:, :, h, w] / divisor
            dx[:, :, h, w] += dy[:, :, p, q] / divisor
    return y, dx


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
def test_parity_max(cuda_device, case, dtype):
    x = input_of(case, dtype)
    given = x.copy()
    put, get = cuda_device.put, cuda_device.get
    y, offsets = pooling.max_pool2d(put(x), *case.window, case.ceil)
    expected_y, expected_offsets, expected_indices = max_by_loops(case, x, y.shape)
    np.testing.assert_array_equal(get(y).astype(np.float64), expected_y)
    np.testing.assert_array_equal(get(offsets), expected_offsets)
    on_cpu = cpu.max_pool2d(x, *case.window, case.ceil)
    assert (y.dtype, offsets.dtype) == (on_cpu[0].dtype, on_cpu[1].dtype)
    np.testing.assert_array_equal(get(offsets), on_cpu[1])

    indices = get(pooling.max_pool2d_indices(offsets, case.x, *case.window))
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, expected_indices)
    gathered = get(pooling.max_pool2d_gather(put(x), offsets, *case.window))
    np.testing.assert_array_equal(gathered, get(y))

    dy = gradient_of(y.shape, dtype)
    dx = get(pooling.max_pool2d_scatter(put(dy), offsets, case.x, *case.window))
    expected_dx = np.zeros((x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]))
    planes = np.arange(len(expected_dx))[:, None]
    np.add.at(expected_dx, (planes, expected_indices.reshape(len(planes), -1)), dy.reshape(len(planes), -1))
    assert_close(dx, expected_dx.reshape(x.shape), dtype, terms=4)
    np.testing.assert_array_equal(get(put(x)), given)


@pytest.mark.parametrize("setting", ["include", "exclude", "override"])
@pytest.mark.parametrize("case, dtype", AVERAGES)
def test_parity_avg(cuda_device, case, dtype, setting):
    x = input_of(case, dtype)
    include, override = setting != "exclude", -3 if setting == "override" else None
    y = pooling.avg_pool2d(cuda_device.put(x), case.kernel, case.stride, case.padding, case.ceil, include, override)
    dy = gradient_of(y.shape, dtype)
    dx = pooling.avg_pool2d_input_grad(
        cuda_device.put(dy), case.x, case.kernel, case.stride, case.padding, case.ceil, include, override
    )
    expected_y, expected_dx = avg_by_loops(case, x.astype(float), dy.astype(float), include, override)
    terms = 10 if dtype == "float32" else 1
    assert_close(cuda_device.get(y), expected_y, dtype, terms)
    assert_close(cuda_device.get(dx), expected_dx, dtype, terms)
    on_cpu = cpu.avg_pool2d(x, case.kernel, case.stride, case.padding, case.ceil, include, override)
    assert_close(cuda_device.get(y), on_cpu.astype(np.float64), dtype, terms)


@pytest.mark.parametrize("name", ["2x2/2", "3x3/2, padded", "3x3/1, padded", "5x4, padded, ceil"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parity_of_nan_and_infinity(cuda_device, name, dtype):
    case = BY_NAME[name]
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([-np.inf, -np.inf, np.inf, np.nan, 1.0]), case.x, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    x[0, 0] = -np.inf
    x = x.astype(dtype)
    y, offsets = pooling.max_pool2d(cuda_device.put(x), *case.window, case.ceil)
    expected_y, expected_offsets, _ = max_by_loops(case, x, y.shape)
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
    x = input_of(case, "float32")
    y, offsets = pooling.max_pool2d(put(x), *case.window)
    y_of_view, offsets_of_view = pooling.max_pool2d(views_of(put(x))[view], *case.window)
    np.testing.assert_array_equal(get(y_of_view), get(y))
    np.testing.assert_array_equal(get(offsets_of_view), get(offsets))
    dy = put(gradient_of(y.shape, "float32"))
    dx = pooling.max_pool2d_scatter(dy, offsets, case.x, *case.window)
    dx_of_view = pooling.max_pool2d_scatter(views_of(dy)[view], views_of(offsets)[view], case.x, *case.window)
    np.testing.assert_array_equal(get(dx_of_view), get(dx))
    window = case.window[:3]
    mean = pooling.avg_pool2d(put(x), *window)
    np.testing.assert_array_equal(get(pooling.avg_pool2d(views_of(put(x))[view], *window)), get(mean))
    settings = (case.x, *window, False, True, None)
    if case.dilation == (1, 1):
        gradient = pooling.avg_pool2d_input_grad(dy, *settings)
        gradient_of_view = pooling.avg_pool2d_input_grad(views_of(dy)[view], *settings)
        np.testing.assert_array_equal(get(gradient_of_view), get(gradient))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)])
@pytest.mark.parametrize("kernel", [2, 4])
def test_parity_of_empty_arrays(cuda_device, shape, kernel):
    case = Case("empty", shape, (kernel, kernel), (2, 2))
    x = cuda_device.put(np.zeros(shape, np.float32))
    y, offsets = pooling.max_pool2d(x, *case.window)
    assert y.shape == offsets.shape == (*shape[:2], *y.shape[2:])
    assert pooling.max_pool2d_scatter(y, offsets, shape, *case.window).shape == shape
    assert pooling.max_pool2d_gather(x, offsets, *case.window).shape == y.shape
    assert pooling.max_pool2d_indices(offsets, shape, *case.window).dtype == np.int64
    assert pooling.avg_pool2d(x, *case.window[:3]).shape == y.shape
    assert pooling.avg_pool2d_input_grad(y, shape, *case.window[:3], False, True, None).shape == shape


@pytest.mark.parametrize("name", ["3x3/2, padded", "5x4, padded, ceil", "overlapping, 8 lanes"])
def test_parity_of_several_slabs(cuda_device, name, monkeypatch):
    case = replace(BY_NAME[name], x=(5, *BY_NAME[name].x[1:]))
    x = input_of(case, "float32")

    def results():
        y, offsets = pooling.max_pool2d(cuda_device.put(x), *case.window, case.ceil)
        dx = pooling.max_pool2d_scatter(y, offsets, case.x, *case.window)
        mean = pooling.avg_pool2d(cuda_device.put(x), *case.window[:3], case.ceil)
        return [cuda_device.get(array) for array in (y, offsets, dx, mean)]

    whole = results()
    for work in (1, 300):
        monkeypatch.setattr(pooling, "_WORK_PER_SLAB", work)
        for got, expected in zip(results(), whole, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_parity_of_offsets_of_another_type(cuda_device):
    case = BY_NAME["3x3/2, padded"]
    x = cuda_device.put(input_of(case, "float32"))
    y, offsets = pooling.max_pool2d(x, *case.window)
    dx = pooling.max_pool2d_scatter(y, offsets, case.x, *case.window)
    for dtype in (np.int16, np.int32):
        other = pooling.max_pool2d_scatter(y, offsets.astype(dtype), case.x, *case.window)
        np.testing.assert_array_equal(cuda_device.get(other), cuda_device.get(dx))
        np.testing.assert_array_equal(
            cuda_device.get(pooling.max_pool2d_gather(x, offsets.astype(dtype), *case.window)),
            cuda_device.get(y),
        )


def test_parity_of_offsets_that_point_beyond_the_edge(cuda_device):
    case = BY_NAME["3x3/2, padded"]
    x = input_of(case, "float32")
    y = cpu.max_pool2d(x, *case.window)[0]
    offsets = np.random.default_rng(0).integers(0, 255, y.shape).astype(np.uint8)
    gathered = pooling.max_pool2d_gather(cuda_device.put(x), cuda_device.put(offsets), *case.window)
    scattered = pooling.max_pool2d_scatter(cuda_device.put(y), cuda_device.put(offsets), case.x, *case.window)
    assert np.isin(cuda_device.get(gathered), [*np.unique(x), 0]).all()
    assert np.isfinite(cuda_device.get(scattered)).all()


def test_divisions_by_multiplication_are_exact():
    divisors = [*range(1, 200), 2**16 - 1, 2**16, 2**16 + 1, 2**30 - 1, 2**30, 2**31 - 1, 46341, 1_000_003]
    for divisor in divisors:
        multiplier, shift = pooling._divisor(divisor)
        assert multiplier < 2**32
        near = [k * divisor + d for k in (0, 1, 2, 3, (2**31 - 1) // divisor) for d in (-1, 0, 1)]
        for n in (*near, 2**31 - 1, 2**31 - 2, 2**30, 123_456_789):
            if 0 <= n < 2**31:
                assert n * multiplier >> shift == n // divisor


@needs_compiler
@pytest.mark.parametrize("name", ["3x3/1, padded", "overlapping, 8 lanes"])
def test_results_are_the_same_bits_in_every_order(name):
    case = BY_NAME[name]
    x = np.random.default_rng(0).standard_normal(case.x).astype(np.float32)
    results = set()
    for seed in (None, None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            mean = pooling.avg_pool2d(x, *case.window[:3], case.ceil)
            dx = pooling.avg_pool2d_input_grad(mean, case.x, *case.window[:3], case.ceil, False, None)
            y, offsets = pooling.max_pool2d(x, *case.window, case.ceil)
            scattered = pooling.max_pool2d_scatter(mean, offsets, case.x, *case.window)
        results.add(b"".join(array.tobytes() for array in (mean, dx, y, scattered)))
    assert len(results) == 1


@needs_compiler
def test_variants_by_window_and_type():
    x = np.zeros((1, 1, 8, 8), np.float16)
    chosen = {}
    for name, array, window in [
        ("fixed", x, ((3, 3), (2, 2), (1, 1))),
        ("float64", x.astype(np.float64), ((3, 3), (2, 2), (1, 1))),
        ("not square", x, ((3, 3), (2, 1), (1, 1))),
    ]:
        launcher = HostLauncher()
        with installed(launcher):
            y, offsets = pooling.max_pool2d(array, *window)
            pooling.max_pool2d_scatter(y, offsets, x.shape, *window, (1, 1))
        chosen[name] = [kernel.name for kernel in launcher.launches]
    assert chosen == {
        "fixed": ["max_pool2d_fixed<float16, 3, 2, 1>", "max_pool2d_scatter_fixed<float16, 3, 2, 1>"],
        "float64": ["max_pool2d_any<double>", "max_pool2d_scatter_any<double>"],
        "not square": ["max_pool2d_any<float16>", "max_pool2d_scatter_any<float16>"],
    }


@needs_compiler
def test_a_plane_beyond_int32_is_an_error_before_anything_is_allocated():
    x = np.broadcast_to(np.float32(0), (1, 1, 2**16, 2**15))
    with (
        installed(HostLauncher()),
        pytest.raises(ValueError, match=r"avg_pool2d: on CUDA one image .* 2147483647 elements, got 65536 x 32768"),
    ):
        pooling.avg_pool2d(x, (2, 2), (2, 2))


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    chosen = "parity and not float64 and (not float16 or 2x2/2-bfloat16 or ceil-bfloat16)"
    result = run_under_sanitizers(__file__, "-k", chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
