"""The two sides of a comparison behind one face: both have PyTorch's names, so a case is written once."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Library:
    """A library on a device: its modules, its tensors, its clock."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = name
        self.device = device
        self.module: ModuleType = importlib.import_module(name)
        self.version: str = self.module.__version__
        self.nn: Any = self.module.nn
        self.functional: Any = self.module.nn.functional
        self.optim: Any = self.module.optim
        self.grad: Callable[..., Any] = self.module.autograd.grad

    def tensor(self, array: np.ndarray, dtype: str | None = None, requires_grad: bool = False) -> Any:
        """A tensor of the array's values on the library's device; `dtype` by its name."""
        tensor = self.module.tensor(array, device=self.device)
        if dtype is not None:
            tensor = tensor.to(getattr(self.module, dtype))
        return tensor.requires_grad_() if requires_grad else tensor

    def array(self, tensor: Any) -> np.ndarray:
        """The values in float64 on the CPU."""
        return tensor.detach().to(self.module.float64).cpu().numpy()

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


def load_ours(device: str) -> Library:
    """adjoint on the device."""
    library = Library("adjoint", device)
    if device == "cuda":
        library.tensor(np.zeros(1, np.float32))  # raises with what is missing
    return library


def load_peer(name: str, device: str) -> Library:
    """The other library, with as many threads as there are processors and without TF32."""
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
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return library
