"""Normalisation forward and backward, plain and with what follows it in a ResNet."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..case import Goal, Step, Suite, Timed
from ..library import Library

# LeNet's first feature map, ResNet's at two depths, and one-dimensional ones.
BATCH_CPU = ((64, 6, 28, 28), (32, 64, 56, 56), (8, 256, 14, 14), (256, 512), (16, 64, 128))
# ResNet-50's at N = 64, from the stem to the last stage.
BATCH_CUDA = ((64, 64, 112, 112), (64, 64, 56, 56), (64, 256, 56, 56), (64, 512, 28, 28), (64, 2048, 7, 7))


def _operands(library: Library, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    learned = {"x": shape, "weight": shape[1:2], "bias": shape[1:2], "residual": shape}
    operands = {
        name: library.tensor(rng.standard_normal(size, np.float32), dtype, requires_grad=True)
        for name, size in learned.items()
    }
    return {
        **operands,
        "upstream": library.tensor(rng.standard_normal(shape, np.float32), dtype),
        "mean": library.tensor(np.zeros(shape[1], np.float32), dtype),
        "var": library.tensor(np.ones(shape[1], np.float32), dtype),
    }


def batch_norm(shape: tuple[int, ...], dtype: str = "float32", fused: bool = False) -> Timed:
    """A step of training: the result, the running statistics and all gradients.

    `fused`: plus a residual, then ReLU; three operations where the library has no other way.
    """

    def make(library: Library, dtype: str) -> Step:
        of = _operands(library, dtype, shape)
        functional = library.functional
        wanted = [of[name] for name in ("x", "weight", "bias", *["residual"] * fused)]

        def step() -> tuple:
            args = (of["x"], of["mean"], of["var"], of["weight"], of["bias"], True)
            if not fused:
                y = functional.batch_norm(*args)
            elif library.name == "adjoint":
                y = functional.batch_norm(*args, residual=of["residual"], relu=True)
            else:
                y = functional.relu(functional.batch_norm(*args) + of["residual"])
            return (y, *library.grad(y, wanted, of["upstream"]))

        return step

    itemsize = 2 if dtype in ("float16", "bfloat16") else 4
    # x twice, y; then dy and x twice, dx. Fused: the residual and y are read, its gradient is written and read for dy.
    passes = 3 + 1 + 5 + 2 if fused else 3 + 5
    operation = "batch_norm + residual + relu" if fused else "batch_norm"
    return Timed(operation, str(shape).replace(" ", ""), make, dtype, bytes=passes * itemsize * prod(shape))


SUITE = Suite(
    "norm",
    cpu=[batch_norm(shape, fused=fused) for fused in (False, True) for shape in BATCH_CPU],
    cuda=[
        batch_norm(shape, dtype, fused)
        for fused in (False, True)
        for dtype in ("float32", "bfloat16")
        for shape in BATCH_CUDA
    ],
    goals=[Goal("batch_norm", ratio=1.0), Goal("batch_norm + residual + relu", ratio=1.0)],
)
