"""The NumPy kernels of activations against their definitions in float64."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
from activations import KINDS, SETTINGS, TOLERANCE, assert_close, layouts, numbers, slope, value

from adjoint import kernels
from adjoint.kernels.cpu import error_function, parallel
from adjoint.kernels.geometry import activation as geometry

DTYPES = ("float32", "float64", "float16", "bfloat16")
work = importlib.import_module("adjoint.kernels.cpu.activation_work")


def settings(kind):
    return SETTINGS.get(kind, (0.0, 0.0))


def saved(kind, x, y):
    return y if geometry.slope_from_output(kind, settings(kind)[0]) else x


def gradient(kind, dy, x):
    """By the kernel, from what it wants saved."""
    y = kernels.activation(x, kind, *settings(kind))
    return kernels.activation_input_grad(dy, saved(kind, x, y), kind, *settings(kind))


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 64 numbers of float32, and as many threads as there are pieces."""
    for name in ("activation_work", "activation", "bias_activation"):
        monkeypatch.setattr(importlib.import_module(f"adjoint.kernels.cpu.{name}"), "PIECE_BYTES", 256)


def test_the_tests_have_every_kind():
    assert set(KINDS) == set(geometry.KINDS)
    assert [kind.code for kind in geometry.KINDS.values()] == list(range(len(KINDS)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind, dtype):
    x, dy = numbers(kind, (37, 21), dtype), numbers("", (37, 21), dtype, seed=1)
    kept = x.copy(), dy.copy()
    assert_close(kernels.activation(x, kind, *settings(kind)), value(kind, x), dtype)
    wanted = dy.astype(np.float64) * slope(kind, x)
    # A half's rounding of the output is part of what is saved.
    output_of_half = x.dtype.itemsize == 2 and geometry.KINDS[kind].from_output
    np.testing.assert_allclose(
        gradient(kind, dy, x).astype(np.float64), wanted, *((0.05, 0.05) if output_of_half else TOLERANCE[dtype])
    )
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(dy, kept[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_half_is_that_of_its_saved_array(kind):
    """Halves differ from float32 by their last rounding only."""
    for dtype in ("float16", "bfloat16"):
        x, dy = numbers(kind, (300,), dtype), numbers("", (300,), dtype, seed=1)
        kept = saved(kind, x, kernels.activation(x, kind, *settings(kind)))
        wide = kernels.activation_input_grad(
            dy.astype(np.float32), kept.astype(np.float32), kind, *settings(kind)
        ).astype(dtype)
        np.testing.assert_array_equal(kernels.activation_input_grad(dy, kept, kind, *settings(kind)), wide)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_strides_and_pieces(kind, dtype, small_pieces):
    x, dy = numbers(kind, (23, 19), dtype), numbers("", (23, 19), dtype, seed=1)
    y, dx = kernels.activation(x, kind, *settings(kind)), gradient(kind, dy, x)
    assert_close(y, value(kind, x), dtype)
    for other_x, other_dy in zip(layouts(x), reversed(layouts(dy)), strict=True):
        made = kernels.activation(other_x, kind, *settings(kind))
        np.testing.assert_array_equal(made, y)
        assert made.flags.c_contiguous
        np.testing.assert_array_equal(gradient(kind, other_dy, other_x), dx)
    expanded = np.broadcast_to(dy[:1], dy.shape)
    np.testing.assert_array_equal(gradient(kind, expanded, x), gradient(kind, expanded.copy(), x))


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_several_pieces_do_not_depend_on_the_threads(kind):
    """600,001 numbers: several pieces of the real size, the last one short."""
    x, dy = numbers(kind, (600_001,), "float32"), numbers("", (600_001,), "float32", seed=1)
    results = []
    before = parallel.threads()
    try:
        for threads in (1, 2, 3):
            parallel.set_threads(threads)
            results.append((kernels.activation(x, kind, *settings(kind)), gradient(kind, dy, x)))
    finally:
        parallel.set_threads(before)
    for y, dx in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])
    some = slice(None, None, 97)
    assert_close(results[0][0][some], value(kind, x[some]), "float32")
    assert_close(results[0][1][some], dy[some] * slope(kind, x[some]), "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_scalar_arrays(kind):
    for shape in ((), (0,), (3, 0, 2)):
        x = numbers(kind, shape, "float32")
        y = kernels.activation(x, kind, *settings(kind))
        assert y.shape == gradient(kind, x, x).shape == shape
        assert_close(y, value(kind, x), "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_slope_along_with_the_value(kind, dtype):
    x, dy = numbers(kind, (37, 21), dtype), numbers("", (37, 21), dtype, seed=1)
    y, made = kernels.activation_with_slope(x, kind, *settings(kind))
    assert_close(y, value(kind, x), dtype)
    if made is None:
        return
    assert dtype in ("float32", "float64")
    assert_close(made, slope(kind, x), dtype)
    expected = dy * made
    np.testing.assert_array_equal(kernels.activation_scale(made, dy), expected)
    assert kernels.activation_scale(made, dy, in_place=True) is made
    np.testing.assert_array_equal(made, expected)


def test_where_numbers_are_large():
    """No overflow on the way, and the accuracy of a small result is that of its own size."""
    x = np.array([-1000.0, -88.0, -30.0, 30.0, 88.0, 1000.0], np.float32)
    for kind in KINDS:
        y, wanted = kernels.activation(x, kind, *settings(kind)), value(kind, x)
        relative = kind in ("sigmoid", "silu", "logsigmoid", "softplus", "mish")
        tiny = np.abs(wanted) < 1e-37  # below float32's normal numbers
        np.testing.assert_allclose(y[~tiny], wanted[~tiny], rtol=2e-6, atol=0 if relative else 1e-6, err_msg=kind)
        assert (np.abs(y[tiny]) < 1e-37).all()


SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 3.0, -3.0, 0.375, -0.375, 0.25, -0.75, 1.25, 6.0, 1e-30, -1e-30]
# PyTorch's own, or their gradients, are NaN for infinite numbers where it takes infinity times zero.
INFINITE_DIFFER = {"gelu", "hardswish", "mish", "softsign"}


def torch_function(torch, kind):
    functional = torch.nn.functional
    if kind == "gelu_tanh":
        return lambda x: functional.gelu(x, approximate="tanh")
    a, b = settings(kind)
    count = {"softplus": 2, "hardtanh": 2, "threshold": 2}.get(kind, 1 if kind in SETTINGS else 0)
    return lambda x: getattr(functional, kind)(x, *(a, b)[:count])


@pytest.mark.parametrize("kind", KINDS)
def test_special_values_are_pytorchs(kind):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    x = np.array(SPECIAL)
    given = torch.tensor(x, requires_grad=True)
    expected = torch_function(torch, kind)(given)
    (expected_grad,) = torch.autograd.grad(expected, given, torch.full_like(given, 2.0))
    y, dx = kernels.activation(x, kind, *settings(kind)), gradient(kind, np.full_like(x, 2.0), x)
    ordinary = ~np.isinf(x) if kind in INFINITE_DIFFER else np.ones(x.shape, bool)
    np.testing.assert_allclose(y[ordinary], expected.detach().numpy()[ordinary], rtol=1e-12, atol=1e-15)
    ordinary &= ~np.isnan(x)
    np.testing.assert_allclose(dx[ordinary], expected_grad.numpy()[ordinary], rtol=1e-7, atol=1e-12)
    assert np.isnan(dx[0]) or dx[0] in (0, 2, expected_grad[0])  # PyTorch gives either, by the length of the array


def test_a_blocked_gradient_is_zero_whatever_it_was():
    x = np.array([-5.0, -5.0, 5.0], np.float32)
    dy = np.array([np.inf, np.nan, np.nan], np.float32)
    for kind in ("relu", "hardtanh", "threshold"):
        np.testing.assert_array_equal(gradient(kind, dy, x)[:2], [0, 0])
    assert np.isnan(gradient("relu", dy, x)[2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_passes_relu_at_minus_zero(dtype):
    """Of any length: NumPy's loops and their ends are different code."""
    for length in range(1, 80):
        x = np.full(length, -0.0, dtype)
        np.testing.assert_array_equal(gradient("relu", np.ones_like(x), x), np.zeros(length))


# ---- with one number per channel

SHAPES = [((6, 5), 1), ((7, 40), 1), ((4, 3, 5, 7), 1), ((2, 70, 3, 30), 1), ((5, 4, 3), 2), ((5, 4, 3), 0), ((9,), 0)]
SHAPES += [((3, 1, 50), 1), ((0, 4), 1), ((3, 0, 2), 1), ((3, 4, 0), 1), ((130, 2), 1)]


def along(vector, dim, ndim):
    return vector.reshape(-1, *(1,) * (ndim - 1 - dim))


def total(values, dim):
    return values.sum(axis=tuple(i for i in range(values.ndim) if i != dim))


@pytest.mark.parametrize("pieces", ["whole", "small"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_bias_activation(shape, dim, dtype, pieces, request):
    if pieces == "small":
        request.getfixturevalue("small_pieces")
    for kind in ("relu", "gelu", "hardtanh", "silu"):
        check_bias_activation(kind, shape, dim, dtype)


def check_bias_activation(kind, shape, dim, dtype):
    a, b = settings(kind)
    x, dy = numbers("", shape, dtype), numbers("", shape, dtype, seed=1)
    bias = numbers("", (shape[dim],), dtype, seed=2)
    z = x.astype(np.float64) + along(bias.astype(np.float64), dim, x.ndim)
    y = kernels.bias_activation(x, bias, kind, dim, a, b)
    assert_close(y, value(kind, z), dtype)
    from_output = geometry.slope_from_output(kind, a)
    args = (y, None) if from_output else (x, bias)
    dx, db = kernels.bias_activation_grad(dy, *args, kind, dim, a, b)
    smooth = np.ones(shape, bool)
    for kink in {"relu": (0,), "hardtanh": (a, b)}.get(kind, ()):
        smooth &= np.abs(z - kink) > 1 / 64
    wanted = dy.astype(np.float64) * slope(kind, z)
    assert_close(dx[smooth], wanted[smooth], dtype)
    wide = np.where(smooth, wanted, dx.astype(np.float64))
    rounding = {"float32": 1e-4, "float64": 1e-9, "float16": 1e-2, "bfloat16": 0.05}[dtype]
    np.testing.assert_allclose(db.astype(np.float64), total(wide, dim), rtol=rounding, atol=rounding)
    assert db.dtype == dx.dtype == y.dtype
    same, made = kernels.bias_activation_with_slope(x, bias, kind, dim, a, b)
    assert_close(same, value(kind, z), dtype)
    assert (made is not None) == (kind in ("gelu", "silu") and dtype in ("float32", "float64"))
    if made is not None:
        found = kernels.bias_activation_scale(made, dy, dim)
        assert_close(found[0], wanted, dtype)
        np.testing.assert_allclose(found[1], total(wanted, dim), rtol=1e-4, atol=1e-4)
        assert kernels.bias_activation_scale(made, dy, dim, with_bias_grad=False, in_place=True) == (made, None)
        np.testing.assert_array_equal(made, found[0])
    only, nothing = kernels.bias_activation_grad(dy, *args, kind, dim, a, b, with_bias_grad=False)
    assert nothing is None
    np.testing.assert_array_equal(only, dx)


def test_bias_gradients_of_halves_are_summed_in_float32():
    ones = np.ones((4096, 3), np.float16)
    _, db = kernels.bias_activation_grad(ones, ones, None, "relu", 1)
    np.testing.assert_array_equal(db, [4096] * 3)  # float16 alone stops at 2048


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5, 7), (300, 2), (0, 4), (3, 4, 0), (5, 1, 40)])
def test_prelu(shape, single, dtype):
    x, dy = numbers("relu", shape, dtype), numbers("", shape, dtype, seed=1)
    weight = numbers("", (1,) if single else (shape[1],), dtype, seed=2)
    w = along(weight.astype(np.float64), 1, x.ndim) if weight.size > 1 else weight.astype(np.float64)
    wide, up = x.astype(np.float64), dy.astype(np.float64)
    assert_close(kernels.prelu(x, weight), np.where(wide > 0, wide, w * wide), dtype)
    dx, dw = kernels.prelu_grad(dy, x, weight)
    assert_close(dx, np.where(wide > 0, up, w * up), dtype)
    below = np.where(wide > 0, 0, wide * up)
    wanted = below.sum().reshape(1) if weight.size == 1 else total(below, 1)
    np.testing.assert_allclose(dw.astype(np.float64), wanted, rtol=TOLERANCE[dtype][0] * 4, atol=1e-3)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_prelu_with_one_weight_takes_any_shape(shape):
    x = numbers("relu", shape, "float32")
    np.testing.assert_allclose(kernels.prelu(x, np.array([0.5], np.float32)), np.where(x > 0, x, x / 2))
    dx, dw = kernels.prelu_grad(np.ones_like(x), x, np.array([0.5], np.float32))
    np.testing.assert_array_equal(dx, np.where(x > 0, 1, 0.5))
    np.testing.assert_allclose(dw, [np.minimum(x, 0).sum()], rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((6, 10), 1), ((4, 6, 5), 1), ((8, 3), 0), ((2, 3, 20_000), 2), ((3, 0), 1), ((0, 4), 1), ((6,), 0)],
)
def test_glu(shape, dim, dtype):
    x = numbers("", shape, dtype)
    y = kernels.glu(x, dim)
    first, gate = np.split(x.astype(np.float64), 2, axis=dim)
    s = 1 / (1 + np.exp(-gate))
    assert_close(y, first * s, dtype)
    dy = numbers("", y.shape, dtype, seed=1)
    up = dy.astype(np.float64)
    assert_close(kernels.glu_input_grad(dy, x, dim), np.concatenate([up * s, up * first * s * (1 - s)], dim), dtype)


# ---- errors


def test_errors_name_the_operation():
    x, y = np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32)
    vector = np.zeros(3, np.float32)
    wrong = {
        "activation: kind must be one of relu, .*, got 'nope'": lambda: kernels.activation(x, "nope"),
        "activation_input_grad: dy must have the shape of the input, \\(2, 4\\), got \\(2, 3\\)": lambda: (
            kernels.activation_input_grad(y, x, "relu")
        ),
        "bias_activation: bias must have the shape \\(4,\\) for dimension 1 of \\(2, 4\\), got \\(3,\\)": lambda: (
            kernels.bias_activation(x, vector, "relu", 1)
        ),
        "bias_activation: dim must be from 0 to 1": lambda: kernels.bias_activation(x, vector, "relu", 2),
        "bias_activation_grad: the slope of gelu comes from the input: give the bias too": lambda: (
            kernels.bias_activation_grad(x, x, None, "gelu", 1)
        ),
        "prelu: weight must have the shape \\(4,\\)": lambda: kernels.prelu(x, vector),
        "prelu: weight must have the shape \\(1,\\)": lambda: kernels.prelu(vector, vector),
        "glu: the size of dimension 1 must be even": lambda: kernels.glu(y, 1),
        "glu_input_grad: dy must have the shape \\(2, 2\\)": lambda: kernels.glu_input_grad(y, x, 1),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
    with pytest.raises(TypeError, match=r"^activation: x must be float32, float64, float16 or bfloat16, got int64"):
        kernels.activation(np.arange(3), "relu")
    with pytest.raises(TypeError, match=r"^bias_activation: all arrays must have one dtype"):
        kernels.bias_activation(x, np.zeros(4), "relu", 1)


# ---- the error function

POINTS = np.concatenate([np.linspace(-6, 6, 2001), [0.46875, -0.46875, 4, 1e-300, -1e-10, 1e-3, 26.5, -26.5, 27.5]])


def test_erf_and_erfc_of_float64_are_the_c_librarys():
    for function, exact in ((error_function.erf, math.erf), (error_function.erfc, math.erfc)):
        expected = np.array([exact(point) for point in POINTS])
        np.testing.assert_allclose(function(POINTS), expected, rtol=1e-15, atol=1e-300)


def test_erf_and_erfc_of_float32():
    points = POINTS.astype(np.float32)
    for function, exact, ulps in ((error_function.erf, math.erf, 4), (error_function.erfc, math.erfc, 1)):
        expected = np.array([exact(point) for point in points])
        np.testing.assert_allclose(function(points), expected, rtol=ulps * 2**-24, atol=2e-38)


def test_values_of_the_error_function_from_a_table():
    """Abramowitz and Stegun, table 7.1."""
    x = np.array([0.1, 0.5, 1.0, 1.5, 2.0])
    expected = [0.1124629160, 0.5204998778, 0.8427007929, 0.9661051465, 0.9953222650]
    np.testing.assert_allclose(error_function.erf(x), expected, atol=5e-11)


def test_erfinv_is_the_inverse():
    y = np.concatenate([np.linspace(-0.9999, 0.9999, 999), 1 - 10.0 ** -np.arange(5, 15), [1e-200, 0.85, -0.85]])
    x = error_function.erfinv(y)
    back = np.array([math.erf(value) for value in x])
    np.testing.assert_allclose(back, y, rtol=1e-15, atol=0)
    # Near 1 the complement tells more.
    small = 10.0 ** -np.arange(3, 16)
    given = 1 - small
    np.testing.assert_allclose([math.erfc(v) for v in error_function.erfinv(given)], 1 - given, rtol=2e-13)


def test_limits_of_the_error_functions():
    for dtype in DTYPES:
        x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1, -1, 2]).astype(dtype)
        np.testing.assert_array_equal(error_function.erf(x)[:5].astype(float), [1, -1, np.nan, 0, 0])
        np.testing.assert_array_equal(error_function.erfc(x)[:5].astype(float), [0, 2, np.nan, 1, 1])
        np.testing.assert_array_equal(
            error_function.erfinv(x)[2:].astype(float), [np.nan, 0, 0, np.inf, -np.inf, np.nan]
        )
        assert np.signbit(error_function.erf(x)[4].astype(float))
