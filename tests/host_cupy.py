"""A stand-in for CuPy on machines without a GPU: its arrays lie in host memory, its kernels run on the host.

What a captured graph depends on is as on a device: while a stream is captured nothing runs, and afterwards a graph
knows addresses and no objects. Memory that was given back, to a pool or to the device, shows when a replay uses it.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from adjoint.kernels.cuda.kernel import Kernel
from cuda_on_host import HostLauncher

__name__ = "cupy"  # in the lines that an error has passed, and as the module of the classes

UNIT = 512  # bytes: what sizes in a pool are rounded to
POISON = 0xFF  # not-a-number, and the index -1


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime answers."""


# ---- memory

_segments: dict[int, weakref.ref[Memory]] = {}
_numbers = itertools.count()


class Memory:
    """Memory of the device, which goes back when the object goes."""

    def __init__(self, size: int) -> None:
        self.size, self.device_id, self.number = size, 0, next(_numbers)
        whole = np.full(size + 256, POISON, np.uint8)
        start = -whole.ctypes.data % 256
        self.bytes = whole[start : start + size]
        self.ptr = self.bytes.ctypes.data
        number = self.number
        _segments[number] = weakref.ref(self, lambda _: _segments.pop(number, None))

    @staticmethod
    def live_bytes() -> int:
        """Bytes that are taken from the device."""
        return sum(memory.size for reference in list(_segments.values()) if (memory := reference()) is not None)


def segment_of(address: int) -> Memory | None:
    """The memory in which an address lies."""
    for reference in list(_segments.values()):
        memory = reference()
        if memory is not None and memory.ptr <= address < memory.ptr + max(memory.size, 1):
            return memory
    return None


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int) -> None:
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id


class PooledMemory:
    """A block of a pool, which it knows only weakly."""

    def __init__(self, segment: Memory, pool: MemoryPool) -> None:
        self.ptr, self.size, self.device_id, self.pool = segment.ptr, segment.size, 0, weakref.ref(pool)

    def __del__(self) -> None:
        pool = self.pool()
        if pool is not None:
            pool.free(self.ptr)


class MemoryPool:
    """Freed blocks serve again at once."""

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._in_use: dict[int, Memory] = {}
        self._free: defaultdict[int, list[Memory]] = defaultdict(list)

    def malloc(self, nbytes: int) -> MemoryPointer:
        size = max(-(-nbytes // UNIT), 1) * UNIT
        free = self._free[size]
        segment = free.pop() if free else self._allocator(size).mem
        self._in_use[segment.ptr] = segment
        return MemoryPointer(PooledMemory(segment, self), 0)

    def free(self, ptr: int) -> None:
        segment = self._in_use.pop(ptr)
        self._free[segment.size].append(segment)

    def free_all_blocks(self) -> None:
        self._free.clear()


class _Thread(threading.local):
    allocator: Callable[[int], MemoryPointer] | None = None
    stream: Stream | None = None


_default_pool = MemoryPool()
_thread = _Thread()


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer]) -> Iterator[None]:
    before, _thread.allocator = _thread.allocator, allocator
    try:
        yield
    finally:
        _thread.allocator = before


# ---- streams and graphs


