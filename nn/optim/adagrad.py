"""Adagrad, and Adadelta, which forgets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...engine import Tensor
from .elementwise import Elementwise, add_to_squares
from .optimizer import Group, check_number


class Adagrad(Elementwise):
    """Steps of lr / (1 + (t − 1) · lr_decay) · g / (sqrt(Σ g²) + eps) (Duchi, Hazan & Singer, 2011)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            check_number("Adagrad", name, group[name])

    def arrays(self, group: Group) -> tuple[str, ...]:
        return ("sum",)

    def begin(self, group: Group, parameter: Tensor) -> dict[str, Any]:
        state = super().begin(group, parameter)
        state["sum"]._data.fill(group["initial_accumulator_value"])
        return state

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, ...]:
        return (group["lr"] / (1 + (state["step"] - 1) * group["lr_decay"]),)

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (total,), (size,) = state, numbers
        np.add(total, np.multiply(g, g, work), total)
        np.sqrt(total, work)
        np.add(work, group["eps"], work)
        np.divide(g, work, work)
        np.subtract(p, np.multiply(work, size, work), p)


class Adadelta(Elementwise):
    """Steps of lr · g · sqrt(u + eps) / sqrt(v + eps), u and v being running means of steps² and g² (Zeiler, 2012)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize})

    def check(self, group: Group) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_number("Adadelta", name, group[name])
        check_number("Adadelta", "rho", group["rho"], most=1.0)

    def arrays(self, group: Group) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, ...]:
        return (group["lr"],)

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (v, u), (lr,), eps = state, numbers, group["eps"]
        add_to_squares(v, g, group["rho"], work)
        np.sqrt(np.add(v, eps, work), work)
        np.sqrt(np.add(u, eps, more), more)
        step = np.multiply(np.divide(more, work, more), g, more)
        add_to_squares(u, step, group["rho"], work)
        np.subtract(p, np.multiply(step, lr, step), p)
