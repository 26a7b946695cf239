"""softmax and log_softmax on the CPU against their definition in float64 and PyTorch."""

from __future__ import annotations

import importlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint import kernels
from adjoint.kernels.cpu import parallel

module = importlib.import_module("adjoint.kernels.cpu.softmax")

TOLERANCE = {
    "float32": {"rtol": 2e-6, "atol": 2e-7},
    "float64": {"rtol": 1e-14, "atol": 1e-15},
    "float16": {"rtol": 1e-3, "atol": 1e-6},
    "bfloat16": {"rtol": 8e-3, "atol": 1e-6},
}
# By rows, by columns, by rows after a transposition; one element, one softmax.
CASES = [((7, 10), 1), ((3, 300), 1), ((2, 9000), 1), ((5, 6, 40), 1), ((21, 70), 0), ((2, 3, 5), 1), ((4, 3), 0),
         ((6,), 0), ((1, 1, 1), 1), ((2, 3, 4, 17), 1)]  # fmt: skip


def by_definition(x, dim):
    """softmax and log_softmax in float64."""
    x = x.astype(np.float64)
    shifted = x - x.max(axis=dim, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))
    return np.exp(logarithms), logarithms


def operands(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (3 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)


def check(x, dy, dim):
    dtype = x.dtype.name
    before = x.copy(), dy.copy()
    y, log_y = kernels.softmax(x, dim), kernels.log_softmax(x, dim)
    for actual, wanted in zip((y, log_y), by_definition(x, dim), strict=True):
        assert actual.dtype == x.dtype and actual.flags.c_contiguous
        np.testing.assert_allclose(actual.astype(np.float64), wanted, **TOLERANCE[dtype])
    # The gradients of what was rounded, so that only their own rounding counts.
    wide, wide_log, slope = y.astype(np.float64), log_y.astype(np.float64), dy.astype(np.float64)
    dx = kernels.softmax_input_grad(y, dy, dim)
    log_dx = kernels.log_softmax_input_grad(log_y, dy, dim)
    wanted = wide * (slope - (slope * wide).sum(axis=dim, keepdims=True))
    log_wanted = slope - np.exp(wide_log) * slope.sum(axis=dim, keepdims=True)
    tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": 4e-6 if dtype != "float64" else 1e-13}
    for actual, expected in ((dx, wanted), (log_dx, log_wanted)):
        assert actual.dtype == x.dtype and actual.flags.c_contiguous
        np.testing.assert_allclose(actual.astype(np.float64), expected, **tolerance)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(dy, before[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape, dim", CASES, ids=str)
def test_matches_its_definition(shape, dim, dtype):
    check(*operands(shape, dtype), dim)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 99))
def test_any_shape(shape, dim, seed):
    check(*operands(tuple(shape), np.float64, seed), dim % len(shape))


def test_any_strides():
    x, dy = operands((12, 10, 34), np.float64)
    for dim in (0, 1, 2):
        check(x[::-2, ::3, ::2], dy[::2, ::-3, 1::2], dim)
        check(np.asfortranarray(x), dy, dim)
        check(x.transpose(2, 0, 1), np.broadcast_to(dy[:1, :1], (34, 12, 34))[..., :10], dim)


def test_in_pieces_and_on_threads(monkeypatch):
    """Pieces of a few rows and columns: the same bits from any number of threads."""
    monkeypatch.setattr(module, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(module, "split_rows", lambda rows, size, dtype: parallel.split(rows, 3))
    before = parallel.threads()
    try:
        for dim in (0, 1):
            x, dy = operands((37, 50), np.float32)
            results = set()
            for threads in (1, 2, 3):
                parallel.set_threads(threads)
                check(x, dy, dim)
                results.add(kernels.softmax(x, dim).tobytes() + kernels.softmax_input_grad(x, dy, dim).tobytes())
            assert len(results) == 1
    finally:
        parallel.set_threads(before)


@pytest.mark.parametrize("shape, dim", [((0, 3), 1), ((3, 0), 1), ((2, 0, 3), 1), ((2, 3, 0), 1)], ids=str)
def test_empty(shape, dim):
    x = np.zeros(shape, np.float32)
    for function in (kernels.softmax, kernels.log_softmax):
        assert function(x, dim).shape == shape
    for function in (kernels.softmax_input_grad, kernels.log_softmax_input_grad):
        assert function(x, x, dim).shape == shape


ROWS = [
    [0.0, -np.inf, 1.0], [-np.inf, -np.inf, -np.inf], [np.inf, 0.0, 1.0], [np.nan, 0.0, 1.0], [1e30, -1e30, 0.0],
    [-np.inf, 2.0, -np.inf], [1e4, 1e4, 9999.0],
]  # fmt: skip


@pytest.mark.parametrize("dim", [0, 1])
def test_infinities_as_in_pytorch(dim):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rows = np.array(ROWS * 3)
    x = rows if dim == 1 else np.ascontiguousarray(rows.T)
    with np.errstate(all="raise"):
        y, log_y = kernels.softmax(x, dim), kernels.log_softmax(x, dim)
    np.testing.assert_allclose(y, torch.softmax(torch.tensor(x), dim), rtol=1e-14)
    np.testing.assert_allclose(log_y, torch.log_softmax(torch.tensor(x), dim), rtol=1e-14)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_input_grad", "log_softmax_input_grad"])
def test_wrong_arguments(name):
    function = getattr(kernels, name)
    given = [np.zeros((4, 5))] * (2 if name.endswith("grad") else 1)
    for dim in (2, -1, 1.0, True):
        with pytest.raises(ValueError, match=rf"{name}: dim must be between 0 and 1 for \(4, 5\), got {dim}"):
            function(*given, dim)
    with pytest.raises(TypeError, match=f"{name}: . must be float32, .* got int64"):
        function(*[np.zeros((4, 5), np.int64)] * len(given), 1)
    if len(given) == 2:
        with pytest.raises(ValueError, match=rf"{name}: the gradient must have the shape \(4, 5\) .* got \(4, 4\)"):
            function(given[0], np.zeros((4, 4)), 1)
        with pytest.raises(TypeError, match=f"{name}: all arrays must have one dtype"):
            function(given[0], given[0].astype(np.float32), 1)
