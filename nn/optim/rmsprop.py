"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .elementwise import Elementwise, add_to_mean, add_to_squares
from .optimizer import Group, check_number


class RMSprop(Elementwise):
    """Steps of lr · g / (sqrt(v) + eps), v being a running mean of g² (Hinton, lecture 6e of Neural Networks, 2012).

    centered: v less the square of the mean of g (Graves, 2013). momentum: a running sum of the steps is taken.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
            "centered": centered, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        for name in ("lr", "alpha", "eps", "weight_decay", "momentum"):
            check_number("RMSprop", name, group[name])

    def arrays(self, group: Group) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if group["momentum"] else ()
        return ("square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, ...]:
        return (group["lr"],)

    def change(self, group: Group, numbers: Any, p: Any, g: Any, state: list[Any], work: Any, more: Any) -> None:
        v, (lr,), momentum = state[0], numbers, group["momentum"]
        add_to_squares(v, g, group["alpha"], work)
        if group["centered"]:
            mean = state[-1]
            add_to_mean(mean, g, group["alpha"], work)
            np.subtract(v, np.multiply(mean, mean, work), work)
            np.sqrt(work, work)
        else:
            np.sqrt(v, work)
        np.add(work, group["eps"], work)
        step = np.divide(g, work, work)
        if momentum:
            buffer = state[1]
            np.multiply(buffer, momentum, buffer)
            step = np.add(buffer, work, buffer)
        np.subtract(p, np.multiply(step, lr, work), p)
