"""Whole training steps: forward, loss, backward, optimizer; on a GPU also as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .. import networks
from ..case import FORMATS, LAYOUTS, Counted, Goal, Leaving, Step, Suite, Timed
from ..library import Library


class Optimizer(NamedTuple):
    """A class of `optim`, and what it is given."""

    name: str
    lr: float
    settings: Mapping[str, float] = MappingProxyType({})


SGD, ADAM, ADAMW = Optimizer("SGD", 1e-3, {"momentum": 0.9}), Optimizer("Adam", 1e-3), Optimizer("AdamW", 1e-4)


@dataclass(frozen=True)
class Training:
    """A network and what it is trained on: `batch` inputs of `shape`, or of `shape` tokens, in `classes`."""

    name: str
    build: Callable[[Library], Any]
    batch: int
    shape: tuple[int, ...]
    classes: int
    products: float  # multiply-adds of the forward pass for one input
    tokens: bool = False
    note: str = ""
    optimizer: Optimizer = SGD

    def __str__(self) -> str:
        size = f"{self.shape[0]},{self.shape[1]}²" if len(self.shape) == 3 else ",".join(map(str, self.shape))
        return " ".join(filter(None, (f"({self.batch},{size})", self.note, self.optimizer.name)))

    def step(self, library: Library, dtype: str) -> Step:
        """One step on random inputs, from the same weights for every library."""
        model = networks.with_weights(library, self.build(library), dtype)
        rng = np.random.default_rng(0)
        if self.tokens:
            inputs = library.tensor(rng.integers(self.classes, size=(self.batch, *self.shape)))
        else:
            inputs = library.normal((self.batch, *self.shape), dtype)
        count = self.batch * (self.shape[0] if self.tokens else 1)
        target = library.tensor(rng.integers(self.classes, size=count))
        settings: dict[str, Any] = {"lr": self.optimizer.lr, **self.optimizer.settings}
        if library.captures and library.name == "torch" and self.optimizer is not SGD:
            settings["capturable"] = library.device == "cuda"  # else its Adam counts steps where no graph sees it
        optimizer = getattr(library.optim, self.optimizer.name)(model.parameters(), **settings)

        def step() -> tuple:
            optimizer.zero_grad()
            logits = model(inputs).reshape(-1, self.classes)
            loss = library.functional.cross_entropy(logits, target)
            loss.backward()
            optimizer.step()
            return (loss,)

        return Leaving(step, lambda: [parameter.grad for parameter in model.parameters()])

    def case(self, dtype: str = "float32", precision: str = "highest", captured: bool = False, **more: Any) -> Timed:
        """The step timed. Backward has twice the products of forward."""
        return Timed(
            f"{self.name} step{' captured' if captured else ''}",
            str(self),
            self.step,
            dtype,
            operations=round(3 * 2 * self.products * self.batch),
            precision=precision,
            captured=captured,
            **more,
        )


def lenet(batch: int) -> Training:
    """LeNet-5 on images of 32×32."""
    return Training("LeNet-5", networks.lenet, batch, (1, 32, 32), 10, 416_520, optimizer=ADAM)


def mlp(batch: int) -> Training:
    """A perceptron on flat images."""
    return Training("MLP", networks.mlp, batch, (784,), 10, 784 * 256 + 256 * 10, note="784-256-10", optimizer=ADAM)


def transformer(batch: int, length: int, layers: int, width: int, heads: int, vocabulary: int) -> Training:
    """A language model; a token meets every other one of its text."""
    build = partial(networks.transformer, layers=layers, width=width, heads=heads, vocabulary=vocabulary, length=length)
    of_token = layers * (12 * width**2 + 2 * length * width) + width * vocabulary
    name, note = f"Transformer-{layers}", f"width {width}, {vocabulary} words"
    return Training(name, build, batch, (length,), vocabulary, length * of_token, True, note, ADAMW)


def lenet_step(library: Library, dtype: str) -> Step:
    """A step of LeNet-5 on 64 images of 32×32."""
    return lenet(64).step(library, dtype)


SMALL = (lenet(64), mlp(64))
# ResNet-18 at 32×32 as torchvision builds it, and with the stem that the paper has for such images.
CPU = (
    *SMALL,
    Training("ResNet-18", networks.resnet18, 16, (3, 32, 32), 1000, 37.5e6),
    Training("ResNet-18 (3×3 stem)", partial(networks.resnet18, small=True), 16, (3, 32, 32), 10, 0.556e9),
    transformer(4, 64, layers=6, width=128, heads=4, vocabulary=1000),
)
CUDA = (
    *SMALL,
    lenet(128),
    mlp(128),
    Training("ResNet-18", networks.resnet18, 64, (3, 224, 224), 1000, 1.814e9),
    Training("ResNet-50", networks.resnet50, 64, (3, 224, 224), 1000, 4.089e9),
    Training("MobileNetV2", networks.mobilenet_v2, 64, (3, 224, 224), 1000, 0.301e9),
    transformer(8, 512, layers=6, width=512, heads=8, vocabulary=32000),
)
IMAGES = ("ResNet-18", "ResNet-50", "MobileNetV2")


def _on_gpu(training: Training) -> list[Timed]:
    formats = FORMATS if training.name in IMAGES or training.tokens else FORMATS[:1]
    layouts = LAYOUTS if training.name in IMAGES else LAYOUTS[:1]
    return [
        training.case(dtype, precision, captured, layouts=layouts)
        for dtype, precision in formats
        for captured in (False, True)
    ]


SUITE = Suite(
    "train",
    cpu=[
        *(training.case() for training in CPU),
        Counted("LeNet-5 peak memory", "(64,1,32²)", ("-m", "bench.memory", "{library}"), "B"),
    ],
    cuda=[case for training in CUDA for case in _on_gpu(training)],
    goals=[
        *(Goal("LeNet-5 step", ratio=1.2), Goal("LeNet-5 peak memory", ratio=1.5)),
        *(Goal("ResNet-18 step", ratio=1.5), Goal("ResNet-18 (3×3 stem) step", ratio=1.5)),
    ],
    cuda_goals=[
        goal
        for name in ("LeNet-5", "MLP")
        for goal in (
            Goal(f"{name} step captured", ratio=1.0),
            Goal(f"{name} step captured", ratio=1 / 3, against=f"{name} step"),
        )
    ],
)
