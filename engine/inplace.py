"""Changing a tensor in place: the memory, its version, and the graph of the tensor and of what it is a view of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .backend import array_module
from .dtypes import can_cast
from .grad_mode import mode, no_grad
from .operation import Edge, Operation, Saved, next_order
from .tensor import Steps, Tensor, replay, wrap


class Overwrite(Operation):
    """A base of which a region, shown by a view, was overwritten: gradients of the region go to what was written."""

    def __init__(self, steps: Steps, base: Any, edges: list[Edge | None]) -> None:
        self.steps = steps
        # The base's dimensions from the outermost in memory: a mask laid out alike can be viewed wherever the base can.
        self.layout = sorted(range(base.ndim), key=lambda dim: -abs(base.strides[dim]))
        self.edges = edges
        self.needs_input_grad = [edge is not None for edge in edges]
        self.order = next_order()
        self.saved_entries, self.hooks, self.outputs = [], None, None

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        base, written = ctx.needs_input_grad
        return ctx.outside(grad) if base else None, replay(ctx.steps, grad) if written else None

    def outside(ctx, grad: Tensor) -> Tensor:
        """`grad` with zeros in the region."""
        shape = [grad.shape[dim] for dim in ctx.layout]
        with no_grad():
            mask = wrap(array_module(grad._data).ones(shape, bool).transpose(np.argsort(ctx.layout)))
            replay(ctx.steps, mask)._data[...] = False
        return grad.where(mask, 0.0)


def overwrite(target: Tensor, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Write `function(target, *args, **kwargs)` into `target`."""
    name = f"{function.__name__}_"
    check_may_change(target, name)
    result = function(target, *args, **kwargs)
    check_fits(target, name, result.shape, result.dtype)
    _keep_old_value(target, result)
    return assign(target, result)


def check_may_change(target: Tensor, name: str) -> None:
    """Raise where writing into `target` would change a recorded leaf, read-only memory or an expanded element."""
    view = target._view
    if mode.grad:
        if target.requires_grad and target.is_leaf:
            raise RuntimeError(f"{name}: a leaf that requires a gradient cannot be changed in place outside no_grad()")
        if view is not None and view.base.requires_grad:
            if view.base.is_leaf:
                raise RuntimeError(
                    f"{name}: a view of a leaf that requires a gradient cannot be changed in place outside no_grad()"
                )
            if view.steps is None:
                raise RuntimeError(
                    f"{name}: a view made under no_grad() or returned by a Function cannot be changed in place in "
                    "grad mode; make the view in grad mode, or clone() it first"
                )
    check_memory(target._data, name)


def check_memory(array: Any, name: str) -> None:
    """Raise where an array's memory is read-only, or one place of it several elements."""
    steps = array.strides
    if 0 in steps and array.size and any(step == 0 and n > 1 for step, n in zip(steps, array.shape, strict=True)):
        raise RuntimeError(f"{name}: several elements of an expanded tensor are one in memory; clone() it first")
    if not getattr(array.flags, "writeable", True):
        raise RuntimeError(f"{name}: the tensor's memory is read-only; clone() it first")


def check_fits(target: Tensor, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise where a result of this shape and dtype cannot be written into `target`."""
    if shape != target.shape:
        raise RuntimeError(f"{name}: the result has shape {shape}, but the tensor to change has {target.shape}")
    if not can_cast(dtype, target.dtype):
        raise RuntimeError(f"{name}: a result of dtype {dtype} cannot be written into dtype {target.dtype}")


def _keep_old_value(target: Tensor, result: Tensor) -> None:
    """Give the node of `result` a copy of what it saved of `target`, which is about to change."""
    if result._edge is None:
        return
    entries = result._edge.node.saved_entries
    if not isinstance(entries, list):  # freed, or dropped by a checkpoint
        return
    for i, entry in enumerate(entries):
        if type(entry) is Saved and entry.versions is target._versions:
            entries[i] = Saved(entry.array.copy(), entry.edge, [0], 0)


def assign(target: Tensor, value: Tensor) -> Tensor:
    """Make `value` the content of `target`, in memory and in the graph."""
    if value.dtype != target.dtype:
        value = value.to(target.dtype)
    edge = value._current_edge()
    if mode.recorder is not None:
        mode.recorder.uses(value)
    target._data[...] = value._data
    return record_change(target, edge)


def count_change(target: Tensor) -> None:
    """Note that the memory of `target` has changed, though nothing that a gradient flows to."""
    target._versions[0] += 1
    if mode.recorder is not None:
        mode.recorder.in_place(target)


def record_change(target: Tensor, edge: Edge | None) -> Tensor:
    """Note that the memory of `target` has changed, and that gradients of all of it now go to `edge`."""
    count_change(target)
    if not mode.grad:
        return target
    base, steps = (target, ()) if target._view is None else (target._view.base, target._view.steps)
    if not steps and edge is not None:
        target._set_edge(edge)
    elif base._edge is not None or edge is not None:
        assert steps is not None  # check_may_change has seen to it
        node = Overwrite(steps, base._data, [base._edge, edge])
        base._set_edge(Edge(node, 0, base.shape, base.dtype))
    return target
