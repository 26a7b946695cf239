"""Adam, with weight decay in the gradient or apart from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Group, Optimizer, check_number, zeros_for


class Adam(Optimizer):
    """Steps of lr · m̂ / (sqrt(v̂) + eps), m and v being running means of g and g² (Kingma & Ba, 2015).

    weight_decay adds weight_decay · p to g. amsgrad divides by the largest v so far (Reddi et al., 2018).
    """

    decoupled = False  # whether weight decay shrinks the parameter instead of entering the gradient

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        name = type(self).__name__
        for setting in ("lr", "eps", "weight_decay"):
            check_number(name, setting, group[setting])
        if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
            raise ValueError(f"{name}: betas must be two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_number(name, f"betas[{i}]", beta, below=1.0)

    def update(self, group: Group, state: dict[str, Any], param: Any, grad: Any) -> None:
        if "step" not in state:
            state["step"] = 0
            state["exp_avg"] = zeros_for(param)
            state["exp_avg_sq"] = zeros_for(param)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = zeros_for(param)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        lr, decay = group["lr"], group["weight_decay"]
        # sqrt(v / c) + eps = (sqrt(v) + eps · sqrt(c)) / sqrt(c): the correction c of v goes into numbers.
        root = math.sqrt(1 - beta2 ** state["step"])
        size, eps = lr * root / (1 - beta1 ** state["step"]), group["eps"] * root
        arrays = [param, grad, state["exp_avg"]._data, state["exp_avg_sq"]._data]
        if group["amsgrad"]:
            arrays.append(state["max_exp_avg_sq"]._data)
        for p, g, m, v, *rest in self.pieces(arrays, 2):
            work, changed = rest[-2:]
            if decay and self.decoupled:
                np.multiply(p, 1 - lr * decay, p)
            if group["maximize"]:
                g = np.negative(g, changed)
            if decay and not self.decoupled:
                g = np.add(g, np.multiply(p, decay, work), changed)
            np.subtract(g, m, work)
            np.multiply(work, 1 - beta1, work)
            np.add(m, work, m)
            np.multiply(g, g, work)
            np.multiply(work, 1 - beta2, work)
            np.multiply(v, beta2, v)
            np.add(v, work, v)
            if group["amsgrad"]:
                v = np.maximum(rest[0], v, out=rest[0])
            np.sqrt(v, work)
            np.add(work, eps, work)
            np.divide(m, work, work)
            np.multiply(work, size, work)
            np.subtract(p, work, p)


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters by 1 − lr · weight_decay (Loshchilov & Hutter, 2019)."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
