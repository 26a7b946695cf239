"""The CUDA softmax and log_softmax against their definition in float64."""

from __future__ import annotations

from importlib import import_module

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint.kernels import cpu, cuda
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

# The package has a function of the same name.
module = import_module("adjoint.kernels.cuda.softmax")
rows = import_module("adjoint.kernels.cuda.rows")

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
# (relative, absolute)
TOLERANCE = {"float32": (4e-6, 1e-6), "float64": (1e-13, 1e-14), "float16": (1e-3, 1e-6), "bfloat16": (8e-3, 1e-6)}
# One to 32 threads a row, several warps, rows read twice; columns by one thread, by several, beyond the registers.
CASES = {
    ((7, 10), 1): ALL,
    ((2, 1), 1): ("float32",),
    ((40, 3), 1): ("float32", "bfloat16"),
    ((9, 128), 1): ALL,
    ((4, 1000), 1): ALL,
    ((3, 4097), 1): ALL,
    ((2, 20_001), 1): ALL,
    ((2, 70_000), 1): ("float32", "float16"),
    ((1, 262_147), 1): ("float32", "bfloat16"),
    ((3, 10, 7), 1): ALL,
    ((2, 21, 130), 1): ("float32", "bfloat16"),
    ((300, 9), 0): ALL,
    ((1000, 3), 0): ("float32", "float16"),
}
PARITY = [
    pytest.param(shape, dim, dtype, id=f"{'x'.join(map(str, shape))}-{dim}-{dtype}")
    for (shape, dim), dtypes in CASES.items()
    for dtype in dtypes
]


def operands(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (4 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)


def by_definition(x, dim):
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=dim, keepdims=True)
        logarithms = shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))
    return np.exp(logarithms), logarithms


def grads_by_definition(y, log_y, dy, dim):
    y, log_y, dy = (array.astype(np.float64) for array in (y, log_y, dy))
    return (
        y * (dy - (dy * y).sum(axis=dim, keepdims=True)),
        dy - np.exp(log_y) * dy.sum(axis=dim, keepdims=True),
    )


def check(device, x, dy, dim, change=lambda array: array):
    """`change` lays the arrays out otherwise."""
    dtype = x.dtype.name
    rtol, atol = TOLERANCE[dtype]
    put, get = lambda array: change(device.put(array)), device.get
    y, log_y = get(cuda.softmax(put(x), dim)), get(cuda.log_softmax(put(x), dim))
    for actual, expected in zip((y, log_y), by_definition(x, dim), strict=True):
        assert (actual.dtype, actual.shape) == (x.dtype, x.shape)
        np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=rtol, atol=atol)
    dx = get(cuda.softmax_input_grad(put(y), put(dy), dim))
    log_dx = get(cuda.log_softmax_input_grad(put(log_y), put(dy), dim))
    # Sums of many terms of both signs.
    atol = 1e-13 if dtype == "float64" else 1e-5
    for actual, expected in zip((dx, log_dx), grads_by_definition(y, log_y, dy, dim), strict=True):
        assert (actual.dtype, actual.shape) == (x.dtype, x.shape)
        np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape, dim, dtype", PARITY)
def test_parity(cuda_device, shape, dim, dtype):
    x, dy = operands(shape, dtype)
    before = x.copy(), dy.copy()
    check(cuda_device, x, dy, dim)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(dy, before[1])


EXTREMES = {
    "large": [1e4, -1e4, 1e4, 0.0, -1e4, 9999.0],
    "minus infinity": [-np.inf, 2.0, -np.inf, 1.0, -np.inf, 0.0],
    "low": [-np.inf, -9000.0, -np.inf, -9001.0, -np.inf, -9000.0],
    "only minus infinity": [-np.inf] * 6,
    "infinity": [np.inf, 1.0, 2.0, 3.0, 4.0, 5.0],
    "nan": [1.0, np.nan, 2.0, 3.0, 4.0, 5.0],
}


@pytest.mark.parametrize("size", [6, 900, 20_000])
@pytest.mark.parametrize("dim", [0, 1])
def test_parity_of_extremes(cuda_device, dim, size):
    """At a row's end, so that only some of its threads see it. NaN must not leave its row."""
    if dim == 0 and size > 1000:
        size = 300
    x = np.empty((len(EXTREMES), size), np.float32)
    for row, values in enumerate(EXTREMES.values()):
        x[row] = -np.inf if np.isneginf(values[0]) else -1e4
        x[row, -6:] = values
    given = x if dim == 1 else np.ascontiguousarray(x.T)
    for function, expected in zip((cuda.softmax, cuda.log_softmax), by_definition(given, dim), strict=True):
        actual = cuda_device.get(function(cuda_device.put(given), dim))
        np.testing.assert_allclose(actual, expected, rtol=4e-6, atol=1e-30)
        assert np.isfinite(expected).any()


@pytest.mark.parametrize("size", [12, 1200, 20_000])
@pytest.mark.parametrize("dim", [0, 1])
def test_parity_of_views(cuda_device, dim, size):
    """Other strides, and addresses that are no multiple of a vector's size."""
    if dim == 0 and size > 2000:
        size = 530
    x, dy = operands((3, size) if dim else (size, 3), "float32")

    def shifted(array):
        longer = array.ravel().repeat(2)[: array.size + 1]
        longer[1:] = array.ravel()
        return longer[1:].reshape(array.shape)

    for change in (
        lambda array: array.repeat(2, axis=-1)[..., ::2],
        lambda array: array[..., ::-1].copy()[..., ::-1],
        lambda array: array.T.copy().T,
        shifted,
    ):
        check(cuda_device, x, dy, dim, change)


