"""Whole training steps: forward, loss, backward, Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..case import Counted, Goal, Step, Suite, Timed
from ..library import Library

BATCH = 64


def lenet(library: Library) -> Any:
    """LeNet-5 in its tutorial form: (N, 1, 32, 32) images to (N, 10) logits, 61,706 parameters."""
    nn = library.nn
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def mlp(library: Library) -> Any:
    """784-256-10."""
    nn = library.nn
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def training_step(library: Library, dtype: str, build: Callable[[Library], Any], shape: tuple[int, ...]) -> Step:
    """One step of Adam on random images; the same initial weights for every library."""
    rng = np.random.default_rng(0)
    model = build(library).to(library.device).to(getattr(library.module, dtype))
    weights = {}
    for name, parameter in sorted(model.state_dict().items()):
        bound = 1 / np.sqrt(np.prod(parameter.shape[1:]) or 1)
        values = rng.uniform(-bound, bound, tuple(parameter.shape))
        weights[name] = library.tensor(values.astype(np.float32), dtype)
    model.load_state_dict(weights)
    images = library.tensor(rng.standard_normal((BATCH, *shape), np.float32), dtype)
    target = library.tensor(rng.integers(10, size=BATCH))
    optimizer = library.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> tuple:
        optimizer.zero_grad()
        loss = library.functional.cross_entropy(model(images), target)
        loss.backward()
        optimizer.step()
        return (loss, *(parameter.grad for parameter in model.parameters()))

    return step


def lenet_step(library: Library, dtype: str) -> Step:
    """A step of LeNet-5 on 64 images of 32×32."""
    return training_step(library, dtype, lenet, (1, 32, 32))


def mlp_step(library: Library, dtype: str) -> Step:
    """A step of the 784-256-10 perceptron on 64 flat images."""
    return training_step(library, dtype, mlp, (784,))


TIMED = (
    Timed("LeNet-5 step", f"({BATCH},1,32²) Adam", lenet_step),
    Timed("MLP step", f"({BATCH},784) 784-256-10 Adam", mlp_step),
)

SUITE = Suite(
    "train",
    cpu=[
        *TIMED,
        Counted("LeNet-5 peak memory", f"({BATCH},1,32²)", ("-m", "bench.memory", "{library}"), "B"),
    ],
    cuda=TIMED,
    goals=[Goal("LeNet-5 step", ratio=2.5), Goal("LeNet-5 peak memory", ratio=1.5)],
)
