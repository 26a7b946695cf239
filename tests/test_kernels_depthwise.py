"""Convolution of one and three axes, and depthwise convolution of any number of axes."""

import importlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_conv import naive

from adjoint import kernels
from adjoint.kernels.cpu import parallel

depthwise = importlib.import_module("adjoint.kernels.cpu.depthwise")

# (x shape, weight shape, stride, padding, dilation, groups)
DEPTHWISE = [
    ((2, 6, 31), (6, 1, 4), (1,), ((3, 0),), (1,), 6),
    ((3, 5, 20), (10, 1, 3), (2,), ((1, 1),), (2,), 5),
    ((2, 4, 9), (4, 1, 1), (3,), ((0, 0),), (1,), 4),
    ((2, 3, 11, 12), (3, 1, 7, 7), (1, 1), ((3, 3), (3, 3)), (1, 1), 3),
    ((2, 4, 12, 11), (4, 1, 5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), 4),
    ((3, 4, 13, 12), (8, 1, 3, 4), (3, 2), ((0, 4), (5, 1)), (2, 3), 4),
    ((2, 3, 9, 8), (3, 1, 2, 2), (4, 3), ((0, 0), (0, 0)), (1, 1), 3),
    ((2, 4, 5, 6, 7), (4, 1, 3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)), (1, 1, 1), 4),
    ((2, 3, 6, 7, 8), (6, 1, 3, 2, 3), (2, 1, 2), ((1, 0), (0, 2), (1, 1)), (1, 2, 1), 3),
    # Places with nothing but padding in front, and a run of several images.
    ((9, 3, 4, 4), (3, 1, 2, 2), (1, 1), ((7, 0), (0, 5)), (1, 1), 3),
]
DENSE = [
    ((2, 3, 17), (4, 3, 5), (2,), ((2, 1),), (1,), 1),
    ((2, 4, 12), (6, 2, 3), (1,), ((0, 2),), (3,), 2),
    ((2, 3, 5, 6, 7), (4, 3, 3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)), (1, 1, 1), 1),
    ((1, 4, 7, 6, 5), (6, 2, 2, 3, 1), (2, 1, 3), ((3, 0), (0, 1), (2, 2)), (2, 1, 1), 2),
    ((1, 2, 2, 3, 3), (3, 2, 2, 1, 1), (1, 1, 1), ((4, 3), (0, 0), (0, 0)), (1, 1, 1), 1),
]


def operands(x_shape, weight_shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, weight_shape))
    return x, weight, lambda shape: rng.standard_normal(shape).astype(dtype)


def computed(x, weight, dy, arguments):
    return (
        kernels.conv(x, weight, None, *arguments),
        kernels.conv_input_grad(dy, weight, x.shape, *arguments),
        kernels.conv_weight_grad(dy, x, weight.shape, *arguments),
    )


