"""The NumPy layer and RMS normalisation against the definition in float64, and the checks of both sides."""

from __future__ import annotations

from importlib import import_module

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_by_definition import gradients, normalized

from adjoint import kernels
from adjoint.kernels.cpu import parallel

module = import_module("adjoint.kernels.cpu.layer_norm")

EPS = 1e-5
TOLERANCE = {"float32": 4e-6, "float64": 1e-12, "float16": 1e-3, "bfloat16": 8e-3}


def inputs_of(shape, dtype="float64", vectors=None, seed=0):
    """x, dy, weight and bias."""
    rng = np.random.default_rng(seed)
    x = (1.5 * rng.standard_normal(shape) + 0.7).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight, bias = (rng.uniform(0.5, 2, shape[1]).astype(vectors or dtype) for _ in range(2))
    return x, dy, weight, bias


def check(x, dy, weight, bias, centred=True, tolerance=None):
    arrays = [x, dy, weight, bias]
    copies = [None if a is None else a.copy() for a in arrays]
    if centred:
        y, mean, rstd = kernels.layer_norm(x, weight, bias, EPS)
        found = y, mean, rstd, *kernels.layer_norm_grad(dy, x, weight, mean, rstd)
    else:
        bias = None
        y, rstd = kernels.rms_norm(x, weight, EPS)
        found = y, None, rstd, *kernels.rms_norm_grad(dy, x, weight, rstd), None
    dx, by_weight, by_bias = gradients(dy, x, weight, EPS, centred)
    expected = *normalized(x, weight, bias, EPS, centred), dx, by_weight.sum(0), by_bias.sum(0)
    wide = x.dtype if x.dtype.itemsize > 2 else np.dtype(np.float32)
    vectors = x.dtype if weight is None else weight.dtype
    for array, wanted, dtype in zip(found, expected, (x.dtype, wide, wide, x.dtype, vectors, vectors), strict=True):
        if array is None:
            continue
        assert array.dtype == dtype and array.shape == wanted.shape and array.flags.c_contiguous
        near = tolerance or TOLERANCE[dtype.name]
        scale = np.abs(wanted).max(initial=1.0) if wanted.ndim == 1 else 1.0
        np.testing.assert_allclose(array.astype(np.float64), wanted, rtol=near, atol=near * scale)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (600, 6), (999, 57), (40, 700), (3, 9001), (2, 300_000)])
def test_equals_the_definition(shape, dtype, centred):
    check(*inputs_of(shape, dtype), centred)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_vectors_beside_halves(dtype):
    check(*inputs_of((9, 70), dtype, "float32"))


@pytest.mark.parametrize("weighted, biased", [(False, False), (True, False), (False, True)])
def test_without_vectors(weighted, biased):
    x, dy, weight, bias = inputs_of((9, 30))
    check(x, dy, weight if weighted else None, bias if biased else None)
    check(x, dy, weight if weighted else None, None, centred=False)
    _, mean, rstd = kernels.layer_norm(x, weight, bias)
    whole = kernels.layer_norm_grad(dy, x, weight, mean, rstd)
    parts = kernels.layer_norm_grad(dy, x, weight, mean, rstd, weighted, biased)
    for part, full, wanted in zip(parts, whole, (True, weighted, biased), strict=True):
        assert (part is not None) == wanted
        if wanted:
            np.testing.assert_array_equal(part, full)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 90),
    centred=st.booleans(),
    dtype=st.sampled_from(["float64", "float32"]),
    piece=st.sampled_from([64, 1 << 10, 1 << 19]),
    few=st.sampled_from([0, 1 << 15]),
    seed=st.integers(0, 100),
)
def test_any_shape_in_pieces_of_any_size(rows, size, centred, dtype, piece, few, seed):
    before = module.PIECE_BYTES, module._FEW_ELEMENTS
    module.PIECE_BYTES, module._FEW_ELEMENTS = piece, few
    try:
        x, *rest = inputs_of((rows, size), dtype, seed=seed)
        # A row of numbers that hardly differ would amplify all rounding.
        check(x + np.arange(size, dtype=dtype) / size, *rest, centred, 1e-4 if dtype == "float32" else 1e-9)
    finally:
        module.PIECE_BYTES, module._FEW_ELEMENTS = before


