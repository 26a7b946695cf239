"""Tensor: one NumPy or CuPy array, and where its gradient goes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend
from .array_holder import ArrayHolder
from .dtypes import as_dtype, get_default_dtype, is_floating, promote_types
from .grad_mode import mode
from .recorder import refuse

if TYPE_CHECKING:
    from .hooks import RemovableHandle
    from .operation import Edge, Operation


Steps = tuple[tuple["type[Operation]", dict[str, Any]], ...]


class View:
    """How a tensor that shows another's memory comes from it: operations with their settings, from the base on.

    Steps are None where they were not recorded: in a Function, or under no_grad.
    """

    __slots__ = ("base", "steps", "version")

    def __init__(self, base: Tensor, steps: Steps | None, version: int) -> None:
        self.base = base
        self.steps = steps
        self.version = version  # the memory's version for which the tensor's edge holds


def replay(steps: Steps, source: Tensor) -> Tensor:
    """The view of `source` that `steps` show of a base of the same shape."""
    for operation, settings in steps:
        source = operation.apply(source, **settings)
    return source


class Tensor(ArrayHolder):
    """An n-dimensional array that can be differentiated.

    `Tensor(data)` shares an array and converts anything else. Methods and operators are PyTorch's; they are the
    functions of `adjoint.engine.operations`, attached there by `public`.
    """

    # Class attributes are the defaults, so that making a tensor sets only what differs: it happens at every operation.
    _versions: list[int]  # one count of in-place changes, shared by all views of a memory
    _edge: Edge | None = None
    _view: View | None = None
    _grad: Tensor | None = None
    retains_grad: bool = False

    __array_ufunc__ = None  # so that `array + tensor` becomes tensor.__radd__
    __hash__ = object.__hash__

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self._data = as_array(data)
        self._versions = data._versions if isinstance(data, Tensor) else [0]  # one memory, one count of its changes
        if requires_grad:
            self.requires_grad = True

    if TYPE_CHECKING:  # the methods and operators that `public` attaches

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __rxor__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __neg__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...

    def __pos__(self) -> Tensor:
        return self

    @property
    def data(self) -> Any:
        """The NumPy or CuPy array itself. Setting it counts as a change in place."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        refuse("give a tensor another array")
        array = as_array(value)
        if self._edge is not None and array.dtype.kind not in "fV":
            raise TypeError(f"data: a tensor that requires a gradient needs a floating dtype, got {array.dtype}")
        if array is not self._data:
            self._data, self._view = array, None
            if self._edge is not None and self.is_leaf:
                self._edge = self._edge._replace(shape=array.shape, dtype=array.dtype)
        self._versions[0] += 1

    def numpy(self) -> np.ndarray:
        """The NumPy array that this tensor wraps (shared). It must be on the CPU and need no gradient."""
        if self.requires_grad:
            raise RuntimeError("numpy: this tensor requires a gradient; use tensor.detach().numpy()")
        if self.is_cuda:
            raise TypeError(f"numpy: this tensor is on {self.device}; use tensor.cpu().numpy()")
        return self._data

    def __iter__(self) -> Iterator[Tensor]:
        if not self._data.ndim:
            raise TypeError("iteration over a 0-d tensor")
        return iter(self.unbind(0))

    def __repr__(self) -> str:
        from .printing import tensor_repr

        return tensor_repr(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad:
            raise BufferError("__dlpack__: this tensor requires a gradient; use tensor.detach()")
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if not self.is_cuda:
            raise AttributeError("__cuda_array_interface__: this tensor is on the CPU")
        if self.requires_grad:
            raise RuntimeError("__cuda_array_interface__: this tensor requires a gradient; use tensor.detach()")
        return self._data.__cuda_array_interface__

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not self.is_leaf:
            raise RuntimeError("only tensors that a user made can be pickled or deep-copied; use detach() first")
        return _rebuild, (type(self), backend.transfer(self._data, backend.CPU), str(self.device), self.requires_grad)

    def __copy__(self) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError("only tensors that a user made can be copied; use detach() or clone()")
        return _rebuild(type(self), self, None, self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError("only tensors that a user made can be deep-copied; use detach().clone() first")
        copy = memo[id(self)] = _rebuild(type(self), self._data.copy(), None, self.requires_grad)
        if self.grad is not None:
            copy.grad = wrap(self.grad._data.copy())
        return copy

    @property
    def grad(self) -> Tensor | None:
        """What backward has added up here: None, or a tensor of this one's shape and dtype."""
        if mode.recorder is not None:
            mode.recorder.read(self, "_grad")
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad: expected a Tensor or None, got {type(value).__name__}")
            if value.shape != self.shape or value.dtype != self.dtype or value.device != self.device:
                wanted, given = (f"{t.shape} of {t.dtype} on {t.device}" for t in (self, value))
                raise RuntimeError(f"grad: this tensor has shape {wanted}, but the gradient {given}")
        if mode.recorder is not None:
            mode.recorder.write(self, "_grad")
        self._grad = value

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor. Can be set on leaves."""
        return (self._edge if self._view is None else self._current_edge()) is not None

    @requires_grad.setter
    def requires_grad(self, needed: bool) -> None:
        if bool(needed) == self.requires_grad:
            return
        if not self.is_leaf:
            raise RuntimeError(
                "requires_grad can only be changed on leaves; use detach() for a tensor without gradient"
            )
        if needed and not is_floating(self._data.dtype):
            raise RuntimeError(f"requires_grad: only floating tensors have gradients, got dtype {self.dtype}")
        from .graph import leaf_edge

        if mode.recorder is not None:
            mode.recorder.write(self, "requires_grad")
        self._edge = leaf_edge(self) if needed else None

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` and return the tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad_fn(self) -> Operation | None:
        """The node of the operation that made this tensor, None for a leaf."""
        edge = self._edge if self._view is None else self._current_edge()
        return None if edge is None or not edge.node.edges else edge.node

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self.grad_fn is None

    @property
    def output_nr(self) -> int:
        """Which output of `grad_fn` this is."""
        return 0 if self._edge is None else self._edge.index

    @property
    def _version(self) -> int:
        return self._versions[0]

    def _current_edge(self) -> Edge | None:
        """The edge of a view, made anew after a change of the memory that it shows."""
        view = self._view
        if view is not None and view.version != self._versions[0]:
            if view.steps is not None and view.base.requires_grad:
                before, mode.grad = mode.grad, True
                try:
                    self._set_edge(replay(view.steps, view.base)._edge)
                finally:
                    mode.grad = before
            elif view.steps is None and self._edge is not None:
                raise RuntimeError(
                    "a view that a Function returned was changed in place, itself or through its base: its gradient "
                    "is not known any more; return a clone from the Function"
                )
            view.version = self._versions[0]
        return self._edge

    def _set_edge(self, edge: Edge | None) -> None:
        """Have gradients go to `edge` from now on, and with them what `retain_grad` asked for."""
        self._edge = edge
        if self.retains_grad and edge is not None:
            from .graph import keep_gradient

            keep_gradient(self)

    def backward(
        self,
        gradient: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        """Add the gradient of this tensor to `grad` of the leaves it came from (only of `inputs` where given)."""
        from .gradients import backward

        backward(self, gradient, retain_graph, create_graph, inputs)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `hook(grad)` when the gradient of this tensor is known; what it returns replaces the gradient."""
        edge = self._edge if self._view is None else self._current_edge()
        if edge is None:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        return edge.node.own_hooks().add("before_output", edge.index, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `hook(tensor)` after a gradient was added to `grad` of this leaf."""
        if self._edge is None or not self.is_leaf:
            raise RuntimeError("register_post_accumulate_grad_hook: expected a leaf that requires a gradient")
        return self._edge.node.own_hooks().add("accumulated", 0, hook)

    def retain_grad(self) -> None:
        """Have backward fill `grad` of this tensor although it is not a leaf."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad: this tensor does not require a gradient")
        if not self.is_leaf and not self.retains_grad:
            from .graph import keep_gradient

            keep_gradient(self)
            self.retains_grad = True

    def detach(self) -> Tensor:
        """The same array without a gradient. It shares the version count, so changing it is noticed."""
        if mode.recorder is not None:
            mode.recorder.uses(self)
        return wrap(self._data, None, self._versions)

    def detach_(self) -> Tensor:
        """Cut this tensor from the graph."""
        if self._view is not None:
            raise RuntimeError("detach_: this tensor is a view; use detach()")
        self._edge = None
        return self


def wrap(array: Any, edge: Edge | None = None, versions: list[int] | None = None) -> Tensor:
    """A Tensor over `array`, which must be a NumPy or CuPy array: no check, no conversion."""
    tensor = Tensor.__new__(Tensor)
    tensor._data = array
    tensor._versions = [0] if versions is None else versions
    if edge is not None:
        tensor._edge = edge
    return tensor


def as_array(data: Any, dtype: Any = None) -> Any:
    """The array of a tensor, an array itself, or anything else as a new array on the default device."""
    if isinstance(data, Tensor):
        array = data._data
    elif backend.is_array(data):
        array = np.asarray(data) if isinstance(data, np.generic) else data
    else:
        array = _from_python(data)
        if (device := backend.default_device()).type != "cpu":
            bring = backend.constant if isinstance(data, bool | int | float) else backend.transfer
            array = bring(array if dtype is None else array.astype(as_dtype(dtype)), device)
    dtype = as_dtype(array.dtype if dtype is None else dtype)
    return array if array.dtype == dtype else array.astype(dtype)


def _from_python(data: Any) -> np.ndarray:
    """Nested lists of numbers, arrays or tensors as one NumPy array; a Python float counts as the default dtype."""
    dtypes: set[np.dtype] = set()
    try:
        array = np.asarray(_without_tensors(data, dtypes))
    except ValueError as error:
        raise ValueError(f"tensor: expected numbers in a regular shape ({error})") from error
    if array.dtype.kind not in "biufV":
        raise TypeError(f"tensor: expected numbers, got {type(data).__name__} that NumPy reads as {array.dtype}")
    floats = [as_dtype(dtype) for dtype in dtypes if dtype.kind in "fV"]
    if array.dtype.kind in "fV":
        array = array.astype(functools.reduce(promote_types, floats) if floats else get_default_dtype(), copy=False)
    return array


def _without_tensors(value: Any, dtypes: set[np.dtype]) -> Any:
    """Nested lists with the arrays of tensors in their places; `dtypes` collects what arrays and floats count as."""
    if isinstance(value, list | tuple):
        return [_without_tensors(item, dtypes) for item in value]
    if isinstance(value, Tensor):
        value = backend.transfer(value._data, backend.CPU)
    if isinstance(value, float | np.ndarray | np.generic):
        dtypes.add(getattr(value, "dtype", get_default_dtype()))
    return value


def _rebuild(kind: type[Tensor], array: Any, device: str | None, requires_grad: bool) -> Tensor:
    tensor = kind.__new__(kind)
    Tensor.__init__(
        tensor, array if device is None else backend.transfer(array, backend.as_device(device)), requires_grad
    )
    return tensor
