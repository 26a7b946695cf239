"""The backward pass: gradients walk from the outputs through the recorded nodes to the leaves.

Nodes carry a number that falls with time, and a node's inputs were always made before it. Taking the smallest number
from a heap therefore visits each node once, after all that used its outputs, without recursion.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels.cpu.results import add, claim
from .backend import array_module
from .grad_mode import mode
from .operation import Edge, Operation
from .tensor import Tensor, wrap

_leaf_order = itertools.count(1)


class AccumulateGrad(Operation):
    """The end of the walk: adds what arrives to `grad` of a leaf, which it does not keep alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.leaf = weakref.ref(tensor)
        self.edges = []
        self.needs_input_grad = ()
        self.order = next(_leaf_order)  # after all recorded nodes: its gradients have been summed by then
        self.saved_entries = self.hooks = self.outputs = None

    def accumulate(self, grads: list[Tensor]) -> None:
        """Add the one gradient in `grads`, which leaves the list, to that of the leaf."""
        tensor = self.leaf()
        if tensor is None:
            return
        known = tensor.grad
        if mode.grad:  # create_graph: the sum must stay differentiable
            grad = grads.pop()
            tensor.grad = grad.clone() if known is None else known + grad
        elif known is None:
            tensor.grad = wrap(claim([grads.pop()._data]))
        else:
            known._data += grads.pop()._data
            known._versions[0] += 1
            if mode.recorder is not None:
                mode.recorder.in_place(known)
        if self.hooks is not None:
            for hook in self.hooks.of("accumulated"):
                hook(tensor)


def leaf_edge(tensor: Tensor) -> Edge:
    """The edge of a leaf: what arrives there accumulates in `tensor.grad`."""
    return Edge(AccumulateGrad(tensor), 0, tensor._data.shape, tensor._data.dtype)


def keep_gradient(tensor: Tensor) -> None:
    """Have the walk fill `tensor.grad` when it passes the output that `tensor` is."""
    reference, edge = weakref.ref(tensor), tensor._edge
    assert edge is not None
    order = edge.node.order

    def keep(grad: Tensor) -> None:
        kept = reference()
        # A tensor changed in place since has another edge, and another hook there.
        if kept is not None and kept._edge is not None and kept._edge.node.order == order:
            kept.grad = grad.clone() if kept.grad is None else kept.grad + grad

    edge.node.own_hooks().add("keep", edge.index, keep)


def run(
    roots: Sequence[tuple[Edge, Tensor]], targets: Sequence[Edge] | None = None, retain_graph: bool = False
) -> list[Tensor | None]:
    """Walk back from `roots` (edges with their gradients).

    Without `targets` the gradients accumulate in the leaves. With them, only what leads there is computed, nothing
    accumulates, and the targets' gradients are returned, None where none arrived. In grad mode the walk is recorded.
    """
    before, mode.quiet = mode.quiet, True
    try:
        with np.errstate(all="ignore"):  # here for all operations of the walk, which is quicker than in each of them
            return _walk(roots, targets, retain_graph)
    finally:
        mode.quiet = before


def _walk(
    roots: Sequence[tuple[Edge, Tensor]], targets: Sequence[Edge] | None, retain_graph: bool
) -> list[Tensor | None]:
    results: list[Tensor | None] = [None] * len(targets or ())
    route = None if targets is None else _Route([edge.node for edge, _ in roots], targets)
    reached = _Reached()
    reached.add(roots)
    while reached.heap:
        node, grads = reached.pop()
        if node.hooks is not None:
            grads = _run_hooks_before(node, grads)
        if route is not None:
            for index, position in route.wanted.get(node, ()):
                results[position] = grads[index]
            if node not in route.through:
                continue
        elif type(node) is AccumulateGrad:
            node.accumulate(grads)  # type: ignore[arg-type]
            continue
        if node.consumes:
            node.is_last_pass = not retain_graph
        reached.add(_step(node, grads, route))
        if not retain_graph:
            node.release()
    return results


