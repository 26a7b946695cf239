"""Normalisation forward and backward, plain and with what follows it in a ResNet."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..case import Goal, Step, Suite, Timed, itemsize
from ..library import Library

# LeNet's first feature map, ResNet's at two depths, and one-dimensional ones.
BATCH_CPU = ((64, 6, 28, 28), (32, 64, 56, 56), (8, 256, 14, 14), (256, 512), (16, 64, 128))
# ResNet-50's at N = 64, from the stem to the last stage.
BATCH_CUDA = ((64, 64, 112, 112), (64, 64, 56, 56), (64, 256, 56, 56), (64, 512, 28, 28), (64, 2048, 7, 7))

# Rows of a small network, of a Transformer's widths, and of a language model; then images and groups of channels.
LAYER_CPU = ((64, 128), (512, 768), (4096, 256), (2048, 1024))
RMS_CPU = ((512, 768), (2048, 1024))
LAYER_CUDA = ((8192, 768), (8192, 4096), (32768, 1024))
GROUP_CPU = (((8, 64, 32, 32), 8), ((4, 256, 28, 28), 32))
GROUP_CUDA = (((32, 256, 56, 56), 32),)
INSTANCE_CPU = ((8, 32, 56, 56),)
INSTANCE_CUDA = ((32, 64, 112, 112),)


def _operands(library: Library, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    learned = {"x": shape, "weight": shape[1:2], "bias": shape[1:2], "residual": shape}
    operands = {
        name: library.normal(size, dtype, seed, requires_grad=True) for seed, (name, size) in enumerate(learned.items())
    }
    return {
        **operands,
        "upstream": library.normal(shape, dtype, 4),
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

    # x twice, y; then dy and x twice, dx. Fused: the residual and y are read, its gradient is written and read for dy.
    passes = 3 + 1 + 5 + 2 if fused else 3 + 5
    operation = "batch_norm + residual + relu" if fused else "batch_norm"
    return Timed(operation, str(shape).replace(" ", ""), make, dtype, bytes=passes * itemsize(dtype) * prod(shape))


def row_norm(operation: str, shape: tuple[int, ...], dtype: str = "float32", groups: int = 0) -> Timed:
    """layer_norm or rms_norm of rows, group_norm or instance_norm of images: the result and all gradients."""

    def make(library: Library, dtype: str) -> Step:
        vectors = ("weight",) if operation == "rms_norm" else ("weight", "bias")
        sizes = {"x": shape, **dict.fromkeys(vectors, shape[1:2])}
        of = {
            name: library.normal(size, dtype, seed, requires_grad=True)
            for seed, (name, size) in enumerate(sizes.items())
        }
        upstream = library.normal(shape, dtype, 4)
        function = getattr(library.functional, operation)
        settings = {"group_norm": (groups,), "instance_norm": ()}.get(operation, (shape[1:],))
        given = {name: of[name] for name in vectors}

        def step() -> tuple:
            y = function(of["x"], *settings, **given)
            return (y, *library.grad(y, list(of.values()), upstream))

        return step

    text = str(shape).replace(" ", "") + (f" g{groups}" if groups else "")
    # x, y; then dy, x, dx.
    return Timed(operation, text, make, dtype, bytes=5 * itemsize(dtype) * prod(shape))


ROWS_CPU = [
    *(row_norm("layer_norm", shape) for shape in LAYER_CPU),
    *(row_norm("rms_norm", shape) for shape in RMS_CPU),
    *(row_norm("group_norm", shape, groups=groups) for shape, groups in GROUP_CPU),
    *(row_norm("instance_norm", shape) for shape in INSTANCE_CPU),
]
ROWS_CUDA = [
    case
    for dtype in ("float32", "bfloat16")
    for case in (
        *(row_norm(operation, shape, dtype) for operation in ("layer_norm", "rms_norm") for shape in LAYER_CUDA),
        *(row_norm("group_norm", shape, dtype, groups) for shape, groups in GROUP_CUDA),
        *(row_norm("instance_norm", shape, dtype) for shape in INSTANCE_CUDA),
    )
]

SUITE = Suite(
    "norm",
    cpu=[*(batch_norm(shape, fused=fused) for fused in (False, True) for shape in BATCH_CPU), *ROWS_CPU],
    cuda=[
        *(
            batch_norm(shape, dtype, fused)
            for fused in (False, True)
            for dtype in ("float32", "bfloat16")
            for shape in BATCH_CUDA
        ),
        *ROWS_CUDA,
    ],
    goals=[
        Goal(operation, ratio=1.0)
        for operation in (
            *("batch_norm", "batch_norm + residual + relu"),
            *("layer_norm", "rms_norm", "group_norm", "instance_norm"),
        )
    ],
)
