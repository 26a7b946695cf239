"""nn.functional against PyTorch, finite differences and formulas written out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint.engine.gradcheck import gradcheck, gradgradcheck

NO_TORCH = "compares with PyTorch, which is not installed"
rng = np.random.default_rng(7)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason=NO_TORCH)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def distinct(*shape: int) -> np.ndarray:
    """No two elements are close, so that no maximum changes within a finite difference."""
    return rng.permutation(int(np.prod(shape))).reshape(shape) / 7.0 - 3.03


def probabilities(*shape: int, axis: int = 1) -> np.ndarray:
    raw = rng.uniform(0.1, 1.0, shape)
    return raw / raw.sum(axis=axis, keepdims=True)


@dataclass(frozen=True)
class Case:
    """One call, the same for both libraries: `call(F, *inputs, *constants)`."""

    id: str
    call: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    constants: tuple[Any, ...] = ()


X, W, B = normal(2, 4, 7, 6), normal(6, 4, 3, 2), normal(6)
LOGITS, CLASSES = normal(5, 4), np.array([0, 3, 1, 1, 2])
IGNORING = np.array([0, -100, 1, -100, 2])
WEIGHT = rng.uniform(0.5, 2.0, 4)
IMAGE_LOGITS, IMAGE_CLASSES = normal(2, 4, 3, 2), rng.integers(0, 4, (2, 3, 2))

CASES = [
    Case("conv2d", lambda f, x, w, b: f.conv2d(x, w, b), (X, W, B)),
    Case("conv2d-no-bias-stride", lambda f, x, w: f.conv2d(x, w, stride=(2, 1), padding=(1, 0)), (X, W)),
    Case("conv2d-same-even", lambda f, x, w, b: f.conv2d(x, w, b, padding="same", dilation=(1, 3)), (X, W, B)),
    Case("conv2d-valid", lambda f, x, w: f.conv2d(x, w, padding="valid", dilation=2), (X, W)),
    Case("conv2d-groups", lambda f, x, w, b: f.conv2d(x, w, b, groups=2), (X, normal(6, 2, 3, 3), B)),
    Case("conv2d-depthwise", lambda f, x, w: f.conv2d(x, w, padding=1, groups=4), (X, normal(8, 1, 3, 3))),
    Case("conv2d-one-image", lambda f, x, w, b: f.conv2d(x, w, b, padding=1), (X[0], W, B)),
    Case("max_pool2d", lambda f, x: f.max_pool2d(x, 2), (distinct(2, 3, 6, 7),)),
    Case(
        "max_pool2d-all",
        lambda f, x: f.max_pool2d(x, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), ceil_mode=True),
        (distinct(2, 3, 6, 7),),
    ),
    Case("max_pool2d-one-image", lambda f, x: f.max_pool2d(x, 3, 1), (distinct(3, 5, 5),)),
    Case("max_pool2d-indices", lambda f, x: f.max_pool2d(x, 2, return_indices=True)[0], (distinct(2, 3, 6, 7),)),
    Case("avg_pool2d", lambda f, x: f.avg_pool2d(x, 2), (normal(2, 3, 6, 7),)),
    Case(
        "avg_pool2d-all",
        lambda f, x: f.avg_pool2d(x, (3, 2), (2, 1), 1, ceil_mode=True, count_include_pad=False),
        (normal(2, 3, 6, 7),),
    ),
    Case("avg_pool2d-divisor", lambda f, x: f.avg_pool2d(x, 3, divisor_override=5), (normal(3, 6, 7),)),
    Case("linear", lambda f, x, w, b: f.linear(x, w, b), (normal(5, 3), normal(4, 3), normal(4))),
    Case("linear-no-bias", lambda f, x, w: f.linear(x, w), (normal(2, 5, 3), normal(4, 3))),
    Case("relu", lambda f, x: f.relu(x), (distinct(3, 4),)),
    Case("tanh", lambda f, x: f.tanh(x), (normal(3, 4),)),
    Case("sigmoid", lambda f, x: f.sigmoid(x), (normal(3, 4),)),
    Case("logsigmoid", lambda f, x: f.logsigmoid(x), (normal(3, 4) * 30,)),
    Case("softmax", lambda f, x: f.softmax(x, 1), (normal(3, 4, 2),)),
    Case("log_softmax", lambda f, x: f.log_softmax(x, dim=-1), (normal(3, 4),)),
    Case("cross_entropy", lambda f, x, t: f.cross_entropy(x, t), (LOGITS,), (CLASSES,)),
    Case(
        "cross_entropy-all",
        lambda f, x, t, w: f.cross_entropy(x, t, w, ignore_index=1, label_smoothing=0.2),
        (LOGITS,),
        (CLASSES, WEIGHT),
    ),
    Case(
        "cross_entropy-none",
        lambda f, x, t, w: f.cross_entropy(x, t, w, reduction="none", label_smoothing=0.1),
        (LOGITS,),
        (IGNORING, WEIGHT),
    ),
    Case("cross_entropy-sum", lambda f, x, t: f.cross_entropy(x, t, reduction="sum"), (LOGITS,), (IGNORING,)),
    Case("cross_entropy-one", lambda f, x, t: f.cross_entropy(x, t), (LOGITS[0],), (np.array(2),)),
    Case("cross_entropy-images", lambda f, x, t: f.cross_entropy(x, t), (IMAGE_LOGITS,), (IMAGE_CLASSES,)),
    Case(
        "cross_entropy-images-none",
        lambda f, x, t: f.cross_entropy(x, t, reduction="none"),
        (IMAGE_LOGITS,),
        (IMAGE_CLASSES,),
    ),
    Case(
        "cross_entropy-probabilities",
        lambda f, x, p, w: f.cross_entropy(x, p, w, label_smoothing=0.1),
        (LOGITS, probabilities(5, 4)),
        (WEIGHT,),
    ),
    Case(
        "cross_entropy-probabilities-none",
        lambda f, x, p: f.cross_entropy(x, p, reduction="none"),
        (LOGITS, probabilities(5, 4)),
    ),
    Case(
        "cross_entropy-probabilities-images",
        lambda f, x, p, w: f.cross_entropy(x, p, w, reduction="sum"),
        (IMAGE_LOGITS, probabilities(2, 4, 3, 2)),
        (WEIGHT,),
    ),
    Case(
        "cross_entropy-probabilities-one",
        lambda f, x, p: f.cross_entropy(x, p),
        (LOGITS[0], probabilities(4, axis=0)),
    ),
    Case("nll_loss", lambda f, x, t, w: f.nll_loss(x, t, w), (LOGITS,), (IGNORING, WEIGHT)),
    Case(
        "nll_loss-images",
        lambda f, x, t: f.nll_loss(x, t, reduction="none"),
        (IMAGE_LOGITS,),
        (IMAGE_CLASSES,),
    ),
    Case("mse_loss", lambda f, x, y: f.mse_loss(x, y), (normal(3, 4), normal(3, 4))),
    Case("mse_loss-none", lambda f, x, y: f.mse_loss(x, y, reduction="none"), (normal(3, 4), normal(3, 4))),
    Case("bce", lambda f, x, y: f.binary_cross_entropy_with_logits(x, y), (normal(3, 4), probabilities(3, 4))),
    Case(
        "bce-all",
        lambda f, x, y, w, p: f.binary_cross_entropy_with_logits(x, y, w, reduction="sum", pos_weight=p),
        (normal(3, 4) * 20, probabilities(3, 4)),
        (WEIGHT, rng.uniform(0.5, 3, 4)),
    ),
    Case(
        "batch_norm",
        lambda f, x, w, b: f.batch_norm(x, None, None, w, b, training=True),
        (normal(3, 2, 4, 3), normal(2), normal(2)),
    ),
    Case(
        "batch_norm-2d",
        lambda f, x, w: f.batch_norm(x, None, None, w, None, True, eps=0.1),
        (normal(6, 3), normal(3)),
    ),
    Case("batch_norm-plain", lambda f, x: f.batch_norm(x, None, None, training=True), (normal(4, 3, 5),)),
    Case(
        "batch_norm-running",
        lambda f, x, w, b, m, v: f.batch_norm(x, m, v, w, b),
        (normal(3, 2, 4), normal(2), normal(2)),
        (normal(2), rng.uniform(0.5, 2, 2)),
    ),
    Case("dropout-off", lambda f, x: f.dropout(x, 0.3, training=False), (normal(3, 4),)),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def ours(case: Case, dtype: Any = np.float64, requires_grad: bool = True) -> tuple[list[Any], list[Any]]:
    inputs = [ad.Tensor(x.astype(dtype), requires_grad=requires_grad) for x in case.inputs]
    constants = [ad.Tensor(x.astype(dtype) if x.dtype == np.float64 else x) for x in case.constants]
    return inputs, constants


@cases
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-4)])
def test_values_and_gradients_are_pytorchs(torch: Any, case: Case, dtype: str, tolerance: float) -> None:
    inputs, constants = ours(case, dtype)
    result = case.call(F, *inputs, *constants)
    theirs = [torch.tensor(x.numpy(), requires_grad=True) for x in (i.detach() for i in inputs)]
    expected = case.call(torch.nn.functional, *theirs, *(torch.tensor(x.numpy()) for x in constants))
    assert result.shape == tuple(expected.shape)
    assert str(result.dtype) == dtype
    upstream = np.random.default_rng(1).standard_normal(result.shape).astype(dtype)
    result.backward(ad.Tensor(upstream))
    expected.backward(torch.tensor(upstream))
    np.testing.assert_allclose(result.detach().numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    for mine, other in zip(inputs, theirs, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=tolerance, atol=tolerance)


@cases
def test_gradients_are_finite_differences(case: Case) -> None:
    inputs, constants = ours(case)
    before = [x.detach().numpy().copy() for x in (*inputs, *constants)]
    assert gradcheck(lambda *x: case.call(F, *x, *constants), inputs, fast_mode=True)
    assert gradgradcheck(lambda *x: case.call(F, *x, *constants), inputs, fast_mode=True, atol=1e-4)
    for x, known in zip((*inputs, *constants), before, strict=True):
        np.testing.assert_array_equal(x.detach().numpy(), known)


@pytest.mark.parametrize("name", ["batch_norm", "cross_entropy-all", "conv2d", "max_pool2d-all"])
def test_third_derivatives(name: str) -> None:
    case = next(case for case in CASES if case.id == name)
    inputs, constants = ours(case)

    def gradient(*x: Any) -> Any:
        value = (case.call(F, *x, *constants) ** 2).sum()
        return ad.autograd.grad(value, x[0], create_graph=True)[0]

    assert gradgradcheck(gradient, inputs, fast_mode=True, atol=1e-3)


@pytest.mark.parametrize("case", [c for c in CASES if c.id not in ("logsigmoid", "bce-all")], ids=lambda c: c.id)
def test_half_types_follow_float64(case: Case) -> None:
    for dtype, tolerance in ((ad.float16, 3e-2), (ad.bfloat16, 2e-1)):
        inputs, constants = ours(case, dtype)
        rounded = [ad.Tensor(x.detach().numpy().astype(np.float64), requires_grad=True) for x in inputs]
        fixed = [ad.Tensor(c.numpy().astype(np.float64)) if c.is_floating_point() else c for c in constants]
        result, exact = case.call(F, *inputs, *constants), case.call(F, *rounded, *fixed)
        assert result.dtype == dtype
        result.sum().backward()
        exact.sum().backward()
        for mine, other in zip([result, *(x.grad for x in inputs)], [exact, *(x.grad for x in rounded)], strict=True):
            assert mine.dtype == dtype
            scale = 1 + abs(other.detach().numpy()).max()
            difference = mine.detach().numpy().astype(np.float64) - other.detach().numpy()
            assert abs(difference).max() < tolerance * scale


# ---- formulas, for where PyTorch is not


def test_conv2d_same_is_the_sum_over_the_window() -> None:
    x, w = normal(1, 2, 5, 4), normal(3, 2, 2, 3)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (1, 1)))  # even windows reach further down and right
    expected = np.zeros((1, 3, 5, 4))
    for i in range(5):
        for j in range(4):
            expected[0, :, i, j] = (padded[0, :, i : i + 2, j : j + 3] * w).sum((1, 2, 3))
    result = F.conv2d(ad.Tensor(x), ad.Tensor(w), padding="same")
    np.testing.assert_allclose(result.numpy(), expected)


def test_cross_entropy_formula() -> None:
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    logs = -np.log(p[np.arange(5), CLASSES]) * WEIGHT[CLASSES]
    result = F.cross_entropy(ad.Tensor(LOGITS), ad.Tensor(CLASSES), ad.Tensor(WEIGHT))
    np.testing.assert_allclose(result.item(), logs.sum() / WEIGHT[CLASSES].sum())
    log_p = ad.Tensor(np.log(p))
    np.testing.assert_allclose(F.nll_loss(log_p, ad.Tensor(CLASSES), ad.Tensor(WEIGHT)).item(), result.item())


def test_losses_formulas() -> None:
    x, y = normal(3, 4), probabilities(3, 4)
    s = 1 / (1 + np.exp(-x))
    result = F.binary_cross_entropy_with_logits(ad.Tensor(x), ad.Tensor(y))
    np.testing.assert_allclose(result.item(), -(y * np.log(s) + (1 - y) * np.log(1 - s)).mean())
    np.testing.assert_allclose(F.mse_loss(ad.Tensor(x), ad.Tensor(y)).item(), ((x - y) ** 2).mean())
    weight = rng.uniform(0.5, 1, (3, 4))
    weighted = F.mse_loss(ad.Tensor(x), ad.Tensor(y), weight=ad.Tensor(weight))
    np.testing.assert_allclose(weighted.item(), ((x - y) ** 2 * weight).sum() / weight.sum())


def test_bce_at_the_extremes() -> None:
    x = ad.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, ad.tensor([1.0, 0.5, 0.0]), reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(2e4 + np.log(2))
    np.testing.assert_allclose(x.grad.numpy(), [-1, 0, 1])


def test_max_pool_indices_point_at_the_maxima(torch: Any) -> None:
    x = distinct(2, 3, 6, 7)
    y, indices = F.max_pool2d(ad.Tensor(x), 3, 2, 1, return_indices=True)
    assert indices.dtype == ad.int64 and not indices.requires_grad
    picked = np.take_along_axis(x.reshape(2, 3, -1), indices.numpy().reshape(2, 3, -1), 2)
    np.testing.assert_array_equal(picked.reshape(y.shape), y.numpy())
    expected = torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1, return_indices=True)[1]
    np.testing.assert_array_equal(indices.numpy(), expected.numpy())


def test_batch_norm_moves_the_running_statistics() -> None:
    x = normal(4, 3, 5) * 2 + 1
    mean, var = ad.zeros(3, dtype=ad.float64), ad.ones(3, dtype=ad.float64)
    result = F.batch_norm(ad.Tensor(x), mean, var, training=True, momentum=0.25)
    np.testing.assert_allclose(mean.numpy(), 0.25 * x.mean((0, 2)))
    np.testing.assert_allclose(var.numpy(), 0.75 + 0.25 * x.var((0, 2), ddof=1))
    expected = (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(result.numpy(), expected)


def test_batch_norm_keeps_its_digits_far_from_zero() -> None:
    x = (normal(64, 2) + 1000).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    result = F.batch_norm(ad.Tensor(x), None, None, training=True).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-3)


# ---- dropout, one_hot, in place


def test_dropout_drops_the_share_and_keeps_the_mean() -> None:
    ad.manual_seed(3)
    x = ad.ones(400, 500, requires_grad=True)
    y = F.dropout(x, 0.3)
    values = y.detach().numpy()
    dropped = values == 0
    assert abs(dropped.mean() - 0.3) < 0.005
    np.testing.assert_allclose(values[~dropped], 1 / 0.7, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), values)
    assert not (F.dropout(x, 0.3).detach().numpy() == values).all()
    ad.manual_seed(3)
    np.testing.assert_array_equal(F.dropout(x, 0.3).detach().numpy(), values)
    assert not F.dropout(x, 1.0).detach().numpy().any()
    assert F.dropout(x, 0.0) is x


def test_inplace_forms_change_their_input() -> None:
    x = ad.tensor([-1.0, 2.0])
    assert F.relu(x, inplace=True) is x
    np.testing.assert_array_equal(x.numpy(), [0, 2])
    assert F.dropout(x, 1.0, inplace=True) is x
    np.testing.assert_array_equal(x.numpy(), [0, 0])
    leaf = ad.tensor([-1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        F.relu_(leaf)
    y = F.relu_(leaf * 3)
    y.sum().backward()
    np.testing.assert_array_equal(leaf.grad.numpy(), [0, 3])


def test_one_hot() -> None:
    encoded = F.one_hot(ad.Tensor(np.array([[0, 2], [1, 1]])))
    assert encoded.dtype == ad.int64
    np.testing.assert_array_equal(encoded.numpy(), np.eye(3, dtype=int)[[[0, 2], [1, 1]]])
    assert F.one_hot(ad.Tensor(np.array([0])), 5).shape == (1, 5)


def test_softmax_chooses_pytorchs_dim_with_a_warning() -> None:
    x = ad.Tensor(normal(2, 3, 4))
    with pytest.warns(UserWarning, match="dim=0 is taken"):
        chosen = F.softmax(x)
    np.testing.assert_allclose(chosen.numpy().sum(0), np.ones((3, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert F.softmax(x.half(), 2, dtype=ad.float64).dtype == ad.float64


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_cross_entropy_goes_back_twice_whatever_becomes_of_the_first_gradient(factor: float) -> None:
    logits = ad.Tensor(LOGITS, requires_grad=True)
    loss = F.cross_entropy(logits, ad.Tensor(CLASSES)) * factor
    (first,) = ad.autograd.grad(loss, logits, retain_graph=True)
    wanted = first.numpy().copy()
    first.numpy()[:] = np.nan
    (second,) = ad.autograd.grad(loss, logits, retain_graph=True)
    np.testing.assert_array_equal(second.numpy(), wanted)
    second.zero_()
    (last,) = ad.autograd.grad(loss, logits)
    np.testing.assert_array_equal(last.numpy(), wanted)
    with pytest.raises(RuntimeError, match="freed already"):
        ad.autograd.grad(loss, logits)
    np.testing.assert_array_equal(last.numpy(), wanted)


def test_cross_entropy_is_not_scaled_again_after_an_error() -> None:
    logits = ad.Tensor(LOGITS, requires_grad=True)
    loss = F.cross_entropy(logits, ad.Tensor(CLASSES), reduction="sum")
    wanted = ad.autograd.grad(loss, logits, retain_graph=True)[0].numpy()

    def fail(*_: Any) -> None:
        raise KeyError("hook")

    two = ad.Tensor(np.array(2.0))
    handle = loss.grad_fn.register_prehook(fail)  # before the gradient is scaled
    with pytest.raises(KeyError):
        ad.autograd.grad(loss, logits, two)
    handle.remove()
    np.testing.assert_array_equal(ad.autograd.grad(loss, logits, retain_graph=True)[0].numpy(), wanted)
    handle = loss.grad_fn.register_hook(fail)  # after it
    with pytest.raises(KeyError):
        ad.autograd.grad(loss, logits, two)
    handle.remove()
    with pytest.raises(RuntimeError, match="freed already"):
        ad.autograd.grad(loss, logits)


def test_all_rows_ignored_give_nan() -> None:
    loss = F.cross_entropy(ad.Tensor(LOGITS), ad.Tensor(np.full(5, -100)))
    assert np.isnan(loss.item())
