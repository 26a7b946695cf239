"""F.batch_norm and nn.BatchNorm1d to 3d: PyTorch's results and state, derivatives of any order, the fused extras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F
from adjoint.engine.gradcheck import gradcheck, gradgradcheck

CHANNELS = 3
FUSED = {"plain": {}, "relu": {"relu": True}, "residual": {"residual": True}, "both": {"residual": True, "relu": True}}


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def arrays(shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = {name: rng.standard_normal(shape[1]) for name in ("weight", "bias", "mean")}
    return {
        "x": rng.standard_normal(shape) * 2 + 1,
        "residual": rng.standard_normal(shape),
        "upstream": rng.standard_normal(shape),
        "var": rng.uniform(0.5, 2, shape[1]),
        **vectors,
    }


def function(training: bool, residual: bool = False, relu: bool = False, mean: Any = None, var: Any = None) -> Any:
    """Of x, weight and bias, and the residual where there is one."""

    def call(x: Any, weight: Any, bias: Any, *added: Any) -> Any:
        extra = {"residual": added[0]} if residual else {}
        return F.batch_norm(x, mean, var, weight, bias, training, relu=relu, **extra)

    return call


@pytest.mark.parametrize("extra", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 4), (2, 3, 2, 3), (2, 3, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_are_finite_differences(extra: dict[str, bool], shape: tuple[int, ...], training: bool) -> None:
    given = arrays(shape)
    names = ["x", "weight", "bias", *["residual"] * extra.get("residual", False)]
    inputs = [ad.Tensor(given[name], requires_grad=True) for name in names]
    running = {} if training else {name: ad.Tensor(given[name]) for name in ("mean", "var")}
    call = function(training, **extra, **running)
    y = call(*inputs).detach().numpy()
    assert not extra.get("relu") or (abs(y[y != 0]).min() > 1e-4 and (y == 0).any())  # away from the kink
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_third_derivatives(training: bool) -> None:
    given = arrays((4, 3, 2))
    inputs = [ad.Tensor(given[name], requires_grad=True) for name in ("x", "weight", "bias", "residual")]
    running = {} if training else {name: ad.Tensor(given[name]) for name in ("mean", "var")}
    call = function(training, residual=True, relu=True, **running)

    def gradient(*x: Any) -> Any:
        return ad.autograd.grad((call(*x) ** 2).sum(), x[0], create_graph=True)[0]

    assert gradgradcheck(gradient, inputs, fast_mode=True, atol=1e-3)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual", "weight residual", "x bias"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_some_gradients_only(torch: Any, wanted: str, relu: bool, training: bool) -> None:
    names = wanted.split()
    given = arrays((4, 3, 5))
    mine = {name: ad.Tensor(value, requires_grad=name in names) for name, value in given.items()}
    y = F.batch_norm(
        mine["x"], mine["mean"], mine["var"], mine["weight"], mine["bias"], training,
        residual=mine["residual"], relu=relu,
    )  # fmt: skip
    found = ad.autograd.grad(y, [mine[name] for name in names], mine["upstream"])
    other = {name: torch.tensor(value, requires_grad=name in names) for name, value in given.items()}
    expected = torch.nn.functional.batch_norm(
        other["x"], other["mean"], other["var"], other["weight"], other["bias"], training
    )
    expected = expected + other["residual"]
    expected = expected.relu() if relu else expected
    theirs = torch.autograd.grad(expected, [other[name] for name in names], other["upstream"])
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    for grad, peer in zip(found, theirs, strict=True):
        np.testing.assert_allclose(grad.numpy(), peer.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_float32_parameters_beside_bfloat16(torch: Any, training: bool) -> None:
    given = arrays((6, 3, 7))
    names = ("x", "mean", "var", "weight", "bias")
    mine = [ad.Tensor(given[name].astype(np.float32), requires_grad=name in ("x", "weight", "bias")) for name in names]
    mine[0] = mine[0].detach().bfloat16().requires_grad_()
    other = [
        torch.tensor(given[name], dtype=torch.float32, requires_grad=name in ("x", "weight", "bias")) for name in names
    ]
    other[0] = other[0].detach().bfloat16().requires_grad_()
    y, expected = F.batch_norm(*mine, training), torch.nn.functional.batch_norm(*other, training)
    assert y.dtype == ad.bfloat16 and mine[3].dtype == ad.float32
    np.testing.assert_allclose(y.detach().float().numpy(), expected.detach().float().numpy(), rtol=1e-2, atol=1e-2)
    y.sum().backward(), expected.sum().backward()
    for mine_, theirs in zip(mine[3:], other[3:], strict=True):
        assert mine_.grad.dtype == ad.float32
        np.testing.assert_allclose(mine_.grad.numpy(), theirs.grad.numpy(), rtol=1e-2, atol=2e-2)
    for mine_, theirs in zip(mine[1:3], other[1:3], strict=True):
        np.testing.assert_allclose(mine_.numpy(), theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}], ids=str)
def test_modules_follow_pytorch(torch: Any, rank: int, momentum: float | None, options: dict[str, Any]) -> None:
    mine, theirs = (
        getattr(library, f"BatchNorm{rank}d")(CHANNELS, momentum=momentum, **options) for library in (nn, torch.nn)
    )
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    numbers = np.random.default_rng(0)
    for i in range(5):
        if i == 3:
            mine.eval(), theirs.eval()
        x = numbers.normal(i, 2, (4, CHANNELS, *(3, 2, 4)[:rank])).astype(np.float32)
        y, expected = mine(ad.Tensor(x)), theirs(torch.tensor(x))
        np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=2e-5, atol=2e-5)
        for name, tensor in theirs.state_dict().items():
            np.testing.assert_allclose(mine.state_dict()[name].numpy(), tensor.numpy(), rtol=1e-5, atol=1e-6)


def test_statistics_that_are_no_longer_tracked(torch: Any) -> None:
    x = np.random.default_rng(0).standard_normal((4, CHANNELS, 5)).astype(np.float32)
    for training in (True, False):
        layers = [library.BatchNorm1d(CHANNELS) for library in (nn, torch.nn)]
        for layer in layers:
            layer.train(training)
            layer.track_running_stats = False
        y, expected = layers[0](ad.Tensor(x)), layers[1](torch.tensor(x))
        np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
        for name, tensor in layers[1].state_dict().items():
            np.testing.assert_allclose(layers[0].state_dict()[name].numpy(), tensor.numpy())


def test_a_module_adds_and_clips() -> None:
    given = {name: value.astype(np.float32) for name, value in arrays((4, 3, 5, 2)).items()}
    layer = nn.BatchNorm2d(CHANNELS)
    x, residual = ad.Tensor(given["x"]), ad.Tensor(given["residual"])
    for _ in range(2):
        expected = F.relu(layer(x) + residual)
        np.testing.assert_allclose(layer(x, residual, relu=True).detach().numpy(), expected.detach().numpy(), atol=1e-6)
        layer.eval()
    assert layer.num_batches_tracked.item() == 2


def test_a_fused_residual_gets_its_gradient_through_the_graph() -> None:
    """A block of a ResNet: x goes both ways."""
    given = arrays((4, 3, 5, 2))
    results = []
    for fused in (True, False):
        x = ad.Tensor(given["x"], requires_grad=True)
        weight = ad.Tensor(given["weight"], requires_grad=True)
        h = x * 2
        if fused:
            y = F.batch_norm(h, None, None, weight, training=True, residual=x, relu=True)
        else:
            y = F.relu(F.batch_norm(h, None, None, weight, training=True) + x)
        results.append([y, *ad.autograd.grad((y * ad.Tensor(given["upstream"])).sum(), (x, weight))])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), other.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_running_statistics_are_counted_as_changed() -> None:
    x = ad.Tensor(arrays((4, 3, 5))["x"])
    mean, var = ad.zeros(3, dtype=ad.float64), ad.ones(3, dtype=ad.float64)
    scale = ad.ones(3, dtype=ad.float64, requires_grad=True)
    product = scale * var
    F.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="changed in place"):
        product.sum().backward()


def test_running_statistics_that_cannot_change_are_an_error_before_anything_does() -> None:
    x = ad.Tensor(arrays((4, 3, 5))["x"])
    mean, count = ad.zeros(3, dtype=ad.float64), ad.zeros((), dtype=ad.int64)
    var = ad.ones(1, dtype=ad.float64).expand(3)
    with pytest.raises(RuntimeError, match="batch_norm: several elements of an expanded tensor"):
        F.batch_norm(x, mean, var, training=True, num_batches_tracked=count)
    assert not mean.numpy().any() and count.item() == 0


def test_an_empty_batch_only_counts() -> None:
    layer = nn.BatchNorm2d(CHANNELS)
    x = ad.zeros(0, CHANNELS, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert not layer.weight.grad.numpy().any() and layer.num_batches_tracked.item() == 1
    np.testing.assert_array_equal(layer.running_var.numpy(), 1)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda x: F.batch_norm(x, None, None, training=True, residual=ad.zeros(4, 3)),
            ValueError,
            "residual must have",
        ),
        (lambda x: F.batch_norm(x, None, None, training=True, residual=1.0), TypeError, "residual must be a Tensor"),
        (lambda x: F.batch_norm(x, ad.zeros(3), None, training=True), ValueError, "both or neither"),
        (lambda x: F.batch_norm(x, None, None, ad.ones(2), training=True), ValueError, r"weight .*\(3,\), got \(2,\)"),
        (lambda x: F.batch_norm(x.double(), ad.zeros(3), ad.ones(3)), TypeError, "must be all float64"),
        (lambda x: F.batch_norm(x[0, :, 0], None, None, training=True), ValueError, r"\(N, C, \.\.\.\), got \(3,\)"),
        (lambda x: F.batch_norm(x, ad.zeros(3), ad.ones(3), training=True, momentum=None), ValueError, "momentum=None"),
        (lambda x: nn.BatchNorm3d(3)(x), ValueError, r"BatchNorm3d: expected 5 dimensions, got shape \(4, 3, 5\)"),
    ],
)
def test_bad_input_is_a_clear_error(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(ad.ones(4, 3, 5))