class _Reached:
    """The nodes that gradients have reached, the latest node first, and the sums at each of its outputs."""

    def __init__(self) -> None:
        self.heap: list[int] = []
        self.nodes: dict[int, Operation] = {}
        self.gradients: dict[int, list[Tensor | None]] = {}

    def add(self, arriving: Sequence[tuple[Edge, Tensor]]) -> None:
        for (node, index, _, _), grad in arriving:
            order = node.order
            waiting = self.gradients.get(order)
            if waiting is None:
                waiting = self.gradients[order] = [None] if node.outputs is None else [None] * len(node.outputs)
                self.nodes[order] = node
                heapq.heappush(self.heap, order)
            known = waiting[index]
            waiting[index] = grad if known is None else _sum(known, grad)

    def pop(self) -> tuple[Operation, list[Tensor | None]]:
        order = heapq.heappop(self.heap)
        return self.nodes.pop(order), self.gradients.pop(order)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two gradients, which are of one shape and dtype."""
    if mode.grad:
        return a + b
    total = add(a._data, b._data)
    return wrap(total if a._data.ndim else array_module(a._data).asarray(total))


def _step(node: Operation, grads: list[Tensor | None], route: _Route | None) -> list[tuple[Edge, Tensor]]:
    """Pass one node: what leaves it, and along which edges."""
    if node.outputs is not None and None in grads:
        grads = _with_zeros(node, grads)
    if route is not None and node in route.forks:
        inputs, edges = route.backward(node, grads)
    else:
        inputs, edges = node.backward(*grads), node.edges
    if type(inputs) is not tuple:
        inputs = (inputs,)
    if len(inputs) != len(edges):
        raise RuntimeError(f"backward of {node.name} returned {len(inputs)} gradients for {len(edges)} inputs")
    if node.hooks is not None:
        for hook in node.hooks.of("after"):
            inputs = _replaced(hook(inputs, tuple(grads)), inputs)
    if mode.watchers:
        for watcher in mode.watchers:
            watcher.passed_backward(node, grads, inputs)
    leaving = []
    for edge, grad in zip(edges, inputs, strict=True):
        if edge is not None and grad is not None:
            if grad._data.shape != edge.shape or grad._data.dtype is not edge.dtype:
                grad = _fit(node, grad, edge)
            leaving.append((edge, grad))
    return leaving


def _fit(node: Operation, grad: Tensor, edge: Edge) -> Tensor:
    """`grad` summed down to the shape of a broadcast input and in its dtype: the one place where this is done."""
    shape = grad._data.shape
    if shape != edge.shape:
        extra = len(shape) - len(edge.shape)
        if extra < 0 or any(b not in (a, 1) for a, b in zip(shape[extra:], edge.shape, strict=True)):
            raise RuntimeError(f"backward of {node.name} returned a gradient of shape {shape}, expected {edge.shape}")
        dims = [i for i, size in enumerate(shape) if i < extra or edge.shape[i - extra] != size]
        if dims:
            grad = grad.sum(dim=dims, keepdim=True)
        grad = grad.reshape(edge.shape)
    return grad if grad._data.dtype == edge.dtype else grad.to(edge.dtype)


def _with_zeros(node: Operation, grads: list[Tensor | None]) -> list[Tensor | None]:
    """Zeros for the outputs that no gradient reached."""
    if not node.materializes_grads:
        return grads
    module = array_module(next(grad for grad in grads if grad is not None)._data)
    assert node.outputs is not None
    return [
        grad if grad is not None or look is None else wrap(module.zeros(*look))
        for grad, look in zip(grads, node.outputs, strict=True)
    ]


def _run_hooks_before(node: Operation, grads: list[Tensor | None]) -> list[Tensor | None]:
    assert node.hooks is not None
    for index, grad in enumerate(grads):
        if grad is None:
            continue
        for hook in node.hooks.of("before_output", index):
            grad = _hooked(hook, grad)
        for hook in node.hooks.of("keep", index):
            hook(grad)
        grads[index] = grad
    for hook in node.hooks.of("before"):
        grads = list(_replaced(hook(tuple(grads)), grads))
    return grads


def _hooked(hook: Any, grad: Tensor) -> Tensor:
    """`grad`, or what the hook of a tensor puts in its place."""
    answer = hook(grad)
    if answer is None:
        return grad
    if not isinstance(answer, Tensor):
        raise TypeError(f"a hook must return a Tensor or None, got {type(answer).__name__}")
    if answer.shape != grad.shape:
        raise RuntimeError(f"a hook returned a gradient of shape {answer.shape}, expected {grad.shape}")
    return answer if answer.dtype == grad.dtype else answer.to(grad.dtype)


def _replaced(answer: Any, given: Any) -> Any:
    return given if answer is None else answer


class _Route:
    """Which nodes lead to the targets."""

    def __init__(self, roots: list[Operation], targets: Sequence[Edge]) -> None:
        self.wanted: dict[Operation, list[tuple[int, int]]] = {}  # for a node: output, position in the results
        for position, target in enumerate(targets):
            self.wanted.setdefault(target.node, []).append((target.index, position))
        self.leading: set[Operation] = set(self.wanted)
        self.through: set[Operation] = set()  # a target lies behind them
        self.forks: set[Operation] = set()  # of these not all edges lead to one
        reached = set(roots)
        stack = list(reached)
        while stack:
            for edge in stack.pop().edges:
                if edge is not None and edge.node not in reached:
                    reached.add(edge.node)
                    stack.append(edge.node)
        for node in sorted(reached, key=_order_of, reverse=True):  # the oldest first: inputs before what used them
            leads = [edge.node in self.leading for edge in node.edges if edge is not None]
            if True in leads:
                self.leading.add(node)
                self.through.add(node)
                if False in leads:
                    self.forks.add(node)

    def backward(self, node: Operation, grads: list[Tensor | None]) -> tuple[Any, list[Edge | None]]:
        """What a fork's backward returns when asked only for what leads to a target, and the edges that do."""
        edges = [edge if edge is not None and edge.node in self.leading else None for edge in node.edges]
        needed, node.needs_input_grad = node.needs_input_grad, [edge is not None for edge in edges]
        try:
            return node.backward(*grads), edges
        finally:
            node.needs_input_grad = needed


_order_of = operator.attrgetter("order")