def test_parity_of_arrays_that_are_aligned_differently(cuda_device):
    y, dy = operands((3, 1001), "float32")
    dy_shifted = cuda_device.put(np.append(np.float32(0), dy.ravel()))[1:].reshape(dy.shape)
    dx = cuda_device.get(cuda.softmax_input_grad(cuda_device.put(y), dy_shifted, 1))
    np.testing.assert_allclose(dx, grads_by_definition(y, y, dy, 1)[0], rtol=1e-4, atol=1e-4)


def test_parity_of_blocks_that_take_several_rows(cuda_device, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BLOCKS", 2)
    for shape, dim in (((2500, 3), 1), ((23, 300), 1), ((7, 1100), 1), ((5, 20_000), 1), ((6, 5, 100), 1)):
        check(cuda_device, *operands(shape, "float32"), dim)


@pytest.mark.parametrize("shape, dim", [((0, 3), 1), ((3, 0), 1), ((2, 0, 3), 1), ((2, 3, 0), 1)], ids=str)
def test_parity_of_nothing(cuda_device, shape, dim):
    x = cuda_device.put(np.zeros(shape, np.float32))
    assert cuda.softmax(x, dim).shape == cuda.log_softmax(x, dim).shape == shape
    assert cuda.softmax_input_grad(x, x, dim).shape == cuda.log_softmax_input_grad(x, x, dim).shape == shape


@pytest.mark.parametrize("shared", [16 * 1024, 64 * 1024])
def test_shared_memory_is_no_part_of_the_result(cuda_device, shared, monkeypatch):
    """What stays on the chip of a long row: nothing changes with its size."""
    if cuda_device.name == "cuda":
        pytest.skip("the size belongs to the device")
    x, dy = operands((2, 70_000), "float32")
    expected = cuda.softmax(x, 1), cuda.softmax_input_grad(x, dy, 1)
    monkeypatch.setattr(HostLauncher, "shared_bytes", lambda launcher, array: shared)
    for actual, wanted in zip((cuda.softmax(x, 1), cuda.softmax_input_grad(x, dy, 1)), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@needs_compiler
@pytest.mark.parametrize("shape, dim", [((11, 10), 1), ((5, 3000), 1), ((3, 20_000), 1), ((200, 40), 0)], ids=str)
def test_results_are_the_same_bits_in_every_order(shape, dim):
    x, dy = operands(shape, "float32")
    results = set()
    for seed in (None, None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            y = cuda.softmax(x, dim)
            results.add(y.tobytes() + cuda.softmax_input_grad(y, dy, dim).tobytes())
    assert len(results) == 1


@needs_compiler
@pytest.mark.parametrize("size", [1, 31, 32, 33, 256, 257, 1024, 1025, 16_384, 16_385])
@pytest.mark.parametrize("name", ["softmax", "softmax_input_grad"])
def test_the_last_size_of_a_variant(cuda_device, name, size):
    x, dy = operands((2, size), "float32")
    given = (x,) if name == "softmax" else (x, dy)
    with np.errstate(all="ignore"):
        actual = cuda_device.get(getattr(cuda, name)(*map(cuda_device.put, given), 1))
        np.testing.assert_allclose(actual, getattr(cpu, name)(*given, 1), rtol=1e-3, atol=1e-5)


@needs_compiler
def test_rows_beyond_2_31_elements(monkeypatch):
    """Only the last row has values, and only its block runs."""
    monkeypatch.setattr(rows, "MOST_BLOCKS", 2**30)
    n, size = 131_200, 16_384
    x, dy = np.empty((n, size), np.float16), np.empty((n, size), np.float16)
    assert x.size > 2**31
    x[-1], dy[-1] = operands((size,), "float16")
    with installed(HostLauncher(ends_only=lambda grid: [(n - 1, 0, 0)])):
        y = cuda.softmax(x, 1)
        dx = cuda.softmax_input_grad(y, dy, 1)
    np.testing.assert_allclose(y[-1].astype(np.float64), by_definition(x[-1], 0)[0], rtol=1e-3, atol=1e-7)
    expected = grads_by_definition(y[-1], y[-1], dy[-1], 0)[0]
    np.testing.assert_allclose(dx[-1].astype(np.float64), expected, rtol=1e-3, atol=1e-6)


@needs_compiler
def test_columns_beyond_2_31_elements(monkeypatch):
    """Only the last columns have values, and only their block runs."""
    monkeypatch.setattr(rows, "MOST_BLOCKS", 2**30)
    x, dy = np.empty((3, 3, 2**28), np.float16), np.empty((3, 3, 2**28), np.float16)
    assert x.size > 2**31
    last = (2, slice(None), slice(-64, None))
    x[last], dy[last] = operands((3, 64), "float16")
    with installed(HostLauncher(ends_only=lambda grid: [(grid[0] - 1, 0, 0)])):
        y = cuda.softmax(x, 1)
        dx = cuda.softmax_input_grad(y, dy, 1)
    np.testing.assert_allclose(y[last].astype(np.float64), by_definition(x[last], 0)[0], rtol=1e-3, atol=1e-6)
    expected = grads_by_definition(y[last], y[last], dy[last], 0)[0]
    np.testing.assert_allclose(dx[last].astype(np.float64), expected, rtol=1e-3, atol=1e-5)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "parity and not float64 and not float16")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
