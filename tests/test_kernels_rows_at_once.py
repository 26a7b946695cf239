"""Convolution with few filters, several rows of the output at once."""

import numpy as np
import pytest
from conv_ways import DTYPES, check, operands, problem, strided
from naive_conv import naive

from adjoint import kernels
from adjoint.kernels.cpu import conv_choice, rows_at_once
from adjoint.kernels.cpu.conv_choice import FORWARD, WEIGHT_GRAD

# (x shape, weight shape, stride, padding, dilation, groups)
CASES = [
    ((5, 1, 12, 11), (6, 1, 5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((5, 1, 10, 6), (6, 1, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 2, 7, 5), (1, 2, 2, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((17, 3, 6, 7), (8, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((5, 2, 9, 6), (12, 2, 4, 2), (1, 1), ((3, 0), (0, 2)), (1, 1), 1),
    ((2, 1, 5, 4), (5, 1, 5, 3), (1, 1), ((0, 2), (1, 0)), (1, 1), 1),
]


def both(x, weight, bias, dy, settings):
    return (
        rows_at_once.forward(problem(FORWARD, x, weight, dy, settings), x, weight, bias),
        rows_at_once.weight_grad(problem(WEIGHT_GRAD, x, weight, dy, settings), dy, x),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_naive_loops(case, block, dtype, monkeypatch):
    x, weight, bias, dy, (y, _, dw) = operands(case, dtype)
    monkeypatch.setattr(conv_choice, "ROWS_BLOCK_BYTES", block * problem(FORWARD, x, weight, dy, case[2:]).rows_bytes)
    check(both(x, weight, bias, dy, case[2:]), (y, dw), dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_strides(case):
    x, weight, bias, dy, (y, _, dw) = operands(case, np.float64)
    x, weight, dy = strided(x, weight, dy)
    check(both(x, weight, bias, dy, case[2:]), (y, dw), np.float64)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_the_windows_that_see_it(value):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((16, 1, 12, 12)), rng.standard_normal((6, 1, 5, 5))
    settings = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    finite = kernels.conv(x, weight, None, *settings)
    x[3, 0, 9, 9] = value
    y = kernels.conv(x, weight, None, *settings)
    assert not np.isfinite(y[3, :, 5:, 5:]).any()
    y[3, :, 5:, 5:] = finite[3, :, 5:, 5:]
    np.testing.assert_allclose(y, finite, 1e-12, 1e-12)
    dy = rng.standard_normal(y.shape)
    dy[2, 4, 7, 7] = value
    dw = kernels.conv_weight_grad(dy, np.where(np.isfinite(x), x, 1), weight.shape, *settings)
    assert not np.isfinite(dw[4]).any() and np.isfinite(np.delete(dw, 4, 0)).all()


@pytest.mark.parametrize("place", [(9, 9), (11, 0), (0, 3)])
def test_the_weight_gradient_of_what_is_not_finite(place):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((16, 1, 12, 12)), rng.standard_normal((6, 1, 4, 5))
    settings = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    x[3, 0, *place], x[5, 0, *place] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        _, dy, _, dw = naive(x, weight, rng.standard_normal, *settings)
    with np.errstate(all="raise"):
        np.testing.assert_allclose(kernels.conv_weight_grad(dy, x, weight.shape, *settings), dw, 1e-10, 1e-10)


@pytest.mark.parametrize(
    "x_shape, weight_shape, others, wanted",
    [
        ((64, 1, 28, 28), (6, 1, 5, 5), {}, "rows at once"),
        ((64, 3, 32, 32), (12, 3, 3, 3), {"padding": 1}, "rows at once"),
        ((64, 1, 28, 28), (13, 1, 5, 5), {}, "interleaved"),
        ((64, 1, 28, 28), (6, 1, 1, 5), {}, "joined"),
        ((64, 1, 28, 28), (6, 1, 5, 5), {"stride": 2}, "joined"),
        ((15, 1, 28, 28), (6, 1, 5, 5), {}, "interleaved"),
        ((64, 3, 224, 224), (8, 3, 3, 3), {"padding": 1}, "columns"),
    ],
    ids=str,
)
def test_where_rows_are_taken_at_once(x_shape, weight_shape, others, wanted):
    stride, pad = (others.get("stride", 1),) * 2, (others.get("padding", 0),) * 2
    settings = (stride, (pad, pad), (1, 1), 1)
    y_shape = kernels.geometry.conv(x_shape, weight_shape, None, *settings)
    given = conv_choice.Problem(FORWARD, x_shape, weight_shape, y_shape, *settings, np.dtype(np.float32))
    assert next(conv_choice.ways(given)) == wanted
    assert next(conv_choice.ways(given.of(operation=WEIGHT_GRAD))) == wanted
