"""Operation: one differentiable operation, which is also the node that it leaves in the graph.

A subclass says what happens to arrays and what happens to gradients, side by side:

    class Mul(Operation):
        promotes = True

        def forward(ctx, a, b):
            ctx.save_inputs(0, 1)
            return a * b

        def backward(ctx, grad):
            a, b = ctx.saved
            return grad * b, grad * a

`forward` gets arrays and returns an array, or a tuple of them. `backward` gets one gradient for each output and returns
one for each input (None where `ctx.needs_input_grad` is false). It is written with Tensors, so it can itself be
differentiated. A gradient may keep the shape and dtype of a broadcast or promoted input: the graph reduces it.

`Mul.apply(x, y)` runs it on Tensors. Keyword arguments of `apply` are settings: attributes of ctx in both directions.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from .grad_mode import mode
from .hooks import Hooks, RemovableHandle
from .promotion import promote
from .tensor import Tensor, View, wrap

_NOTHING_NEEDED = (False,) * 256
_order = itertools.count(0, -1)


def next_order() -> int:
    """The number of the next node."""
    return next(_order)


class Edge(NamedTuple):
    """Where the gradient of a tensor goes: an output of a node, and the shape and dtype that it must have there."""

    node: Operation
    index: int  # type: ignore[assignment]  # a tuple has a method of that name
    shape: tuple[int, ...]
    dtype: np.dtype


make_edge: Callable[[tuple[Any, ...]], Edge] = functools.partial(tuple.__new__, Edge)  # skips NamedTuple's own __new__


class Saved(NamedTuple):
    """What a node keeps of a tensor: its array, where its gradient goes, and its version when it was saved."""

    array: Any
    edge: Any  # an Edge or None; for an output of the node itself its index
    versions: list[int]
    version: int


_make_saved: Callable[[tuple[Any, ...]], Saved] = functools.partial(tuple.__new__, Saved)
_new = object.__new__


class Operation:
    """One differentiable operation. See the module's text for how to write one."""

    promotes: ClassVar[bool] = False  # bring the arrays to PyTorch's common dtype before forward
    differentiable: ClassVar[bool] = True
    is_view: ClassVar[bool] = False  # the outputs may share the memory of input 0
    consumes: ClassVar[bool] = False  # backward changes arrays of `save_arrays` where `is_last_pass`: it frees them
    materializes_grads: bool = True  # backward gets zeros, not None, for outputs that no gradient reached
    is_last_pass: bool = False  # of an operation that consumes: the walk does not retain the graph

    __slots__ = ("__dict__", "__weakref__", "edges", "hooks", "needs_input_grad", "order", "outputs", "saved_entries")

    edges: list[Edge | None]  # for each input, where its gradient goes
    hooks: Hooks | None
    needs_input_grad: Any
    order: int  # falls with time, so the latest node is the smallest: what a heap wants
    outputs: list[tuple[tuple[int, ...], np.dtype] | None] | None  # of several: shape and dtype, None if no tensor
    saved_entries: Any  # a list, None when freed; of a checkpoint an iterable that fills it again

    if TYPE_CHECKING:  # the settings of an operation, and what forward notes for backward

        def __getattr__(ctx, name: str) -> Any: ...
        def __setattr__(ctx, name: str, value: Any) -> None: ...

    def forward(ctx, *arrays: Any, **_: Any) -> Any:
        """Compute the output array, or a tuple of them, without changing the arrays given."""
        raise NotImplementedError(f"{type(ctx).__name__}.forward")

    def backward(ctx, *grads: Any, **_: Any) -> Any:
        """Turn the gradients of the outputs into those of the inputs."""
        raise NotImplementedError(f"{type(ctx).__name__}.backward")

    def view_step(ctx, position: int) -> tuple[type[Operation], dict[str, Any]]:
        """For views with several outputs: the operation and settings that make the output at `position` alone."""
        raise NotImplementedError(f"{type(ctx).__name__}.view_step")

    # What forward may ask to be kept. Several calls add up; `saved` returns all in that order.

    def save_inputs(ctx, *positions: int) -> None:
        """Keep the inputs at these positions for backward."""
        ctx.saved_entries.extend(positions)

    def save_outputs(ctx, *positions: int) -> None:
        """Keep the outputs at these positions for backward."""
        ctx.saved_entries.extend(~position for position in positions)

    def save_arrays(ctx, *arrays: Any) -> None:
        """Keep arrays that are neither input nor output (a mask, offsets): constants for backward."""
        ctx.saved_entries.extend(Saved(array, None, [0], 0) for array in arrays)

    @property
    def saved(ctx) -> list[Any]:
        """What forward saved, as Tensors in the graph (a number is returned as itself)."""
        if ctx.saved_entries is None:
            raise RuntimeError(
                f"backward of {ctx.name}: its saved tensors are freed already. To go through the graph a second "
                "time, give retain_graph=True to the first backward or grad call"
            )
        tensors = []
        for entry in ctx.saved_entries:
            if type(entry) is not Saved:
                tensors.append(entry)
                continue
            array, edge, versions, version = entry
            if versions[0] != version:
                raise RuntimeError(
                    f"backward of {ctx.name}: a tensor of shape {array.shape} that it saved has been changed in place "
                    f"since (version {versions[0]}, saved at version {version}); use the out-of-place form, or clone it"
                )
            if type(edge) is int:  # an output: naming this node while it stood in its own entries would be a cycle
                edge = Edge(ctx, edge, array.shape, array.dtype)
            tensors.append(wrap(array, edge, versions))
        return tensors

    @property
    def name(ctx) -> str:
        """The operation's name as messages and `grad_fn` show it."""
        return type(ctx).__name__

    @property
    def next_functions(ctx) -> tuple[tuple[Operation | None, int], ...]:
        """PyTorch's view of the edges: for each input, (node, output index) or (None, 0)."""
        return tuple((edge.node, edge.index) if edge else (None, 0) for edge in ctx.edges)

    def register_hook(ctx, hook: Any) -> RemovableHandle:
        """Call `hook(grad_inputs, grad_outputs)` after this node's backward; a returned tuple replaces grad_inputs."""
        return ctx.own_hooks().add("after", 0, hook)

    def register_prehook(ctx, hook: Any) -> RemovableHandle:
        """Call `hook(grad_outputs)` before this node's backward; a returned tuple replaces them."""
        return ctx.own_hooks().add("before", 0, hook)

    def own_hooks(ctx) -> Hooks:
        """This node's hooks, made on first use: most nodes have none."""
        if ctx.hooks is None:
            ctx.hooks = Hooks()
        return ctx.hooks

    def release(ctx) -> None:
        """Free what was saved. A node that saved nothing can be passed again."""
        if ctx.saved_entries:
            ctx.saved_entries = None

    def __repr__(ctx) -> str:
        return f"<{ctx.name}>"

    @classmethod
    def apply(cls, *inputs: Any, **settings: Any) -> Any:
        """Run the operation on Tensors, arrays and numbers, and record it where an input needs a gradient."""
        ctx = cls()
        if settings:
            ctx.__dict__.update(settings)
        edges: list[Edge | None] = []
        if mode.grad and cls.differentiable:
            for value in inputs:
                if isinstance(value, Tensor):
                    edges.append(value._edge if value._view is None else value._current_edge())
                else:
                    edges.append(None)
        recorded = edges.count(None) != len(edges)
        arrays = [value._data if isinstance(value, Tensor) else value for value in inputs]
        ctx.edges = edges
        ctx.needs_input_grad = [edge is not None for edge in edges] if recorded else _NOTHING_NEEDED
        kept: list[Any] = []
        ctx.saved_entries = kept
        if cls.promotes:
            arrays = promote(cls, arrays)
        try:
            result = ctx.forward(*arrays) if mode.quiet else _quiet_forward(ctx, arrays)
        except ValueError as error:
            if "could not be broadcast" not in str(error):
                raise
            shapes = " and ".join(str(array.shape) for array in arrays if hasattr(array, "shape"))
            raise ValueError(f"{cls.__name__}: shapes {shapes} do not broadcast") from None
        if recorded:
            ctx.order = next(_order)
            ctx.hooks = ctx.outputs = None
        if type(result) is tuple:
            output: Any = tuple([_as_output(ctx, array, i, recorded) for i, array in enumerate(result)])
            if recorded:
                ctx.outputs = [(tensor._data.shape, tensor._data.dtype) for tensor in output]
            if cls.is_view:
                for i, tensor in enumerate(output):
                    _link_view(tensor, inputs[0], *ctx.view_step(i))
        else:
            output = _as_output(ctx, result, 0, recorded)
            if cls.is_view:
                _link_view(output, inputs[0], cls, settings)
        if recorded and kept:
            _pack(kept, inputs, edges, output)
        if mode.watchers:
            for watcher in mode.watchers:
                watcher.passed_forward(ctx, inputs, output)
        return output


