"""A module's state by name: collecting it, and loading it so that nothing changes unless all of it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ...engine import Tensor
from ...engine.backend import is_array, transfer
from ...engine.grad_mode import no_grad


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` with strict=False passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def own_tensors(module: Any, prefix: str, persistent_only: bool = True) -> dict[str, Tensor]:
    """All parameters and buffers from `module` down by full name; shared ones under each of their names."""
    found = {f"{prefix}{name}": tensor for name, tensor in module._parameters.items() if tensor is not None}
    for name, tensor in module._buffers.items():
        if tensor is not None and not (persistent_only and name in module._transient):
            found[f"{prefix}{name}"] = tensor
    for name, child in module._modules.items():
        if child is not None:
            found.update(own_tensors(child, f"{prefix}{name}.", persistent_only))
    return found


def load(module: Any, state: Mapping[str, Any], strict: bool, assign: bool) -> IncompatibleKeys:
    """Write `state` into the parameters and buffers of `module`; see `Module.load_state_dict`."""
    if not isinstance(state, Mapping):
        raise TypeError(f"load_state_dict: expected a dict of tensors or arrays, got {type(state).__name__}")
    targets = own_tensors(module, "")
    missing = [name for name in targets if name not in state]
    unexpected = [name for name in state if name not in targets]
    arrays = {name: array_of(name, state[name]) for name in targets if name in state}
    problems = []
    if strict and unexpected:
        problems.append(f"unexpected keys: {', '.join(unexpected)}")
    if strict and missing:
        problems.append(f"missing keys: {', '.join(missing)}")
    problems += [
        f"{name} has shape {tuple(array.shape)} in the given state, {targets[name].shape} in the module"
        for name, array in arrays.items()
        if tuple(array.shape) != targets[name].shape
    ]
    problems += [
        f"{name} has dtype {array.dtype}, which does not fit {targets[name].dtype}"
        for name, array in arrays.items()
        if array.dtype.kind in "fV" and not targets[name].is_floating_point()
    ]
    if problems:
        raise RuntimeError(f"load_state_dict of {type(module).__name__}:\n  " + "\n  ".join(problems))
    with no_grad():
        for name, array in arrays.items():
            target = targets[name]
            if assign:
                target.data = array
            else:
                target.copy_(Tensor(transfer(array, target.device)))
    return IncompatibleKeys(missing, unexpected)


def array_of(name: str, value: Any) -> Any:
    """The array of a tensor (ours or another library's) or an array."""
    if isinstance(value, Tensor):
        return value._data
    if is_array(value):
        return Tensor(value)._data
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype).endswith("bfloat16"):  # NumPy alone has no such type; float32 holds it exactly
            value = value.float()
    elif not isinstance(value, int | float | list) and not hasattr(value, "__array__"):
        raise TypeError(f"load_state_dict: {name} must be a tensor or an array, got {type(value).__name__}")
    return Tensor(np.asarray(value))._data
