"""What optimizers in array code share: state, weight decay, and parts of arrays that stay in the cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.dtypes import is_half
from .optimizer import NUMBERS, Group, Optimizer, zeros_for
from .recorded import advance, numbers

# Large parameters are updated in pieces of so many elements, which stay in the CPU's cache between passes.
_PIECE = 1 << 15


class Elementwise(Optimizer):
    """An optimizer that is a formula for each element. Subclasses say which state it has, and the formula."""

    _TEMPORARIES = 3

    def arrays(self, group: Group) -> tuple[str, ...]:
        """The names of the state's arrays, which begin at zero."""
        raise NotImplementedError(f"{type(self).__name__}.arrays")

    def advance(self, group: Group, state: dict[str, Any]) -> None:
        """Let the numbers in a parameter's state go on by a step."""
        state["step"] += 1

    def numbers(self, group: Group, state: dict[str, Any]) -> tuple[float, ...]:
        """What `change` needs of the learning rate and of the step's number, `state["step"]`."""
        raise NotImplementedError(f"{type(self).__name__}.numbers")

    def change(
        self, group: Group, numbers: Sequence[Any], p: Any, g: Any, state: list[Any], work: Any, more: Any
    ) -> None:
        """Change arrays in place: a parameter `p` by its gradient `g`, and its state; `work` and `more` are free.

        The numbers come as they are, or as 0-d arrays.
        """
        raise NotImplementedError(f"{type(self).__name__}.change")

    def begin(self, group: Group, parameter: Tensor) -> dict[str, Any]:
        """The state before the first step."""
        return {"step": 0, **{name: zeros_for(parameter) for name in self.arrays(group)}}

    def fixed(self, group: Group) -> list[Any]:
        """All settings but the learning rate are part of the formula."""
        return [group[name] for name in self.defaults if name != "lr"]

    def update(self, group: Group, params: list[Tensor]) -> None:
        alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
        for parameter in params:
            state = self.state[parameter]
            if not state:
                state.update(self.begin(group, parameter))
            alike[tuple(map(state.get, NUMBERS))].append(parameter)
        for together in alike.values():
            self._update(group, together)

    def _update(self, group: Group, params: list[Tensor]) -> None:
        """Change parameters that are at the same step."""
        decay, decoupled = group["weight_decay"], group.get("decoupled_weight_decay", False)
        states = [self.state[parameter] for parameter in params]
        advance(states, lambda state: self.advance(group, state))
        shrink, *rest = numbers(lambda: (1 - group["lr"] * decay, *self.numbers(group, states[0])), params[0]._data)
        for parameter, state in zip(params, states, strict=True):
            assert parameter._grad is not None
            known = [state[name]._data for name in self.arrays(group)]
            for p, g, *others in self._pieces([parameter._data, parameter._grad._data, *known]):
                work, more, changed = others[-self._TEMPORARIES :]
                if group["maximize"]:
                    g = np.negative(g, changed)
                if decay and decoupled:
                    np.multiply(p, shrink, p)
                elif decay:
                    g = np.add(g, np.multiply(p, decay, work), changed)
                self.change(group, rest, p, g, others[: -self._TEMPORARIES], work, more)

    def _pieces(self, arrays: list[Any]) -> Iterator[list[Any]]:
        """`arrays` (parameter, gradient, state) part by part, with arrays to work in behind them.

        Half types are handed out in float32 and written back; gradients, at position 1, are not.
        """
        first = arrays[0]
        if is_half(first.dtype):
            wide = [array.astype(np.float32) for array in arrays]
            yield [*wide, *(np.empty_like(wide[0]) for _ in range(self._TEMPORARIES))]
            for i, (array, result) in enumerate(zip(arrays, wide, strict=True)):
                if i != 1:
                    array[...] = result
        elif isinstance(first, np.ndarray) and first.size > _PIECE and all(a.flags.c_contiguous for a in arrays):
            flat = [array.reshape(-1) for array in arrays]
            free = [np.empty(_PIECE, first.dtype) for _ in range(self._TEMPORARIES)]
            for start in range(0, first.size, _PIECE):
                parts = [array[start : start + _PIECE] for array in flat]
                yield parts + [array[: parts[0].size] for array in free]
        else:
            yield arrays + [np.empty_like(first) for _ in range(self._TEMPORARIES)]


def add_to_mean(mean: Any, value: Any, keep: float, work: Any) -> None:
    """mean = keep · mean + (1 − keep) · value."""
    np.subtract(value, mean, work)
    np.multiply(work, 1 - keep, work)
    np.add(mean, work, mean)


def add_to_squares(mean: Any, value: Any, keep: float, work: Any) -> None:
    """mean = keep · mean + (1 − keep) · value²."""
    np.multiply(value, value, work)
    np.multiply(work, 1 - keep, work)
    np.multiply(mean, keep, mean)
    np.add(mean, work, mean)
