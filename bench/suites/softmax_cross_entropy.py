"""cross_entropy of logits and class indices, forward and backward."""

from __future__ import annotations

import numpy as np

from ..case import Goal, Step, Suite, Timed
from ..library import Library

# A digit classifier, ImageNet at two batch sizes, a language model.
CPU = ((64, 10), (256, 1000), (4096, 1000), (512, 32000))
CUDA = ((64, 10), (8192, 1000), (4096, 32000), (4096, 128256))


def case(rows: int, classes: int, dtype: str = "float32") -> Timed:
    """The mean loss and the gradient of the logits."""

    def make(library: Library, dtype: str) -> Step:
        rng = np.random.default_rng(0)
        logits = library.tensor(rng.standard_normal((rows, classes), np.float32), dtype, requires_grad=True)
        target = library.tensor(rng.integers(classes, size=rows))

        def step() -> tuple:
            loss = library.functional.cross_entropy(logits, target)
            return (loss, *library.grad(loss, (logits,)))

        return step

    itemsize = 2 if dtype in ("float16", "bfloat16") else 4
    moved = 2 * itemsize * rows * classes  # reads the logits, writes their gradient
    return Timed("cross_entropy", f"({rows},{classes})", make, dtype, bytes=moved)


SUITE = Suite(
    "softmax_cross_entropy",
    cpu=[case(*shape) for shape in CPU],
    cuda=[case(*shape, dtype) for dtype in ("float32", "bfloat16") for shape in CUDA],
    goals=[Goal("cross_entropy", ratio=1.0)],
)
