"""Gradients asked for by a user: `backward` fills `grad` of leaves, `grad` returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .backend import array_module
from .dtypes import is_floating
from .grad_mode import set_grad_enabled
from .graph import AccumulateGrad, run
from .operation import Edge
from .tensor import Tensor, wrap

Tensors = Tensor | Sequence[Tensor]


def backward(
    tensors: Tensors,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensors | None = None,
) -> None:
    """Add the gradients of `tensors`, each weighted by its grad_tensor, to `grad` of the leaves (or of `inputs`).

    A grad_tensor may be left out for a tensor of one element. The graph is freed on the way unless `retain_graph`
    (by default: `create_graph`, which makes the gradients themselves differentiable).
    """
    if inputs is None:
        _walk("backward", tensors, grad_tensors, None, retain_graph, create_graph)
        return
    targets = _listed(inputs)
    if not targets:
        raise RuntimeError("backward: inputs must not be empty")
    edges = [_edge_of("backward", i, tensor) for i, tensor in enumerate(targets)]
    for tensor in targets:
        tensor.retain_grad()  # the walk fills what is no leaf
    results = _walk("backward", tensors, grad_tensors, edges, retain_graph, create_graph)
    arrived = {edge.node: gradient for edge, gradient in zip(edges, results, strict=True) if gradient is not None}
    with set_grad_enabled(create_graph):
        for node, gradient in arrived.items():
            if isinstance(node, AccumulateGrad):
                node.accumulate([gradient])


def grad(
    outputs: Tensors,
    inputs: Tensors,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs`, weighted by `grad_outputs`, for each of `inputs`; `grad` of no tensor changes.

    An input that the outputs do not depend on is an error, None with `allow_unused`, zeros with `materialize_grads`.
    """
    if materialize_grads and allow_unused is False:
        raise ValueError("grad: materialize_grads needs allow_unused to be True or not given")
    targets = _listed(inputs)
    edges = [_edge_of("grad", i, tensor) for i, tensor in enumerate(targets)]
    results = _walk("grad", outputs, grad_outputs, edges, retain_graph, create_graph)
    for i, (tensor, gradient) in enumerate(zip(targets, results, strict=True)):
        if gradient is not None:
            continue
        if materialize_grads:
            results[i] = wrap(array_module(tensor._data).zeros_like(tensor._data))
        elif not allow_unused:
            raise RuntimeError(
                f"grad: the outputs do not depend on input {i} (shape {tensor.shape}); allow_unused=True gives None"
            )
    return tuple(results)


def _walk(
    name: str, outputs: Tensors, grad_outputs: Any, targets: list[Edge] | None, retain: bool | None, create: bool
) -> list[Tensor | None]:
    tensors = _listed(outputs)
    grads = [None] * len(tensors) if grad_outputs is None else _listed(grad_outputs)
    if len(grads) != len(tensors):
        raise RuntimeError(f"{name}: got {len(grads)} gradients for {len(tensors)} outputs")
    roots = []
    for i, (tensor, gradient) in enumerate(zip(tensors, grads, strict=True)):
        roots.append((_edge_of(name, i, tensor, "output"), _root_gradient(name, tensor, gradient)))
    with set_grad_enabled(create):
        return run(roots, targets, create if retain is None else retain)


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, Tensor) or hasattr(tensors, "dtype") else list(tensors)


def _edge_of(name: str, position: int, tensor: Tensor, role: str = "input") -> Edge:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {role} {position} must be a Tensor, got {type(tensor).__name__}")
    edge = tensor._current_edge()
    if edge is None:
        raise RuntimeError(f"{name}: {role} {position} (shape {tensor.shape}) does not require a gradient")
    return edge


def _root_gradient(name: str, tensor: Tensor, gradient: Any) -> Tensor:
    if gradient is None:
        if tensor.numel() != 1:
            raise RuntimeError(
                f"{name}: a gradient can be left out only for an output of one element, got shape {tensor.shape}"
            )
        return wrap(array_module(tensor._data).ones_like(tensor._data))
    gradient = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
    if gradient.shape != tensor.shape:
        raise RuntimeError(f"{name}: the output has shape {tensor.shape}, its gradient {gradient.shape}")
    if not is_floating(gradient.dtype):
        raise TypeError(f"{name}: a gradient must be floating, got dtype {gradient.dtype}")
    return gradient if gradient.dtype == tensor.dtype else gradient.to(tensor.dtype)
