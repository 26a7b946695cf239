"""Run the CUDA sources on the host in tests.

A parity test takes the fixture `cuda_device`, made by `device_fixture()`; see `docs/contributing.md`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from adjoint.kernels.cuda import launch

from .build import build_all, build_traced, compiler, list_kernels
from .host_launcher import CudaOnHostError, HostLauncher
from .trace import StrayAccess, Trace

__all__ = [
    "CudaOnHostError",
    "Device",
    "HostLauncher",
    "StrayAccess",
    "Trace",
    "build_all",
    "build_traced",
    "compiler",
    "device_fixture",
    "installed",
    "list_kernels",
    "needs_compiler",
    "run_under_sanitizers",
    "sanitizing",
]

SANITIZING = "ADJOINT_CUDA_ON_HOST_SANITIZE"  # set in the subprocess of run_under_sanitizers
SHUFFLE_SEED = 20

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler (g++, or set CXX)")


def sanitizing() -> bool:
    """Whether this process is the one that `run_under_sanitizers` started."""
    return os.environ.get(SANITIZING) == "1"


@dataclass(frozen=True)
class Device:
    """Where a parity test runs its kernels: `put` brings a NumPy array there, `get` brings one back."""

    name: str
    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]


@contextmanager
def installed(launcher: launch.Launcher) -> Iterator[None]:
    """Let `launcher` run all kernels in this context."""
    before = launch.launcher
    launch.launcher = launcher
    try:
        yield
    finally:
        launch.launcher = before


def device_fixture() -> Any:
    """A fixture over the devices: the host in order and in shuffled order, and a GPU where there is one.

    In the process of `run_under_sanitizers` it is the host in shuffled order, with its build.
    """
    names = ["cuda-on-host"] if sanitizing() else ["cuda-on-host", "cuda-on-host-shuffled", "cuda"]

    @pytest.fixture(params=names)
    def cuda_device(request: pytest.FixtureRequest) -> Iterator[Device]:
        if request.param == "cuda":
            yield _gpu()
            return
        if compiler() is None:
            pytest.skip("needs a C++ compiler (g++, or set CXX)")
        shuffled = sanitizing() or request.param.endswith("shuffled")
        launcher = HostLauncher(seed=SHUFFLE_SEED if shuffled else None, sanitize=sanitizing())
        with installed(launcher):
            yield Device(request.param, lambda array: array, lambda array: array)

    return cuda_device


def _gpu() -> Device:
    cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install 'cupy-cuda12x[ctk]' (or 13x)")
    if not cupy.is_available():
        pytest.skip("needs a GPU: CuPy finds no CUDA device")
    return Device("cuda", cupy.asarray, cupy.asnumpy)


def run_under_sanitizers(*pytest_arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process in which the kernels are built with AddressSanitizer and UBSan.

    The sanitizer's library must come first in a process, before Python: hence a process of its own.
    """
    libraries = [_library("libasan.so"), _library("libubsan.so")]
    environment = {
        **os.environ,
        SANITIZING: "1",
        "LD_PRELOAD": ":".join(libraries),
        # Python does not free everything at its end; fibres leave no frames to look at after return.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *pytest_arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def _library(name: str) -> str:
    command = [compiler() or "g++", f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        pytest.skip(f"needs the compiler's {name}")
    return path
