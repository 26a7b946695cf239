"""The NumPy group normalisation against the definition in float64, and the checks of both sides."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_by_definition import gradients, normalized

from adjoint import kernels
from adjoint.kernels.cpu import parallel

module = import_module("adjoint.kernels.cpu.group_norm")

EPS = 1e-5
TOLERANCE = {"float32": 4e-6, "float64": 1e-12, "float16": 1e-3, "bfloat16": 8e-3}


def inputs_of(shape, dtype="float64", vectors=None, seed=0):
    """x, dy, weight and bias."""
    rng = np.random.default_rng(seed)
    x = (1.5 * rng.standard_normal(shape) + 0.7).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight, bias = (rng.uniform(0.5, 2, shape[1]).astype(vectors or dtype) for _ in range(2))
    return x, dy, weight, bias


def check(groups, x, dy, weight, bias, tolerance=None):
    arrays = [x, dy, weight, bias]
    copies = [None if a is None else a.copy() for a in arrays]
    y, mean, rstd = kernels.group_norm(x, weight, bias, groups, EPS)
    found = y, mean, rstd, *kernels.group_norm_grad(dy, x, weight, mean, rstd, groups)
    n, channels = x.shape[:2]
    length = int(np.prod(x.shape[2:]))
    rows, upstream = (a.reshape(n, groups, -1) for a in (x, dy))
    spread = [None if v is None else np.repeat(v, length).reshape(groups, -1) for v in (weight, bias)]
    forward = normalized(rows, *spread, EPS)
    dx, by_weight, by_bias = gradients(upstream, rows, spread[0], EPS)
    sums = [part.reshape(n, channels, length).sum((0, 2)) for part in (by_weight, by_bias)]
    expected = forward[0].reshape(x.shape), *forward[1:], dx.reshape(x.shape), *sums
    wide = x.dtype if x.dtype.itemsize > 2 else np.dtype(np.float32)
    vectors = x.dtype if weight is None else weight.dtype
    for array, wanted, dtype in zip(found, expected, (x.dtype, wide, wide, x.dtype, vectors, vectors), strict=True):
        assert array.dtype == dtype and array.shape == wanted.shape and array.flags.c_contiguous
        near = tolerance or TOLERANCE[dtype.name]
        scale = np.abs(wanted).max(initial=1.0) if wanted.ndim == 1 else 1.0
        np.testing.assert_allclose(array.astype(np.float64), wanted, rtol=near, atol=near * scale)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "shape, groups",
    [((3, 6, 4, 5), 2), ((4, 12), 2), ((2, 4, 9), 4), ((5, 4, 2, 3, 2), 1), ((2, 8, 70, 70), 2), ((1, 1, 300_000), 1)],
)
def test_equals_the_definition(shape, groups, dtype):
    check(groups, *inputs_of(shape, dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_vectors_beside_halves(dtype):
    check(2, *inputs_of((3, 6, 4, 5), dtype, "float32"))


@pytest.mark.parametrize("weighted, biased", [(False, False), (True, False), (False, True)])
def test_without_vectors(weighted, biased):
    x, dy, weight, bias = inputs_of((3, 6, 4, 5))
    check(2, x, dy, weight if weighted else None, bias if biased else None)
    _, mean, rstd = kernels.group_norm(x, weight, bias, 2)
    whole = kernels.group_norm_grad(dy, x, weight, mean, rstd, 2)
    parts = kernels.group_norm_grad(dy, x, weight, mean, rstd, 2, weighted, biased)
    for part, full, wanted in zip(parts, whole, (True, weighted, biased), strict=True):
        assert (part is not None) == wanted
        if wanted:
            np.testing.assert_array_equal(part, full)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 5),
    groups=st.integers(1, 4),
    depth=st.integers(1, 5),
    length=st.integers(2, 40),
    dtype=st.sampled_from(["float64", "float32"]),
    piece=st.sampled_from([64, 1 << 10, 1 << 19]),
    seed=st.integers(0, 100),
)
def test_any_shape_in_pieces_of_any_size(images, groups, depth, length, dtype, piece, seed):
    before = module.PIECE_BYTES
    module.PIECE_BYTES = piece
    try:
        x, *rest = inputs_of((images, groups * depth, length), dtype, seed=seed)
        # Numbers that hardly differ would amplify all rounding.
        x += 3 * (np.arange(length) % 2).astype(dtype)
        check(groups, x, *rest, tolerance=1e-4 if dtype == "float32" else 1e-9)
    finally:
        module.PIECE_BYTES = before


def test_other_strides():
    x, dy, weight, bias = inputs_of((2, 6, 7, 8))
    for change in (
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) if a.ndim > 1 else a,
        lambda a: np.frombuffer(b"." + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    ):
        check(3, change(x), change(dy), change(weight), change(bias))


@pytest.mark.parametrize("shape, groups", [((0, 4, 3), 2), ((3, 4, 0), 2), ((2, 0, 3), 1)])
def test_nothing(shape, groups):
    x, dy, weight, bias = inputs_of(shape)
    y, mean, rstd = kernels.group_norm(x, weight, bias, groups)
    dx, by_weight, by_bias = kernels.group_norm_grad(dy, x, weight, mean, rstd, groups)
    assert y.shape == dx.shape == shape
    assert mean.shape == rstd.shape == (shape[0], groups)
    for grad in (by_weight, by_bias):
        np.testing.assert_array_equal(grad, np.zeros(shape[1]))


@pytest.mark.parametrize("offset", [3.0, 1e3, -1e4])
def test_means_far_from_zero(offset):
    """Sums in float32 are as exact as those near 0."""
    x = (offset + np.random.default_rng(0).standard_normal((2, 4, 50, 60))).astype(np.float32)
    y, mean, rstd = kernels.group_norm(x, groups=2)
    expected = normalized(x.reshape(2, 2, -1), None, None, EPS)
    np.testing.assert_allclose(y.reshape(2, 2, -1), expected[0], atol=3e-6)
    np.testing.assert_allclose(mean, expected[1], rtol=2e-7)
    np.testing.assert_allclose(rstd, expected[2], rtol=1e-6)


def test_the_number_of_threads_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 1 << 12)
    x, dy, weight, bias = inputs_of((9, 12, 10, 10), "float32")
    before, found = parallel.threads(), set()
    try:
        for count in (1, 2, 5):
            parallel.set_threads(count)
            y, mean, rstd = kernels.group_norm(x, weight, bias, 4)
            grads = kernels.group_norm_grad(dy, x, weight, mean, rstd, 4)
            found.add(b"".join(a.tobytes() for a in (y, mean, rstd, *grads)))
    finally:
        parallel.set_threads(before)
    assert len(found) == 1


def test_pytorch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    x, dy, weight, bias = inputs_of((3, 6, 5, 4))
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    expected = torch.nn.functional.group_norm(theirs[0], 3, *theirs[1:])
    y, mean, rstd = kernels.group_norm(x, weight, bias, 3)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-13)
    wanted = torch.autograd.grad(expected, theirs, torch.tensor(dy))
    for mine, other in zip(kernels.group_norm_grad(dy, x, weight, mean, rstd, 3), wanted, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-10, atol=1e-12)


X = np.zeros((2, 4, 3), np.float32)
V = np.ones(4, np.float32)
S = np.ones((2, 2), np.float32)
ERRORS = [
    (ValueError, r"group_norm: x must have the shape \(N, C, ...\), got \(4,\)", lambda: kernels.group_norm(V)),
    (
        ValueError,
        "group_norm: groups must be a positive integer that divides the 4 channels, got 3",
        lambda: kernels.group_norm(X, groups=3),
    ),
    (ValueError, "group_norm: groups must be a positive .* got 0", lambda: kernels.group_norm(X, groups=0)),
    (ValueError, "group_norm: groups must be a positive .* got 2.0", lambda: kernels.group_norm(X, groups=2.0)),
    (ValueError, r"group_norm: bias must have the shape \(4,\)", lambda: kernels.group_norm(X, V, V[:3])),
    (
        TypeError,
        "group_norm: beside x of float32 vectors must be all float32, got: weight is float16",
        lambda: kernels.group_norm(X, V.astype("f2")),
    ),
    (
        ValueError,
        r"group_norm_grad: the gradient must have the shape \(2, 4, 3\)",
        lambda: kernels.group_norm_grad(X[:1], X, V, S, S, 2),
    ),
    (
        ValueError,
        r"group_norm_grad: rstd must have the shape \(2, 2\), got \(2, 1\)",
        lambda: kernels.group_norm_grad(X, X, V, S, S[:, :1], 2),
    ),
]


@pytest.mark.parametrize("kind, message, call", ERRORS, ids=[message for _, message, _ in ERRORS])
def test_errors(kind, message, call):
    with pytest.raises(kind, match=f"^{message}"):
        call()
