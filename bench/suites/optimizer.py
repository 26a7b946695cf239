"""Steps of optimizers, and clipping by the norm of all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..case import Goal, Step, Suite, Timed, itemsize
from ..library import Library

Shapes = Sequence[tuple[int, ...]]

LENET: Shapes = (
    (6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84), (10,),
)  # fmt: skip
MLP: Shapes = ((256, 784), (256,), (10, 256), (10,))


def resnet50() -> Shapes:
    """The parameters of a ResNet-50."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for out, into, size in ((width, channels, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, into, size, size), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def transformer(layers: int = 6, width: int = 512, vocabulary: int = 32000) -> Shapes:
    """The parameters of an encoder with an embedding, which the last layer shares."""
    layer = [
        (3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,),
        (width, 4 * width), (width,), (width,), (width,), (width,), (width,),
    ]  # fmt: skip
    return [(vocabulary, width), *(layer * layers), (width,), (width,)]


CPU = {"LeNet": LENET, "784-256-10": MLP, "20 of (256,256)": ((256, 256),) * 20, "(2048,2048)": ((2048, 2048),)}
CUDA = {"LeNet": LENET, "ResNet-50": resnet50(), "Transformer, 6 layers": transformer()}

STEPS = {"SGD": {"lr": 0.01, "momentum": 0.9}, "Adam": {"lr": 1e-3}, "AdamW": {"lr": 1e-3}}
# Bytes of a float32 parameter: read and written, its gradient read.
MOVED = {"SGD": 20, "Adam": 28, "AdamW": 28, "clip_grad_norm_": 12}


def case(operation: str, name: str, shapes: Shapes, dtype: str = "float32") -> Timed:
    """A step of an optimizer, or clipping of gradients that are always too large."""

    def make(library: Library, dtype: str) -> Step:
        parameters = []
        for seed, shape in enumerate(shapes):
            parameter = library.normal(shape, dtype, 2 * seed, requires_grad=True)
            parameter.grad = library.normal(shape, dtype, 2 * seed + 1)
            parameters.append(parameter)
        if operation == "clip_grad_norm_":
            clip = library.nn.utils.clip_grad_norm_

            def clipped() -> list:
                return [clip(parameters, 1.0), *(parameter.grad for parameter in parameters)]

            return clipped
        optimizer = getattr(library.optim, operation)(parameters, **STEPS[operation])

        def step() -> list:
            optimizer.step()
            return parameters

        return step

    return Timed(operation, name, make, dtype, bytes=MOVED[operation] * itemsize(dtype) // 4 * sum(map(prod, shapes)))


SUITE = Suite(
    "optimizer",
    cpu=[case(operation, name, shapes) for operation in MOVED for name, shapes in CPU.items()],
    cuda=[case(operation, name, shapes) for operation in MOVED for name, shapes in CUDA.items()]
    + [case("AdamW", name, CUDA[name], "bfloat16") for name in ("ResNet-50", "Transformer, 6 layers")],
    goals=[Goal("Adam", ratio=1.0), Goal("AdamW", ratio=1.0)],
)
