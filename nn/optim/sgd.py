"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ... import kernels
from ...engine import Tensor
from .optimizer import Group, Optimizer, check_lr, check_number, lr_of, zeros_for
from .recorded import number


class SGD(Optimizer):
    """Gradient descent with momentum v ← momentum · v + (1 − dampening) · g and p ← p − lr · v.

    lr may be a tensor, which a GPU reads at each step. nesterov: g + momentum · v in place of v (Sutskever et al.,
    2013). weight_decay · p is added to g.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
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
        check_lr("SGD", group["lr"])
        for name in ("momentum", "weight_decay"):
            check_number("SGD", name, group[name])
        check_number("SGD", "dampening", group["dampening"], least=-float("inf"))
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"SGD: nesterov needs a momentum above 0 and no dampening, got momentum={group['momentum']}, "
                f"dampening={group['dampening']}"
            )

    def update(self, group: Group, params: list[Tensor]) -> None:
        if not group["momentum"]:
            self._step(group, params, None, first=False)
            return
        new = [parameter for parameter in params if self.state[parameter].get("momentum_buffer") is None]
        for parameter in new:
            self.state[parameter]["momentum_buffer"] = zeros_for(parameter)
        begun = set(new)
        for first, alike in ((True, new), (False, [p for p in params if p not in begun])):
            self._step(group, alike, [self.state[p]["momentum_buffer"]._data for p in alike], first)

    def _step(self, group: Group, params: list[Tensor], buffers: list[Any] | None, first: bool) -> None:
        kernels.sgd(
            [parameter._data for parameter in params],
            [parameter._grad._data for parameter in params],  # type: ignore[union-attr]
            buffers,
            first,
            lr_of(group),
            number(lambda: group["momentum"]),
            number(lambda: group["dampening"]),
            number(lambda: group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
        )
