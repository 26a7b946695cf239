"""Hooks of a module: around its forward, and at its inputs and outputs in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...engine import Tensor
from ...engine.grad_mode import mode
from ...engine.hooks import RemovableHandle, add_hook
from ...engine.operation import Operation

Gradients = tuple[Tensor | None, ...]


class Passage(Operation):
    """Hands tensors through unchanged, so that a hook can stand between two parts of the graph."""

    materializes_grads = False

    def forward(ctx, *arrays: Any) -> tuple[Any, ...]:
        return arrays

    def backward(ctx, *grads: Tensor) -> Gradients:
        return grads


def pass_through(values: Any) -> tuple[Any, Operation | None, list[int], int]:
    """`values` (a tensor, or a tuple or list) with the tensors that need gradients led through a node.

    Also returns that node (None where no gradient is needed), their positions, and the number of values.
    """
    alone = isinstance(values, Tensor)
    items = [values] if alone else list(values) if isinstance(values, tuple | list) else []
    places = [i for i, item in enumerate(items) if isinstance(item, Tensor) and item.requires_grad]
    if not places:
        return values, None, places, len(items)
    passed = Passage.apply(*(items[i] for i in places))
    node = passed[0].grad_fn
    for i, tensor in zip(places, passed, strict=True):
        tensor._versions = items[i]._versions
        items[i] = tensor
    if alone:
        return items[0], node, places, 1
    if isinstance(values, list):
        return items, node, places, len(items)
    rebuilt = type(values)(*items) if hasattr(values, "_fields") else tuple(items)
    return rebuilt, node, places, len(items)


def spread(grads: Gradients, places: list[int], count: int) -> Gradients:
    """The gradients at their places among `count` values, None elsewhere."""
    full: list[Tensor | None] = [None] * count
    for place, grad in zip(places, grads, strict=True):
        full[place] = grad
    return tuple(full)


def watch_backward(
    module: Any,
    before: list[Callable[..., Any]],
    after: list[Callable[..., Any]],
    args: tuple[Any, ...],
    call: Callable[..., Any],
) -> Any:
    """`call(*args)`; backward runs `before(module, grad_output)`, `after(module, grad_input, grad_output)`.

    What a hook returns replaces the gradients of the outputs or of the inputs.
    """
    args, entrance, in_places, in_count = pass_through(args)
    result, leaving, out_places, out_count = pass_through(call(*args))
    if leaving is None:
        return result
    seen: list[Gradients] = []

    def at_outputs(grads: Gradients) -> Gradients | None:
        given = spread(grads, out_places, out_count)
        for hook in before:
            given = _as_tuple(hook(module, given), given)
        seen[:] = [given]
        if entrance is None:
            for hook in after:
                hook(module, (None,) * in_count, given)
        return tuple(given[i] for i in out_places)

    def at_inputs(grads: Gradients, _: Gradients) -> Gradients:
        given = spread(grads, in_places, in_count)
        for hook in after:
            given = _as_tuple(hook(module, given, seen[0]), given)
        return tuple(given[i] for i in in_places)

    leaving.register_prehook(at_outputs)
    if entrance is not None:
        entrance.register_hook(at_inputs)
    return result


def _as_tuple(answer: Any, given: Gradients) -> Gradients:
    if answer is None:
        return given
    answer = (answer,) if isinstance(answer, Tensor) else tuple(answer)
    if len(answer) != len(given):
        raise RuntimeError(f"backward hook: expected {len(given)} gradients back, got {len(answer)}")
    return answer


class Hooked:
    """What a module does when it is called, and the hooks that a user hangs on that."""

    _hooks: dict[str, dict[int, Any]]  # by kind; empty for most modules
    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if mode.recorder is not None:
            mode.recorder.read(self, "training")
        if not self._hooks:
            return self.forward(*args, **kwargs)
        for hook, with_kwargs in self._hooks_of("forward_pre"):
            answer = hook(self, args, kwargs) if with_kwargs else hook(self, args)
            if answer is not None and with_kwargs:
                args, kwargs = answer
            elif answer is not None:
                args = answer if isinstance(answer, tuple) else (answer,)

        def call(*args: Any) -> Any:
            result = self.forward(*args, **kwargs)
            for hook, with_kwargs in self._hooks_of("forward"):
                answer = hook(self, args, kwargs, result) if with_kwargs else hook(self, args, result)
                result = result if answer is None else answer
            return result

        before, after = self._hooks_of("backward_pre"), self._hooks_of("backward")
        return watch_backward(self, before, after, args, call) if before or after else call(*args)

    def _hooks_of(self, kind: str) -> list[Any]:
        return list(self._hooks.get(kind, {}).values())

    def _hang(self, kind: str, entry: Any, prepend: bool) -> RemovableHandle:
        hooks = self._hooks.setdefault(kind, {})
        before = dict(hooks) if prepend else {}
        for number in before:
            del hooks[number]
        handle = add_hook(hooks, entry)
        hooks.update(before)
        return handle

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args)` before forward; what it returns replaces the arguments."""
        return self._hang("forward_pre", (hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args, result)` after forward; what it returns replaces the result."""
        return self._hang("forward", (hook, with_kwargs), prepend)

    def register_full_backward_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(module, grad_output)` before backward; what it returns replaces grad_output."""
        return self._hang("backward_pre", hook, prepend)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call `hook(module, grad_input, grad_output)` after it; what it returns replaces grad_input."""
        return self._hang("backward", hook, prepend)
