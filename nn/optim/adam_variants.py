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

    def _mu(self, group: Group, step: int) -> float:
        return group["betas"][0] * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"]))

    def advance(self, group: Group, state: dict[str, Any]) -> None:
        super().advance(group, state)
        state["mu_product"] *= self._mu(group, state["step"])

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, ...]:
        """The factors of g and of its mean, and the factor that corrects the root of v."""
        lr, step, product = group["lr"], state["step"], state["mu_product"]
        mu, next_mu = self._mu(group, step), self._mu(group, step + 1)
        of_grad, of_mean = lr * (1 - mu) / (1 - product), lr * next_mu / (1 - product * next_mu)
        return of_grad, of_mean, 1 / math.sqrt(1 - group["betas"][1] ** step)

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (m, v), (beta1, beta2) = state, group["betas"]
        of_grad, of_mean, correction = numbers
        add_to_mean(m, g, beta1, work)
        add_to_squares(v, g, beta2, work)
        np.multiply(np.sqrt(v, work), correction, work)
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

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, ...]:
        """The step's size, and what the mean of g is divided by: a factor of the root of v, and what is added to it."""
        (beta1, beta2), step = group["betas"], state["step"]
        correction2 = 1 - beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / correction2
        size = group["lr"] / (1 - beta1**step)
        if length <= 5:
            return size, 0.0, 1.0
        square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return size * math.sqrt(square * correction2), 1.0, group["eps"]

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (m, v), (beta1, beta2) = state, group["betas"]
        size, of_root, added = numbers
        add_to_mean(m, g, beta1, work)
        add_to_squares(v, g, beta2, work)
        np.add(np.multiply(np.sqrt(v, work), of_root, work), added, work)
        np.subtract(p, np.multiply(np.divide(m, work, work), size, work), p)


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

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, ...]:
        return (group["lr"] / (1 - group["betas"][0] ** state["step"]),)

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        (m, largest), (beta1, beta2), (size,) = state, group["betas"], numbers
        add_to_mean(m, g, beta1, work)
        np.add(np.abs(g, work), group["eps"], work)
        np.maximum(np.multiply(largest, beta2, largest), work, out=largest)
        np.subtract(p, np.multiply(np.divide(m, largest, work), size, work), p)
