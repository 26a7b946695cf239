"""Changing a tensor in place: the memory, its version, and the graph of the tensor and of what it is a view of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .backend import array_module
from .dtypes import can_cast
from .grad_mode import mode
from .operation import Edge, Operation, Saved, next_order
from .tensor import Tensor, View, wrap


class Overwrite(Operation):
    """A base of which a region, shown by a view, was overwritten: gradients of the region go to what was written."""

    def __init__(self, view: View, outside: Any, edges: list[Edge | None]) -> None:
        self.view = view
        self.outside = outside  # 1 where the base's old elements remain, 0 in the region
        self.edges = edges
        self.needs_input_grad = [edge is not None for edge in edges]
        self.order = next_order()
        self.saved_entries, self.hooks, self.outputs = [], None, None

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        base, written = ctx.needs_input_grad
        return grad * wrap(ctx.outside) if base else None, ctx.view.replay(grad) if written else None


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
    base = target if target._view is None else target._view.base
    if mode.grad and base.requires_grad and base.is_leaf:
        what = "a leaf" if base is target else "a view of a leaf"
        raise RuntimeError(f"{name}: {what} that requires a gradient cannot be changed in place outside no_grad()")
    array = target._data
    if not getattr(array.flags, "writeable", True):
        raise RuntimeError(f"{name}: the tensor's memory is read-only; clone() it first")
    if any(step == 0 and size > 1 for step, size in zip(array.strides, array.shape, strict=True)):
        raise RuntimeError(f"{name}: several elements of an expanded tensor are one in memory; clone() it first")


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
    entries = result._edge.node.saved_entries or []
    for i, entry in enumerate(entries):
        if type(entry) is Saved and entry.versions is target._versions:
            entries[i] = Saved(entry.array.copy(), entry.edge, [0], 0)


def assign(target: Tensor, value: Tensor) -> Tensor:
    """Make `value` the content of `target`, in memory and in the graph."""
    if value.dtype != target.dtype:
        value = value.to(target.dtype)
    target._data[...] = value._data
    return record_change(target, value._edge)


def record_change(target: Tensor, edge: Edge | None) -> Tensor:
    """Note that the memory of `target` has changed, and that gradients of all of it now go to `edge`."""
    target._versions[0] += 1
    if not mode.grad:
        return target
    view = target._view
    if view is None:
        target._edge = edge
        return target
    base = view.base
    if base._edge is not None or edge is not None:
        module = array_module(base._data)
        region = view.replay(wrap(module.arange(base._data.size).reshape(base.shape)))
        outside = module.ones(base._data.size, base.dtype)
        outside[region._data.ravel()] = 0
        node = Overwrite(view, outside.reshape(base.shape), [base._edge, edge])
        base._edge = Edge(node, 0, base.shape, base.dtype)
    return target
