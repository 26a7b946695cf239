"""`cuda.capture`: a training step, forward, backward and optimizer, as one CUDA graph.

The first call with arguments of a kind runs the step as it is, which compiles kernels and makes the optimizer's state.
The second one captures: the step's Python runs once more and its kernels go into a graph instead of to the device; then
the graph runs. From the third call on only the graph runs. So each call is one step, as without capture, and nothing
has to be put back unless an error ends a capture, before which nothing has run on the device.
"""

from __future__ import annotations

import functools
import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from ..kernels.precision import get_float32_matmul_precision
from .backend import CPU, Device, as_device, cuda_is_in_use, module_of, on_device
from .dtypes import get_default_dtype
from .grad_mode import mode
from .recorder import NotReady, Recorder
from .tensor import Tensor, wrap
from .user_code import raising_place

P = ParamSpec("P")
R = TypeVar("R")

_MOST_WAITING = 64  # kinds of call that have come once


class CapturedStep(Generic[P, R]):
    """A step that `capture` returned. `graphs` says how many CUDA graphs it has."""

    def __init__(self, step: Callable[P, R]) -> None:
        if not callable(step):
            raise TypeError(f"capture: expected a function, got {type(step).__name__}")
        if isinstance(step, CapturedStep):
            raise TypeError("capture: this step is captured already")
        self._step = step
        self._runs: dict[Any, list[_Run]] = {}
        self._waiting: deque[tuple[Any, _Run]] = deque()  # those without a graph, some of which may have one by now
        self._has_warned = False
        functools.update_wrapper(self, step, updated=())

    @property
    def graphs(self) -> int:
        """How many CUDA graphs there are: one for each kind of call, and none on the CPU."""
        return sum(run.graph is not None for runs in self._runs.values() for run in runs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """A step. Tensors that it returns are the caller's own and have no gradient."""
        name = getattr(self, "__name__", "step")
        if mode.captured is not None:
            raise RuntimeError(
                f"capture: {name} is called within {mode.captured}, which is captured as well; captures cannot be "
                f"nested: call {name}.__wrapped__ there"
            )
        arguments = _Arguments((args, kwargs))
        mode.captured = name
        try:
            if arguments.device == CPU:
                return self._as_it_is(arguments)
            with on_device(arguments.device):
                return self._on_gpu(arguments)
        finally:
            mode.captured = None

    def _on_gpu(self, arguments: _Arguments) -> Any:
        key = arguments.key, _surroundings()
        runs = self._runs.setdefault(key, [])
        runs[:] = [run for run in runs if not run.recorder.is_outdated()]
        run = next((run for run in runs if run.recorder.holds()), None)
        if run is not None and run.graph is not None:
            return run.graph.replay(arguments)
        if run is not None and not run.recorder.ran_on_gpu:
            return self._as_it_is(arguments)
        if run is not None:
            runs.remove(run)
            with suppress(NotReady):
                graph = _Graph(self._step, arguments)
                runs.append(_Run(graph.recorder, graph))
                return graph.first(arguments)
        return self._plain(key, runs, arguments)

    def _as_it_is(self, arguments: _Arguments) -> Any:
        args, kwargs = arguments.value
        return _detached(self._step(*args, **kwargs))

    def _plain(self, key: Any, runs: list[_Run], arguments: _Arguments) -> Any:
        """Run the step as it is, and remember what kind of call it was."""
        with Recorder() as recorder:
            result = self._as_it_is(arguments)
        recorder.settle()
        runs.append(_Run(recorder, None))
        self._waiting.append((key, runs[-1]))
        if len(self._waiting) > _MOST_WAITING:
            self._forget(*self._waiting.popleft())
        return result

    def _forget(self, key: Any, run: _Run) -> None:
        """Let go of a call that came once, so that calls which never repeat do not fill the memory."""
        runs = self._runs.get(key, [])
        if run not in runs:
            return
        runs.remove(run)
        if not runs:
            del self._runs[key]
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"capture: {getattr(self, '__name__', 'step')} was called in more than {_MOST_WAITING} ways that came "
                "only once: other shapes or other values. Such calls run as they are; a number that changes from call "
                "to call should be a tensor",
                RuntimeWarning,
                stacklevel=5,
            )

    def __reduce__(self) -> Any:
        return type(self), (self._step,)  # a copy has no graphs yet

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<captured {self._step!r}>"


def capture(step: Callable[P, R]) -> CapturedStep[P, R]:
    """`step` as a function that on a GPU runs as one CUDA graph, and on the CPU as it is.

    `step(...)` takes tensors, numbers and other hashable values, nested in tuples, lists and dicts, and does a whole
    step of training: forward, backward, optimizer. A new kind of call (shapes, dtypes, other values, train or eval
    mode, which gradients there are) is captured at its second call. What needs a value on the host while captured is a
    RuntimeError with the line of the program; nothing has changed then. See docs/capture.md.
    """
    return CapturedStep(step)


@dataclass(eq=False)
class _Run:
    """One kind of call: what it looked at on the host, and its graph once there is one."""

    recorder: Recorder
    graph: _Graph | None