@np.errstate(all="ignore")  # NumPy alone would warn of log(0) or 0 / 0: CuPy and PyTorch do not
def _quiet_forward(ctx: Operation, arrays: list[Any]) -> Any:
    return ctx.forward(*arrays)


def _as_output(ctx: Operation, array: Any, index: int, recorded: bool) -> Tensor:
    if isinstance(array, np.generic):  # NumPy returns scalars where an array of no dimensions is meant
        array = np.asarray(array)
    tensor = _new(Tensor)
    tensor._data = array
    tensor._versions = [0]
    if recorded and array.dtype.kind in "fV":  # V: bfloat16
        tensor._edge = make_edge((ctx, index, array.shape, array.dtype))
    return tensor


def _pack(kept: list[Any], inputs: Any, edges: list[Edge | None], output: Any) -> None:
    """Replace the positions in `kept` by what is there."""
    for i, entry in enumerate(kept):
        if type(entry) is not int:
            continue
        if entry >= 0:
            value, edge = inputs[entry], edges[entry]
            if not isinstance(value, Tensor):
                kept[i] = value
                continue
        else:
            value, edge = (output[~entry] if type(output) is tuple else output), ~entry  # type: ignore[assignment]
        kept[i] = _make_saved((value._data, edge, value._versions, value._versions[0]))


def _link_view(output: Tensor, source: Any, operation: type[Operation], settings: dict[str, Any]) -> None:
    """Note that `output` shows the memory of `source`, and how to get it from there again."""
    array, shown = source._data, output._data
    if shown is not array and (shown.base is None or not (shown.base is array or shown.base is array.base)):
        return  # a copy had to be made
    output._versions = source._versions
    before = source._view
    if mode.grad or before is not None or source._edge is not None:
        base, steps = (source, ()) if before is None else (before.base, before.steps)
        if steps is not None:
            steps = (*steps, (operation, settings)) if mode.grad else None
        output._view = View(base, steps, source._versions[0])
