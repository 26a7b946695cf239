"""Batch normalisation in NumPy against its definition in float64."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from batch_norm_cases import EPS, assert_near, by_definition, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint import kernels
from adjoint.kernels.cpu import parallel

module = importlib.import_module("adjoint.kernels.cpu.runs")

DTYPES = ("float32", "float64", "float16", "bfloat16")
FUSED = {"plain": {}, "relu": {"relu": True}, "residual": {"residual": True}, "both": {"residual": True, "relu": True}}
fused = pytest.mark.parametrize("extra", FUSED.values(), ids=FUSED)
# Rows of all lengths, one and several pieces, few images with long runs.
SHAPES = [(4, 3), (300, 40), (2, 3, 5), (64, 6, 28, 28), (3, 64, 7, 7), (2, 5, 3, 4, 5), (2, 3, 90, 70), (700, 2, 9)]


@pytest.fixture
def in_parts(monkeypatch):
    """Pieces so small that channels are cut into several of them."""
    monkeypatch.setattr(module, "_PIECE_BYTES", 512)
    monkeypatch.setattr(module, "_CHANNEL_BYTES", 8)
    monkeypatch.setattr(module, "_SMALL", 0)
    module.runs_of.cache_clear()
    yield
    module.runs_of.cache_clear()


def check(of, inference=False, factor=1.0):
    before = [None if a is None else a.copy() for a in (of.x, of.dy, of.weight, of.bias, of.residual)]
    dtype = str(of.x.dtype)
    if inference:
        found = kernels.batch_norm_inference(of.x, *of.running, of.weight, of.bias, EPS, of.residual, of.relu)
    else:
        found = kernels.batch_norm(of.x, of.weight, of.bias, EPS, of.residual, of.relu)
    y, mean, inverse_std = found
    wanted = by_definition(of, inference, y)
    assert y.dtype == of.x.dtype and y.flags.c_contiguous
    statistics = "float64" if dtype == "float64" else "float32"
    assert mean.dtype == inverse_std.dtype == statistics
    assert_near(y, wanted[0], dtype, factor)
    assert_near(mean, wanted[1], statistics, scale=(abs(wanted[1]) + 1 / wanted[2]).max())
    assert_near(inverse_std, wanted[2], statistics, factor)
    grads = kernels.batch_norm_grad(
        of.dy, of.x, of.weight, of.bias, mean, inverse_std, y if of.relu else None, of.residual is not None, inference
    )
    # What cancels in dx, leaving little with few elements a channel, is as large as dy * weight / std.
    weight = 1 if of.weight is None else abs(of.weight.astype(np.float64)).max(initial=0)
    cancelled = abs(of.dy.astype(np.float64)).max(initial=0) * weight * wanted[2].max(initial=0)
    assert_near(grads[0], wanted[4], dtype, 4 * factor, scale=max(abs(wanted[4]).max(initial=0), cancelled) + 1e-30)
    for grad, expected in zip(grads[1:3], wanted[5:7], strict=True):
        assert_near(grad, expected, dtype, 4 * factor)
    assert (grads[3] is not None) == (of.relu and of.residual is not None)
    if grads[3] is not None:
        np.testing.assert_array_equal(grads[3].astype(np.float64), wanted[7])
    for array, copy in zip((of.x, of.dy, of.weight, of.bias, of.residual), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@fused
def test_matches_the_definition(shape, dtype, extra):
    check(inputs(shape, dtype, **extra))
    check(inputs(shape, dtype, **extra), inference=True)


@pytest.mark.parametrize("shape", [(4, 3), (70, 5, 6), (2, 3, 40, 30)], ids=str)
@fused
def test_channels_in_parts(in_parts, shape, extra):
    of = inputs(shape, "float32", **extra)
    assert not module.Runs(of.x.shape, of.x.dtype, 2).whole
    check(of)
    check(of, inference=True)


def test_dots_longer_than_blas_takes_on_one_thread():
    check(inputs((1, 2, 20_000), "float32"))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 5), st.lists(st.integers(1, 9), max_size=3), st.booleans(), st.booleans(),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_any_shape(n, channels, spatial, residual, relu, affine, seed):
    if n * int(np.prod(spatial)) > 1:
        check(inputs((n, channels, *spatial), "float64", residual, relu, affine, seed=seed), factor=1e3)


@pytest.mark.parametrize("shape", [(256, 3), (16, 4, 100), (2, 3, 90, 70)], ids=str)
@pytest.mark.parametrize("parts", [False, True])
def test_a_mean_far_above_the_deviation_costs_no_digits(shape, parts, request):
    if parts:
        request.getfixturevalue("in_parts")
    of = inputs(shape, "float32", affine=False, offset=1e4)
    y, mean, inverse_std = kernels.batch_norm(of.x)
    wanted = by_definition(of)
    np.testing.assert_allclose(mean, wanted[1], rtol=1e-7)
    np.testing.assert_allclose(inverse_std, wanted[2], rtol=2e-6)
    np.testing.assert_allclose(y, wanted[0], atol=1e-3)  # what the rounding of the mean leaves
    of.running = wanted[1].astype(np.float32), wanted[3].astype(np.float32)
    y, *_ = kernels.batch_norm_inference(of.x, *of.running)
    np.testing.assert_allclose(y, by_definition(of, inference=True)[0], atol=1e-5)


@pytest.mark.parametrize("parts", [False, True])
def test_a_first_element_far_from_all_others_costs_no_digits(parts, request):
    if parts:
        request.getfixturevalue("in_parts")
    of = inputs((400, 3, 50), "float32", affine=False)
    of.x[0, 1, 0] = 3e4  # 210 times the deviation of its channel
    of.x[:, 2] = 7  # no deviation at all
    y, mean, inverse_std = kernels.batch_norm(of.x)
    wanted = by_definition(of)
    np.testing.assert_allclose(mean, wanted[1], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(inverse_std, wanted[2], rtol=2e-6)
    np.testing.assert_allclose(y, wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", [FUSED["plain"], FUSED["both"]], ids=["plain", "both"])
def test_any_strides(extra):
    of = inputs((6, 4, 5, 7), "float32", **extra)
    for change in (
        lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
        lambda a: np.repeat(a, 2, axis=3)[..., ::2],
    ):
        images = {name: getattr(of, name) for name in ("x", "dy", "residual") if getattr(of, name) is not None}
        strided = {name: change(image) for name, image in images.items()}
        assert not strided["x"].flags.c_contiguous
        check(type(of)(**{**vars(of), **strided}))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 0, 3), (2, 3, 0)], ids=str)
def test_empty(shape):
    of = inputs(shape, "float32")
    running = [vector.copy() for vector in of.running]
    count = np.array(4)
    y, mean, inverse_std = kernels.batch_norm(
        of.x, of.weight, of.bias, running_mean=running[0], running_var=running[1], num_batches_tracked=count
    )
    assert y.shape == shape and count == 5
    for vector, old in zip(running, of.running, strict=True):
        np.testing.assert_array_equal(vector, old)
    dx, dweight, dbias, _ = kernels.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std)
    assert dx.shape == shape and not dweight.any() and not dbias.any() and dweight.shape == shape[1:2]


@pytest.mark.parametrize("momentum", [0.25, 1.0, 0.0, None])
@pytest.mark.parametrize("dtype, vectors", [("float32",) * 2, ("float16", "float32"), ("bfloat16",) * 2])
def test_running_statistics(momentum, dtype, vectors):
    of = inputs((5, 3, 4), dtype, vectors=vectors)
    mean, var = (vector.copy() for vector in of.running)
    count = np.array(3, np.int64)
    kernels.batch_norm(of.x, running_mean=mean, running_var=var, momentum=momentum, num_batches_tracked=count)
    assert count == 4
    factor = 0.25 if momentum is None else momentum
    wanted = by_definition(of)
    for vector, old, new in zip((mean, var), of.running, (wanted[1], wanted[3] * 20 / 19), strict=True):
        assert vector.dtype == vectors
        assert_near(vector, old.astype(np.float64) * (1 - factor) + new * factor, vectors)


def test_float32_vectors_beside_halves():
    check(inputs((6, 5, 11), "float16", relu=True, residual=True, vectors="float32"))
    of = inputs((6, 5, 11), "bfloat16", vectors="float32")
    y, mean, inverse_std = kernels.batch_norm(of.x, of.weight, of.bias)
    _, dweight, dbias, _ = kernels.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std)
    assert y.dtype == "bfloat16" and dweight.dtype == dbias.dtype == np.float32
    assert_near(dweight, by_definition(of)[5], "float32", 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_keeps_not_a_number_and_stops_infinity(dtype):
    of = inputs((3, 2, 50), dtype, residual=True, relu=True)
    of.residual[0, 0, :2] = np.nan, -np.inf
    of.dy[0, 0, 1] = np.inf
    y, mean, inverse_std = kernels.batch_norm(of.x, of.weight, of.bias, EPS, of.residual, True)
    assert np.isnan(y[0, 0, 0]) and y[0, 0, 1] == 0
    dx, _, _, gated = kernels.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std, y, True)
    assert gated[0, 0, 0] == of.dy[0, 0, 0] and gated[0, 0, 1] == 0
    assert np.isfinite(dx.astype(np.float64)).all()


def test_not_a_number_stays_in_its_channel():
    of = inputs((3, 4, 50), "float32")
    of.x[1, 2, 3] = np.nan
    of.x[0, 0, 0] = np.inf
    y, *_ = kernels.batch_norm(of.x, of.weight, of.bias)
    assert np.isnan(y[:, [0, 2]]).all() and np.isfinite(y[:, [1, 3]]).all()


@pytest.mark.parametrize("shape", [(64, 6, 28, 28), (3000, 90), (3, 5, 400, 300)], ids=str)
def test_results_do_not_depend_on_the_threads(shape):
    of = inputs(shape, "float32", relu=True, residual=True)
    threads, results = parallel.threads(), set()
    try:
        for count in (1, 3):
            parallel.set_threads(count)
            y, mean, inverse_std = kernels.batch_norm(of.x, of.weight, of.bias, EPS, of.residual, True)
            grads = kernels.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std, y, True)
            results.add(b"".join(a.tobytes() for a in (y, mean, inverse_std, *grads)))
    finally:
        parallel.set_threads(threads)
    assert len(results) == 1


def test_only_what_is_needed():
    of = inputs((3, 4, 5), "float32", relu=True, residual=True)
    y, mean, inverse_std = kernels.batch_norm(of.x, of.weight, of.bias, EPS, of.residual, True)
    everything = kernels.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std, y, True)
    for needs in ((True, False), (False, True), (False, False)):
        found = kernels.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std, y, True, needs=needs)
        for there, grad, wanted in zip((needs[0], needs[1], needs[1], True), found, everything, strict=True):
            assert (grad is not None) == there
            if there:
                np.testing.assert_array_equal(grad, wanted)


X = np.zeros((2, 3, 4), np.float32)
ONES = np.ones(3, np.float32)
BAD = {
    "rank": (lambda: kernels.batch_norm(np.zeros(3)), ValueError, r"x must have the shape \(N, C, .*got \(3,\)"),
    "weight": (lambda: kernels.batch_norm(X, ONES[:2]), ValueError, r"weight must have the shape \(3,\), got \(2,\)"),
    "residual": (
        lambda: kernels.batch_norm(X, residual=X[:1]), ValueError, r"residual must have the shape \(2, 3, 4\) of x"
    ),
    "integers": (lambda: kernels.batch_norm(X.astype(int)), TypeError, "x must be float32, .*got int64"),
    "dtype": (lambda: kernels.batch_norm(X, ONES.astype(np.float64)), TypeError, "must be all float32, got: weight"),
    "mixed": (
        lambda: kernels.batch_norm(X.astype(np.float16), ONES, ONES.astype(np.float16)),
        TypeError,
        "must be all float32 or all float16, got: weight is float32, bias is float16",
    ),
    "one": (lambda: kernels.batch_norm(X, running_mean=ONES), ValueError, "both or neither"),
    "momentum": (
        lambda: kernels.batch_norm(X, running_mean=ONES, running_var=ONES, momentum=None),
        ValueError,
        "momentum=None needs num_batches_tracked",
    ),
    "count": (
        lambda: kernels.batch_norm(X, num_batches_tracked=np.zeros(())), ValueError, "must be int64 with the shape"
    ),
    "dy": (lambda: kernels.batch_norm_grad(X[:1], X, ONES, ONES, ONES, ONES), ValueError, "dy must have the shape"),
    "list": (lambda: kernels.batch_norm([[1.0]]), TypeError, "x must be a NumPy or CuPy array, got list"),
}  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_a_clear_error(call, error, message):
    with pytest.raises(error, match=f"batch_norm.*: .*{message}"):
        call()
