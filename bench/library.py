"""The two sides of a comparison behind one face: both have PyTorch's names, so a case is written once."""

from __future__ import annotations

import copy
import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

CHANNELS_LAST = "channels_last"
# Random numbers are made once for so many elements and repeated. A prime, so that no two rows or images are alike.
BLOCK = 1_000_003
MOST_COMPARED = 1 << 22  # elements of a large result that are compared with float64

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Library:
    """A library on a device: its modules, its tensors, its clock.

    With `layout` channels_last images and windows lie with their channels last, which PyTorch knows and adjoint does
    not. With `captures` training steps are CUDA graphs.
    """

    layout = ""
    captures = False

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = name
        self.device = device
        self.module: ModuleType = importlib.import_module(name)
        self.version: str = self.module.__version__
        self.nn: Any = self.module.nn
        self.functional: Any = self.module.nn.functional
        self.optim: Any = self.module.optim
        self.grad: Callable[..., Any] = self.module.autograd.grad

    def variant(self, layout: str = "", captures: bool = False) -> Library:
        """The same library with another layout, or with steps that are captured."""
        other = copy.copy(self)
        other.layout, other.captures = layout, captures
        return other

    def tensor(self, array: np.ndarray, dtype: str | None = None, requires_grad: bool = False) -> Any:
        """A tensor of the array's values on the library's device; `dtype` by its name."""
        return self._finished(self.module.tensor(array, device=self.device), dtype, requires_grad)

    def normal(
        self,
        shape: Sequence[int],
        dtype: str = "float32",
        seed: int = 0,
        scale: float = 1.0,
        requires_grad: bool = False,
    ) -> Any:
        """Normally distributed numbers times `scale`, the same for every library; beyond BLOCK they repeat."""
        size = prod(shape)
        block = self.module.tensor(_normal(min(size, BLOCK), seed) * np.float32(scale), device=self.device)
        if size > BLOCK:
            block = self.module.tile(block, (-(-size // BLOCK),))[:size]
        return self._finished(block.reshape(tuple(shape)), dtype, requires_grad)

    def _finished(self, tensor: Any, dtype: str | None, requires_grad: bool) -> Any:
        if dtype is not None:
            tensor = tensor.to(getattr(self.module, dtype))
        if self.layout and tensor.ndim in (4, 5):
            tensor = tensor.contiguous(memory_format=self._memory_format(tensor.ndim))
        return tensor.requires_grad_() if requires_grad else tensor

    def _memory_format(self, ndim: int) -> Any:
        return self.module.channels_last if ndim == 4 else self.module.channels_last_3d

    def placed(self, model: Any, dtype: str) -> Any:
        """The model on the library's device, in its layout, with parameters of the dtype."""
        model = model.to(self.device).to(getattr(self.module, dtype))
        return model.to(memory_format=self._memory_format(4)) if self.layout else model

    def captured(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """The step as one CUDA graph where the library captures and there is a GPU, else the step."""
        if not self.captures or self.device == "cpu":
            return step
        if self.name == "adjoint":
            return self.module.cuda.capture(lambda: step())
        cuda = self.module.cuda
        aside = cuda.Stream()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(3):  # cuDNN chooses, workspaces and states are made
                step()
        cuda.current_stream().wait_stream(aside)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            outputs = step()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    @contextmanager
    def precision(self, name: str) -> Iterator[None]:
        """Within it float32 products and convolutions on a GPU are exact ("highest") or take TF32 ("high")."""
        before = self.module.get_float32_matmul_precision()
        self.set_precision(name)
        try:
            yield
        finally:
            self.set_precision(before)

    def set_precision(self, name: str) -> None:
        """As `precision`, from now on."""
        self.module.set_float32_matmul_precision(name)
        if self.name == "torch":  # whose setting leaves convolutions alone
            self.module.backends.cudnn.allow_tf32 = name != "highest"

    @contextmanager
    def once(self) -> Iterator[None]:
        """Within it cuDNN does not measure its algorithms: for results that are needed once."""
        backends = self.module.backends if self.name == "torch" else None
        before = backends and backends.cudnn.benchmark
        if backends:
            backends.cudnn.benchmark = False
        try:
            yield
        finally:
            if backends:
                backends.cudnn.benchmark = before

    def array(self, tensor: Any) -> np.ndarray:
        """The values in float64 on the CPU; of a large tensor evenly spaced ones."""
        tensor = tensor.detach()
        step = -(-tensor.numel() // MOST_COMPARED)
        if step > 1:
            tensor = tensor.reshape(-1)[:: step | 1]  # odd: all places in a tile have their turn
        return tensor.to(self.module.float64).cpu().numpy()

    def release(self) -> None:
        """Give cached memory of the GPU back, so that the other side can have it."""
        if self.device == "cpu":
            return
        if self.name == "torch":
            self.module.cuda.empty_cache()
        else:
            import cupy

            cupy.get_default_memory_pool().free_all_blocks()

    def elapsed(self, run: Callable[[], None]) -> float:
        """Seconds that `run` takes: wall-clock time on the CPU, time between two events on a GPU."""
        if self.device == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        return self._elapsed_torch(run) if self.name == "torch" else self._elapsed_cupy(run)

    def _elapsed_torch(self, run: Callable[[], None]) -> float:
        event = self.module.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        self.module.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _elapsed_cupy(self, run: Callable[[], None]) -> float:
        import cupy

        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        cupy.cuda.Device().synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) / 1e3


@lru_cache(maxsize=32)
def _normal(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def load_ours(device: str) -> Library:
    """adjoint on the device."""
    library = Library("adjoint", device)
    if device == "cuda":
        library.tensor(np.zeros(1, np.float32))  # raises with what is missing
    return library


def load_peer(name: str, device: str) -> Library:
    """The other library, with as many threads as there are processors; cuDNN measures what is fastest."""
    try:
        library = Library(name, device)
    except ImportError as error:
        message = f"--against {name}: {name} cannot be imported ({error}); pip install '.[peers]'"
        raise RuntimeError(message) from error
    torch = library.module
    torch.set_num_threads(THREADS)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"--against torch --device cuda: torch {torch.__version__} finds no GPU")
        torch.backends.cudnn.benchmark = True
        library.set_precision("highest")
    return library