class Graph:
    """What was launched while a stream was captured."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work
        self.launches = 0

    def launch(self) -> None:
        if current().captured is not None:
            raise CUDARuntimeError("the graph's launch would become part of another graph")
        self.launches += 1
        with np.errstate(all="ignore"):
            for run in self.work:
                run()


class Stream:
    """A stream; `open_captures` says how many are being captured."""

    open_captures = 0

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.captured: list[Callable[[], None]] | None = None
        self.broken = False
        self._outer: list[Stream | None] = []

    def __enter__(self) -> Stream:
        self._outer.append(_thread.stream)
        _thread.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        _thread.stream = self._outer.pop()

    def begin_capture(self) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.captured, self.broken = [], False
        Stream.open_captures += 1

    def end_capture(self) -> Graph:
        work, self.captured = self.captured, None
        Stream.open_captures -= 1
        if work is None or self.broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        return Graph(work)

    def is_capturing(self) -> bool:
        return self.captured is not None

    def synchronize(self) -> None:
        must_not_be_captured("synchronize")


_null = Stream(null=True)


def current() -> Stream:
    return _thread.stream or _null


def must_not_be_captured(what: str) -> None:
    """What waits for the device breaks a capture."""
    stream = current()
    if stream.captured is not None:
        stream.broken = True
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


def queue(run: Callable[[], None]) -> None:
    """Run now, or at each launch of the graph that is being captured."""
    captured = current().captured
    if captured is not None:
        captured.append(run)
        return
    with np.errstate(all="ignore"):
        run()


# ---- arrays


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
        segment = _segments.get(self.number, lambda: None)()
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
    memory = (_thread.allocator or _default_pool.malloc)(nbytes)
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
    staged = _staging.allocator(host.nbytes).view(host.dtype).reshape(host.shape)
    staged[...] = host
    put = View(result)
    queue(lambda: put.host().__setitem__(..., staged))
    staged.reshape(-1).view(np.uint8).fill(POISON)
    return result


class _Staging:
    """Pinned memory of the host."""

    def __init__(self) -> None:
        self.allocator: Callable[[int], np.ndarray] = self.malloc

    def malloc(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)


_staging = _Staging()


def set_pinned_memory_allocator(allocator: Callable[[int], np.ndarray]) -> None:
    _staging.allocator = allocator


def concatenate(arrays: Sequence[ndarray], axis: int = 0) -> ndarray:
    """Many small arrays go into one kernel, which gets their addresses."""
    if len(arrays) > 8:
        asarray(np.array([array.host.ctypes.data for array in arrays]))
    return compute(np.concatenate, (list(arrays),), {"axis": axis})


def _full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    result = empty(shape, np.asarray(value).dtype if dtype is None else dtype)
    result.fill(value)
    return result


def _empty_like(array: ndarray) -> ndarray:
    return empty(array.shape, array.dtype)


# ---- the module


class Device:
    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __str__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Module(ModuleType):
    """The module `cupy`: what is not defined here is NumPy's, on these arrays."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)  # an AttributeError where NumPy has none
        if not callable(function) or isinstance(function, type):
            return function

        def call(*args: Any, **options: Any) -> Any:
            if not arrays_in(args):  # arange, eye and the like run on the device too
                host = function(*args, **options)
                result = empty(host.shape, host.dtype)
                put = View(result)
                queue(lambda: put.host().__setitem__(..., host))
                return result
            return compute(function, args, options)

        return call


def module() -> ModuleType:
    cupy: Any = Module("cupy")
    cupy.ndarray, cupy.asarray, cupy.empty, cupy.full, cupy.empty_like = ndarray, asarray, empty, _full, _empty_like
    cupy.zeros = lambda shape, dtype=float: _full(shape, 0, dtype)
    cupy.ones = lambda shape, dtype=float: _full(shape, 1, dtype)
    cupy.concatenate = concatenate
    cupy.asnumpy = lambda array: array.get()
    cupy.get_default_memory_pool = lambda: _default_pool
    cupy.get_default_pinned_memory_pool = lambda: _staging
    cupy.cuda = SimpleNamespace(
        Device=Device, Stream=Stream, Graph=Graph, Memory=Memory, MemoryPool=MemoryPool, MemoryPointer=MemoryPointer,
        UnownedMemory=UnownedMemory, using_allocator=using_allocator, get_current_stream=current,
        set_pinned_memory_allocator=set_pinned_memory_allocator,
        runtime=SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0),
    )  # fmt: skip
    return cupy


class Launcher(HostLauncher):
    """Runs kernels on these arrays, in a graph as well."""

    def is_array(self, value: Any) -> bool:
        return isinstance(value, ndarray)

    def device(self, array: Any) -> Any:
        return array.device

    def pointer(self, array: Any) -> int:
        return array.data.ptr

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        return empty(shape, dtype)

    def flat(self, array: Any, size: int) -> Any:
        return ndarray(super().flat(array.host, size), array._memory, array)

    def free_cached_memory(self, device: Any) -> None:
        must_not_be_captured("free")
        _default_pool.free_all_blocks()

    def captures(self, array: Any) -> bool:
        return current().is_capturing()

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Any],
        shared_bytes: int,
        device: Any,
        reached: Sequence[Any] = (),
    ) -> None:
        # A launch takes structs by value, and knows addresses only.
        given = [arg.copy() if isinstance(arg, np.ndarray) else with_views(arg) for arg in args]
        others = [View(array) for array in reached]

        def run() -> None:
            on_host(others)
            HostLauncher.run(self, kernel, grid, block, [on_host(arg) for arg in given], shared_bytes, "host")

        queue(run)
