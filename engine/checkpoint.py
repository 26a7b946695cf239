"""Checkpointing: what a region of the graph saved is dropped, and computed again when backward needs it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from . import random
from .backend import CPU
from .grad_mode import Watcher, enable_grad, mode
from .operation import Edge, Operation, Saved, next_order
from .tensor import Tensor

Look = tuple[tuple[int, ...], Any]  # the shape and dtype of a saved array


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool = False,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """`function(*args, **kwargs)`, of which only the arguments are kept: backward runs it again.

    The function must do the same each time; random numbers repeat with `preserve_rng_state`: those of the CPU and of
    the devices of the arguments. Gradients also reach tensors that it captured. This is PyTorch's non-reentrant
    checkpoint, the only kind there is.
    T. Chen et al., Training deep nets with sublinear memory cost, 2016, arXiv:1604.06174.
    """
    if use_reentrant:
        raise ValueError("checkpoint: only use_reentrant=False is supported")
    if not callable(function):
        raise TypeError(f"checkpoint: expected a function, got {type(function).__name__}")
    if not mode.grad or any(isinstance(watcher, _Recording) for watcher in mode.watchers):
        return function(*args, **kwargs)  # nothing to keep, or a region around this one drops it already
    with _Recording(_Region(function, args, kwargs, preserve_rng_state)):
        return function(*args, **kwargs)


class _Region:
    """What is needed to run a checkpointed function again, and the nodes that wait for it."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], keep_random: bool
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.generators = []
        if keep_random:
            devices = {CPU, *(tensor.device for tensor in self.tensors)}
            self.generators = [random.default_generator(device) for device in devices]
        self.random_states = [generator.snapshot() for generator in self.generators]
        self.start = next_order()  # later nodes have smaller numbers
        self.nodes: list[weakref.ref[Operation]] = []  # weak: the nodes hold the region
        self.names: list[str] = []
        self.looks: list[list[Look | None]] = []
        self.versions = [(tensor._versions, tensor._versions[0], tensor.shape) for tensor in self.tensors]

    def note(self, node: Operation) -> None:
        """Remember what `node` is and what it saved."""
        entries = node.saved_entries or []
        self.names.append(node.name)
        self.looks.append(_looks(entries))
        for entry in entries:
            if type(entry) is Saved and type(entry.edge) is Edge and entry.edge.node.order > self.start:
                self.versions.append((entry.versions, entry.version, entry.array.shape))
        self.nodes.append(weakref.ref(node))

    def drop(self) -> None:
        """Free what the nodes saved. Only now, since the function may have gone back through some of them."""
        for index, known in enumerate(self.nodes):
            node = known()
            if node is not None and node.saved_entries:
                node.saved_entries = _Dropped(self, index)

    def recompute(self) -> None:
        """Run the function again and give the waiting nodes what the new ones saved."""
        for versions, version, shape in self.versions:
            if versions[0] != version:
                raise RuntimeError(
                    f"checkpoint: a tensor of shape {shape} that the function used has been changed in place "
                    "since, so it cannot be run again"
                )
        collected = _Collecting()
        now = [generator.snapshot() for generator in self.generators]
        self._set_random(self.random_states)
        watchers, mode.watchers = mode.watchers, (collected,)
        try:
            with enable_grad():
                self.function(*self.args, **self.kwargs)
        finally:
            mode.watchers = watchers
            self._set_random(now)
        self._check(collected.nodes)
        old = {id(new): node() for new, node in zip(collected.nodes, self.nodes, strict=True)}
        inner: set[_Region] = set()
        for new in collected.nodes:
            node = old[id(new)]
            if node is not None and isinstance(node.saved_entries, _Dropped):
                entries = new.saved_entries
                if isinstance(entries, _Dropped):
                    inner.add(entries.region)
                    node.saved_entries = entries
                else:
                    node.saved_entries = [_moved(entry, old) for entry in entries]
        for region in inner:
            region.move(old)

    def move(self, old: dict[int, Operation | None]) -> None:
        """Let this region, met while one around it ran again, belong to the nodes of the first run."""
        self.nodes = [
            known if node is None or (first := old.get(id(node))) is None else weakref.ref(first)
            for known, node in ((known, known()) for known in self.nodes)
        ]
        for tensor in self.tensors:
            tensor._edge = _moved_edge(tensor._edge, old)

    def _set_random(self, states: list[Any]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.restore(state)

    def _check(self, nodes: list[Operation]) -> None:
        names = [node.name for node in nodes]
        for i, (first, second) in enumerate(itertools.zip_longest(self.names, names, fillvalue="nothing")):
            if first != second:
                raise RuntimeError(
                    "checkpoint: the function must do the same each time, but running it again recorded "
                    f"{len(names)} operations, the first time {len(self.names)}; number {i} was {first}, "
                    f"is {second}"
                )
        for node, looks in zip(nodes, self.looks, strict=True):
            found = _looks(node.saved_entries) if isinstance(node.saved_entries, list) else looks
            if found != looks:
                raise RuntimeError(
                    f"checkpoint: the function must do the same each time, but running it again {node.name} "
                    f"saved {found}, the first time {looks}"
                )


class _Dropped:
    """Stands for what a node saved, until someone asks for it."""

    def __init__(self, region: _Region, index: int) -> None:
        self.region, self._index = region, index

    def __iter__(self) -> Iterator[Any]:
        self.region.recompute()
        node = self.region.nodes[self._index]()
        assert node is not None  # it is the one that asks
        return iter(node.saved_entries)


class _Recording(Watcher):
    """Notes the nodes recorded in this context, and in the end drops what they saved."""

    def __init__(self, region: _Region) -> None:
        self.region = region

    def passed_forward(self, operation: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if _is_recorded(operation, output):
            self.region.note(operation)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        if exception[0] is None:
            self.region.drop()


class _Collecting(Watcher):
    """Lists the nodes recorded in this context."""

    def __init__(self) -> None:
        self.nodes: list[Operation] = []

    def passed_forward(self, operation: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if _is_recorded(operation, output):
            self.nodes.append(operation)


def _is_recorded(operation: Operation, output: Any) -> bool:
    outputs = output if isinstance(output, tuple) else (output,)
    edges = [value._edge for value in outputs if isinstance(value, Tensor)]
    return any(edge is not None and edge.node is operation for edge in edges)


def _looks(entries: list[Any]) -> list[Look | None]:
    return [(entry.array.shape, entry.array.dtype) if type(entry) is Saved else None for entry in entries]


def _moved(entry: Any, old: dict[int, Operation | None]) -> Any:
    """`entry` with its gradient going into the first graph, so that the second one can be freed."""
    return entry._replace(edge=_moved_edge(entry.edge, old)) if isinstance(entry, Saved) else entry


def _moved_edge(edge: Any, old: dict[int, Operation | None]) -> Any:
    node = old.get(id(edge.node)) if isinstance(edge, Edge) else None
    return edge if node is None else edge._replace(node=node)
