"""Optimizers on CUDA: the numbers of a step and the launches of src/optimizer.cu."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import launch, replay
from .kernel import Kernel
from .multi_tensor import BLOCK, Array, batches, contiguous
from .replay import now

Arrays = Sequence[Array]

_SOURCE = "optimizer.cu"

_SGD = np.dtype(
    [
        *((name, np.float64) for name in ("lr", "momentum", "taken", "weight_decay", "grad_factor")),
        *((name, np.int32) for name in ("nesterov", "first", "skip")),
    ],
    align=True,
)
_ADAM = np.dtype(
    [
        *((name, np.float64) for name in ("lr", "beta1", "beta2", "taken1", "taken2", "correction1", "root2")),
        *((name, np.float64) for name in ("eps", "weight_decay", "grad_factor")),
        *((name, np.int32) for name in ("decoupled", "skip")),
    ],
    align=True,
)
_SGD_NUMBERS = Kernel(_SOURCE, "sgd_numbers")
_ADAM_NUMBERS = Kernel(_SOURCE, "adam_numbers")


def _sgd(scalar: str, momentum: bool) -> Kernel:
    return Kernel(_SOURCE, f"sgd<{scalar}, {str(momentum).lower()}>")


def _adam(scalar: str, amsgrad: bool) -> Kernel:
    return Kernel(_SOURCE, f"adam<{scalar}, {str(amsgrad).lower()}>")


def sgd(
    params: Arrays,
    grads: Arrays,
    momentum_buffers: Arrays | None,
    first: bool,
    lr: Any,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: Any = 1.0,
    found_inf: Array | None = None,
) -> None:
    def numbers() -> np.ndarray:
        return launch.struct(
            _SGD,
            lr=_value(lr),
            momentum=now(momentum),
            taken=1 - now(dampening),
            weight_decay=now(weight_decay),
            grad_factor=(-1 if maximize else 1) / _value(grad_scale),
            nesterov=nesterov,
            first=first,
            skip=0,
        )

    given, replaced = _numbers(_SGD_NUMBERS, numbers, params[0], lr, grad_scale, found_inf)
    kernel = _sgd(launch.c_type(params[0].dtype), momentum_buffers is not None)
    lists = [params, grads] if momentum_buffers is None else [params, grads, momentum_buffers]
    _run(kernel, lists, given, replaced)


def adam(
    params: Arrays,
    grads: Arrays,
    exp_avgs: Arrays,
    exp_avg_sqs: Arrays,
    max_exp_avg_sqs: Arrays | None,
    step: Any,
    lr: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    grad_scale: Any = 1.0,
    found_inf: Array | None = None,
) -> None:
    def numbers() -> np.ndarray:
        first, second, count = now(beta1), now(beta2), _value(step)
        return launch.struct(
            _ADAM,
            lr=_value(lr),
            beta1=first,
            beta2=second,
            taken1=1 - first,
            taken2=1 - second,
            correction1=1 - first**count,
            root2=math.sqrt(1 - second**count),
            eps=now(eps),
            weight_decay=now(weight_decay),
            grad_factor=(-1 if maximize else 1) / _value(grad_scale),
            decoupled=decoupled,
            skip=0,
        )

    given, replaced = _numbers(_ADAM_NUMBERS, numbers, params[0], lr, step, grad_scale, found_inf)
    kernel = _adam(launch.c_type(params[0].dtype), max_exp_avg_sqs is not None)
    lists = [params, grads, exp_avgs, exp_avg_sqs]
    if max_exp_avg_sqs is not None:
        lists.append(max_exp_avg_sqs)
    _run(kernel, lists, given, replaced)


def _value(number: Any) -> float:
    """The number; 1 for an array, whose value is read on the device."""
    return 1.0 if launch.launcher.is_array(number) else float(now(number))


def _numbers(
    kernel: Kernel, read: Callable[[], np.ndarray], like: Array, *numbers: Any
) -> tuple[np.ndarray, Array | None]:
    """The numbers of a step as a parameter of its launch, and what replaces them in device memory.

    Something does where one of `numbers` is an array, and where the launch goes into a graph.
    """
    given = read()
    refreshed = replay.refreshed(read, like)
    places = [number.astype(np.float64, copy=False) if launch.launcher.is_array(number) else None for number in numbers]
    if not any(place is not None for place in places):
        return given, refreshed
    result = launch.empty((given.itemsize // 8,), np.float64, like)
    launch.launch(kernel, (1,), (1,), (*places, refreshed, result, given))
    return given, result


def _run(kernel: Kernel, lists: Sequence[Arrays], given: np.ndarray, replaced: Array | None) -> None:
    """All lists but the gradients, at position 1, are changed."""
    with contiguous(lists, [k for k in range(len(lists)) if k != 1]) as dense:
        for struct, chunks, arrays in batches(dense):
            launch.launch(kernel, (chunks,), (BLOCK,), (struct, replaced, given), reached=arrays)


VARIANTS = [
    _SGD_NUMBERS,
    _ADAM_NUMBERS,
    *(variant(scalar, more) for scalar in launch.FLOAT_TYPES for variant in (_sgd, _adam) for more in (False, True)),
]
