"""Depthwise convolution of planes that keep their width, as products of their columns with a vector."""

import importlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_conv import naive

from adjoint import kernels
from adjoint.kernels.cpu import conv_choice, parallel

planes = importlib.import_module("adjoint.kernels.cpu.planes")

# (x shape, taps, padding, dilation)
CASES = [
    ((3, 4, 6, 7), (3, 3), ((1, 1), (1, 1)), (1, 1)),
    ((2, 5, 9, 8), (3, 3), ((0, 3), (2, 0)), (1, 1)),
    ((2, 3, 9, 12), (2, 4), ((5, 1), (4, 2)), (2, 2)),
    ((3, 5, 40, 41), (3, 3), ((2, 2), (2, 2)), (2, 2)),  # planes in several parts, the last one shorter
    ((2, 2, 3, 4), (1, 4), ((0, 0), (0, 3)), (1, 1)),
    ((2, 3, 100, 100), (9, 1), ((3, 5), (0, 0)), (1, 1)),  # longer than a dot product on one thread
]


@pytest.fixture(autouse=True)
def every_width(monkeypatch):
    monkeypatch.setattr(conv_choice, "LEAST_WIDTH", 0)


def problem(operation, x, weight, padding, dilation):
    settings = ((1, 1), padding, dilation, x.shape[1])
    shape = kernels.geometry.conv(x.shape, weight.shape, None, *settings)
    return conv_choice.Problem(operation, x.shape, weight.shape, shape, *settings, x.dtype)


def computed(x, weight, bias, dy, padding, dilation):
    forward, input_grad, weight_grad = (
        problem(operation, x, weight, padding, dilation)
        for operation in (conv_choice.FORWARD, conv_choice.INPUT_GRAD, conv_choice.WEIGHT_GRAD)
    )
    for each in (forward, input_grad, weight_grad):
        assert next(conv_choice.ways(each)) == "planes"
    return (
        planes.forward(forward, x, weight, bias),
        planes.input_grad(input_grad, dy, weight),
        planes.weight_grad(weight_grad, dy, x),
    )


def operands(shape, taps, dtype=np.float64):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal((shape[1], 1, *taps)).astype(dtype)
    return x, weight, rng.standard_normal(shape[1]).astype(dtype), lambda s: rng.standard_normal(s).astype(dtype)


def check(x, weight, bias, dy, padding, dilation, tolerance=1e-10):
    y, dy, dx, dw = naive(x, weight, dy, (1, 1), padding, dilation, x.shape[1])
    got = computed(x, weight, bias, dy, padding, dilation)
    for result, wanted in zip(got, (y + bias[:, None, None], dx, dw), strict=True):
        assert result.dtype == x.dtype and result.flags.c_contiguous
        np.testing.assert_allclose(result, wanted, tolerance, tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 2e-4)])
