"""Relatives of Adam: NAdam, RAdam and Adamax."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...engine import Tensor
from .elementwise import Elementwise, add_to_mean, add_to_squares
from .optimizer import Group, check_betas, check_number


class _AdamVariant(Elementwise):
    def check(self, group: Group) -> None:
        name = type(self).__name__
        for setting in ("lr", "eps", "weight_decay"):
            check_number(name, setting, group[setting])
        check_betas(name, group["betas"])

    def arrays(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")


class NAdam(_AdamVariant):
    """Adam with Nesterov's momentum (Dozat, 2016)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        super().check(group)
        check_number("NAdam", "momentum_decay", group["momentum_decay"])

    def begin(self, group: Group, parameter: Tensor) -> dict[str, Any]:
        return {"mu_product": 1.0, **super().begin(group, parameter)}

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, float, float]:
        """The factors of g and of its mean, and the root of v's correction."""
        (beta1, beta2), lr, step = group["betas"], group["lr"], state["step"]
        mu, next_mu = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
        state["mu_product"] *= mu
        of_grad = lr * (1 - mu) / (1 - state["mu_product"])
        return of_grad, lr * next_mu / (1 - state["mu_product"] * next_mu), math.sqrt(1 - beta2**step)

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (m, v), (beta1, beta2) = state, group["betas"]
        of_grad, of_mean, root = numbers
        add_to_mean(m, g, beta1, work)
        add_to_squares(v, g, beta2, work)
        np.multiply(np.sqrt(v, work), 1 / root, work)
        np.add(work, group["eps"], work)
        np.subtract(p, np.divide(np.multiply(g, of_grad, more), work, more), p)
        np.subtract(p, np.divide(np.multiply(m, of_mean, more), work, more), p)


class RAdam(_AdamVariant):
    """Adam whose first steps are those of SGD, until the variance of v is known (Liu et al., 2020)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, float | None]:
        """The step's size, and what it is multiplied by where v counts."""
        (beta1, beta2), step = group["betas"], state["step"]
        correction2 = 1 - beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / correction2
        size = group["lr"] / (1 - beta1**step)
        if length <= 5:
            return size, None
        square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return size, math.sqrt(square * correction2)

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (m, v), (beta1, beta2) = state, group["betas"]
        size, rectified = numbers
        add_to_mean(m, g, beta1, work)
        add_to_squares(v, g, beta2, work)
        if rectified is None:
            np.multiply(m, size, work)
        else:
            np.add(np.sqrt(v, work), group["eps"], work)
            np.multiply(np.divide(m, work, work), size * rectified, work)
        np.subtract(p, work, p)


class Adamax(_AdamVariant):
    """Adam with a decaying maximum of |g| in the place of the root of v (Kingma & Ba, 2015)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        )

    def arrays(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    def numbers(self, group: Group, state: dict[str, Any]) -> float:
        return group["lr"] / (1 - group["betas"][0] ** state["step"])

    def change(self, group: Group, numbers: float, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (m, largest), (beta1, beta2) = state, group["betas"]
        add_to_mean(m, g, beta1, work)
        np.add(np.abs(g, work), group["eps"], work)
        np.maximum(np.multiply(largest, beta2, largest), work, out=largest)
        np.subtract(p, np.multiply(np.divide(m, largest, work), numbers, work), p)