def check(x, weight, dy, arguments, rtol=1e-10, atol=1e-10):
    y, dy, dx, dw = naive(x, weight, dy, *arguments)
    copies = [array.copy() for array in (x, weight, dy)]
    for got, wanted in zip(computed(x, weight, dy, arguments), (y, dx, dw), strict=True):
        assert got.dtype == x.dtype and got.flags.c_contiguous
        np.testing.assert_allclose(got.astype(np.float64), wanted, rtol, atol)
    for array, copy in zip((x, weight, dy), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("case", [*DEPTHWISE, *DENSE], ids=str)
def test_matches_naive_loops(case):
    x_shape, weight_shape, *arguments = case
    check(*operands(x_shape, weight_shape), arguments)


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
@pytest.mark.parametrize("piece_bytes, chunk, run", [(1, 5, 1), (3000, 64, 300), (1 << 20, 8192, 4096)])
def test_pieces_of_any_size(case, piece_bytes, chunk, run, monkeypatch):
    monkeypatch.setattr(depthwise, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(depthwise, "_CHUNK", chunk)
    monkeypatch.setattr(depthwise, "_LEAST_RUN", run)
    x_shape, weight_shape, *arguments = case
    check(*operands(x_shape, weight_shape), arguments)


def test_depthwise_is_computed_on_runs(monkeypatch):
    calls = []
    for name in ("forward", "input_grad", "weight_grad"):
        real = getattr(depthwise, name)
        monkeypatch.setattr(depthwise, name, lambda *a, name=name, real=real: [calls.append(name), real(*a)][1])
    for x_shape, weight_shape, *arguments in DEPTHWISE[1:]:
        check(*operands(x_shape, weight_shape), arguments)
    assert calls == ["forward", "input_grad", "weight_grad"] * len(DEPTHWISE[1:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [*DEPTHWISE, *DENSE], ids=str)
def test_matches_pytorch(case, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x_shape, weight_shape, *arguments = case
    stride, padding, dilation, groups = arguments
    x, weight, make = operands(x_shape, weight_shape, dtype)
    bias = make(weight_shape[:1])
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, weight, bias))
    wide = torch.nn.functional.pad(tx, [pad for pads in reversed(padding) for pad in pads])
    convolution = getattr(torch.nn.functional, f"conv{len(stride)}d")
    ty = convolution(wide, tw, tb, stride, 0, dilation, groups)
    dy = make(tuple(ty.shape))
    ty.backward(torch.tensor(dy))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(kernels.conv(x, weight, bias, *arguments), ty.detach(), **tolerance)
    np.testing.assert_allclose(kernels.conv_input_grad(dy, weight, x_shape, *arguments), tx.grad, **tolerance)
    np.testing.assert_allclose(kernels.conv_weight_grad(dy, x, weight_shape, *arguments), tw.grad, **tolerance)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda rank: st.lists(
            st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4),
                      st.integers(0, 5)),
            min_size=rank, max_size=rank,
        )
    ),
    st.integers(0, 4), st.integers(1, 3), st.integers(1, 2), st.booleans(), st.integers(0, 100),
)  # fmt: skip
def test_any_setting(axes, n, groups, k, narrow, seed):
    taps, stride, dilation = (tuple(axis[i] for axis in axes) for i in range(3))
    padding = tuple(axis[3:5] for axis in axes)
    size = [max(1, d * (t - 1) + 1 - before - after + more) for t, _, d, before, after, more in axes]
    c = 1 if narrow else 2
    x, weight, dy = operands((n, groups * c, *size), (groups * k, c, *taps), seed=seed)
    check(x, weight, dy, (stride, padding, dilation, groups))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", [*DEPTHWISE[:1], *DEPTHWISE[3:8], DENSE[0], DENSE[2]], ids=str)
def test_half_types_round_once(case, dtype):
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands(x_shape, weight_shape, dtype)
    y, dy, dx, dw = naive(x, weight, make, *arguments)
    # Half a unit in the last place of the result, and float32 sums.
    step = {"rtol": 0.5 * float(ml_dtypes.finfo(dtype).eps) * 1.001, "atol": 1e-4}
    for got, wanted in zip(computed(x, weight, dy, arguments), (y, dx, dw), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(np.float64), wanted, **step)


def views(a):
    """The same values behind other strides."""
    yield np.asfortranarray(a)
    yield np.ascontiguousarray(a[..., ::-1])[..., ::-1]
    yield np.repeat(np.repeat(a, 2, axis=1), 3, axis=-1)[:, ::2, ..., ::3]
    yield np.broadcast_to(a[:1], a.shape)


@pytest.mark.parametrize("case", [*DEPTHWISE, *DENSE], ids=str)
def test_any_strides(case):
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands(x_shape, weight_shape)
    dy = make(kernels.conv(x, weight, None, *arguments).shape)
    for vx, vw, vdy in zip(views(x), views(weight), views(dy), strict=True):
        check(vx, vw, lambda shape, vdy=vdy: vdy, arguments)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("spoiled", ["x", "dy"])
