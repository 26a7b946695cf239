"""cross_entropy, softmax and log_softmax, forward and backward."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..case import Goal, Step, Suite, Timed, itemsize
from ..library import Library

# A digit classifier, ImageNet at two batch sizes, a language model.
CPU = ((64, 10), (256, 1000), (4096, 1000), (512, 32000))
CUDA = ((64, 10), (8192, 1000), (4096, 32000), (4096, 128256))
# (shape, dim): attention, a classifier, segmentation.
SOFTMAX_CPU = (((64, 8, 128, 128), -1), ((256, 1000), 1), ((8, 21, 64, 64), 1))
SOFTMAX_CUDA = (((8, 16, 1024, 1024), -1), ((8192, 1000), 1), ((16, 21, 512, 512), 1), ((1024, 128256), 1))


def case(rows: int, classes: int, dtype: str = "float32", probabilities: bool = False, **settings: Any) -> Timed:
    """The mean loss and the gradient of the logits."""

    def make(library: Library, dtype: str) -> Step:
        rng = np.random.default_rng(0)
        logits = library.normal((rows, classes), dtype, 1, requires_grad=True)
        if probabilities:
            target = library.tensor(rng.dirichlet(np.ones(classes), rows), dtype)
        else:
            target = library.tensor(rng.integers(classes, size=rows))

        def step() -> tuple:
            loss = library.functional.cross_entropy(logits, target, **settings)
            return (loss, *library.grad(loss, (logits,)))

        return step

    # Reads the logits (and probabilities), writes their gradient.
    moved = (3 if probabilities else 2) * itemsize(dtype) * rows * classes
    kind = " probabilities" if probabilities else "".join(f" {name}={value}" for name, value in settings.items())
    return Timed("cross_entropy", f"({rows},{classes}){kind}", make, dtype, bytes=moved)


def softmax_case(operation: str, shape: tuple[int, ...], dim: int, dtype: str = "float32") -> Timed:
    """The result and the input's gradient."""

    def make(library: Library, dtype: str) -> Step:
        x = library.normal(shape, dtype, 1, requires_grad=True)
        upstream = library.normal(shape, dtype, 2)
        function = getattr(library.functional, operation)

        def step() -> tuple:
            y = function(x, dim)
            return (y, *library.grad(y, (x,), upstream))

        return step

    # Forward reads x and writes y; backward reads y and dy and writes dx.
    moved = 5 * itemsize(dtype) * prod(shape)
    return Timed(operation, f"({','.join(map(str, shape))}) dim {dim}", make, dtype, bytes=moved)


SUITE = Suite(
    "softmax_cross_entropy",
    cpu=[
        *(case(*shape) for shape in CPU),
        case(256, 1000, label_smoothing=0.1),
        case(256, 1000, probabilities=True),
        *(
            softmax_case(operation, shape, dim)
            for operation in ("softmax", "log_softmax")
            for shape, dim in SOFTMAX_CPU
        ),
    ],
    cuda=[
        *(case(*shape, dtype) for dtype in ("float32", "bfloat16") for shape in CUDA),
        *(
            softmax_case("softmax", shape, dim, dtype)
            for dtype in ("float32", "bfloat16")
            for shape, dim in SOFTMAX_CUDA
        ),
    ],
    goals=[Goal("cross_entropy", ratio=1.0), Goal("softmax", ratio=1.0), Goal("log_softmax", ratio=1.0)],
)
