"""New tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import as_device, constant, default_device, device_of, is_array, module_of, on_device, transfer
from ..dtypes import as_dtype, bool_, get_default_dtype, int64
from ..tensor import Tensor, as_array, wrap
from .define import public
from .shape import sizes_of


def finished(array: Any, requires_grad: bool) -> Tensor:
    """A new tensor over `array`, as leaf."""
    tensor = wrap(array)
    if requires_grad:
        tensor.requires_grad = True
    return tensor


def lengths_of(name: str, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of a new tensor, given as f(2, 3) or f((2, 3))."""
    shape = sizes_of(name, sizes)
    if min(shape, default=0) < 0:
        raise ValueError(f"{name}: expected sizes of at least 0, got {shape}")
    return shape


@public(method=False)
def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A copy of numbers, nested lists, an array or a tensor.

    Python's floats become the default dtype, its integers int64. A tensor or CuPy array stays on its device,
    everything else goes to the default one, unless `device` is given.
    """
    array = as_array(data, dtype)
    if device is not None:
        place = as_device(device)
    elif isinstance(data, Tensor) or not isinstance(array, np.ndarray):
        place = device_of(array)
    else:
        place = default_device()
    result = (constant if isinstance(data, bool | int | float) else transfer)(array, place)
    given = data._data if isinstance(data, Tensor) else data
    foreign = not (is_array(given) or isinstance(given, list | tuple | int | float))  # may share its memory with NumPy
    return finished(result.copy() if result is given or foreign else result, requires_grad)


@public(method=False)
def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """`data` itself where it is a tensor as asked for, else a tensor that shares its array if it can."""
    if isinstance(data, Tensor):
        return data.to(dtype=dtype, device=device)
    array = as_array(data, dtype)
    return wrap(array if device is None else transfer(array, as_device(device)))


asarray = as_tensor


@public(method=False)
def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the CPU that shares the memory of a NumPy array."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a NumPy array, got {type(array).__name__}")
    return wrap(as_array(array))


@public(method=False)
def from_dlpack(source: Any) -> Tensor:
    """A tensor that shares the memory of any object with `__dlpack__` (PyTorch's, JAX's, CuPy's, …)."""
    if isinstance(source, Tensor):
        return source
    if not hasattr(source, "__dlpack__"):
        raise TypeError(f"from_dlpack: expected an object with __dlpack__, got {type(source).__name__}")
    on_cpu = int(source.__dlpack_device__()[0]) == 1  # DLPack's kDLCPU
    return wrap(as_array(module_of(as_device("cpu" if on_cpu else "cuda")).from_dlpack(source)))


def _new(shape: tuple[int, ...], value: Any, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    """A tensor of one value, or with memory as it comes where `value` is None."""
    kind = get_default_dtype() if dtype is None else as_dtype(dtype)
    place = as_device(device)
    with on_device(place):
        module = module_of(place)
        if value is None:
            return finished(module.empty(shape, kind), requires_grad)
        return finished(module.zeros(shape, kind) if value == 0 else module.full(shape, value, kind), requires_grad)


@public(method=False)
def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros: `zeros(2, 3)` or `zeros((2, 3))`."""
    return _new(lengths_of("zeros", size), 0, dtype, device, requires_grad)


@public(method=False)
def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones: `ones(2, 3)` or `ones((2, 3))`."""
    return _new(lengths_of("ones", size), 1, dtype, device, requires_grad)


@public(method=False)
def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor whose elements have not been set."""
    return _new(lengths_of("empty", size), None, dtype, device, requires_grad)


@public(method=False)
def full(size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of one value; without `dtype` a bool gives bool, an int int64, a float the default dtype."""
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    if dtype is None:
        dtype = bool_ if isinstance(value, bool) else int64 if isinstance(value, int) else get_default_dtype()
    return _new(lengths_of("full", (size,)), value, dtype, device, requires_grad)


def _like(input: Tensor, value: Any, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    place = input.device if device is None else device
    return _new(input.shape, value, input.dtype if dtype is None else dtype, place, requires_grad)


@public(method=False)
def zeros_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros in the shape and dtype and on the device of `input`."""
    return _like(input, 0, dtype, device, requires_grad)


@public(method=False)
def ones_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones in the shape and dtype and on the device of `input`."""
    return _like(input, 1, dtype, device, requires_grad)


@public(method=False)
def empty_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor in the shape and dtype and on the device of `input`, whose elements have not been set."""
    return _like(input, None, dtype, device, requires_grad)


@public(method=False)
def full_like(
    input: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """One value in the shape and dtype and on the device of `input`."""
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    return _like(input, value, dtype, device, requires_grad)


def _new_method(name: str, value: Any) -> None:
    def method(self: Tensor, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        place = self.device if device is None else device
        return _new(lengths_of(name, size), value, self.dtype if dtype is None else dtype, place, requires_grad)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"`{name.removeprefix('new_')}` in the dtype and on the device of this tensor."
    setattr(Tensor, name, method)


for _name, _fill in {"new_zeros": 0, "new_ones": 1, "new_empty": None}.items():
    _new_method(_name, _fill)


def _new_full(
    self: Tensor,
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`full` in the dtype and on the device of this tensor."""
    place = self.device if device is None else device
    kind = self.dtype if dtype is None else dtype
    return full(size, fill_value, dtype=kind, device=place, requires_grad=requires_grad)


def _new_tensor(
    self: Tensor, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """`tensor(data)` in the dtype and on the device of this tensor."""
    place = self.device if device is None else device
    return tensor(data, dtype=self.dtype if dtype is None else dtype, device=place, requires_grad=requires_grad)


Tensor.new_full = _new_full  # type: ignore[attr-defined]
Tensor.new_tensor = _new_tensor  # type: ignore[attr-defined]


@public(method=False)
def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … up to `end`, which is left out: int64 for integers, else the default dtype."""
    first, last = (0, start) if end is None else (start, end)
    first, last, step = (x.item() if hasattr(x, "item") else x for x in (first, last, step))
    if step == 0 or not math.isfinite(last - first) or (last - first) * step < 0:
        raise ValueError(f"arange: a step of {step} does not lead from {first} to {last}")
    whole = all(isinstance(x, int) for x in (first, last, step))
    kind = as_dtype(dtype) if dtype is not None else int64 if whole else get_default_dtype()
    place = as_device(device)
    with on_device(place):
        count = -((first - last) // step) if whole else math.ceil((last - first) / step)
        steps = module_of(place).arange(count, dtype=np.int64 if whole else np.float64)
        return finished((first + steps * step).astype(kind, copy=False), requires_grad)


@public(method=False)
def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` numbers at equal distances, from `start` to `end`, both included."""
    (steps,) = lengths_of("linspace", (steps,))
    kind = get_default_dtype() if dtype is None else as_dtype(dtype)
    place = as_device(device)
    with on_device(place):
        return finished(module_of(place).linspace(start, end, steps, dtype=np.float64).astype(kind), requires_grad)


@public(method=False)
def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A matrix (n, m) with ones on the diagonal and zeros elsewhere; m is n by default."""
    rows, columns = lengths_of("eye", (n, n if m is None else m))
    kind = get_default_dtype() if dtype is None else as_dtype(dtype)
    place = as_device(device)
    with on_device(place):
        return finished(module_of(place).eye(rows, columns, dtype=kind), requires_grad)
