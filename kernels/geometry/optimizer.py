"""Lists of arrays that belong together, and settings of optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def optimizer(operation: str, shapes: dict[str, Sequence[Sequence[int]] | None]) -> None:
    """Check that all lists have the shapes of the first, array by array."""
    (first, wanted), *rest = ((name, given) for name, given in shapes.items() if given is not None)
    for name, given in rest:
        if given == wanted:
            continue
        if len(given) != len(wanted):
            raise ValueError(f"{operation}: {name} must be as many arrays as {first}, {len(wanted)}, got {len(given)}")
        i = next(i for i, pair in enumerate(zip(given, wanted, strict=True)) if pair[0] != pair[1])
        raise ValueError(f"{operation}: {name}[{i}] must have the shape {wanted[i]} of {first}[{i}], got {given[i]}")


def sgd(
    momentum: float, dampening: float, weight_decay: float, nesterov: bool, lr: Any, grad_scale: Any, has_buffers: bool
) -> None:
    """Check the settings of a step of SGD; `lr` and `grad_scale` are None where they are on the device."""
    _check_common("sgd", weight_decay=weight_decay, lr=lr, momentum=momentum)
    _check_scale("sgd", grad_scale)
    if has_buffers != (momentum != 0):
        raise ValueError(f"sgd: momentum_buffers must be given with a momentum and only then, got momentum={momentum}")
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(
            f"sgd: nesterov needs a momentum above 0 and no dampening, got momentum={momentum}, dampening={dampening}"
        )


def adam(step: Any, lr: Any, beta1: float, beta2: float, eps: float, weight_decay: float, grad_scale: Any) -> None:
    """Check the settings of a step of Adam; `step`, `lr` and `grad_scale` are None where they are on the device."""
    _check_common("adam", weight_decay=weight_decay, lr=lr, eps=eps)
    _check_scale("adam", grad_scale)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"adam: {name} must be at least 0 and below 1, got {beta!r}")
    if step is not None and not (step >= 1 and step == int(step)):
        raise ValueError(f"adam: step must be a whole number of at least 1, got {step!r}")


def grad_norm(operation: str, norm_type: float) -> None:
    """Check the order of a norm."""
    if not norm_type > 0:
        raise ValueError(f"{operation}: norm_type must be positive, got {norm_type!r}")


def _check_common(operation: str, **settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{operation}: {name} must be at least 0, got {value!r}")


def _check_scale(operation: str, grad_scale: Any) -> None:
    if grad_scale is not None and not grad_scale > 0:
        raise ValueError(f"{operation}: grad_scale must be above 0, got {grad_scale!r}")
