"""`autograd.Function`: an operation with a gradient that a user writes.

class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return Tensor(square_kernel(x.data))  # any NumPy or CuPy code, or a RawKernel

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad

`forward` gets the arguments of `Square.apply` as they are, and nothing in it is recorded. `backward` gets a
gradient for each output and returns one for each argument. Made of Tensor functions it can be differentiated.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from . import inplace
from .dtypes import is_floating
from .grad_mode import mode, no_grad
from .operation import Edge, Operation, Saved, next_order
from .tensor import Tensor, View, wrap


class FunctionCtx:
    """What forward leaves for backward. Any other attribute may be set on it too."""

    def __init__(self, node: FunctionNode) -> None:
        self._node = weakref.ref(node)  # the node holds its ctx
        self._to_save: tuple[Tensor | None, ...] = ()
        self._dirty: tuple[Tensor, ...] = ()
        self._constant: tuple[Tensor, ...] = ()
        self._materialize = True

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors (or None) for backward, where `saved_tensors` returns them; the last call counts."""
        for tensor in tensors:
            if tensor is not None and not isinstance(tensor, Tensor):
                raise TypeError(f"save_for_backward: expected tensors or None, got {type(tensor).__name__}")
        self._to_save = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Say that forward changed these arguments in place; each must be among what it returns."""
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Say that these outputs have no gradient."""
        self._constant = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward gets zeros (the default) or None for an output that no gradient reached."""
        self._materialize = bool(value)

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What `save_for_backward` kept."""
        return tuple(self._living_node().saved)

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """For each argument, whether its gradient is wanted."""
        return tuple(self._living_node().needs_input_grad)

    def _living_node(self) -> FunctionNode:
        node = self._node()
        if node is None:
            raise RuntimeError("the graph to which this ctx belonged is gone")
        return node


class FunctionNode(Operation):
    """The node that a Function leaves in the graph."""

    def __init__(self, function: type[Function], args: tuple[Any, ...]) -> None:
        self.function = function
        self.takes_tensor = [isinstance(arg, Tensor) for arg in args]
        self.edges = [arg._current_edge() if isinstance(arg, Tensor) else None for arg in args]
        self.needs_input_grad = tuple(edge is not None for edge in self.edges)
        self.saved_entries, self.hooks, self.outputs = [], None, None
        self.ctx = FunctionCtx(self)

    @property
    def name(self) -> str:
        return self.function.__name__

    def finish(self, args: tuple[Any, ...], result: Any) -> Any:
        """What `apply` returns: the outputs of forward, recorded where an argument needs a gradient."""
        recorded = mode.grad and any(self.needs_input_grad)
        self.order = next_order()
        self.materializes_grads = self.ctx._materialize
        values = result if isinstance(result, tuple) else (result,)
        if any(isinstance(item, Tensor) for value in values if isinstance(value, list) for item in value):
            raise TypeError(f"{self.name}.forward: expected a Tensor or a tuple of them, got a list")
        if isinstance(result, tuple):
            self.outputs = [(v.shape, v.dtype) if isinstance(v, Tensor) else None for v in values]
        for tensor in self.ctx._dirty:
            if _position(tensor, values) is None:
                raise RuntimeError(f"{self.name}: an argument given to mark_dirty is not an output of forward")
        outputs = tuple([self._output(i, value, args, recorded) for i, value in enumerate(values)])
        if recorded:
            self.saved_entries = [self._entry(tensor, args, outputs) for tensor in self.ctx._to_save]
        self.ctx._to_save = self.ctx._dirty = self.ctx._constant = ()
        return outputs if isinstance(result, tuple) else outputs[0]

    def _output(self, index: int, value: Any, args: tuple[Any, ...], recorded: bool) -> Any:
        if not isinstance(value, Tensor):
            return value
        differentiable = is_floating(value.dtype) and _position(value, self.ctx._constant) is None
        edge = Edge(self, index, value.shape, value.dtype) if recorded and differentiable else None
        if _position(value, self.ctx._dirty) is not None:
            inplace.check_may_change(value, self.name)
            return inplace.record_change(value, edge)
        if _position(value, args) is not None or value._edge is not None:  # made elsewhere, so it is not changed
            base = value if value._view is None else value._view.base
            value = wrap(value._data, None, value._versions)
            if edge is not None:
                value._view = View(base, None, value._versions[0])
        if edge is not None:
            value._edge = edge
        return value

    def _entry(self, tensor: Tensor | None, args: tuple[Any, ...], outputs: tuple[Any, ...]) -> Saved | None:
        if tensor is None:
            return None
        place: Any = _position(tensor, outputs)
        if place is None:
            arg = _position(tensor, args)
            place = tensor._current_edge() if arg is None else self.edges[arg]
        return Saved(tensor._data, place, tensor._versions, tensor._versions[0])

    def backward(self, *grads: Any) -> tuple[Tensor | None, ...]:
        result = self.function.backward(self.ctx, *grads)
        returned = result if isinstance(result, tuple) else (result,)
        count = len(self.edges)
        if len(returned) > count and all(grad is None for grad in returned[count:]):
            returned = returned[:count]
        if len(returned) != count:
            raise RuntimeError(f"{self.name}.backward returned {len(returned)} gradients for {count} arguments")
        for i, grad in enumerate(returned):
            if grad is None:
                continue
            if not isinstance(grad, Tensor):
                kind = type(grad).__name__
                raise TypeError(f"{self.name}.backward: gradient {i} must be a Tensor or None, got {kind}")
            if not self.takes_tensor[i]:
                raise RuntimeError(f"{self.name}.backward: argument {i} is no Tensor, so its gradient must be None")
        return returned


