"""Build a kernel's source with the host's C++ compiler and run it on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from adjoint.kernels.cuda.launch import SOURCE_FOLDER, Kernel
from adjoint.kernels.cuda.variants import all_variants

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE", f"-I{HERE}")
PLAIN = ("-O2",)
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PARALLEL_BUILDS = 2
# Variants in one library. More of them share the time for the headers, fewer are built side by side.
VARIANTS_PER_LIBRARY = 12


class CudaOnHostError(RuntimeError):
    """A kernel did what no device can run: a barrier that not all threads reach, a wrong mask, a trap."""


def compiler() -> str | None:
    """The path of the C++ compiler, None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


class HostLauncher:
    """Takes the place of `CupyLauncher`. New arrays are filled with not-a-number.

    `seed` shuffles the order of blocks and threads (None: in order). `sanitize` builds with AddressSanitizer
    and UBSan, whose library must have been loaded before Python: see `run_under_sanitizers`.
    """

    def __init__(self, seed: int | None = None, sanitize: bool = False) -> None:
        self.seed = seed
        self.flags = (*FLAGS, *(SANITIZE if sanitize else PLAIN))
        self.launches: list[Kernel] = []

    def is_array(self, value: Any) -> bool:
        return isinstance(value, np.ndarray) and value.dtype.names is None

    def device(self, array: Any) -> Any:
        return "host"

    def pointer(self, array: Any) -> int:
        return array.ctypes.data

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        array = np.empty(tuple(shape), dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Any],
        shared_bytes: int,
        device: Any,
    ) -> None:
        entry = _entry(kernel, self.flags)
        given = [_type_name(arg) for arg in args]
        if not _matches(given, entry.signature):
            raise TypeError(f"{kernel}: its parameters are {entry.signature}, the arguments are {given}")
        holders = [_holder(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(holders))(*(ctypes.addressof(holder) for holder in holders))
        sizes = (ctypes.c_uint * 6)(*grid, *block)
        seed = 0 if self.seed is None else 2 * self.seed + 1
        self.launches.append(kernel)
        with entry.lock:
            message = entry.launch(sizes, shared_bytes, seed, pointers)
        if message is not None:
            raise CudaOnHostError(f"{kernel}: {message.decode()}")


class _Entry:
    def __init__(self, library: ctypes.CDLL, number: int, lock: threading.Lock) -> None:
        signature = library[f"signature_{number}"]
        signature.restype = ctypes.c_char_p
        self.signature = signature().decode().split()
        self.launch = library[f"launch_{number}"]
        self.launch.restype = ctypes.c_char_p
        self.launch.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p]
        self.lock = lock


def build_all(kernels: Sequence[Kernel], flags: tuple[str, ...]) -> None:
    """Build the libraries of these kernels, two at a time."""
    libraries = list(dict.fromkeys(_library_of(kernel) for kernel in kernels))
    with ThreadPoolExecutor(PARALLEL_BUILDS) as pool:
        list(pool.map(lambda library: _build(library, flags), libraries))


_listed_by_tests: list[Kernel] = []


def list_kernels(kernels: Sequence[Kernel]) -> None:
    """Say which kernels a test's own source has, so that they are built together, not one by one."""
    _listed_by_tests.extend(kernel for kernel in kernels if kernel not in _listed_by_tests)


def _of_same_source(kernel: Kernel) -> list[Kernel]:
    known = [*all_variants(), *_listed_by_tests]
    return [other for other in known if (other.folder, other.source) == (kernel.folder, kernel.source)]


def _library_of(kernel: Kernel) -> tuple[Kernel, ...]:
    """The kernels that are built together with this one."""
    listed = _of_same_source(kernel)
    if kernel not in listed:
        if kernel.folder != SOURCE_FOLDER:
            return (kernel,)
        raise LookupError(f"{kernel} is launched but not listed in its module's VARIANTS")
    start = listed.index(kernel) // VARIANTS_PER_LIBRARY * VARIANTS_PER_LIBRARY
    return tuple(listed[start : start + VARIANTS_PER_LIBRARY])


@cache
def _entry(kernel: Kernel, flags: tuple[str, ...]) -> _Entry:
    kernels = _library_of(kernel)
    _build_source(tuple(_of_same_source(kernel)), flags)
    library, lock = _loaded(kernels, flags)
    return _Entry(library, kernels.index(kernel), lock)


@cache
def _build_source(kernels: tuple[Kernel, ...], flags: tuple[str, ...]) -> None:
    """Whoever launches one kernel of a source launches others: build their libraries side by side."""
    build_all(kernels, flags)


@cache
def _loaded(kernels: tuple[Kernel, ...], flags: tuple[str, ...]) -> tuple[ctypes.CDLL, threading.Lock]:
    return ctypes.CDLL(str(_build(kernels, flags))), threading.Lock()


def _build(kernels: tuple[Kernel, ...], flags: tuple[str, ...]) -> Path:
    text = _translation_unit(kernels)
    key = hashlib.sha256("\0".join([_compiler_version(), *flags, _headers(), text]).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adjoint" / "cuda_on_host"
    target = folder / f"{Path(kernels[0].source).stem}-{key}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        source, library = Path(temporary) / "kernels.cpp", Path(temporary) / "kernels.so"
        source.write_text(text)
        command = [compiler() or "g++", *flags, str(source), "-o", str(library)]
        # The compiler itself need not run under a preloaded sanitizer.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            raise RuntimeError(f"{kernels[0].source} does not compile on the host:\n{result.stderr[:8000]}")
        os.replace(library, target)
    return target


def _translation_unit(kernels: tuple[Kernel, ...]) -> str:
    # In an anonymous namespace, because AddressSanitizer does not guard the static (here: shared) arrays of
    # templates that other files might define too.
    lines = ['#include "cuda_on_host.h"', "namespace {", f'#line 1 "{kernels[0].source}"', kernels[0].text()]
    lines += ["}"]
    lines += [f"CUDA_ON_HOST_ENTRY({number}, {kernel.name})" for number, kernel in enumerate(kernels)]
    return "\n".join(lines)


@cache
def _headers() -> str:
    return "".join(path.read_text() for path in sorted(HERE.glob("*.h")))


@cache
def _compiler_version() -> str:
    return subprocess.run([compiler() or "g++", "--version"], capture_output=True, text=True).stdout


def _type_name(arg: Any) -> str:
    if arg is None:
        return "*"
    if isinstance(arg, np.generic):
        return arg.dtype.name
    return f"struct{arg.dtype.itemsize}" if arg.dtype.names else f"*{arg.dtype.name}"


def _matches(given: list[str], wanted: list[str]) -> bool:
    if len(given) != len(wanted):
        return False
    null, any_pointer = "*", "*void"
    return all(
        g == w or (g == null and w[0] == "*") or (g[0] == "*" and w == any_pointer)
        for g, w in zip(given, wanted, strict=True)
    )


def _holder(arg: Any) -> Any:
    """A ctypes object whose memory is the parameter."""
    if arg is None:
        return ctypes.c_void_p(None)
    if isinstance(arg, np.ndarray) and arg.dtype.names is None:
        return ctypes.c_void_p(arg.ctypes.data)
    return ctypes.create_string_buffer(arg.tobytes(), arg.dtype.itemsize)
