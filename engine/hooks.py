"""Functions that a user hangs on a node or module, and the handle that takes them off again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

_numbers = itertools.count()


class RemovableHandle:
    """Takes its hook off with `remove()`, or at the end of a `with` block."""

    def __init__(self, hooks: dict[int, Any], number: int) -> None:
        self._hooks = hooks
        self._number = number

    def remove(self) -> None:
        """Take the hook off; a second call does nothing."""
        self._hooks.pop(self._number, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def add_hook(hooks: dict[int, Any], hook: Any) -> RemovableHandle:
    """Put `hook` last into `hooks`."""
    number = next(_numbers)
    hooks[number] = hook
    return RemovableHandle(hooks, number)


class Hooks:
    """The hooks of one node, by when they run: before (all outputs or one), after, or when a leaf has accumulated."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, int], dict[int, Callable[..., Any]]] = {}

    def add(self, kind: str, index: int, hook: Callable[..., Any]) -> RemovableHandle:
        """Hang `hook` on the output `index` (0 where the kind has none)."""
        return add_hook(self._kinds.setdefault((kind, index), {}), hook)

    def of(self, kind: str, index: int = 0) -> Iterator[Callable[..., Any]]:
        """The hooks of a kind, in the order in which they came."""
        return iter(list(self._kinds.get((kind, index), {}).values()))
