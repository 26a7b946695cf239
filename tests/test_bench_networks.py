"""The benchmarks' networks: published sizes, and PyTorch's results from the same code."""

from functools import partial
from math import prod

import numpy as np
import pytest

from bench import networks
from bench.library import Library, load_peer
from bench.suites import train
from bench.suites.train import CPU, CUDA, Training
from bench.timing import relative_error

OURS = Library("adjoint")


def parameters(model) -> int:
    return sum(prod(parameter.shape) for parameter in model.parameters())


def products(model, x) -> int:
    """Multiply-adds of all convolutions and linear layers as the model takes x."""
    total = []

    def count(layer, _, y):
        total.append(prod(y.shape) * prod(layer.weight.shape[1:]))

    for layer in model.modules():
        if isinstance(layer, (OURS.nn.Conv2d, OURS.nn.Linear)):
            layer.register_forward_hook(count)
    model.eval()(x)
    return sum(total)


@pytest.mark.parametrize(
    ("build", "published"),
    [
        # LeCun et al. 1998 with the tutorial's full connections; torchvision's models.
        (networks.lenet, 61_706),
        (networks.resnet18, 11_689_512),
        (networks.resnet50, 25_557_032),
        (networks.mobilenet_v2, 3_504_872),
    ],
)
def test_parameters_are_as_many_as_published(build, published):
    assert parameters(build(OURS)) == published


def gpt2_parameters(layers, width, vocabulary, length) -> int:
    """Of GPT-2: embeddings, 12 width² + 13 width for a layer, the last norm."""
    return (vocabulary + length + 2) * width + layers * (12 * width**2 + 13 * width)


def test_the_transformer_is_as_large_as_gpt2_would_be():
    assert gpt2_parameters(12, 768, 50257, 1024) == 124_439_808  # GPT-2 small
    sizes = {"layers": 3, "width": 16, "vocabulary": 50, "length": 7}
    assert parameters(networks.transformer(OURS, heads=4, **sizes)) == gpt2_parameters(**sizes)


@pytest.mark.parametrize("training", [t for t in (*CPU, *CUDA) if not t.tokens], ids=lambda t: f"{t.name} {t}")
def test_products_of_a_forward_pass(training: Training):
    x = OURS.normal((1, *training.shape), "float32")
    assert products(training.build(OURS), x) == pytest.approx(training.products, rel=0.005)


def test_products_of_the_transformer():
    training = train.transformer(1, 12, layers=2, width=16, heads=4, vocabulary=40)
    # Each of the words' 40 scores, and two products of 12 places each with 12 others in a layer.
    beyond_layers = 12 * 40 * 16 + 2 * 2 * 12 * 12 * 16
    tokens = OURS.tensor(np.arange(12).reshape(1, 12))
    assert training.products == products(training.build(OURS), tokens) + beyond_layers


SMALL = (
    train.lenet(3),
    train.mlp(3),
    Training("ResNet-18", networks.resnet18, 2, (3, 64, 64), 1000, 0),
    Training("ResNet-18 (3×3 stem)", partial(networks.resnet18, small=True), 2, (3, 16, 16), 10, 0),
    Training("ResNet-50", networks.resnet50, 2, (3, 64, 64), 1000, 0),
    Training("MobileNetV2", networks.mobilenet_v2, 2, (3, 64, 64), 1000, 0),
    train.transformer(2, 12, layers=2, width=16, heads=4, vocabulary=40),
)


def results(training, library):
    """The loss, and the gradients of all parameters."""
    step = training.step(library, "float64")
    return [library.array(value) for value in (*step(), *step.left())]


@pytest.mark.parametrize("training", SMALL, ids=lambda training: training.name)
def test_loss_and_gradients_are_pytorchs(training: Training):
    pytest.importorskip("torch", reason="compares with PyTorch")
    peer = load_peer("torch", "cpu")
    got, exact = (results(training, of) for of in (OURS, peer))
    assert got[0] == pytest.approx(exact[0], rel=1e-12)
    assert relative_error(got, exact) < 1e-8


def test_channels_last_changes_no_result():
    pytest.importorskip("torch", reason="asks PyTorch for its other layout")
    peer = load_peer("torch", "cpu")
    last = peer.variant("channels_last")
    training = Training("ResNet-18", networks.resnet18, 2, (3, 64, 64), 1000, 0)
    got, exact = (results(training, of) for of in (last, peer))
    assert relative_error(got, exact) < 1e-8
    model = networks.with_weights(last, networks.resnet18(last), "float32")
    assert next(model.parameters()).is_contiguous(memory_format=last.module.channels_last)
