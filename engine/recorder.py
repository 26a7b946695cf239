"""What a step does besides launching kernels, noted while it runs under `cuda.capture`.

The replay of a graph runs kernels, no Python. What the step changed on the host is therefore done again by each replay,
and what it looked at there must be as it was, else the graph does not apply.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .grad_mode import Watcher, mode
from .user_code import called_function, calling_place


class NotReady(Exception):
    """The step makes state that an earlier call should have made: what is made in a graph is made at every replay."""


class Field:
    """An attribute that the step reads or sets: what it was before the step, and what the step left there."""

    __slots__ = ("after", "before", "holder", "is_read", "name", "was_none")

    def __init__(self, holder: Any, name: str, is_read: bool) -> None:
        self.holder = holder
        self.name = name
        self.is_read = is_read  # before it was set, so that the step depends on it
        self.before = self.after = getattr(holder, name)
        self.was_none = self.before is None

    @property
    def value(self) -> Any:
        """What it is now."""
        return getattr(self.holder, self.name)

    def settle(self, has_graph: bool) -> None:
        """The step is done: let go of gradients that no graph knows."""
        self.after = self.value if has_graph or self.name != "_grad" else None
        if self.name == "_grad" and not (has_graph and self.is_read):
            self.before = None

    def holds(self) -> bool:
        """Whether the step would find what it found; of a gradient only whether there is one."""
        if not self.is_read:
            return True
        return (self.value is None) == self.was_none if self.name == "_grad" else self.value == self.before

    def begin(self) -> None:
        """Put a gradient that the graph adds to where the graph finds it."""
        if self.is_read and self.name == "_grad" and not self.was_none and self.value is not self.before:
            self.before._data[...] = self.value._data
            self.holder._grad = self.before

    def end(self) -> None:
        """Leave what the step left."""
        if self.value is not self.after:
            setattr(self.holder, self.name, self.after)

    def undo(self) -> None:
        """Leave what was there before the step."""
        if self.value is not self.before:
            setattr(self.holder, self.name, self.before)


class Recorder(Watcher):
    """Notes one run of a step. `memory`, where a graph is being captured, is the memory of that graph."""

    def __init__(self, memory: Any = None) -> None:
        self.memory = memory
        self.ran_on_gpu = False
        self.conditions: list[Callable[[], bool]] = []  # for the graph to apply now
        self.bonds: list[Callable[[], bool]] = []  # for it ever to apply again
        self.actions: list[Callable[[], None]] = []  # of the host, in the order of the step, before each replay
        self.changed: list[list[int]] = []  # version counts that go up with each replay
        self._fields: dict[tuple[int, str], Field] = {}
        self._arrays: dict[tuple[int, int], tuple[weakref.ref[Any], Any, bool | None]] = {}
        self._kept: list[Any] = []  # arrays of other owners that the graph works with
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Recorder:
        mode.recorder = self
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        mode.recorder = None

    @property
    def capturing(self) -> bool:
        """Whether kernels are put into a graph instead of being run."""
        return self.memory is not None

    @property
    def fields(self) -> list[Field]:
        """All attributes that the step has read or set."""
        return list(self._fields.values())

    # ---- what the engine, the modules and the optimizers tell

    def read(self, holder: Any, name: str) -> None:
        """The step looks at an attribute."""
        if (id(holder), name) not in self._fields:
            self._fields[id(holder), name] = Field(holder, name, is_read=True)

    def write(self, holder: Any, name: str) -> None:
        """The step is about to set an attribute."""
        if (id(holder), name) not in self._fields:
            self._fields[id(holder), name] = Field(holder, name, is_read=False)

    def uses(self, tensor: Any) -> None:
        """The step works with the array of a tensor, though through no operation."""
        if self.capturing:
            self._note(tensor)

    def in_place(self, tensor: Any) -> None:
        """The step has changed a tensor in place and counted it."""
        self._ran_on(tensor._data)
        if self.capturing:
            self._note(tensor)
            self.changed.append(tensor._versions)

    def keep(self, value: Any) -> None:
        """The step works with an array, which has to stay while there is a graph."""
        if isinstance(value, tuple | list):
            for item in value:
                self.keep(item)
        elif self.capturing and self.memory.is_outside(value):
            self._kept.append(value)

    def on_host(
        self, again: Callable[[], None], undo: Callable[[], None], holds: Callable[[], bool] | None = None
    ) -> None:
        """The step has changed something on the host: `again` does it once more, `undo` takes it back.

        Where `holds` is false, the graph does not apply.
        """
        self.actions.append(again)
        self._undo.append(undo)
        if holds is not None:
            self.conditions.append(holds)

    def state_is_made(self) -> None:
        """The step begins to keep an array from call to call."""
        if self.capturing:
            raise NotReady

    def live(self, read: Callable[[], float]) -> float:
        """The number `read()` for a kernel, which finds it anew at each replay."""
        if not self.capturing:
            return read()
        from ..kernels.cuda.replay import Live

        return Live(read)

    def scalars(self, read: Callable[[], tuple[float, ...]], like: Any, dtype: Any) -> list[Any]:
        """The numbers `read()` as 0-d arrays beside `like`, which hold them anew at each replay."""

        def values() -> np.ndarray:
            return np.array(read(), dtype)

        from ..kernels.cuda.replay import scalars

        return scalars(values, like)

    # ---- what the operations tell

    def passed_forward(self, operation: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Note where the operation ran, and what it took from outside of the step."""
        for tensor in output if type(output) is tuple else (output,):
            self._ran_on(tensor._data, operation.name)
        if not self.capturing:
            return
        for value in inputs:
            if hasattr(value, "_data"):
                self._note(value)
            else:
                self.keep(value)
        for setting in vars(operation).values():  # an index, running statistics
            self.keep(setting)

    def _ran_on(self, array: Any, name: str = "") -> None:
        """Note where something ran that made or changed an array."""
        if not isinstance(array, np.ndarray):
            self.ran_on_gpu = True
        elif self.capturing:
            raise RuntimeError(
                f"{name or _spoken(called_function())}: this ran on the CPU, where a replay does not do it again; a "
                f"captured step works on one GPU alone. {_called()}"
            )

    def _note(self, tensor: Any) -> None:
        """Remember with which array a tensor that is not of the step's own making has come."""
        array = tensor._data
        key = id(tensor), id(array)
        if key not in self._arrays and self.memory.is_outside(array):
            is_set = (id(tensor), "requires_grad") in self._fields  # by the step itself
            self._arrays[key] = weakref.ref(tensor), array, None if is_set else tensor._edge is not None

    # ---- afterwards

    def settle(self) -> None:
        """The step is done; what only `roll_back` needs may go."""
        self._undo.clear()
        for field in self.fields:
            field.settle(self.capturing)
        self._kept += [array for _, array, _ in self._arrays.values()]
        lasting = {key: known for key, known in self._arrays.items() if known[0]() is not None}
        self._arrays = lasting  # without what the step made around arrays of others, such as detach()

    def is_outdated(self) -> bool:
        """Whether a tensor has gone, or it or an optimizer has other arrays, which the graph will never find."""
        known = ((reference(), array) for reference, array, _ in self._arrays.values())
        if any(tensor is None or tensor._data is not array for tensor, array in known):
            return True
        return not all(holds() for holds in self.bonds)

    def holds(self) -> bool:
        """Whether the step would do on the host what it did."""
        for reference, _, has_edge in self._arrays.values():
            tensor = reference()
            if tensor is not None and has_edge is not None and (tensor._edge is not None) != has_edge:
                return False
        return all(field.holds() for field in self._fields.values()) and all(holds() for holds in self.conditions)

    def roll_back(self) -> None:
        """Put everything on the host back to what it was before the step."""
        for undo in reversed(self._undo):
            undo()
        for field in self.fields:
            field.undo()


def refuse(what: str) -> None:
    """Raise where a step is being captured, with the function called and the user's line: a graph cannot do `what`."""
    if mode.recorder is not None and mode.recorder.capturing:
        raise RuntimeError(
            f"{_spoken(called_function())}: a step that is captured in a CUDA graph cannot {what}; do it outside of "
            f"the step. {_called()}"
        )


def _spoken(name: str) -> str:
    """A function's name as a user knows it."""
    known = {"getitem": "index", "__repr__": "print"}
    return known.get(name, name.strip("_") if name.startswith("__") else name)


def _called() -> str:
    place, _ = calling_place()
    return f"It was called at\n  {place}"
