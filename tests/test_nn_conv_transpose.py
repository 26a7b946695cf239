"""Transposed convolution as functions and layers, against PyTorch and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint import nn
from adjoint.autograd import gradcheck, gradgradcheck

rng = np.random.default_rng(8)

# Shapes of input, weight and bias; stride, padding, output_padding, groups, dilation.
CASES = {
    "1d": ((2, 4, 5), (4, 3, 3), None, ()),
    "1d-all": ((2, 4, 5), (4, 3, 3), (6,), (3, 2, 1, 2, 2)),
    "2d": ((2, 3, 4, 5), (3, 4, 3, 3), (4,), (2, 1, 1)),
    "2d-one": ((3, 4, 5), (3, 4, 2, 3), (4,), ((1, 2), (0, 1))),
    "2d-depthwise": ((2, 3, 4, 4), (3, 1, 4, 4), None, (2, 1, 0, 3)),
    "2d-output-padding-beyond-stride": ((1, 2, 3, 4), (2, 3, 2, 3), (3,), (1, 0, (2, 1), 1, 3)),
    "3d": ((2, 2, 3, 3, 4), (2, 3, 2, 3, 3), (3,), (2, (1, 0, 1), (0, 1, 1))),
}
cases = pytest.mark.parametrize("name", CASES)


def arrays(name: str) -> list[np.ndarray]:
    return [rng.standard_normal(shape) for shape in CASES[name][:3] if shape is not None]


def call(functions: Any, name: str, x: Any, weight: Any, bias: Any = None) -> Any:
    function = getattr(functions, f"conv_transpose{weight.ndim - 2}d")
    return function(x, weight, bias, *CASES[name][3])


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-4)])
def test_values_and_gradients_are_pytorchs(name: str, dtype: str, tolerance: float) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    given = [array.astype(dtype) for array in arrays(name)]
    mine, theirs = ([make(a, requires_grad=True) for a in given] for make in (ad.tensor, torch.tensor))
    y, z = call(F, name, *mine), call(torch.nn.functional, name, *theirs)
    assert y.shape == tuple(z.shape) and str(y.dtype) == dtype
    upstream = rng.standard_normal(y.shape).astype(dtype)
    y.backward(ad.tensor(upstream))
    z.backward(torch.tensor(upstream))
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=tolerance, atol=tolerance)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=tolerance, atol=tolerance)


@cases
def test_gradients_are_finite_differences(name: str) -> None:
    inputs = [ad.tensor(array, requires_grad=True) for array in arrays(name)]
    assert gradcheck(lambda *x: call(F, name, *x), inputs, fast_mode=True)
    assert gradgradcheck(lambda *x: call(F, name, *x), inputs, fast_mode=True, atol=1e-4)


LAYERS = {
    "1d": lambda nn: nn.ConvTranspose1d(4, 6, 3),
    "1d-all": lambda nn: nn.ConvTranspose1d(4, 6, (3,), 3, 1, 1, 2, False, 2),
    "2d": lambda nn: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "2d-all": lambda nn: nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 0), 2, True, (1, 2)),
    "3d": lambda nn: nn.ConvTranspose3d(4, 6, 3, output_padding=1, dilation=2, bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    mine, theirs = LAYERS[name](nn), LAYERS[name](torch.nn)
    assert repr(mine) == repr(theirs)
    mine.load_state_dict(theirs.state_dict())
    axes = theirs.weight.ndim - 2
    x = rng.standard_normal((2, 4, *(5, 4, 3)[:axes])).astype(np.float32)
    for array in (x, x[0]):
        y, z = mine(ad.tensor(array)), theirs(torch.tensor(array))
        np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_the_output_size_says_the_output_padding() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    mine, theirs = (side.ConvTranspose2d(3, 2, 3, 2, 1) for side in (nn, torch.nn))
    mine.load_state_dict(theirs.state_dict())
    x = rng.standard_normal((1, 3, 4, 5)).astype(np.float32)
    for size in ((7, 9), (8, 10), (1, 2, 7, 10)):
        y, z = mine(ad.tensor(x), size), theirs(torch.tensor(x), size)
        assert y.shape == tuple(z.shape)
        np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"ConvTranspose2d: output_size must be between \[7, 9\] and \[8, 10\]"):
        mine(ad.tensor(x), (9, 9))


X, W = ad.zeros(1, 4, 5, 5), ad.zeros(4, 3, 3, 3)
ERRORS = {
    "weight": (lambda: F.conv_transpose2d(X, ad.zeros(4, 3, 3)), r"weight must have the shape \(C, K / groups, R, S\)"),
    "channels": (
        lambda: F.conv_transpose2d(X, ad.zeros(3, 3, 3, 3)),
        "wants 3 input channels, a multiple of groups, got 4",
    ),
    "groups": (
        lambda: F.conv_transpose2d(X, W, groups=3),
        "with groups=3 wants 4 input channels, a multiple of groups",
    ),
    "no-groups": (lambda: F.conv_transpose2d(X, W, groups=0), "groups must be .*, got 0"),
    "bias": (lambda: F.conv_transpose2d(X, W, ad.zeros(4)), r"bias must have the shape \(3,\).* got \(4,\)"),
    "more": (
        lambda: F.conv_transpose2d(X, W, output_padding=1),
        "output_padding must be smaller than stride or dilation",
    ),
    "none": (lambda: F.conv_transpose2d(X, W, padding=4), r"gives outputs of size \(-1, -1\)"),
    "mode": (lambda: nn.ConvTranspose1d(4, 6, 3, padding_mode="reflect"), 'padding_mode must be "zeros", got'),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_tensors_of_other_types_are_an_error() -> None:
    message = "conv_transpose2d: expected tensors of one dtype, got float32, float32, float64"
    with pytest.raises(TypeError, match=message):
        F.conv_transpose2d(X, W, ad.zeros(3, dtype=ad.float64))


def test_the_gradient_of_the_bias_is_a_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = []
    bias_grad = ad.kernels.conv_bias_grad
    monkeypatch.setattr(ad.kernels, "conv_bias_grad", lambda dy: sums.append(dy.shape) or bias_grad(dy))
    bias = ad.zeros(3, requires_grad=True)
    F.conv_transpose2d(X, W, bias).sum().backward()
    assert sums == [(1, 3, 7, 7)] and bias.grad.tolist() == [49.0] * 3
