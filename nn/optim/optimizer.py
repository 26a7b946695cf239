"""Optimizer: groups of parameters with their settings, and what is remembered for each parameter."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.backend import is_array, transfer
from ...engine.grad_mode import enable_grad, mode
from ...engine.tensor import wrap
from . import recorded

Group = dict[str, Any]

# What a state holds beside arrays of the parameter's shape.
NUMBERS: dict[str, Callable[[Any], Any]] = {"step": int, "mu_product": float}


class Optimizer:
    """Base of all optimizers. `params`: tensors, or dicts of "params" and their settings."""

    def __init__(self, params: Iterable[Any], defaults: Group) -> None:
        name = type(self).__name__
        if isinstance(params, Tensor) or is_array(params):
            raise TypeError(f"{name}: params must be an iterable of tensors or dicts, got one {type(params).__name__}")
        given = list(params)
        if not given:
            raise ValueError(f"{name}: got an empty list of parameters")
        self.defaults = defaults
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[Group] = []
        for group in given if isinstance(given[0], dict) else [{"params": given}]:
            self.add_param_group(group)

    def check(self, group: Group) -> None:
        """Raise where a setting of `group` makes no sense."""

    def update(self, group: Group, params: list[Tensor]) -> None:
        """Change `params`, which have gradients, one dtype and one device, and what is remembered for them."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with settings of their own; what is not given is taken from the defaults."""
        name = type(self).__name__
        if not isinstance(param_group, dict):
            raise TypeError(f"{name}: expected a dict, got {type(param_group).__name__}")
        if "params" not in param_group:
            raise ValueError(f'{name}: a group needs "params", got only {", ".join(map(repr, param_group))}')
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError(f"{name}: a set of parameters has no order; give a list")
        group = {**self.defaults, **param_group}
        group["params"] = params = [params] if isinstance(params, Tensor) else list(params)
        seen = {parameter for other in self.param_groups for parameter in other["params"]}
        for parameter in params:
            if not isinstance(parameter, Tensor):
                raise TypeError(f"{name}: expected tensors, got {type(parameter).__name__}")
            if not parameter.is_leaf:
                raise ValueError(f"{name}: a tensor that was computed (shape {parameter.shape}) cannot be optimized")
            if parameter in seen:
                raise ValueError(f"{name}: a parameter of shape {parameter.shape} is given twice")
            seen.add(parameter)
        self.check(group)
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or set them to zero."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad = parameter.grad.detach().zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change each parameter that has a gradient; `closure` computes loss and gradients first."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        changing = [(group, params) for group in self.param_groups for params in self._with_gradients(group)]
        for group, params in changing:
            self.update(group, params)
            for parameter in params:
                parameter._versions[0] += 1
        if mode.recorder is not None:
            self._record(changing)
        return loss

    def _record(self, changed: list[tuple[Group, list[Tensor]]]) -> None:
        """Tell `cuda.capture` what a step has changed, and what it takes for granted."""
        for _, params in changed:
            for parameter in params:
                mode.recorder.in_place(parameter)
        recorded.depends_on(lambda: [self.fixed(group) for group in self.param_groups], lambda: self._objects(changed))

    def _objects(self, changed: list[tuple[Group, list[Tensor]]]) -> list[Any]:
        """The objects in which a step that changes these parameters finds its arrays and numbers."""
        rates = [group["lr"] for group in self.param_groups if isinstance(group["lr"], Tensor)]
        given = [parameter for group in self.param_groups for parameter in group["params"]]
        states = [self.state.get(parameter, {}) for _, params in changed for parameter in params]
        arrays = [value._data for state in states for value in state.values() if isinstance(value, Tensor)]
        return [self.state, *self.param_groups, *given, *rates, *(rate._data for rate in rates), *arrays]

    def fixed(self, group: Group) -> list[Any]:
        """What `update` takes for granted while a captured step replays: all that is not a `number` there."""
        return [recorded.kind(group[name]) for name in self.defaults if name != "lr"]

    def _with_gradients(self, group: Group) -> Iterable[list[Tensor]]:
        """The parameters that have a gradient, those of one dtype and device together."""
        alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
        recorder = mode.recorder
        for parameter in group["params"]:
            if recorder is not None:
                recorder.read(parameter, "_grad")
            grad = parameter._grad
            if grad is None:
                continue
            array, given = parameter._data, grad._data
            if given.shape != array.shape or given.dtype != array.dtype:
                raise RuntimeError(
                    f"{type(self).__name__}: a parameter of shape {array.shape} and dtype {array.dtype} has a "
                    f"gradient of shape {given.shape} and dtype {given.dtype}"
                )
            alike[array.dtype, None if isinstance(array, np.ndarray) else array.device.id].append(parameter)
        return alike.values()

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's form: "state" by parameter number, "param_groups" with numbers. Memory is shared."""
        numbers: dict[Tensor, int] = {}
        groups = []
        for group in self.param_groups:
            for parameter in group["params"]:
                numbers[parameter] = len(numbers)
            settings = {name: value for name, value in group.items() if name != "params"}
            groups.append({**settings, "params": [numbers[parameter] for parameter in group["params"]]})
        state = {numbers[parameter]: dict(known) for parameter, known in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, with tensors or arrays in it; groups must match in number and size."""
        name = f"{type(self).__name__}.load_state_dict"
        try:
            saved, states = list(state_dict["param_groups"]), dict(state_dict["state"])
            sizes = [len(group["params"]) for group in saved]
        except (KeyError, TypeError) as error:
            raise ValueError(f'{name}: expected a dict with "state" and "param_groups" ({error!r})') from error
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(f"{name}: groups of {own} parameters, but the saved ones have {sizes}")
        by_number = {
            number: parameter
            for group, known in zip(self.param_groups, saved, strict=True)
            for parameter, number in zip(group["params"], known["params"], strict=True)
        }
        loaded: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for number, known in states.items():
            if number not in by_number:
                raise ValueError(f"{name}: there is state for parameter {number}, which is in no group")
            parameter = by_number[number]
            loaded[parameter] = {key: _loaded(name, key, value, parameter) for key, value in known.items()}
        groups = [
            {
                **self.defaults,
                **copy.deepcopy({k: v for k, v in known.items() if k != "params"}),
                "params": g["params"],
            }
            for g, known in zip(self.param_groups, saved, strict=True)
        ]
        for group in groups:
            self.check(group)
        self.param_groups[:] = groups
        self.state = loaded

    def __repr__(self) -> str:
        text = f"{type(self).__name__} ("
        for i, group in enumerate(self.param_groups):
            text += f"\nParameter Group {i}\n"
            text += "".join(f"    {key}: {group[key]}\n" for key in sorted(group) if key != "params")
        return text + ")"


def _loaded(name: str, key: str, value: Any, parameter: Tensor) -> Any:
    """A value of a saved state, with arrays copied in the parameter's dtype and to its device."""
    if key in NUMBERS:
        return NUMBERS[key](value)
    if isinstance(value, Tensor):
        value = value._data
    elif hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy() if parameter.itemsize == 2 else value.detach().cpu().numpy()
    if not is_array(value):
        return value
    if value.shape != parameter.shape:
        raise ValueError(f"{name}: {key} has shape {value.shape}, its parameter {parameter.shape}")
    return wrap(transfer(value, parameter.device).astype(parameter.dtype))


def zeros_for(parameter: Tensor) -> Tensor:
    """State that begins at zero."""
    if mode.recorder is not None:
        mode.recorder.state_is_made()
    return wrap(np.zeros_like(parameter._data, order="C"))


def check_number(
    optimizer: str,
    name: str,
    value: Any,
    least: float = 0.0,
    below: float = float("inf"),
    most: float = float("inf"),
) -> None:
    """Raise unless `value` is a number of at least `least`, less than `below` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{optimizer}: {name} must be a number, got {type(value).__name__}")
    if not least <= value < below or value > most:
        limit = f"at least {least:g}"
        limit += f" and below {below:g}" if below < float("inf") else ""
        limit += f" and at most {most:g}" if most < float("inf") else ""
        raise ValueError(f"{optimizer}: {name} must be {limit}, got {value}")


def check_lr(optimizer: str, lr: Any) -> None:
    """Raise unless `lr` is a number of at least 0 or a floating tensor of one element."""
    if not isinstance(lr, Tensor):
        check_number(optimizer, "lr", lr)
    elif lr.numel() != 1 or not lr.is_floating_point():
        raise ValueError(f"{optimizer}: a tensor lr must be one floating number, got {lr.dtype} of shape {lr.shape}")


def lr_of(group: Group) -> Any:
    """The learning rate as kernels take it: of a tensor on a GPU the array, which is read there, else a number."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.is_cuda:
        return lr._data.reshape(())
    return recorded.number(lambda: group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"])


def check_betas(optimizer: str, betas: Any) -> None:
    """Raise unless `betas` are two numbers of at least 0 and below 1."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"{optimizer}: betas must be two numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        check_number(optimizer, f"betas[{i}]", beta, below=1.0)
