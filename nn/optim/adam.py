"""Adam, with weight decay in the gradient or apart from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ... import kernels
from ...engine import Tensor
from .optimizer import Group, Optimizer, check_betas, check_lr, check_number, lr_of, zeros_for
from .recorded import advance, number


class Adam(Optimizer):
    """Steps of lr · m̂ / (sqrt(v̂) + eps), m and v being running means of g and g² (Kingma & Ba, 2015).

    lr may be a tensor, which a GPU reads at each step. weight_decay adds weight_decay · p to g. amsgrad divides by the
    largest v so far (Reddi et al., 2018).
    """

    decoupled = False  # whether weight decay shrinks the parameter instead of entering the gradient

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
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
        check_lr(name, group["lr"])
        for setting in ("eps", "weight_decay"):
            check_number(name, setting, group[setting])
        check_betas(name, group["betas"])

    def update(self, group: Group, params: list[Tensor]) -> None:
        amsgrad = group["amsgrad"]
        by_step: defaultdict[int, list[tuple[Tensor, dict[str, Any]]]] = defaultdict(list)
        for parameter in params:
            state = self.state[parameter]
            if not state:
                state.update(step=0, exp_avg=zeros_for(parameter), exp_avg_sq=zeros_for(parameter))
            if amsgrad and "max_exp_avg_sq" not in state:
                state["max_exp_avg_sq"] = zeros_for(parameter)
            by_step[state["step"]].append((parameter, state))
        for known in by_step.values():
            states = [state for _, state in known]
            kernels.adam(
                [parameter._data for parameter, _ in known],
                [parameter._grad._data for parameter, _ in known],  # type: ignore[union-attr]
                [state["exp_avg"]._data for state in states],
                [state["exp_avg_sq"]._data for state in states],
                [state["max_exp_avg_sq"]._data for state in states] if amsgrad else None,
                _next_step(states[0]),
                lr_of(group),
                number(lambda: group["betas"][0]),
                number(lambda: group["betas"][1]),
                number(lambda: group["eps"]),
                number(lambda: group["weight_decay"]),
                self.decoupled,
                group["maximize"],
            )
            advance(states, _go_on)


def _next_step(state: dict[str, Any]) -> Any:
    return number(lambda: state["step"] + 1)


def _go_on(state: dict[str, Any]) -> None:
    state["step"] += 1


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters by 1 − lr · weight_decay (Loshchilov & Hutter, 2019)."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
