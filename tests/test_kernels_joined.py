"""Convolution of small images joined into one product, and of those that one tap alone sees."""

import numpy as np
import pytest
from conv_ways import DTYPES, check, operands, problem, strided
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint import kernels
from adjoint.kernels.cpu import conv_choice, images, joined, unseen
from adjoint.kernels.cpu.conv_choice import FORWARD, INPUT_GRAD, WEIGHT_GRAD

NONE = ((0, 0), (0, 0))
SAME = ((1, 1), (1, 1))

# (x shape, weight shape, stride, padding, dilation, groups)
CASES = [
    ((5, 6, 4, 4), (8, 6, 3, 3), (1, 1), SAME, (1, 1), 1),
    ((5, 6, 4, 4), (8, 6, 3, 3), (2, 2), SAME, (1, 1), 1),
    ((5, 6, 2, 2), (8, 6, 3, 3), (1, 1), SAME, (1, 1), 1),
    ((5, 6, 1, 1), (8, 6, 1, 1), (1, 1), NONE, (1, 1), 1),
    ((5, 6, 2, 2), (8, 6, 2, 2), (2, 2), NONE, (1, 1), 1),
    ((5, 6, 2, 3), (8, 6, 1, 1), (1, 1), NONE, (1, 1), 1),
    ((5, 6, 3, 3), (8, 6, 1, 1), (2, 2), SAME, (1, 1), 1),
    ((7, 6, 5, 7), (8, 3, 3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 2),
    ((7, 3, 9, 8), (5, 3, 4, 3), (3, 2), ((0, 4), (5, 0)), (2, 3), 1),
    ((3, 4, 3, 3), (4, 1, 3, 3), (1, 1), ((2, 2), (2, 2)), (1, 1), 4),
    ((1, 4, 6, 6), (3, 4, 3, 3), (1, 1), SAME, (1, 1), 1),
    ((17, 2, 3, 4), (3, 2, 3, 3), (1, 1), SAME, (1, 1), 1),
]


def join(x, weight, bias, dy, arguments):
    return (
        joined.forward(problem(FORWARD, x, weight, dy, arguments), x, weight, bias),
        joined.input_grad(problem(INPUT_GRAD, x, weight, dy, arguments), dy, weight),
        joined.weight_grad(problem(WEIGHT_GRAD, x, weight, dy, arguments), dy, x),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_naive_loops(case, block, dtype, monkeypatch):
    x, weight, bias, dy, wanted = operands(case, dtype)
    image = problem(FORWARD, x, weight, dy, case[2:]).columns_bytes
    monkeypatch.setattr(conv_choice, "JOINED_BLOCK_BYTES", block * image)
    monkeypatch.setattr(conv_choice, "JOINED_SUM_BYTES", 3 * weight[:1].size * 4)
    monkeypatch.setattr(conv_choice, "MOST_TURNED", 4)  # filters of some cases, not of others
    check(join(x, weight, bias, dy, case[2:]), wanted, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_strides(case):
    x, weight, bias, dy, wanted = operands(case, np.float64)
    x, weight, dy = strided(x, weight, dy)
    check(join(x, weight, bias, dy, case[2:]), wanted, np.float64)


def test_an_infinite_weight_reaches_only_what_it_saw():
    x, weight, bias, dy, _ = operands(CASES[0], np.float64)
    weight[2, 1, 0, 0] = np.inf
    dx = join(x, weight, bias, dy, CASES[0][2:])[1]
    # Its tap sees all of a channel but the last row and the last column.
    assert np.isinf(dx[:, 1, :3, :3]).all()
    dx[:, 1, :3, :3] = 0
    assert np.isfinite(dx).all()


@pytest.mark.parametrize(
    "x_shape, weight_shape, others, wanted",
    [
        ((16, 512, 1, 1), (512, 512, 3, 3), {"padding": 1}, "joined"),
        ((16, 256, 2, 2), (256, 256, 3, 3), {"padding": 1}, "joined"),
        ((8, 128, 4, 4), (128, 128, 3, 3), {"padding": 1}, "joined"),
        ((16, 128, 4, 4), (256, 128, 3, 3), {"padding": 1, "stride": 2}, "joined"),
        ((16, 256, 2, 2), (512, 256, 1, 1), {"stride": 2}, "joined"),
        ((16, 512, 4, 4), (256, 512, 1, 1), {}, "joined"),
        ((16, 64, 16, 16), (64, 64, 5, 5), {"padding": 2}, "joined"),
        ((16, 64, 17, 17), (64, 64, 5, 5), {"padding": 2}, "columns"),
        ((16, 512, 5, 4), (256, 512, 1, 1), {}, "columns"),
        ((2, 512, 16, 16), (8, 512, 5, 5), {"padding": 2}, "columns"),
    ],
    ids=str,
)
def test_what_is_joined(x_shape, weight_shape, others, wanted, monkeypatch):
    """By the way of the whole call, after what has no part is left out."""
    settings = {"stride": 1, "padding": 0} | others
    arguments = ((settings["stride"],) * 2, ((settings["padding"],) * 2,) * 2, (1, 1), 1)
    calls = []
    for way, module in (("joined", joined), ("columns", images)):
        forward = module.forward
        monkeypatch.setattr(module, "forward", lambda *a, way=way, forward=forward: [calls.append(way), forward(*a)][1])
    kernels.conv(np.ones(x_shape, np.float32), np.ones(weight_shape, np.float32), None, *arguments)
    assert calls == [wanted]


# (size, taps, stride, padding, dilation) of an axis, and the tap that alone sees any of it.
ONE_TAP = [
    ((1, 3, 1, (1, 1), 1), 1),
    ((1, 3, 2, (1, 1), 1), 1),
    ((1, 1, 1, (0, 0), 1), 0),
    ((4, 3, 1, (4, 4), 4), 1),
    ((2, 5, 1, (0, 8), 2), 0),
    ((1, 4, 1, (3, 0), 1), 3),
    ((1, 2, 1, (1, 3), 3), 0),
    ((2, 2, 1, (0, 1), 2), None),  # the second element is not seen
    ((3, 3, 1, (3, 1), 3), None),
    ((1, 1, 1, (0, 1), 1), 0),
    ((2, 3, 2, (0, 4), 2), 0),
    ((3, 2, 1, (3, 3), 6), None),  # both see something, from other outputs
    ((2, 3, 1, (1, 1), 1), None),
    ((4, 3, 1, (2, 2), 3), None),  # one tap, whose first output is past the first element
]


@pytest.mark.parametrize("down, row", ONE_TAP, ids=str)
@pytest.mark.parametrize("across, column", ONE_TAP, ids=str)
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("joins", [True, False])
def test_taps_that_see_only_padding_are_left_out(joins, groups, down, row, across, column, monkeypatch):
    for limit in () if joins else ("MOST_POSITIONS", "MOST_PLAIN", "MOST_OUTPUTS"):
        monkeypatch.setattr(conv_choice, limit, 0)
    sizes, taps, stride, padding, dilation = zip(down, across, strict=True)
    case = ((9, 4, *sizes), (8, 4 // groups, *taps), stride, padding, dilation, groups)
    x, weight, bias, dy, (y, dx, dw) = operands(case, np.float64)
    left, kept = unseen.without_taps(problem(FORWARD, x, weight, dy, case[2:]))
    if None in (row, column):
        assert left.weight_shape == weight.shape and weight[:, :, *kept].shape == weight.shape
    else:
        assert left.weight_shape == (8, 4 // groups, 1, 1) and kept == (slice(row, row + 1), slice(column, column + 1))
        assert min(map(min, left.padding)) >= 0
    np.testing.assert_allclose(kernels.conv(x, weight, bias, *case[2:]), y, 1e-12, 1e-12)
    np.testing.assert_allclose(kernels.conv_input_grad(dy, weight, x.shape, *case[2:]), dx, 1e-12, 1e-12)
    np.testing.assert_allclose(kernels.conv_weight_grad(dy, x, weight.shape, *case[2:]), dw, 1e-12, 1e-12)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9), st.integers(0, 9), st.integers(1, 4))
def test_one_tap_is_found_where_others_see_nothing(size, taps, stride, before, after, dilation):
    outputs = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
    if outputs < 1:
        return
    case = ((1, 1, size), (1, 1, taps), (stride,), ((before, after),), (dilation,), 1)
    shapes = (case[0], case[1], (1, 1, outputs))
    left, (kept,) = unseen.without_taps(conv_choice.Problem(FORWARD, *shapes, *case[2:], np.dtype(np.float64)))
    inside, reach = set(range(size)), range(0, outputs * stride, stride)
    seen = [inside & {tap * dilation - before + place for place in reach} for tap in range(taps)]
    alone = [tap for tap in range(taps) if seen[tap]]
    if kept != slice(0, taps):
        assert alone == [kept.start] and kept.stop == kept.start + 1
        assert inside & {place - left.padding[0][0] for place in reach} == seen[kept.start]
    elif len(alone) == 1 and taps > 1:
        assert alone[0] * dilation > before or (stride == 1 and max(seen[alone[0]]) < size - 1)
