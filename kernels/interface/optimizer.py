"""Steps of optimizers over lists of arrays, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import geometry
from .checks import Array, side
from .lists import NUMBERS, check_lists, check_number_or_array, check_writeable

Number = float | Array


def sgd(
    params: Sequence[Array],
    grads: Sequence[Array],
    momentum_buffers: Sequence[Array] | None,
    first: bool,
    lr: Number,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    found_inf: Array | None = None,
) -> None:
    """A step of SGD: v = momentum · v + (1 − dampening) · g, p −= lr · v, as in PyTorch.

    Changes `params` and `momentum_buffers` (None without momentum) in place. `first`: the buffers hold nothing yet,
    v = g. Gradients are divided by `grad_scale`; where `found_inf` is not 0 nothing changes. `lr`, `grad_scale` and
    `found_inf` may be 0-d arrays, which are read on their device.
    """
    operation = "sgd"
    lists = {"params": params, "grads": grads, "momentum_buffers": momentum_buffers}
    check_lists(operation, **lists)
    geometry.optimizer(operation, {name: given and [a.shape for a in given] for name, given in lists.items()})
    geometry.sgd(
        momentum, dampening, weight_decay, nesterov, _number(lr), _number(grad_scale), momentum_buffers is not None
    )
    if not params:
        return
    check_writeable(operation, params=params, momentum_buffers=momentum_buffers)
    check_number_or_array(operation, params[0], lr=lr, grad_scale=grad_scale, found_inf=found_inf)
    side(params[0]).sgd(
        params, grads, momentum_buffers, first, lr, momentum, dampening, weight_decay, nesterov, maximize,
        grad_scale, found_inf,
    )  # fmt: skip


def adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    max_exp_avg_sqs: Sequence[Array] | None,
    step: Number,
    lr: Number,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    grad_scale: Number = 1.0,
    found_inf: Array | None = None,
) -> None:
    """A step of Adam (Kingma & Ba, 2015), its number `step` counted from 1, as in PyTorch.

    Changes `params`, the running means `exp_avgs` and `exp_avg_sqs` and, for AMSGrad, `max_exp_avg_sqs` in place.
    `decoupled` weight decay shrinks the parameters (AdamW; Loshchilov & Hutter, 2019). Gradients are divided by
    `grad_scale`; where `found_inf` is not 0 nothing changes. `step`, `lr`, `grad_scale` and `found_inf` may be 0-d
    arrays, which are read on their device.
    """
    operation = "adam"
    lists = {
        "params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs,
        "max_exp_avg_sqs": max_exp_avg_sqs,
    }  # fmt: skip
    check_lists(operation, **lists)
    geometry.optimizer(operation, {name: given and [a.shape for a in given] for name, given in lists.items()})
    geometry.adam(_number(step), _number(lr), beta1, beta2, eps, weight_decay, _number(grad_scale))
    if not params:
        return
    del lists["grads"]
    check_writeable(operation, **lists)
    check_number_or_array(operation, params[0], step=step, lr=lr, grad_scale=grad_scale, found_inf=found_inf)
    side(params[0]).adam(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, step, lr, beta1, beta2, eps, weight_decay, decoupled,
        maximize, grad_scale, found_inf,
    )  # fmt: skip


def _number(value: Any) -> Any:
    """The value where the host knows it; None for an array."""
    return value if isinstance(value, NUMBERS) else None