@pytest.mark.parametrize("size", [24, 1200])
def test_other_strides(size):
    x, dy, weight, bias = inputs_of((6, size))
    for change in (
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.asfortranarray(a),
        lambda a: np.frombuffer(b"." + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    ):
        check(change(x), change(dy), change(weight), change(bias))
    check(np.broadcast_to(x[:1], x.shape), np.broadcast_to(dy[:, :1], dy.shape), weight, bias)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_nothing(shape):
    x, dy, weight, bias = inputs_of(shape)
    y, mean, rstd = kernels.layer_norm(x, weight, bias)
    dx, by_weight, by_bias = kernels.layer_norm_grad(dy, x, weight, mean, rstd)
    assert y.shape == dx.shape == shape
    assert mean.shape == rstd.shape == shape[:1]
    for grad in (by_weight, by_bias):
        np.testing.assert_array_equal(grad, np.zeros(shape[1]))


@pytest.mark.parametrize("size", [100, 5000, 40_000])
@pytest.mark.parametrize("offset", [3.0, 1e3, -1e4])
def test_means_far_from_zero(size, offset):
    """Sums in float32 are as exact as those near 0."""
    x = (offset + np.random.default_rng(0).standard_normal((4, size))).astype(np.float32)
    y, mean, rstd = kernels.layer_norm(x)
    expected = normalized(x, None, None, EPS)
    np.testing.assert_allclose(y, expected[0], atol=3e-6)
    np.testing.assert_allclose(mean, expected[1], rtol=2e-7)
    np.testing.assert_allclose(rstd, expected[2], rtol=1e-6)


def test_sums_of_many_rows():
    """float32 sums over rows lose little, though all have one sign."""
    x, dy, weight, _ = inputs_of((50_000, 4), "float32")
    dy = np.abs(dy)
    _, mean, rstd = kernels.layer_norm(x, weight, None)
    _, by_weight, by_bias = kernels.layer_norm_grad(dy, x, weight, mean, rstd)
    _, products, sums = gradients(dy, x, weight, EPS)
    np.testing.assert_allclose(by_bias, sums.sum(0), rtol=3e-7)
    np.testing.assert_allclose(by_weight, products.sum(0), rtol=1e-5, atol=1e-2)


def test_the_number_of_threads_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 1 << 12)
    x, dy, weight, bias = inputs_of((300, 100), "float32")
    before, found = parallel.threads(), set()
    try:
        for count in (1, 2, 5):
            parallel.set_threads(count)
            y, mean, rstd = kernels.layer_norm(x, weight, bias)
            grads = kernels.layer_norm_grad(dy, x, weight, mean, rstd)
            found.add(b"".join(a.tobytes() for a in (y, mean, rstd, *grads)))
    finally:
        parallel.set_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_are_not_finite(dtype):
    """Each stays in its row, without a warning."""
    x, _, weight, bias = inputs_of((4, 6), dtype)
    x[1, 2], x[3, 0] = np.nan, np.inf
    y, _, _ = kernels.layer_norm(x, weight, bias)
    y = y.astype(np.float32)
    assert np.isfinite(y[[0, 2]]).all() and np.isnan(y[1]).all() and np.isnan(y[3, 0])


def test_pytorch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    x, dy, weight, bias = inputs_of((7, 33))
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    expected = torch.nn.functional.layer_norm(theirs[0], (33,), *theirs[1:])
    y, mean, rstd = kernels.layer_norm(x, weight, bias)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
    wanted = torch.autograd.grad(expected, theirs, torch.tensor(dy))
    for mine, other in zip(kernels.layer_norm_grad(dy, x, weight, mean, rstd), wanted, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-10, atol=1e-12)


X = np.zeros((3, 4), np.float32)
V = np.ones(4, np.float32)
ROW = np.ones(3, np.float32)
ERRORS = [
    (ValueError, r"layer_norm: x must have the shape \(rows, size\), got \(4,\)", lambda: kernels.layer_norm(V)),
    (ValueError, r"layer_norm: weight must have the shape \(4,\), .* got \(3,\)", lambda: kernels.layer_norm(X, ROW)),
    (ValueError, r"rms_norm: weight must have the shape", lambda: kernels.rms_norm(X, ROW)),
    (TypeError, "layer_norm: x must be float32, .* got int64", lambda: kernels.layer_norm(X.astype(int))),
    (
        TypeError,
        "layer_norm: beside x of float32 vectors must be all float32, got: weight is float64",
        lambda: kernels.layer_norm(X, V.astype("f8")),
    ),
    (
        TypeError,
        "layer_norm: beside x of float16 vectors must be all float32 or all float16, got: weight is float16, bias is",
        lambda: kernels.layer_norm(X.astype("f2"), V.astype("f2"), V),
    ),
    (
        ValueError,
        r"layer_norm_grad: the gradient must have the shape \(3, 4\)",
        lambda: kernels.layer_norm_grad(X.T, X, V, ROW, ROW),
    ),
    (
        ValueError,
        r"layer_norm_grad: mean must have the shape \(3,\), got \(4,\)",
        lambda: kernels.layer_norm_grad(X, X, V, V, ROW),
    ),
    (
        ValueError,
        r"rms_norm_grad: rstd must have the shape \(3,\), got \(4,\)",
        lambda: kernels.rms_norm_grad(X, X, V, V),
    ),
]


@pytest.mark.parametrize("kind, message, call", ERRORS, ids=[message for _, message, _ in ERRORS])
def test_errors(kind, message, call):
    with pytest.raises(kind, match=f"^{message}"):
        call()


def test_bfloat16_is_rounded_once():
    x = np.linspace(-3, 5, 64).astype(ml_dtypes.bfloat16).reshape(2, 32)
    y, _, _ = kernels.layer_norm(x)
    exact = normalized(x, None, None, EPS)[0]
    np.testing.assert_array_equal(y, exact.astype(np.float32).astype(ml_dtypes.bfloat16))