def _position(tensor: Tensor | None, among: tuple[Any, ...]) -> int | None:
    return next((i for i, other in enumerate(among) if other is tensor), None)


class Function:
    """An operation whose gradient the user writes: subclass it, call `apply`. See the module's text."""

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the outputs: forward(ctx, *args), or forward(*args) where `setup_context` is defined."""
        raise NotImplementedError("a Function needs a static method forward")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep on ctx what backward needs, apart from forward."""
        raise NotImplementedError("setup_context")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return a gradient for each argument of forward, None where it has none."""
        raise NotImplementedError("a Function needs a static method backward to be differentiated")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run forward, and record it where an argument needs a gradient."""
        node = FunctionNode(cls, args)
        with no_grad():
            if cls.setup_context is not Function.setup_context:
                result = cls.forward(*args)
                cls.setup_context(node.ctx, args, result)
            else:
                result = cls.forward(node.ctx, *args)
        output = node.finish(args, result)
        for watcher in mode.watchers:
            watcher.passed_forward(node, args, output)
        return output


class _NotTwice(Operation):
    """What a once-differentiable backward returned: a further derivative through it is an error."""

    def __init__(self, name: str, edges: list[Edge | None], grads: tuple[Any, ...]) -> None:
        self.of = name
        self.edges = edges
        self.needs_input_grad = [edge is not None for edge in edges]
        self.order = next_order()
        self.saved_entries, self.hooks = [], None
        self.outputs = [(g.shape, g.dtype) if isinstance(g, Tensor) else None for g in grads]

    def backward(self, *grads: Any) -> Any:
        raise RuntimeError(f"{self.of}: its backward is marked once_differentiable, so it has no second derivative")


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a backward that is not made of Tensor functions: a second derivative becomes an error."""

    @functools.wraps(backward)
    def wrapped(ctx: FunctionCtx, *grads: Any) -> Any:
        with no_grad():
            result = backward(ctx, *grads)
        if not mode.grad:
            return result
        node = ctx._living_node()
        returned = result if isinstance(result, tuple) else (result,)
        incoming = [grad._current_edge() for grad in grads if isinstance(grad, Tensor)]
        barrier = _NotTwice(node.name, [*node.edges, *incoming], returned)
        marked = tuple(
            wrap(grad._data, Edge(barrier, i, grad.shape, grad.dtype)) if isinstance(grad, Tensor) else grad
            for i, grad in enumerate(returned)
        )
        return marked if isinstance(result, tuple) else marked[0]

    return wrapped
