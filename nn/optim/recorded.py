"""What an optimizer tells `cuda.capture`: the numbers that go on from replay to replay, and what must stay as it is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.grad_mode import mode

State = dict[str, Any]


def number(read: Callable[[], Any]) -> Any:
    """`read()`, which a captured step reads anew at each replay."""
    return read() if mode.recorder is None else mode.recorder.live(read)


def numbers(read: Callable[[], tuple[float, ...]], like: Any) -> Sequence[Any]:
    """The same for several numbers of an elementwise formula on arrays like `like`.

    Array code bakes numbers into its launches: for a captured step they are arrays of no dimensions on the GPU.
    """
    if mode.recorder is None or isinstance(like, np.ndarray):
        return read()
    return mode.recorder.scalars(read, like, np.float64 if like.dtype == np.float64 else np.float32)


def advance(states: list[State], go_on: Callable[[State], None]) -> None:
    """`go_on(state)` for all, which are at the same step; a captured step does it at each replay."""

    def again() -> None:
        for state in states:
            go_on(state)

    if mode.recorder is not None:
        before = [dict(state) for state in states]

        def undo() -> None:
            for state, old in zip(states, before, strict=True):
                state.update(old)

        first, names = states[0], [name for name, value in states[0].items() if not isinstance(value, Tensor)]
        mode.recorder.on_host(
            again, undo, lambda: all(state[name] == first[name] for name in names for state in states)
        )
    again()


def depends_on(settings: Callable[[], Any], objects: Callable[[], list[Any]]) -> None:
    """A captured step does not apply where `settings()` are not what they are now, or `objects()` not the same ones."""
    known, bound = settings(), objects()
    mode.recorder.conditions.append(lambda: settings() == known)

    def are_same() -> bool:
        found = objects()
        return len(found) == len(bound) and all(map(operator.is_, found, bound))

    mode.recorder.bonds.append(are_same)


def kind(value: Any) -> Any:
    """What a step depends on of a setting that it reads anew: of a number whether it is 0."""
    if isinstance(value, tuple | list):
        return tuple(map(kind, value))
    return value if isinstance(value, bool) or not isinstance(value, int | float) else value != 0
