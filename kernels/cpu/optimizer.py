"""Steps of SGD and Adam in pieces: what an operation writes, the next one finds in the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arithmetic import compute_dtype
from .pieces import update

Arrays = Sequence[np.ndarray]


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
    found_inf: np.ndarray | None = None,
) -> None:
    if found_inf is not None and found_inf:
        return
    factor = _factor(maximize, grad_scale)
    rate, decay, keep, taken, times = _scalars(params[0].dtype, lr, weight_decay, momentum, 1 - dampening, factor)

    def change(p: np.ndarray, g: np.ndarray, *rest: np.ndarray) -> None:
        work, changed = rest[-2:]
        if factor != 1:
            g = np.multiply(g, times, changed)
        if weight_decay:
            g = np.add(g, np.multiply(p, decay, work), changed)
        if momentum:
            v = rest[0]
            if first:
                np.copyto(v, g)
            else:
                np.multiply(v, keep, v)
                np.add(v, np.multiply(g, taken, work) if dampening else g, v)
            g = np.add(g, np.multiply(v, keep, work), work) if nesterov else v
        np.subtract(p, np.multiply(g, rate, work), p)

    lists = [params, grads] if momentum_buffers is None else [params, grads, momentum_buffers]
    update(lists, (0, 2)[: len(lists) - 1], 2, change)


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
    found_inf: np.ndarray | None = None,
) -> None:
    if found_inf is not None and found_inf:
        return
    step, lr = float(step), float(lr)
    factor = _factor(maximize, grad_scale)
    # p −= size · m / (sqrt(v) + eps · root): the corrections 1 / (1 − beta^step) of both means go into numbers.
    root = math.sqrt(1 - beta2**step)
    size = lr * root / (1 - beta1**step)
    size0, eps0, taken1, keep2, taken2, decay, shrink, times = _scalars(
        params[0].dtype, size, eps * root, 1 - beta1, beta2, 1 - beta2, weight_decay, 1 - lr * weight_decay, factor
    )

    def change(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, *rest: np.ndarray) -> None:
        work, changed = rest[-2:]
        if factor != 1:
            g = np.multiply(g, times, changed)
        if weight_decay and decoupled:
            np.multiply(p, shrink, p)
        elif weight_decay:
            g = np.add(g, np.multiply(p, decay, work), changed)
        np.subtract(g, m, work)
        np.multiply(work, taken1, work)
        np.add(m, work, m)
        np.multiply(g, g, work)
        np.multiply(work, taken2, work)
        np.multiply(v, keep2, v)
        np.add(v, work, v)
        if max_exp_avg_sqs is not None:
            v = np.maximum(rest[0], v, out=rest[0])
        np.sqrt(v, work)
        np.add(work, eps0, work)
        np.divide(m, work, work)
        np.multiply(work, size0, work)
        np.subtract(p, work, p)

    lists = [params, grads, exp_avgs, exp_avg_sqs]
    if max_exp_avg_sqs is not None:
        lists.append(max_exp_avg_sqs)
    update(lists, (0, 2, 3, 4)[: len(lists) - 1], 2, change)


def _factor(maximize: bool, grad_scale: Any) -> float:
    """What gradients are multiplied by."""
    return (-1.0 if maximize else 1.0) / float(grad_scale)


def _scalars(dtype: np.dtype, *values: Any) -> list[np.ndarray]:
    """Numbers as 0-d arrays, which NumPy takes sooner than numbers."""
    kind = compute_dtype(dtype)
    return [np.asarray(value, kind) for value in values]
