"""Activations, and bias with activation, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from ..case import Goal, Step, Suite, Timed, itemsize
from ..library import Library

# A small layer's, a Transformer's feed-forward, a ResNet's first stage.
CPU = ((64, 256), (256, 1024), (32, 64, 56, 56))
CUDA = ((64, 256), (8192, 4096), (64, 256, 56, 56))
CUDA_KINDS = ("relu", "gelu", "silu", "hardswish")
KINDS = (
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "gelu_tanh",
    "silu",
    "sigmoid",
    "tanh",
    "softplus",
    "hardswish",
    "mish",
)


def function(library: Library, kind: str) -> Callable[[Any], Any]:
    """The activation; the approximate GELU is a setting of the exact one."""
    if kind == "gelu_tanh":
        return lambda x: library.functional.gelu(x, approximate="tanh")
    return getattr(library.functional, kind)


def case(kind: str, shape: tuple[int, ...], dtype: str = "float32") -> Timed:
    """The forward pass and the input's gradient."""

    def make(library: Library, dtype: str) -> Step:
        x = library.normal(shape, dtype, 1, requires_grad=True)
        upstream = library.normal(shape, dtype, 2)
        activation = function(library, kind)

        def step() -> tuple:
            y = activation(x)
            return (y, *library.grad(y, (x,), upstream))

        return step

    # Forward reads x and writes y; backward reads dy and x or y and writes dx.
    return Timed("activation", f"{kind} {_text(shape)}", make, dtype, bytes=5 * itemsize(dtype) * prod(shape))


def with_bias(kind: str, shape: tuple[int, ...], dim: int, dtype: str = "float32") -> Timed:
    """f(x + bias) and the gradients of both; of PyTorch an addition and an activation."""

    def make(library: Library, dtype: str) -> Step:
        x = library.normal(shape, dtype, 1, requires_grad=True)
        bias = library.normal((shape[dim],), dtype, 3, requires_grad=True)
        upstream = library.normal(shape, dtype, 2)
        fused = getattr(library.functional, "bias_activation", None)
        activation = function(library, kind)

        def step() -> tuple:
            if fused is not None:
                y = fused(x, bias, kind, dim)
            else:
                y = activation(x + bias.reshape(-1, *(1,) * (len(shape) - 1 - dim)))
            return (y, *library.grad(y, (x, bias), upstream))

        return step

    return Timed("bias_activation", f"{kind} {_text(shape)}", make, dtype, bytes=5 * itemsize(dtype) * prod(shape))


def _text(shape: tuple[int, ...]) -> str:
    return f"({','.join(map(str, shape))})"


BIASED = (("relu", 1), ("gelu", 1))

SUITE = Suite(
    "activation",
    cpu=[case(kind, shape) for kind in KINDS for shape in CPU]
    + [with_bias(kind, shape, dim) for kind, dim in BIASED for shape in CPU[1:]],
    cuda=[case(kind, shape, dtype) for dtype in ("float32", "bfloat16") for kind in CUDA_KINDS for shape in CUDA]
    + [
        with_bias(kind, shape, dim, dtype)
        for dtype in ("float32", "bfloat16")
        for kind, dim in BIASED
        for shape in CUDA[1:]
    ],
    goals=[Goal("activation", ratio=1.0)],
)
