"""Activations in nn.functional and as modules against PyTorch and finite differences."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from activations import KINKS, numbers

import adjoint as ad
import adjoint.nn.functional as F
from adjoint import nn
from adjoint.engine.gradcheck import gradcheck, gradgradcheck

# Name, settings; the same in both libraries.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("relu", {}),
    ("relu6", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": 0.25}),
    ("leaky_relu", {"negative_slope": 0.0}),
    ("leaky_relu", {"negative_slope": -0.5}),
    ("leaky_relu", {"negative_slope": 1.5}),
    ("elu", {}),
    ("elu", {"alpha": 1.5}),
    ("selu", {}),
    ("celu", {}),
    ("celu", {"alpha": 0.75}),
    ("celu", {"alpha": -2.0}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("mish", {}),
    ("softplus", {}),
    ("softplus", {"beta": 2.0, "threshold": 3.0}),
    ("softplus", {"beta": 0.5, "threshold": -1.0}),
    ("hardtanh", {}),
    ("hardtanh", {"min_val": -0.75, "max_val": 1.25}),
    ("hardsigmoid", {}),
    ("hardswish", {}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("logsigmoid", {}),
    ("softsign", {}),
    ("softshrink", {}),
    ("softshrink", {"lambd": 0.375}),
    ("hardshrink", {}),
    ("hardshrink", {"lambd": -1.0}),
    ("tanhshrink", {}),
    ("threshold", {"threshold": 0.25, "value": -2.0}),
    ("glu", {}),
    ("glu", {"dim": 0}),
    ("rrelu", {"lower": 0.1, "upper": 0.5}),
]
IDS = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings in CALLS]
EVERY = pytest.mark.parametrize(("name", "settings"), CALLS, ids=IDS)
IN_PLACE = (
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "silu",
    "mish",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
)
IN_PLACE += ("threshold", "rrelu")


def away_from_kinks(shape: tuple[int, ...], dtype: Any = "float64", seed: int = 0) -> np.ndarray:
    """Numbers of both signs, none near where any of the calls has a kink."""
    x = numbers("", shape, "float64", seed)
    kinks = {0.0, 1.0, -1.0, 0.5, -0.5, 6.0, -2.0, *(kink for kinks in KINKS.values() for kink in kinks)}
    for _ in range(2):
        for kink in kinks:
            x = np.where(np.abs(x - kink) < 1 / 64, kink + 1 / 32, x)
    return x.astype(dtype)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("float64", 1e-7, 1e-9), ("float32", 2e-5, 1e-5)])
@EVERY
def test_values_and_gradients_are_pytorchs(torch, name, settings, dtype, rtol, atol) -> None:
    x, dy = away_from_kinks((4, 7, 6), dtype), numbers("", (4, 7, 6), dtype, seed=1)
    theirs = torch.tensor(x, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(theirs, **settings)
    dy = dy[: expected.shape[0], :, : expected.shape[2]]
    (expected_grad,) = torch.autograd.grad(expected, theirs, torch.tensor(dy.copy()))
    ours = ad.tensor(x, requires_grad=True)
    y = getattr(F, name)(ours, **settings)
    (grad,) = ad.autograd.grad(y, ours, ad.tensor(dy))
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=rtol, atol=atol)
    # PyTorch's float64 slopes of hardsigmoid and celu go through float32 constants.
    np.testing.assert_allclose(grad.numpy(), expected_grad.numpy(), rtol=rtol, atol=max(atol, 2e-7))
    assert y.dtype == grad.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(ours.detach().numpy(), x)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@EVERY
def test_halves_are_computed_in_float32(name, settings, dtype) -> None:
    x = away_from_kinks((4, 8), dtype)
    wide = getattr(F, name)(ad.tensor(x.astype(np.float32)), **settings).numpy()
    given = ad.tensor(x, requires_grad=True)
    y = getattr(F, name)(given, **settings)
    np.testing.assert_array_equal(y.detach().numpy(), wide.astype(dtype))
    (grad,) = ad.autograd.grad(y.sum(), given)
    assert grad.dtype == dtype


@EVERY
def test_derivatives_are_those_of_finite_differences(name, settings) -> None:
    x = ad.tensor(away_from_kinks((4, 6)), requires_grad=True)

    def call(x: ad.Tensor) -> ad.Tensor:
        return getattr(F, name)(x, **settings)

    assert gradcheck(call, [x])
    assert gradgradcheck(call, [x])


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "elu", "mish", "softplus", "glu"])
def test_third_derivatives(name) -> None:
    x = ad.tensor(away_from_kinks((2, 4)) / 2, requires_grad=True)

    def slope(x: ad.Tensor) -> ad.Tensor:
        (grad,) = ad.autograd.grad(getattr(F, name)(x).sum(), x, create_graph=True)
        return grad

    assert gradgradcheck(slope, [x])


@pytest.mark.parametrize("name", ["relu", "hardtanh", "leaky_relu", "softshrink"])
def test_the_second_derivative_of_lines_is_zero(name) -> None:
    x = ad.tensor(away_from_kinks((6,)), requires_grad=True)
    (slope,) = ad.autograd.grad(getattr(F, name)(x).sum(), x, create_graph=True)
    (second,) = ad.autograd.grad(slope.sum(), x)
    np.testing.assert_array_equal(second.numpy(), np.zeros(6))


def test_the_gradient_can_be_taken_twice_from_one_graph() -> None:
    """The slope that forward computed is not used up while the graph is retained."""
    x = ad.tensor(away_from_kinks((50,)), requires_grad=True)
    for name in ("gelu", "silu", "mish"):
        y = getattr(F, name)(x).sum()
        first, second, last = (ad.autograd.grad(y, x, retain_graph=keep)[0] for keep in (True, True, False))
        np.testing.assert_array_equal(first.numpy(), second.numpy())
        np.testing.assert_array_equal(first.numpy(), last.numpy())
        with pytest.raises(RuntimeError, match=f"{name.title()}: its saved tensors are freed already"):
            ad.autograd.grad(y, x)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name) -> None:
    settings = {"threshold": 0.25, "value": 2.0} if name == "threshold" else {}
    x = ad.tensor(away_from_kinks((3, 4)), requires_grad=True)
    expected = getattr(F, name)(x, **settings)
    changed = x * 1
    result = getattr(F, name)(changed, **settings, inplace=True)
    assert result is changed
    np.testing.assert_array_equal(result.detach().numpy(), expected.detach().numpy())
    grads = [ad.autograd.grad((y * y).sum(), x)[0].numpy() for y in (expected, result)]
    np.testing.assert_array_equal(*grads)
    with pytest.raises(RuntimeError, match=f"^{name}_: a leaf that requires a gradient cannot be changed in place"):
        getattr(F, name)(x, **settings, inplace=True)
    form = getattr(F, f"{name}_", None)
    if form is not None:
        again = ad.tensor(x.detach().numpy())
        assert form(again, **settings) is again
        np.testing.assert_array_equal(again.numpy(), expected.detach().numpy())


def test_an_input_changed_after_it_was_saved_is_an_error() -> None:
    x = ad.tensor(away_from_kinks((3,)), requires_grad=True) * 1
    y = F.gelu(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="backward of Gelu: a tensor of shape"):
        y.sum().backward()


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3, 2)])
def test_prelu(torch, shape, count) -> None:
    x, w, dy = away_from_kinks(shape), numbers("", (count,), seed=1), numbers("", shape, seed=2)
    theirs = [torch.tensor(array, requires_grad=True) for array in (x, w)]
    expected = torch.nn.functional.prelu(*theirs)
    ours = [ad.tensor(array, requires_grad=True) for array in (x, w)]
    y = F.prelu(*ours)
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy())
    wanted = torch.autograd.grad(expected, theirs, torch.tensor(dy))
    for mine, other in zip(ad.autograd.grad(y, ours, ad.tensor(dy)), wanted, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy())
    assert gradcheck(F.prelu, ours)
    assert gradgradcheck(F.prelu, ours)


BIASED = [("relu", {}), ("gelu", {}), ("gelu_tanh", {}), ("silu", {}), ("tanh", {}), ("leaky_relu", {"a": 0.3})]
BIASED += [("relu6", {}), ("softplus", {"a": 2.0, "b": 3.0}), ("elu", {}), ("leaky_relu", {"a": -0.3})]


@pytest.mark.parametrize(("name", "settings"), BIASED)
@pytest.mark.parametrize(("shape", "dim"), [((5, 4), -1), ((2, 4, 3, 3), 1), ((4,), 0)])
def test_bias_activation_is_the_activation_of_a_sum(name, settings, shape, dim) -> None:
    x, bias = away_from_kinks(shape), np.array([0.0, 3.1, -3.3, 20.0])
    inputs = [ad.tensor(array, requires_grad=True) for array in (x, bias)]

    def composed(x: ad.Tensor, bias: ad.Tensor) -> ad.Tensor:
        z = x + bias.reshape(-1, *(1,) * (len(shape) - 1 - dim % len(shape)))
        plain, approximate = name.partition("_tanh")[:2]
        keywords = {"approximate": "tanh"} if approximate else {}
        return getattr(F, plain)(z, *settings.values(), **keywords)

    def fused(x: ad.Tensor, bias: ad.Tensor) -> ad.Tensor:
        return F.bias_activation(x, bias, name, dim, **settings)

    dy = ad.tensor(numbers("", shape, seed=3))
    y, expected = fused(*inputs), composed(*inputs)
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=1e-14)
    wanted = ad.autograd.grad(expected, inputs, dy)
    for mine, other in zip(ad.autograd.grad(y, inputs, dy), wanted, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-12, atol=1e-14)
    for i, tensor in enumerate(inputs):  # one alone
        others = [t if j == i else t.detach() for j, t in enumerate(inputs)]
        (alone,) = ad.autograd.grad(fused(*others), tensor, dy)
        np.testing.assert_allclose(alone.numpy(), wanted[i].numpy(), rtol=1e-12, atol=1e-14)
    assert gradcheck(fused, inputs)
    assert gradgradcheck(fused, inputs)


def test_rrelu_draws_slopes_in_training() -> None:
    ad.manual_seed(0)
    x = ad.full((200, 100), -1.0, requires_grad=True)
    y = F.rrelu(x, 0.2, 0.6, training=True)
    slopes = -y.detach().numpy()
    assert slopes.min() >= 0.2
    assert slopes.max() <= 0.6
    # A uniform distribution's mean and deviation, to five standard errors.
    assert abs(slopes.mean() - 0.4) < 5 * 0.4 / np.sqrt(12 * slopes.size)
    assert abs(slopes.std() - 0.4 / np.sqrt(12)) < 0.005
    (grad,) = ad.autograd.grad(y.sum(), x)
    np.testing.assert_array_equal(grad.numpy(), slopes)
    ad.manual_seed(0)
    np.testing.assert_array_equal(F.rrelu(x, 0.2, 0.6, training=True).detach().numpy(), -slopes)
    positive = ad.tensor([1.0, 2.0, float("nan")])
    np.testing.assert_array_equal(F.rrelu(positive, training=True).numpy(), [1, 2, np.nan])
    changed = ad.tensor([-1.0, 2.0])
    assert F.rrelu_(changed, training=True) is changed
    assert -1 / 3 <= changed.numpy()[0] <= -1 / 8


def test_softmin(torch) -> None:
    x = numbers("", (3, 5))
    expected = torch.nn.functional.softmin(torch.tensor(x), dim=1).numpy()
    np.testing.assert_allclose(F.softmin(ad.tensor(x), dim=1).numpy(), expected)
    np.testing.assert_allclose(nn.Softmin(dim=1)(ad.tensor(x)).numpy(), expected)


# ---- modules

MODULES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("ReLU", (), {}),
    ("ReLU", (), {"inplace": True}),
    ("ReLU6", (), {}),
    ("ReLU6", (True,), {}),
    ("LeakyReLU", (), {}),
    ("LeakyReLU", (0.2, True), {}),
    ("ELU", (), {}),
    ("ELU", (0.5,), {"inplace": True}),
    ("SELU", (), {}),
    ("SELU", (True,), {}),
    ("CELU", (2.0,), {}),
    ("GELU", (), {}),
    ("GELU", (), {"approximate": "tanh"}),
    ("SiLU", (), {}),
    ("SiLU", (), {"inplace": True}),
    ("Mish", (), {}),
    ("Softplus", (), {}),
    ("Softplus", (2, 10), {}),
    ("Hardtanh", (), {}),
    ("Hardtanh", (-2.0, 2.0), {"inplace": True}),
    ("Hardsigmoid", (), {}),
    ("Hardswish", (), {}),
    ("Sigmoid", (), {}),
    ("Tanh", (), {}),
    ("LogSigmoid", (), {}),
    ("Softsign", (), {}),
    ("Softshrink", (), {}),
    ("Hardshrink", (0.25,), {}),
    ("Tanhshrink", (), {}),
    ("Threshold", (0.1, 20), {}),
    ("Threshold", (0.1, 20, True), {}),
    ("PReLU", (), {}),
    ("PReLU", (6,), {"init": 0.5}),
    ("RReLU", (), {}),
    ("RReLU", (0.1, 0.3, True), {}),
    ("GLU", (), {}),
    ("GLU", (0,), {}),
    ("Identity", (), {}),
]


@pytest.mark.parametrize(("name", "args", "settings"), MODULES)
def test_modules_are_pytorchs(torch, name, args, settings) -> None:
    x = away_from_kinks((4, 6), "float32")
    theirs, ours = (getattr(library, name)(*args, **settings).eval() for library in (torch.nn, nn))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    expected, y = theirs(torch.tensor(x)), ours(ad.tensor(x))
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_a_module_in_place_changes_its_input() -> None:
    x = ad.tensor([-1.0, 1.0])
    assert nn.LeakyReLU(0.5, inplace=True)(x) is x
    np.testing.assert_array_equal(x.numpy(), [-0.5, 1])


def test_prelu_learns_its_slope() -> None:
    model = nn.PReLU(3, init=0.1, dtype=ad.float64)
    assert model.weight.shape == (3,)
    np.testing.assert_array_equal(model.weight.detach().numpy(), [0.1] * 3)
    model(ad.full((2, 3, 5), -1.0, dtype=ad.float64)).sum().backward()
    np.testing.assert_array_equal(model.weight.grad.numpy(), [-10.0] * 3)


# ---- errors

X = ad.zeros(2, 4)
WRONG = [
    (TypeError, "gelu: input must be a Tensor, got ndarray", lambda: F.gelu(np.zeros(2))),
    (TypeError, "gelu: input must be a floating tensor, got dtype int64", lambda: F.gelu(ad.arange(2))),
    (ValueError, 'gelu: approximate must be "none" or "tanh"', lambda: F.gelu(X, approximate="fast")),
    (TypeError, "elu: alpha must be a number, got str", lambda: F.elu(X, "1")),
    (TypeError, "leaky_relu: negative_slope must be a number, got bool", lambda: F.leaky_relu(X, True)),
    (ValueError, "celu: alpha must not be 0", lambda: F.celu(X, 0)),
    (ValueError, "hardtanh: min_val must not be above max_val, got 1 and -1", lambda: F.hardtanh(X, 1, -1)),
    (ValueError, "Hardtanh: min_val must be below max_val, got 1 and 1", lambda: nn.Hardtanh(1, 1)),
    (ValueError, "softshrink: lambd must not be negative, got -1", lambda: F.softshrink(X, -1)),
    (ValueError, "rrelu: lower must not be above upper", lambda: F.rrelu(X, 0.5, 0.25)),
    (ValueError, r"glu: the size of dimension 1 must be even, got the shape \(2, 3\)", lambda: F.glu(ad.zeros(2, 3))),
    (IndexError, "glu: dim", lambda: F.glu(X, 2)),
    (ValueError, "glu: input must have at least one dimension", lambda: F.glu(ad.tensor(1.0))),
    (ValueError, r"prelu: weight must have the shape \(4,\)", lambda: F.prelu(X, ad.zeros(3))),
    (TypeError, "prelu: all arrays must have one dtype", lambda: F.prelu(X, ad.zeros(4, dtype=ad.float64))),
    (ValueError, "PReLU: num_parameters must be at least 1, got 0", lambda: nn.PReLU(0)),
    (ValueError, "bias_activation: activation must be one of", lambda: F.bias_activation(X, ad.zeros(4), "sin")),
    (ValueError, r"bias_activation: bias must have the shape \(4,\)", lambda: F.bias_activation(X, ad.zeros(2))),
    (ValueError, "bias_activation: relu has 0 settings", lambda: F.bias_activation(X, ad.zeros(4), "relu", a=1)),
    (IndexError, "bias_activation: dim", lambda: F.bias_activation(X, ad.zeros(4), "relu", 2)),
]


@pytest.mark.parametrize(("error", "message", "call"), WRONG, ids=[message for _, message, _ in WRONG])
def test_errors_name_the_operation(error, message, call) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()