@pytest.mark.parametrize("nbytes", [1, 4000, 1 << 20])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pieces_of_any_size(case, nbytes, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(planes, "_COLUMNS_BYTES", nbytes)
    monkeypatch.setattr(planes, "_PLANES_BYTES", nbytes)
    monkeypatch.setattr(planes, "_MOST_SUMS", 2)
    shape, taps, *settings = case
    check(*operands(shape, taps, dtype), *settings, tolerance)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4), st.integers(0, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 4), st.integers(1, 5)),
    st.integers(1, 4), st.integers(2, 4), st.sampled_from([1, 700, 1 << 20]), st.sampled_from([2, 5, 9215]),
)  # fmt: skip
def test_any_setting(down, across, n, channels, nbytes, matrix):
    rows, gap, above, below, more = down
    columns, apart, left, further = across
    height = max(1, gap * (rows - 1) + 1 - above - below + more)
    reach = apart * (columns - 1)
    left = min(left, reach)
    assume(rows * columns > 1)
    x, weight, bias, make = operands((n, channels, height, reach + further), (rows, columns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planes, "_COLUMNS_BYTES", nbytes)
        patch.setattr(planes, "_PLANES_BYTES", nbytes)
        patch.setattr(planes, "_SMALL_MATRIX", matrix * 10)
        patch.setattr(planes, "_SMALL_DOT", matrix)
        check(x, weight, bias, make, ((above, below), (left, reach - left)), (gap, apart))


def views(a):
    """The same values behind other strides."""
    yield np.asfortranarray(a)
    yield np.ascontiguousarray(a[..., ::-1])[..., ::-1]
    yield np.repeat(np.repeat(a, 2, axis=1), 3, axis=-1)[:, ::2, ..., ::3]
    yield np.broadcast_to(a[:1], a.shape)


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_any_strides(case):
    shape, taps, padding, dilation = case
    x, weight, bias, make = operands(shape, taps)
    dy = make(kernels.geometry.conv(x.shape, weight.shape, None, (1, 1), padding, dilation, shape[1]))
    for vx, vw, vdy in zip(views(x), views(weight), views(dy), strict=True):
        check(vx, vw, bias[::-1], lambda shape, vdy=vdy: vdy, padding, dilation)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("row, column", [(0, 0), (2, -1), (2, 0), (-1, -1), (1, 3)])
@pytest.mark.parametrize("spoiled", ["x", "dy"])
def test_what_is_not_finite_stays_in_its_place(spoiled, row, column, value):
    shape, taps, padding, dilation = CASES[0]
    x, weight, _, make = operands(shape, taps)
    settings = ((1, 1), padding, dilation, shape[1])
    dy = make(kernels.geometry.conv(x.shape, weight.shape, None, *settings))
    (x if spoiled == "x" else dy)[0, 1, row, column] = value
    with np.errstate(invalid="ignore"):
        y, dy, dx, dw = naive(x, weight, lambda shape: dy, *settings)
        assert planes.weight_grad(problem(conv_choice.WEIGHT_GRAD, x, weight, padding, dilation), dy, x) is None
    with np.errstate(all="raise"):
        np.testing.assert_allclose(kernels.conv(x, weight, None, *settings), y, 1e-10, 1e-10)
        np.testing.assert_allclose(kernels.conv_input_grad(dy, weight, x.shape, *settings), dx, 1e-10, 1e-10)
        np.testing.assert_allclose(kernels.conv_weight_grad(dy, x, weight.shape, *settings), dw, 1e-10, 1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_infinite_filter_reaches_only_what_it_saw(case):
    shape, taps, padding, dilation = case
    x, weight, _, make = operands(shape, taps)
    weight[0, 0, 0, -1] = np.inf
    settings = ((1, 1), padding, dilation, shape[1])
    with np.errstate(invalid="ignore"):
        _, dy, dx, _ = naive(x, weight, make, *settings)
    assert planes.input_grad(problem(conv_choice.INPUT_GRAD, x, weight, padding, dilation), dy, weight) is None
    np.testing.assert_allclose(kernels.conv_input_grad(dy, weight, x.shape, *settings), dx, 1e-10, 1e-10)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_results_repeat_and_do_not_depend_on_threads(case, monkeypatch):
    monkeypatch.setattr(planes, "_COLUMNS_BYTES", 2000)
    monkeypatch.setattr(planes, "_PLANES_BYTES", 2000)
    shape, taps, padding, dilation = case
    x, weight, bias, make = operands((7, *shape[1:]), taps, np.float32)
    dy = make(kernels.geometry.conv(x.shape, weight.shape, None, (1, 1), padding, dilation, shape[1]))
    before = parallel.threads()
    wanted = computed(x, weight, bias, dy, padding, dilation)
    try:
        for threads in (1, 2, 5):
            parallel.set_threads(threads)
            for got, want in zip(computed(x, weight, bias, dy, padding, dilation), wanted, strict=True):
                np.testing.assert_array_equal(got, want)
    finally:
        parallel.set_threads(before)
