"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .optimizer import Group, Optimizer, check_number, zeros_for


class SGD(Optimizer):
    """Gradient descent with momentum v ← momentum · v + (1 − dampening) · g and p ← p − lr · v.

    nesterov: g + momentum · v in place of v (Sutskever et al., 2013). weight_decay · p is added to g.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            check_number("SGD", name, group[name])
        check_number("SGD", "dampening", group["dampening"], least=-float("inf"))
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"SGD: nesterov needs a momentum above 0 and no dampening, got momentum={group['momentum']}, "
                f"dampening={group['dampening']}"
            )

    def update(self, group: Group, state: dict[str, Any], param: Any, grad: Any) -> None:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        arrays = [param, grad]
        first = False
        if momentum:
            buffer = state.get("momentum_buffer")
            if first := buffer is None:
                buffer = state["momentum_buffer"] = zeros_for(param)
            arrays.append(buffer._data)
        for p, g, *rest in self.pieces(arrays, 2):
            changed, work = rest[-2:]
            if group["maximize"]:
                g = np.negative(g, changed)
            if decay:
                g = np.add(g, np.multiply(p, decay, work), changed)
            if momentum:
                v = rest[0]
                np.multiply(v, momentum, v)
                np.add(v, g if first else np.multiply(g, 1 - group["dampening"], work), v)
                g = np.add(g, np.multiply(v, momentum, work), work) if group["nesterov"] else v
            np.subtract(p, np.multiply(g, lr, work), p)
