"""Whether operations are recorded: one mode per thread, and what may watch the recording."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any


class Watcher:
    """Sees each operation of this thread inside `with watcher:` (anomaly detection, checkpointing)."""

    def passed_forward(self, operation: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """`operation` has run on `inputs`; it is a node of the graph where `output` requires a gradient."""

    def passed_backward(self, operation: Any, grads: Any, returned: tuple[Any, ...]) -> None:
        """The backward of `operation` has turned `grads`, of its outputs, into `returned`, of its inputs."""

    def __enter__(self) -> Any:
        mode.watchers = (*mode.watchers, self)
        return self

    def __exit__(self, *exception: object) -> None:
        mode.watchers = tuple(watcher for watcher in mode.watchers if watcher is not self)


class _Mode(threading.local):
    """The state of one thread."""

    grad: bool = True
    quiet: bool = False  # NumPy's floating-point warnings are off already, for a whole backward pass
    watchers: tuple[Watcher, ...] = ()
    captured: str | None = None  # the name of the step that runs under `cuda.capture`
    recorder: Any = None  # what notes, on a GPU, what that step does


mode = _Mode()


class _Switch(contextlib.ContextDecorator):
    """A context and decorator that sets the thread's grad mode and restores it, also when nested in itself."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._previous: list[bool] = []

    def __enter__(self) -> None:
        self._previous.append(mode.grad)
        mode.grad = self._enabled

    def __exit__(self, *exception: object) -> None:
        mode.grad = self._previous.pop()


class no_grad(_Switch):
    """Operations inside are not recorded: their results need no gradient."""

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_Switch):
    """Operations inside are recorded, also within `no_grad`."""

    def __init__(self) -> None:
        super().__init__(True)


class set_grad_enabled(_Switch):
    """Switch recording on or off from now on; as a context or decorator, until its end."""

    def __init__(self, enabled: bool) -> None:
        super().__init__(bool(enabled))
        self._before: bool | None = mode.grad
        mode.grad = self._enabled

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[override]
        if self._before is not None:  # a decorator switches nothing before the call
            mode.grad, self._before = self._before, None
        return super().__call__(function)

    def __enter__(self) -> None:
        super().__enter__()
        if self._before is not None:
            self._previous[-1], self._before = self._before, None


inference_mode = no_grad


def is_grad_enabled() -> bool:
    """Whether this thread records operations."""
    return mode.grad
