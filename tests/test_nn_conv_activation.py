"""Convolution with an activation and a residual in one kernel, against PyTorch's separate functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint import kernels
from adjoint.autograd import gradcheck, gradgradcheck

rng = np.random.default_rng(6)

# Arguments of input, weight and bias, then stride, padding, dilation and groups.
SHAPES = {
    "sequence": ((2, 4, 9), (6, 2, 3), (2, 3, 2, 2)),
    "images": ((2, 3, 6, 7), (4, 3, 3, 3), (1, "same", 1, 1)),
    "one image": ((3, 6, 7), (4, 3, 3, 2), ((2, 1), (1, 0), 1, 1)),
    "depthwise": ((2, 3, 6, 6), (3, 1, 3, 3), (1, 1, 1, 3)),
    "volumes": ((2, 2, 4, 5, 6), (3, 2, 2, 3, 3), (1, 1, 1, 1)),
}
settings = pytest.mark.parametrize("activation", ["relu", "silu", None])
shapes = pytest.mark.parametrize("name", SHAPES)


def apart(torch: Any, kind: str | None, x: Any, weight: Any, bias: Any, residual: Any, settings: tuple) -> Any:
    """The same in PyTorch's functions."""
    convolve = getattr(torch.nn.functional, f"conv{weight.ndim - 2}d")
    z = convolve(x, weight, bias, *settings)
    z = z if residual is None else z + residual
    return z if kind is None else getattr(torch.nn.functional, kind)(z)


def together(kind: str | None, settings: tuple) -> Callable[..., Any]:
    return lambda x, weight, bias, residual=None: F.conv_activation(x, weight, bias, kind, residual, *settings)


def arrays(name: str, with_residual: bool) -> list[np.ndarray]:
    x_shape, weight_shape, how = SHAPES[name]
    x, weight, bias = (rng.standard_normal(shape) for shape in (x_shape, weight_shape, weight_shape[:1]))
    with ad.no_grad():
        shape = F.conv_activation(ad.tensor(x), ad.tensor(weight), None, None, None, *how).shape
    return [x, weight, bias, *([rng.standard_normal(shape)] if with_residual else [])]


@settings
@shapes
@pytest.mark.parametrize("with_residual", [False, True])
def test_values_and_gradients_are_pytorchs(activation: str | None, name: str, with_residual: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    how, given = SHAPES[name][2], arrays(name, with_residual)
    mine = [ad.tensor(array, requires_grad=True) for array in given]
    theirs = [torch.tensor(array, requires_grad=True) for array in given]
    y = together(activation, how)(*mine)
    z = apart(torch, activation, *theirs[:3], theirs[3] if with_residual else None, how)
    with ad.no_grad():
        np.testing.assert_allclose(together(activation, how)(*mine).numpy(), y.detach().numpy(), rtol=1e-13, atol=1e-13)
    upstream = rng.standard_normal(y.shape)
    y.backward(ad.tensor(upstream))
    z.backward(torch.tensor(upstream))
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-10, atol=1e-10)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-9, atol=1e-9)


@settings
@shapes
def test_gradients_are_finite_differences(activation: str | None, name: str) -> None:
    inputs = [ad.tensor(array, requires_grad=True) for array in arrays(name, True)]
    function = together(activation, SHAPES[name][2])
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_follow_float64(dtype: str) -> None:
    given = [ad.tensor(array, dtype=getattr(ad, dtype)) for array in arrays("images", True)]
    exact = [ad.tensor(tensor.numpy().astype(np.float64)) for tensor in given]
    how = SHAPES["images"][2]
    y, z = together("silu", how)(*given), together("silu", how)(*exact)
    assert y.dtype == getattr(ad, dtype)
    limit = {"float16": 1e-2, "bfloat16": 1e-1}[dtype]
    np.testing.assert_allclose(y.numpy().astype(np.float64), z.numpy(), rtol=limit, atol=limit)


def test_only_silu_with_a_gradient_is_a_kernel_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [ad.tensor(array, requires_grad=True) for array in arrays("images", False)]
    calls = []
    original = kernels.conv
    monkeypatch.setattr(kernels, "conv", lambda *args, **how: calls.append(how["activation"]) or original(*args, **how))
    together("relu", SHAPES["images"][2])(*inputs)
    together("silu", SHAPES["images"][2])(*inputs)
    with ad.no_grad():
        together("silu", SHAPES["images"][2])(*inputs)
    assert calls == ["relu", None, "silu"]


X, W = ad.zeros(1, 4, 5, 5), ad.zeros(6, 4, 3, 3)
ERRORS = {
    "kind": (lambda: F.conv_activation(X, W, activation="tanh"), ValueError, 'activation must be "relu", "silu"'),
    "axes": (lambda: F.conv_activation(X, ad.zeros(6, 4)), ValueError, r"weight must have the shape .*, got \(6, 4\)"),
    "shape": (
        lambda: F.conv_activation(X, W, residual=ad.zeros(1, 6, 5, 5)),
        ValueError,
        r"residual must have the shape \(1, 6, 3, 3\) of the result, got \(1, 6, 5, 5\)",
    ),
    "dtype": (
        lambda: F.conv_activation(X, W, residual=ad.zeros(1, 6, 3, 3).double()),
        TypeError,
        "must have one dtype",
    ),
    "tensor": (lambda: F.conv_activation(X, W, residual=1.0), TypeError, "residual must be a Tensor, got float"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()
