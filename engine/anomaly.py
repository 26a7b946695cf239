"""Anomaly detection: an error at the operation that makes the first NaN, with the line that called it."""

from __future__ import annotations

from typing import Any

from . import grad_mode, graph
from .backend import array_module, is_array
from .grad_mode import Watcher
from .operation import Saved
from .recorder import refuse
from .tensor import Tensor
from .user_code import calling_place


def _has_nan(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_nan(item) for item in value)
    array = value._data if isinstance(value, Tensor) else value
    if not is_array(array):
        return isinstance(array, float) and array != array
    refuse("look for NaN")
    return array.dtype.kind in "fV" and bool(array_module(array).isnan(array).any())


class detect_anomaly(Watcher):
    """A context in which the first NaN that an operation makes, forward or backward, is a RuntimeError.

    The error names the operation and shows the line of the program that called it. Each result is looked at,
    on a GPU waiting for it, so this is for debugging. `check_nan=False` only notes the lines.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self.check_nan = check_nan

    def passed_forward(self, operation: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Note the line that called `operation`; raise where it made a NaN."""
        place, in_backward = calling_place(graph.run.__code__)
        operation.called_at = place
        # Inside a backward, a NaN may yet be masked away: there only what a whole backward returns counts.
        if self.check_nan and not in_backward and _has_nan(output) and not _has_nan(inputs):
            raise RuntimeError(f"{operation.name} made NaN from inputs without NaN; it was called at\n  {place}")

    def passed_backward(self, operation: Any, grads: Any, returned: tuple[Any, ...]) -> None:
        """Raise where the backward of `operation` made a NaN."""
        if not self.check_nan or not _has_nan(returned) or _has_nan(grads):
            return
        kept = [entry.array for entry in operation.saved_entries or () if isinstance(entry, Saved)]
        origin = "gradients without NaN, but had saved a NaN" if _has_nan(kept) else "gradients without NaN"
        wrong = ", ".join(str(i) for i, grad in enumerate(returned) if _has_nan(grad))
        place = getattr(operation, "called_at", None)
        called = f"it was called at\n  {place}" if place else "detect_anomaly() around forward shows where"
        raise RuntimeError(
            f"backward of {operation.name} made NaN in the gradient of input {wrong} from {origin}; {called}"
        )


class set_detect_anomaly:
    """Switch anomaly detection of this thread on or off from now on; as a context, until its end."""

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self._before = grad_mode.mode.watchers
        others = tuple(watcher for watcher in self._before if not isinstance(watcher, detect_anomaly))
        grad_mode.mode.watchers = (*others, detect_anomaly(check_nan)) if mode else others

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        grad_mode.mode.watchers = self._before