class _Arguments:
    """The arguments of a call: which tensors there are, and of what kind the call is."""

    def __init__(self, value: tuple[Any, Any]) -> None:
        self.value = value
        self.tensors: list[Tensor] = []  # whose contents are the input, each once
        self._places: dict[int, int] = {}
        self.key = self._key(value)
        gpus = {tensor.device for tensor in self.tensors if tensor.is_cuda}
        if len(gpus) > 1:
            raise ValueError(f"capture: the arguments are on several GPUs: {', '.join(sorted(map(str, gpus)))}")
        # Without a tensor on a GPU among the arguments the step may still know some from outside.
        self.device: Device = gpus.pop() if gpus else as_device("cuda") if cuda_is_in_use() else CPU

    def _key(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor_key(value)
        if isinstance(value, tuple | list):
            return type(value), *(self._key(item) for item in value)
        if isinstance(value, dict):
            return dict, *((name, self._key(item)) for name, item in value.items())
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"capture: expected tensors, and other values that are hashable, in tuples, lists and dicts; got "
                f"{type(value).__name__}"
            ) from None
        return type(value), value

    def _tensor_key(self, tensor: Tensor) -> Any:
        if tensor.requires_grad:
            raise ValueError(
                f"capture: an argument of shape {tensor.shape} requires a gradient, which cannot leave a captured "
                "step: take parameters from the scope around it, and call detach().requires_grad_() of inputs within it"
            )
        place = self._places.get(id(tensor))
        if place is None:
            place = self._places[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        strides = None if tensor.is_contiguous() else tensor.stride()
        number = tensor.item() if not tensor.is_cuda and tensor.numel() == 1 else None  # no graph would see another
        return Tensor, place, tensor.shape, tensor.dtype, tensor.device, strides, number

    def replaced(self, tensors: list[Tensor]) -> Any:
        """The arguments with `tensors` in the places of the given ones."""
        return _mapped(self.value, lambda tensor: tensors[self._places[id(tensor)]])


class _Graph:
    """A captured step, its memory, and what belongs to it on the host."""

    def __init__(self, step: Callable[..., Any], arguments: _Arguments) -> None:
        from ..kernels.cuda import graph
        from ..kernels.cuda.replay import Slots, recording

        for tensor in arguments.tensors:
            if not tensor.is_cuda and tensor.numel() > 1:
                raise RuntimeError(
                    f"capture: an argument of shape {tensor.shape} is on the CPU, where a CUDA graph cannot read it: "
                    "copy it to the GPU before the call"
                )
        self.memory = graph.Memory()
        self.recorder = Recorder(self.memory)
        self.slots = Slots(self.recorder.actions, graph.Memory())
        module = module_of(arguments.device)
        with self.memory.used():
            self.inputs = [
                wrap(module.empty_like(tensor._data)) if tensor.is_cuda else tensor for tensor in arguments.tensors
            ]
        args, kwargs = arguments.replaced(self.inputs)
        try:
            with self.recorder, recording(self.slots):
                self.graph, self.result = graph.capture(lambda: _returned(step, args, kwargs), self.memory)
        except BaseException as error:
            self.recorder.roll_back()
            if isinstance(error, Exception) and not isinstance(error, NotReady):
                place = raising_place(error.__traceback__)
                where = f", at\n  {place}" if place is not None else ""
                error.add_note(f"This happened while adjoint captured the step in a CUDA graph{where}")
            raise
        gc.collect()  # of cycles in the step nothing may be left that looks as if it were from outside
        self.recorder.settle()
        self.changed_inputs = [i for i, tensor in enumerate(self.inputs) if tensor.is_cuda and tensor._version]

    def first(self, arguments: _Arguments) -> Any:
        """Run the graph after its capture, which has done all that is to be done on the host."""
        self._run(arguments)
        return self._results(arguments)

    def replay(self, arguments: _Arguments) -> Any:
        """A step: what it does on the host, and the graph."""
        for field in self.recorder.fields:
            field.begin()
        for action in self.recorder.actions:
            action()
        self._run(arguments)
        for versions in self.recorder.changed:
            versions[0] += 1
        for field in self.recorder.fields:
            field.end()
        return self._results(arguments)

    def _run(self, arguments: _Arguments) -> None:
        for own, given in zip(self.inputs, arguments.tensors, strict=True):
            if own is not given:
                own._data[...] = given._data
        self.slots.put()
        self.graph.launch()
        for i in self.changed_inputs:
            given = arguments.tensors[i]
            given._data[...] = self.inputs[i]._data
            given._versions[0] += 1

    def _results(self, arguments: _Arguments) -> Any:
        return _mapped(self.result, lambda tensor: self._given_back(tensor, arguments))

    def _given_back(self, tensor: Tensor, arguments: _Arguments) -> Tensor:
        """A tensor of the result: the given one, one from outside of the step, or a copy that no replay changes."""
        for own, given in zip(self.inputs, arguments.tensors, strict=True):
            if tensor is own:
                return given
        if not tensor.is_cuda or not self.memory.holds(tensor._data):
            return tensor
        return wrap(tensor._data.copy())


def _surroundings() -> tuple[Any, ...]:
    """What beside the arguments decides which kernels a step launches."""
    return mode.grad, get_default_dtype(), get_float32_matmul_precision()


def _returned(step: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What the step returns, detached; a TypeError where there might be tensors that replays would write over."""
    result = step(*args, **kwargs)
    for value in _leaves(result):
        if value is not None and not isinstance(value, Tensor | int | float | complex | str | np.generic):
            raise TypeError(
                f"capture: {getattr(step, '__name__', 'the step')} returned a {type(value).__name__}; expected "
                "tensors, numbers and strings, in tuples, lists and dicts"
            )
    return _detached(result)


def _leaves(value: Any) -> Iterator[Any]:
    """What is in tuples, lists and dicts."""
    if isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def _detached(result: Any) -> Any:
    return _mapped(result, lambda tensor: tensor if tensor.is_leaf else tensor.detach())


def _mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` of each tensor in its place."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, function) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {name: _mapped(item, function) for name, item in value.items()}
    return value
