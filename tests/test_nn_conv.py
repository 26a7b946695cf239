"""Convolution of one, two and three axes as functions and layers, against PyTorch and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint import nn
from adjoint.autograd import gradcheck, gradgradcheck

rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@dataclass(frozen=True)
class Case:
    id: str
    call: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]


X1, X3 = normal(2, 4, 9), normal(2, 4, 4, 5, 6)
CASES = [
    Case("conv1d", lambda f, x, w, b: f.conv1d(x, w, b), (X1, normal(6, 4, 3), normal(6))),
    Case("conv1d-all", lambda f, x, w: f.conv1d(x, w, None, (2,), (3,), (2,), 2), (X1, normal(6, 2, 3))),
    Case("conv1d-same", lambda f, x, w, b: f.conv1d(x, w, b, padding="same"), (X1, normal(3, 4, 4), normal(3))),
    Case("conv1d-valid", lambda f, x, w: f.conv1d(x, w, padding="valid"), (X1, normal(3, 4, 4))),
    Case("conv1d-one", lambda f, x, w, b: f.conv1d(x, w, b, padding=1), (X1[0], normal(3, 4, 3), normal(3))),
    Case("conv1d-depthwise", lambda f, x, w, b: f.conv1d(x, w, b, 1, 3, groups=4), (X1, normal(4, 1, 4), normal(4))),
    Case("conv1d-depthwise-2", lambda f, x, w: f.conv1d(x, w, None, 2, 1, 2, 4), (X1, normal(8, 1, 3))),
    Case(
        "conv2d-depthwise",
        lambda f, x, w, b: f.conv2d(x, w, b, 1, 1, groups=3),
        (normal(2, 3, 5, 6), normal(3, 1, 3, 3), normal(3)),
    ),
    Case(
        "conv2d-depthwise-strides",
        lambda f, x, w: f.conv2d(x, w, None, (2, 3), (2, 0), (1, 2), groups=3),
        (normal(2, 3, 5, 8), normal(6, 1, 3, 2)),
    ),
    Case("conv3d", lambda f, x, w, b: f.conv3d(x, w, b), (X3, normal(3, 4, 2, 3, 3), normal(3))),
    Case(
        "conv3d-all",
        lambda f, x, w: f.conv3d(x, w, None, (2, 1, 2), (1, 0, 2), (1, 2, 1), 2),
        (X3, normal(4, 2, 3, 2, 3)),
    ),
    Case("conv3d-same", lambda f, x, w: f.conv3d(x, w, padding="same"), (X3, normal(3, 4, 2, 3, 2))),
    Case("conv3d-one", lambda f, x, w, b: f.conv3d(x, w, b, padding=1), (X3[0], normal(3, 4, 3, 3, 3), normal(3))),
    Case(
        "conv3d-depthwise", lambda f, x, w, b: f.conv3d(x, w, b, 1, 1, groups=4), (X3, normal(4, 1, 3, 3, 3), normal(4))
    ),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
same_even = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@cases
@same_even
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-4)])
def test_values_and_gradients_are_pytorchs(torch: Any, case: Case, dtype: str, tolerance: float) -> None:
    arrays = [array.astype(dtype) for array in case.inputs]
    mine, theirs = ([make(a, requires_grad=True) for a in arrays] for make in (ad.tensor, torch.tensor))
    y, z = case.call(F, *mine), case.call(torch.nn.functional, *theirs)
    assert y.shape == tuple(z.shape) and str(y.dtype) == dtype
    upstream = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    y.backward(ad.tensor(upstream))
    z.backward(torch.tensor(upstream))
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=tolerance, atol=tolerance)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=tolerance, atol=tolerance)


@cases
def test_gradients_are_finite_differences(case: Case) -> None:
    inputs = [ad.tensor(array, requires_grad=True) for array in case.inputs]
    assert gradcheck(lambda *x: case.call(F, *x), inputs, fast_mode=True)
    assert gradgradcheck(lambda *x: case.call(F, *x), inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("name", ["conv1d-depthwise", "conv3d", "conv3d-depthwise"])
def test_third_derivatives(name: str) -> None:
    case = next(case for case in CASES if case.id == name)
    inputs = [ad.tensor(array, requires_grad=True) for array in case.inputs]

    def gradient(*x: Any) -> Any:
        return ad.autograd.grad((case.call(F, *x) ** 2).sum(), x[0], create_graph=True)[0]

    assert gradgradcheck(gradient, inputs, fast_mode=True, atol=1e-3)


@cases
def test_half_types_follow_float64(case: Case) -> None:
    for dtype, tolerance in ((ad.float16, 3e-2), (ad.bfloat16, 2e-1)):
        inputs = [ad.tensor(array, dtype=dtype, requires_grad=True) for array in case.inputs]
        exact = [ad.tensor(x.detach().numpy().astype(np.float64), requires_grad=True) for x in inputs]
        results = [case.call(F, *tensors) for tensors in (inputs, exact)]
        for result in results:
            result.sum().backward()
        pairs = [results, *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))]
        for mine, other in pairs:
            assert mine.dtype == dtype
            wanted = other.detach().numpy()
            difference = mine.detach().numpy().astype(np.float64) - wanted
            assert abs(difference).max() < tolerance * (1 + abs(wanted).max())


LAYERS = {
    "conv1d": lambda nn: nn.Conv1d(4, 6, 3),
    "conv1d-all": lambda nn: nn.Conv1d(4, 8, (3,), 2, 1, 2, 4, False, "circular"),
    "conv1d-same": lambda nn: nn.Conv1d(4, 6, 4, padding="same", padding_mode="replicate"),
    "conv2d-depthwise": lambda nn: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "conv3d": lambda nn: nn.Conv3d(4, 6, 3),
    "conv3d-all": lambda nn: nn.Conv3d(4, 6, (3, 2, 1), (2, 1, 1), (1, 1, 0), (1, 2, 1), 2, False),
    "conv3d-reflect": lambda nn: nn.Conv3d(4, 6, 3, padding=(2, 1, 0), padding_mode="reflect"),
}


@same_even
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_pytorchs(torch: Any, name: str) -> None:
    mine, theirs = LAYERS[name](nn), LAYERS[name](torch.nn)
    assert repr(mine) == repr(theirs)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in mine.state_dict().items()} == shapes
    mine.load_state_dict(theirs.state_dict())
    axes = theirs.weight.ndim - 2
    x = normal(2, 4, *(7, 6, 5)[:axes]).astype(np.float32)
    for array in (x, x[0]):
        a, b = ad.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
        y, z = mine(a), theirs(b)
        np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-4, atol=1e-4)
        y.square().sum().backward()
        z.square().sum().backward()
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("layer", "taps"), [("Conv1d", 9), ("Conv2d", 3), ("Conv3d", 2)])
def test_initial_weights_are_uniform_within_pytorchs_bound(layer: str, taps: int) -> None:
    ad.manual_seed(0)
    made = getattr(nn, layer)(32, 64, taps, groups=2)
    bound = 1 / np.sqrt(np.prod(made.weight.shape[1:]))
    for parameter in (made.weight, made.bias):
        values = parameter.detach().numpy()
        assert abs(values).max() <= bound
        assert abs(values).max() > 0.8 * bound
    np.testing.assert_allclose(made.weight.detach().numpy().std(), bound / np.sqrt(3), rtol=0.05)


X = {axes: ad.zeros(1, 4, *[5] * axes) for axes in (1, 3)}
ERRORS = {
    "rank": (lambda: F.conv1d(X[3], ad.zeros(6, 4, 3)), ValueError, r"conv1d: input .* \(N, C, L\) or \(C, L\), got"),
    "weight": (lambda: F.conv3d(X[3], ad.zeros(6, 4, 3)), ValueError, r"conv3d: weight .* \(K, C / groups, T, R, S\)"),
    "stride": (
        lambda: F.conv1d(X[1], ad.zeros(6, 4, 3), stride=(1, 2)),
        ValueError,
        "conv1d: stride must be an integer",
    ),
    "stride-0": (
        lambda: F.conv1d(X[1], ad.zeros(6, 4, 3), stride=0),
        ValueError,
        "conv1d: stride .* at least 1, got",
    ),
    "triple": (
        lambda: F.conv3d(X[3], ad.zeros(6, 4, 1, 1, 1), padding=(1, 2)),
        ValueError,
        "conv3d: padding.* triple",
    ),
    "same": (
        lambda: F.conv1d(X[1], ad.zeros(6, 4, 3), stride=2, padding="same"),
        ValueError,
        'conv1d: padding="same" needs stride 1',
    ),
    "large": (lambda: F.conv1d(X[1], ad.zeros(6, 4, 7)), ValueError, "conv1d: the kernel is larger than the padded"),
    "channels": (
        lambda: F.conv3d(X[3], ad.zeros(6, 3, 1, 1, 1)),
        ValueError,
        "conv3d: .* 3 input channels, got 4",
    ),
    "dtype": (lambda: F.conv1d(X[1].double(), ad.zeros(6, 4, 3)), TypeError, "conv1d: all arrays must have one dtype"),
    "layer": (lambda: nn.Conv1d(4, 6, 3, groups=4), ValueError, "Conv1d: groups=4 must divide out_channels=6"),
    "mode": (lambda: nn.Conv3d(4, 6, 3, padding_mode="mirror"), ValueError, "Conv3d: padding_mode must be one of"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()
