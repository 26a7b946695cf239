"""Arrays in the device's memory, and NumPy's functions of them, which run now or go into a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from .memory import POISON, CUDARuntimeError, allocate, segment_of, segments, staging
from .streams import Device, current, must_not_be_captured, queue

__name__ = "cupy"  # in the lines that an error has passed, and as the module of the classes


class View:
    """A place in memory, as a graph knows it: no object keeps it."""

    def __init__(self, array: ndarray) -> None:
        host = array.host
        self.size, self.shape, self.strides, self.dtype = host.size, host.shape, host.strides, host.dtype
        if self.size:
            low, high = np.lib.array_utils.byte_bounds(host)
            segment = segment_of(low)
            assert segment is not None and high <= segment.ptr + segment.size
            self.number, self.offset = segment.number, host.ctypes.data - segment.ptr

    def host(self) -> np.ndarray:
        if not self.size:
            return np.empty(self.shape, self.dtype)
        segment = segments.get(self.number, lambda: None)()
        if segment is None:
            raise CUDARuntimeError("cudaErrorIllegalAddress: a graph uses memory that was given back")
        return np.ndarray(self.shape, self.dtype, segment.bytes, self.offset, self.strides)


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the device. `host` is its memory, which only this module may touch."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray, data: Any, base: ndarray | None = None) -> None:
        self._host, self._memory, self.base = host, data, base
        self.device = Device(0)

    @property
    def host(self) -> np.ndarray:
        if self._host.size and segment_of(self._host.ctypes.data) is None:
            raise CUDARuntimeError("cudaErrorIllegalAddress: an array in memory that was given back")
        return self._host

    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    flags = property(lambda self: self.host.flags)
    T = property(lambda self: compute(np.transpose, (self,), {}))

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.host.ctypes.data, mem=self._memory)

    def __len__(self) -> int:
        return len(self.host)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return compute(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function in (np.nonzero, np.unique):
            must_not_be_captured(function.__name__)
        return compute(function, args, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(name)
        if name in ("nonzero", "item", "tolist"):
            must_not_be_captured(name)
            if name != "nonzero":
                return getattr(self.host, name)

        def method(*args: Any, **options: Any) -> Any:
            return compute(lambda host, *rest, **more: getattr(host, name)(*rest, **more), (self, *args), options)

        return method

    def __getitem__(self, key: Any) -> Any:
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, ndarray) and part.dtype == bool:
                must_not_be_captured("a mask")
        return compute(lambda host, key: host[key], (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        no_host_arrays((value,))
        store(lambda host, key, value: host.__setitem__(key, value), self, (key, value))

    def fill(self, value: Any) -> None:
        store(lambda host, value: host.fill(value), self, (value,))

    def get(self) -> np.ndarray:
        must_not_be_captured("get")
        return self.host.copy()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __bool__(self) -> bool:
        must_not_be_captured("bool")
        return bool(self.host)

    def __float__(self) -> float:
        must_not_be_captured("float")
        return float(self.host)

    def __int__(self) -> int:
        must_not_be_captured("int")
        return int(self.host)


def no_host_arrays(values: Any) -> None:
    if any(isinstance(value, np.ndarray) for value in values):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")


def with_views(value: Any) -> Any:
    """Arguments as a graph keeps them."""
    if isinstance(value, ndarray):
        return View(value)
    if isinstance(value, tuple | list):
        return type(value)(with_views(item) for item in value)
    return value


def on_host(value: Any) -> Any:
    """Arguments as NumPy takes them."""
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, View):
        return value.host()
    if isinstance(value, tuple | list):
        return type(value)(on_host(item) for item in value)
    return value


def arrays_in(value: Any) -> list[ndarray]:
    if isinstance(value, tuple | list):
        return [array for item in value for array in arrays_in(item)]
    return [value] if isinstance(value, ndarray) else []


def compute(function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
    """`function` of arrays of the device: views of them, or new arrays."""
    out = options.pop("out", None)
    out = out[0] if isinstance(out, tuple) else out
    no_host_arrays(args)
    if out is not None:
        store(lambda host, *rest: function(*rest, out=host, **options), out, tuple(args))
        return out
    with np.errstate(all="ignore"):
        result = function(*on_host(tuple(args)), **on_host_options(options))
    return wrap(result, function, tuple(args), options, lambda found: found)


def on_host_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: on_host(value) for name, value in options.items()}


def wrap(result: Any, function: Any, args: Any, options: dict[str, Any], pick: Callable[[Any], Any]) -> Any:
    if isinstance(result, tuple | list):
        parts = [
            wrap(part, function, args, options, partial(lambda i, found: pick(found)[i], i))
            for i, part in enumerate(result)
        ]
        return parts if isinstance(result, list) else tuple(parts)
    if not isinstance(result, np.ndarray | np.generic):
        return result
    result = np.asarray(result)
    for source in arrays_in(args):
        if result is source.host:
            return source
        if result.size and np.may_share_memory(result, source.host):
            return ndarray(result, source._memory, source if source.base is None else source.base)
    new = empty(result.shape, result.dtype)
    kept = with_views(args)
    put = View(new)

    def run() -> None:
        put.host()[...] = pick(function(*on_host(kept), **on_host_options(options)))

    queue(run)
    return new


def store(function: Callable[..., Any], target: ndarray, args: Any) -> None:
    """Have `function` change `target` in place."""
    kept, put = with_views(args), View(target)
    queue(lambda: function(put.host(), *on_host(kept)))


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    memory = allocate(nbytes)
    segment = segment_of(memory.ptr)
    assert segment is not None
    start = memory.ptr - segment.ptr
    host = segment.bytes[start : start + nbytes].view(dtype).reshape(shape)
    if current().captured is None:
        host.reshape(-1).view(np.uint8).fill(POISON)
    return ndarray(host, memory)


def asarray(value: Any, dtype: Any = None) -> ndarray:
    if isinstance(value, ndarray):
        return value if dtype is None or value.dtype == dtype else value.astype(dtype)
    host = np.array(value, dtype)
    result = empty(host.shape, host.dtype)
    if not host.ndim:
        result.fill(host[()])
        return result
    # Through memory that serves others once the copy is done, also where the copy has only become part of a graph.
    staged = staging.allocator(host.nbytes).view(host.dtype).reshape(host.shape)
    staged[...] = host
    put = View(result)
    queue(lambda: put.host().__setitem__(..., staged))
    staged.reshape(-1).view(np.uint8).fill(POISON)
    return result


def concatenate(arrays: Sequence[ndarray], axis: int = 0) -> ndarray:
    """Many small arrays go into one kernel, which gets their addresses."""
    if len(arrays) > 8:
        asarray(np.array([array.host.ctypes.data for array in arrays]))
    return compute(np.concatenate, (list(arrays),), {"axis": axis})


def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    result = empty(shape, np.asarray(value).dtype if dtype is None else dtype)
    result.fill(value)
    return result


def empty_like(array: ndarray) -> ndarray:
    return empty(array.shape, array.dtype)
