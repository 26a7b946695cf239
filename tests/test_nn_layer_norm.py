"""Layer, RMS, group, instance and local response normalisation against PyTorch, formulas and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint import nn
from adjoint.engine.gradcheck import gradcheck, gradgradcheck

rng = np.random.default_rng(11)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


@dataclass(frozen=True)
class Case:
    """One call, the same for both libraries: `call(functional, *inputs)`."""

    id: str
    call: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]


IMAGE = normal(3, 6, 4, 3)
CASES = [
    Case("layer_norm", lambda f, x, w, b: f.layer_norm(x, (7,), w, b), (normal(4, 7), normal(7), normal(7))),
    Case(
        "layer_norm-two-dims",
        lambda f, x, w, b: f.layer_norm(x, [4, 3], w, b, 0.1),
        (normal(2, 5, 4, 3), normal(4, 3), normal(4, 3)),
    ),
    Case("layer_norm-weight", lambda f, x, w: f.layer_norm(x, (5,), w), (normal(2, 3, 5), normal(5))),
    Case("layer_norm-bias", lambda f, x, b: f.layer_norm(x, (5,), None, b), (normal(3, 5), normal(5))),
    Case("layer_norm-plain", lambda f, x: f.layer_norm(x, (5,)), (normal(5),)),
    Case("layer_norm-empty", lambda f, x, w, b: f.layer_norm(x, (5,), w, b), (normal(0, 5), normal(5), normal(5))),
    Case("rms_norm", lambda f, x, w: f.rms_norm(x, (7,), w, 0.01), (normal(4, 7) + 1, normal(7))),
    Case("rms_norm-default", lambda f, x: f.rms_norm(x, (2, 7)), (normal(4, 2, 7),)),
    Case("group_norm", lambda f, x, w, b: f.group_norm(x, 3, w, b), (IMAGE, normal(6), normal(6))),
    Case("group_norm-all", lambda f, x, w: f.group_norm(x, 1, w, None, 0.1), (normal(2, 4, 5), normal(4))),
    Case("group_norm-plain", lambda f, x: f.group_norm(x, 2), (normal(3, 4),)),
    Case("group_norm-bias", lambda f, x, b: f.group_norm(x, 2, None, b), (normal(2, 4, 3), normal(4))),
    Case("instance_norm", lambda f, x, w, b: f.instance_norm(x, weight=w, bias=b), (IMAGE, normal(6), normal(6))),
    Case("instance_norm-plain", lambda f, x: f.instance_norm(x, eps=0.1), (normal(2, 3, 5),)),
    Case("local_response_norm", lambda f, x: f.local_response_norm(x, 3, 0.5, 0.6, 1.5), (IMAGE,)),
    Case("local_response_norm-even", lambda f, x: f.local_response_norm(x, 4, 0.5), (normal(2, 6, 3),)),
    Case("normalize", lambda f, x: f.normalize(x), (normal(3, 4),)),
    Case("normalize-one-norm", lambda f, x: f.normalize(x, 1.0, -1, 0.1), (normal(2, 3, 4),)),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
fused = pytest.mark.parametrize("case", CASES[:14], ids=lambda case: case.id)


def tensors(case: Case, dtype: Any = np.float64) -> list[Any]:
    return [ad.Tensor(x.astype(dtype), requires_grad=True) for x in case.inputs]


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_values_and_gradients_are_pytorchs(torch: Any, case: Case, dtype: str, tolerance: float) -> None:
    if case.id == "group_norm-bias":
        pytest.skip("PyTorch 2.13 cannot differentiate a group_norm with a bias and no weight")
    inputs = tensors(case, dtype)
    result = case.call(F, *inputs)
    theirs = [torch.tensor(x.astype(dtype), requires_grad=True) for x in case.inputs]
    expected = case.call(torch.nn.functional, *theirs)
    assert result.shape == tuple(expected.shape)
    assert str(result.dtype) == dtype
    upstream = np.random.default_rng(1).standard_normal(result.shape).astype(dtype)
    result.backward(ad.Tensor(upstream))
    expected.backward(torch.tensor(upstream))
    np.testing.assert_allclose(result.detach().numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    for mine, other, given in zip(inputs, theirs, case.inputs, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(mine.detach().numpy(), given.astype(dtype))


@cases
def test_gradients_are_finite_differences(case: Case) -> None:
    inputs = tensors(case)
    assert gradcheck(lambda *x: case.call(F, *x), inputs, fast_mode=True)
    assert gradgradcheck(lambda *x: case.call(F, *x), inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm"])
def test_third_derivatives(name: str) -> None:
    case = next(case for case in CASES if case.id == name)

    def gradient(*x: Any) -> Any:
        return ad.autograd.grad((case.call(F, *x) ** 2).sum(), x[0], create_graph=True)[0]

    assert gradgradcheck(gradient, tensors(case), fast_mode=True, atol=1e-3)


@fused
@pytest.mark.parametrize("needed", range(3))
def test_only_the_gradient_asked_for(case: Case, needed: int) -> None:
    """One input alone requires a gradient, which is the same as among all."""
    if needed >= len(case.inputs):
        pytest.skip("has fewer inputs")
    inputs = tensors(case)
    upstream = ad.Tensor(normal(*case.call(F, *inputs).shape))
    expected = ad.autograd.grad(case.call(F, *inputs), inputs, upstream)[needed]
    alone = [ad.Tensor(x, requires_grad=i == needed) for i, x in enumerate(case.inputs)]
    (found,) = ad.autograd.grad(case.call(F, *alone), [alone[needed]], upstream)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12, atol=1e-14)


@fused
@pytest.mark.parametrize("dtype", [ad.float16, ad.bfloat16], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["half", "float32"])
def test_half_types_follow_float64(case: Case, dtype: Any, wide: bool) -> None:
    """Also with weight and bias in float32, as mixed precision has them."""
    halves = [ad.Tensor(x.astype(dtype), requires_grad=True) for x in case.inputs[:1]]
    vectors = [ad.Tensor(x.astype(np.float32 if wide else dtype), requires_grad=True) for x in case.inputs[1:]]
    inputs = halves + vectors
    exact = [ad.Tensor(x.detach().numpy().astype(np.float64), requires_grad=True) for x in inputs]
    result, expected = case.call(F, *inputs), case.call(F, *exact)
    assert result.dtype == dtype
    upstream = normal(*result.shape).astype(dtype)
    result.backward(ad.Tensor(upstream))
    expected.backward(ad.Tensor(upstream.astype(np.float64)))
    unit = 2.0**-11 if dtype == ad.float16 else 2.0**-8
    for mine, other in zip([result, *(x.grad for x in inputs)], [expected, *(x.grad for x in exact)], strict=True):
        value = mine.detach().numpy().astype(np.float64)
        np.testing.assert_allclose(value, other.detach().numpy(), rtol=1.01 * unit, atol=unit / 50)
    for tensor in inputs:
        assert tensor.grad.dtype == tensor.dtype


def test_layer_norm_formula() -> None:
    x, w, b = normal(3, 4, 5), normal(4, 5), normal(4, 5)
    rows = x.reshape(3, 20)
    expected = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    result = F.layer_norm(ad.Tensor(x), (4, 5), ad.Tensor(w), ad.Tensor(b))
    np.testing.assert_allclose(result.numpy(), expected.reshape(x.shape) * w + b, rtol=1e-12)
    expected = rows / np.sqrt((rows**2).mean(1, keepdims=True) + 2.0**-52)
    np.testing.assert_allclose(F.rms_norm(ad.Tensor(x), (4, 5)).numpy().reshape(3, 20), expected, rtol=1e-12)


def test_group_norm_formula() -> None:
    x, w, b = normal(2, 6, 5), normal(6), normal(6)
    groups = x.reshape(2, 3, 10)
    expected = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    result = F.group_norm(ad.Tensor(x), 3, ad.Tensor(w), ad.Tensor(b))
    np.testing.assert_allclose(result.numpy(), expected.reshape(x.shape) * w[:, None] + b[:, None], rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.4])
def test_instance_norm_running_statistics(torch: Any, momentum: float) -> None:
    x = normal(4, 3, 5, 2) * 2 + 1
    running = [np.zeros(3), np.ones(3)]
    ours = [ad.Tensor(r.copy()) for r in running]
    theirs = [torch.tensor(r) for r in running]
    F.instance_norm(ad.Tensor(x), *ours, momentum=momentum)
    torch.nn.functional.instance_norm(torch.tensor(x), *theirs, momentum=momentum)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-10)
    result = F.instance_norm(ad.Tensor(x), *ours, use_input_stats=False)
    expected = torch.nn.functional.instance_norm(torch.tensor(x), *theirs, use_input_stats=False)
    np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=1e-9, atol=1e-12)


MODULES = [
    ("LayerNorm", (6,), {}, (4, 6)),
    ("LayerNorm", ((5, 6),), {"bias": False, "eps": 0.1}, (2, 5, 6)),
    ("LayerNorm", (6,), {"elementwise_affine": False}, (4, 6)),
    ("RMSNorm", (6,), {}, (4, 6)),
    ("RMSNorm", ([2, 6],), {"eps": 0.1, "elementwise_affine": False}, (4, 2, 6)),
    ("GroupNorm", (2, 6), {}, (3, 6, 4)),
    ("GroupNorm", (3, 6), {"affine": False, "eps": 0.1}, (3, 6)),
    ("GroupNorm", (3, 6), {"bias": False}, (3, 6, 2, 2)),
    ("InstanceNorm1d", (3,), {}, (2, 3, 5)),
    ("InstanceNorm1d", (3,), {"affine": True}, (3, 5)),
    ("InstanceNorm2d", (3,), {"affine": True, "track_running_stats": True}, (2, 3, 5, 4)),
    ("InstanceNorm2d", (3,), {"track_running_stats": True, "momentum": None}, (2, 3, 5, 4)),
    ("InstanceNorm3d", (3,), {"affine": True, "bias": False}, (2, 3, 2, 2, 3)),
    ("LocalResponseNorm", (3,), {"alpha": 0.1, "k": 2.0}, (2, 6, 3, 3)),
]


@pytest.mark.parametrize(("name", "args", "settings", "shape"), MODULES)
def test_modules_are_pytorchs(torch: Any, name: str, args: Any, settings: Any, shape: Any) -> None:
    """The same text, the same state, and the same results in training and after it."""
    mine = getattr(nn, name)(*args, **settings)
    other = getattr(torch.nn, name)(*args, **settings)
    assert repr(mine) == repr(other)
    state = {key: value.detach().numpy().copy() for key, value in other.state_dict().items()}
    assert {key: value.numpy().tolist() for key, value in mine.state_dict().items()} == {
        key: value.tolist() for key, value in state.items()
    }
    changed = {key: normal(*value.shape).astype(value.dtype) ** 2 + 0.5 for key, value in state.items() if value.ndim}
    mine.load_state_dict({**state, **changed})
    other.load_state_dict({key: torch.tensor(value) for key, value in {**state, **changed}.items()})
    for train in (True, True, False):
        mine.train(train)
        other.train(train)
        x = normal(*shape).astype(np.float32)
        expected = other(torch.tensor(x)).detach().numpy()
        np.testing.assert_allclose(mine(ad.Tensor(x)).detach().numpy(), expected, rtol=2e-5, atol=2e-5)
    for key, value in other.state_dict().items():
        np.testing.assert_allclose(mine.state_dict()[key].numpy(), value.numpy(), rtol=1e-5)
    if hasattr(mine, "reset_parameters"):
        mine.reset_parameters()
        for key, value in mine.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), state[key])


ERRORS = [
    (ValueError, r"layer_norm: input must have the shape \(\*, 5\), got \(3, 4\)", lambda x: F.layer_norm(x, (5,))),
    (ValueError, "layer_norm: normalized_shape must have at least one", lambda x: F.layer_norm(x, ())),
    (TypeError, "layer_norm: normalized_shape must be an integer", lambda x: F.layer_norm(x, 4.0)),
    (ValueError, r"layer_norm: weight must have the shape \(4,\), got \(3, 4\)", lambda x: F.layer_norm(x, 4, x)),
    (TypeError, "layer_norm: input must be a Tensor", lambda x: F.layer_norm(x.data, 4)),
    (TypeError, "rms_norm: input must have a floating dtype, got int64", lambda x: F.rms_norm(x.to("int64"), 4)),
    (TypeError, "layer_norm: beside x of float64 vectors", lambda x: F.layer_norm(x, 4, x[0].to("float32"))),
    (ValueError, "group_norm: num_groups must divide the 4 channels, got 3", lambda x: F.group_norm(x, 3)),
    (ValueError, "group_norm: num_groups must be at least 1, got 0", lambda x: F.group_norm(x, 0)),
    (ValueError, r"group_norm: input must have the shape \(N, C, ...\)", lambda x: F.group_norm(x[0], 2)),
    (ValueError, "group_norm: expected more than one value", lambda x: F.group_norm(x[:1], 4)),
    (ValueError, r"group_norm: bias must have the shape \(4,\)", lambda x: F.group_norm(x, 2, None, x)),
    (ValueError, "instance_norm: expected more than one element", lambda x: F.instance_norm(x)),
    (ValueError, "instance_norm: running_mean and running_var", lambda x: F.instance_norm(x.unsqueeze(2), x[0])),
    (ValueError, "instance_norm: expected running_mean", lambda x: F.instance_norm(x, use_input_stats=False)),
    (ValueError, "local_response_norm: input must have", lambda x: F.local_response_norm(x, 2)),
    (ValueError, "GroupNorm: num_groups=3 must divide num_channels=4", lambda x: nn.GroupNorm(3, 4)),
    (ValueError, "InstanceNorm2d: expected 3 or 4 dimensions", lambda x: nn.InstanceNorm2d(3)(x)),
    (ValueError, "InstanceNorm1d: expected 4 channels", lambda x: nn.InstanceNorm1d(4, affine=True)(x)),
]


@pytest.mark.parametrize(("kind", "message", "call"), ERRORS, ids=[message for _, message, _ in ERRORS])
def test_errors(kind: type[Exception], message: str, call: Callable[..., Any]) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        call(ad.Tensor(np.arange(12.0).reshape(3, 4)))


def test_instance_norm_says_that_num_features_is_not_used() -> None:
    with pytest.warns(UserWarning, match="InstanceNorm1d: num_features is 3, the input has 4 channels"):
        nn.InstanceNorm1d(3)(ad.Tensor(normal(2, 4, 5)))