@pytest.mark.parametrize("case", [*DEPTHWISE, *DENSE], ids=str)
def test_what_is_not_finite_stays_in_its_place(case, spoiled, value):
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands(x_shape, weight_shape)
    dy = make(kernels.conv(x, weight, None, *arguments).shape)
    array = x if spoiled == "x" else dy
    array[0, 0].flat[array[0, 0].size // 2] = value
    with np.errstate(invalid="ignore"):
        check(x, weight, lambda shape: dy, arguments)


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_an_infinite_filter_reaches_only_what_it_saw(case):
    """Between the rows of dy are zeros, which it would turn into NaN."""
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands(x_shape, weight_shape)
    weight[(0, 0, *[0] * (len(x_shape) - 3), -1)] = np.inf
    with np.errstate(invalid="ignore"):
        _, dy, dx, _ = naive(x, weight, make, *arguments)
    np.testing.assert_allclose(kernels.conv_input_grad(dy, weight, x_shape, *arguments), dx, 1e-10, 1e-10)


@pytest.mark.parametrize("case", [*DEPTHWISE, DENSE[2]], ids=str)
def test_results_repeat_and_do_not_depend_on_threads(case, monkeypatch):
    monkeypatch.setattr(depthwise, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(depthwise, "_LEAST_RUN", 100)
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands((7, *x_shape[1:]), weight_shape, np.float32)
    dy = make(kernels.conv(x, weight, None, *arguments).shape)
    before = parallel.threads()
    wanted = computed(x, weight, dy, arguments)
    try:
        for threads in (1, 2, 5):
            parallel.set_threads(threads)
            for got, want in zip(computed(x, weight, dy, arguments), wanted, strict=True):
                np.testing.assert_array_equal(got, want)
    finally:
        parallel.set_threads(before)


@pytest.mark.parametrize("case", [DEPTHWISE[0], DEPTHWISE[3], DEPTHWISE[7], DENSE[0], DENSE[2]], ids=str)
def test_empty(case):
    x_shape, weight_shape, *arguments = case
    check(*operands((0, *x_shape[1:]), weight_shape), arguments)
    none = (x_shape[0], 0, *x_shape[2:]), (weight_shape[0], 0, *weight_shape[2:])
    check(*operands(*none), (*arguments[:3], 1))


@pytest.mark.parametrize(
    "shapes, changes, message",
    [
        (((1, 3, 5), (6, 3, 3)), {"padding": ((0, 0), (0, 0))}, r"conv1d: padding must be \(\(left, right\),\) of"),
        (((1, 3, 5), (6, 3, 3)), {"dilation": (1, 1)}, r"conv1d: dilation must be one integer of at least 1"),
        (((1, 3, 5, 5), (6, 3, 3)), {}, r"conv1d: input must have the shape \(N, C, L\), got \(1, 3, 5, 5\)"),
        (((1, 3, 5), (6, 3, 7)), {}, r"conv1d: the kernel is larger than the padded input: width 7 .* over 5"),
        (((1, 2, 3, 4, 5), (6, 2, 3, 3)), {"stride": (1, 1, 1), "padding": ((0, 0),) * 3, "dilation": (1, 1, 1)},
         r"conv3d: weight must have the shape \(K, C / groups, T, R, S\), got \(6, 2, 3, 3\)"),
        (((1, 2, 3, 4, 5), (6, 2, 4, 3, 3)), {"stride": (1, 1, 1), "padding": ((0, 0),) * 3, "dilation": (1, 1, 1)},
         r"conv3d: the kernel is larger than the padded input: depth 4 .* over 3"),
        (((1, 2, 3), (6, 2, 3)), {"stride": (1, 1, 1, 1)}, r"conv: stride must be one to three integers"),
    ],
)  # fmt: skip
def test_wrong_shapes_and_settings(shapes, changes, message):
    arguments = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 1} | changes
    with pytest.raises(ValueError, match=message):
        kernels.conv(*map(np.zeros, shapes), None, **arguments)


def test_wrong_gradients():
    settings = ((1,), ((0, 0),), (1,), 1)
    wanted = r"the gradient must have the shape \(1, 6, 3\) of the result, got \(1, 6, 4\)"
    with pytest.raises(ValueError, match="conv1d_input_grad: " + wanted):
        kernels.conv_input_grad(np.zeros((1, 6, 4)), np.zeros((6, 3, 3)), (1, 3, 5), *settings)
    with pytest.raises(ValueError, match="conv1d_weight_grad: " + wanted):
        kernels.conv_weight_grad(np.zeros((1, 6, 4)), np.zeros((1, 3, 5)), (6, 3, 3), *settings)
