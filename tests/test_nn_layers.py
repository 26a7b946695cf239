"""The layers: text, state and numbers as PyTorch's, and errors of their settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


# ---- text

LAYERS = {
    "linear": lambda nn: nn.Linear(3, 4, bias=False),
    "conv": lambda nn: nn.Conv2d(4, 8, (3, 2), stride=2, padding=(1, 0), dilation=2, groups=2, bias=False),
    "conv-same": lambda nn: nn.Conv2d(4, 8, 3, padding="same", padding_mode="reflect"),
    "pools": lambda nn: nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d((2, 1), padding=(1, 0))),
    "activations": lambda nn: nn.Sequential(
        nn.ReLU(), nn.ReLU(inplace=True), nn.Tanh(), nn.Sigmoid(), nn.Softmax(dim=1), nn.LogSoftmax(-1)
    ),
    "dropout": lambda nn: nn.Dropout(0.25, inplace=True),
    "norms": lambda nn: nn.ModuleList(
        [nn.BatchNorm1d(3, momentum=None), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, bias=False)]
    ),
    "losses": lambda nn: nn.ModuleList([nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.NLLLoss()]),
    "shapes": lambda nn: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 3)), nn.Identity(5)),
    "list": lambda nn: nn.ModuleList([nn.Sequential(nn.Linear(1, 1), nn.ReLU()) for _ in range(3)] + [nn.Tanh()]),
    "dict": lambda nn: nn.ModuleDict({"a": nn.ReLU(), "b": nn.Sequential()}),
    "empty": lambda nn: nn.Sequential(nn.Sequential(), nn.ModuleList()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_repr_and_state_are_pytorchs(torch: Any, name: str) -> None:
    mine, theirs = LAYERS[name](nn), LAYERS[name](torch.nn)
    assert repr(mine) == repr(theirs)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in mine.state_dict().items()} == shapes


def same_as_theirs(torch: Any, mine: Any, theirs: Any, x: np.ndarray, tolerance: float = 1e-5) -> None:
    a, b = ad.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = mine(a), theirs(b)
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=tolerance, atol=tolerance)
    y.square().sum().backward()
    z.square().sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=tolerance * 10, atol=tolerance * 10)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_conv2d_padding_modes(torch: Any, mode: str, padding: Any) -> None:
    mine, theirs = (layers.Conv2d(2, 3, (3, 2), padding=padding, padding_mode=mode) for layers in (nn, torch.nn))
    mine.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 5)).astype(np.float32)
    same_as_theirs(torch, mine, theirs, x)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"bias": False}])
def test_batch_norm_over_several_batches(torch: Any, momentum: float | None, options: dict[str, bool]) -> None:
    mine, theirs = (layers.BatchNorm2d(3, momentum=momentum, **options) for layers in (nn, torch.nn))
    numbers = np.random.default_rng(0)
    for i in range(4):
        if i == 3:
            mine.eval(), theirs.eval()
        same_as_theirs(torch, mine, theirs, numbers.normal(i, 2, (4, 3, 5, 2)).astype(np.float32), 2e-5)
        for name, tensor in theirs.state_dict().items():
            np.testing.assert_allclose(mine.state_dict()[name].numpy(), tensor.numpy(), rtol=1e-5, atol=1e-6)
    assert {key: value.dtype.name for key, value in mine.state_dict().items()} == {
        key: str(value.dtype).removeprefix("torch.") for key, value in theirs.state_dict().items()
    }


def test_batch_norm_1d_takes_both_shapes_and_counts() -> None:
    norm = nn.BatchNorm1d(3)
    for shape in ((8, 3), (4, 3, 2)):
        y = norm(ad.randn(*shape) * 3 + 5).detach().numpy()
        axes = (0,) if len(shape) == 2 else (0, 2)
        np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
        np.testing.assert_allclose(y.std(axes), 1, atol=1e-3)
    assert norm.num_batches_tracked.item() == 2
    state = {name: tensor.numpy().copy() for name, tensor in norm.state_dict().items()}
    for bad in (ad.zeros(2, 3, 4, 5), ad.zeros(2, 4), ad.zeros(1, 3)):
        with pytest.raises(ValueError, match=r"BatchNorm1d|batch_norm"):
            norm(bad)
    for name, tensor in norm.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name])


def test_layers_call_functional() -> None:
    x = ad.randn(2, 3, 6, 6)
    pairs = [
        (nn.MaxPool2d(3, 2, 1), F.max_pool2d(x, 3, 2, 1)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
        (nn.ReLU(), x.relu()),
        (nn.Tanh(), x.tanh()),
        (nn.Sigmoid(), x.sigmoid()),
        (nn.Softmax(1), F.softmax(x, 1)),
        (nn.LogSoftmax(1), F.log_softmax(x, 1)),
        (nn.Flatten(), x.reshape(2, -1)),
        (nn.Flatten(0, 1), x.reshape(6, 6, 6)),
        (nn.Unflatten(2, (2, -1)), x.reshape(2, 3, 2, 3, 6)),
        (nn.Identity(), x),
    ]
    for module, expected in pairs:
        np.testing.assert_array_equal(module(x).numpy(), expected.numpy(), err_msg=repr(module))
    y, indices = nn.MaxPool2d(2, return_indices=True)(x)
    assert y.shape == indices.shape == (2, 3, 3, 3)


def test_loss_modules_pass_their_settings() -> None:
    logits, labels, weight = ad.randn(4, 3), ad.tensor([0, 1, 2, 1]), ad.tensor([1.0, 2.0, 3.0])
    settings = {"ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1}
    expected = F.cross_entropy(logits, labels, weight, **settings)
    loss = nn.CrossEntropyLoss(weight, **settings)
    assert loss(logits, labels).item() == expected.item()
    assert list(loss.state_dict()) == ["weight"]
    targets = ad.rand(4, 3)
    assert nn.MSELoss(reduction="sum")(logits, targets).item() == F.mse_loss(logits, targets, reduction="sum").item()
    bce = nn.BCEWithLogitsLoss(weight, pos_weight=weight, reduction="none")
    np.testing.assert_array_equal(
        bce(logits, targets).numpy(),
        F.binary_cross_entropy_with_logits(logits, targets, weight, pos_weight=weight, reduction="none").numpy(),
    )
    nll = nn.NLLLoss(weight, ignore_index=0)
    assert nll(logits, labels).item() == F.nll_loss(logits, labels, weight, ignore_index=0).item()


def test_dropout_follows_the_mode() -> None:
    layer, x = nn.Dropout(0.5), ad.ones(1000)
    assert 300 < (layer(x).numpy() == 0).sum() < 700
    assert layer.eval()(x) is x


BAD = {
    "linear-negative": (
        lambda: nn.Linear(-1, 2),
        ValueError,
        "Linear: in_features must be at least 0, got -1",
    ),
    "linear-float": (
        lambda: nn.Linear(1.5, 2),
        TypeError,
        "Linear: in_features must be an integer, got float",
    ),
    "linear-dtype": (lambda: nn.Linear(1, 2, dtype="int64"), RuntimeError, "only floating"),
    "conv-groups": (
        lambda: nn.Conv2d(3, 4, 3, groups=2),
        ValueError,
        "Conv2d: groups=2 must divide in_channels=3",
    ),
    "conv-stride": (lambda: nn.Conv2d(3, 4, 3, stride=0), ValueError, "Conv2d: stride must be at least 1"),
    "conv-kernel": (
        lambda: nn.Conv2d(3, 4, (1, 2, 3)),
        ValueError,
        "Conv2d: kernel_size must be an integer or",
    ),
    "conv-same": (
        lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"),
        ValueError,
        "Conv2d: .*needs stride 1",
    ),
    "conv-mode": (
        lambda: nn.Conv2d(3, 4, 3, padding_mode="mirror"),
        ValueError,
        "padding_mode must be .*'mirror'",
    ),
    "dropout-p": (lambda: nn.Dropout(-0.1), ValueError, "Dropout: p must be between 0 and 1, got -0.1"),
    "norm-size": (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features must be at least 1"),
    "loss-reduction": (lambda: nn.MSELoss(reduction="avg"), ValueError, "MSELoss: reduction must be .*'avg'"),
    "loss-weight": (lambda: nn.CrossEntropyLoss([1.0]), TypeError, "as buffer 'weight'"),
    "unflatten": (lambda: nn.Unflatten("c", (1, 2)), TypeError, "Unflatten: dim must be an integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_clear_errors(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
