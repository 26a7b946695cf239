"""Build kernels' sources with the host's C++ compiler into libraries, which are kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adjoint.kernels.cuda.kernel import SOURCE_FOLDER, Kernel
from adjoint.kernels.cuda.variants import all_variants

HERE = Path(__file__).parent
PARALLEL_BUILDS = 2
# Variants in one library. More of them share the time for the headers, fewer are built side by side.
VARIANTS_PER_LIBRARY = 12


@dataclass(frozen=True)
class Build:
    """How kernels are built: flags of their own, and a file that is built without them and linked."""

    flags: tuple[str, ...]
    with_file: str | None = None


COMMON = ("-std=c++17", "-fPIC", "-fno-threadsafe-statics", "-w", "-U_FORTIFY_SOURCE", f"-I{HERE}")
PLAIN = Build(("-O2",))
SANITIZE = Build(("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
# Each access of a kernel stays one access: nothing is split, merged, or made a call of memset.
TRACE = Build(
    tuple(
        "-O2 -DCUDA_ON_HOST_TRACE -fsanitize=thread -fno-tree-sra -fno-ipa-sra -fno-tree-vectorize "
        "-fno-tree-slp-vectorize -fno-store-merging -fno-tree-loop-distribute-patterns -fno-tree-tail-merge "
        "-fno-crossjumping -fno-thread-jumps -fno-optimize-sibling-calls".split()
    ),
    with_file="trace.cpp",
)


def compiler() -> str | None:
    """The path of the C++ compiler, None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


class Entry:
    """One kernel in a library that is loaded. Only one launch may run in a library at a time: hence the lock."""

    def __init__(self, library: ctypes.CDLL, number: int, lock: threading.Lock) -> None:
        signature = library[f"signature_{number}"]
        signature.restype = ctypes.c_char_p
        self.signature = signature().decode().split()
        self.library = library
        self.launch = library[f"launch_{number}"]
        self.launch.restype = ctypes.c_char_p
        self.launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.lock = lock


def build_all(kernels: Sequence[Kernel], how: Build) -> None:
    """Build the libraries of these kernels, two at a time."""
    libraries = list(dict.fromkeys(_library_of(kernel, how) for kernel in kernels))
    with ThreadPoolExecutor(PARALLEL_BUILDS) as pool:
        list(pool.map(lambda library: _library_file(library, how), libraries))


_listed_by_tests: list[Kernel] = []


def list_kernels(kernels: Sequence[Kernel]) -> None:
    """Say which kernels a test's own source has, so that they are built together, not one by one."""
    _listed_by_tests.extend(kernel for kernel in kernels if kernel not in _listed_by_tests)


def _of_same_source(kernel: Kernel) -> list[Kernel]:
    known = [*all_variants(), *_listed_by_tests]
    return [other for other in known if (other.folder, other.source) == (kernel.folder, kernel.source)]


_traced: dict[Kernel, tuple[Kernel, ...]] = {}


def build_traced(kernels: Sequence[Kernel]) -> None:
    """Build these kernels for traced runs, those of one source together. Others are built one by one."""
    for source in dict.fromkeys((kernel.folder, kernel.source) for kernel in kernels):
        of_source = [kernel for kernel in kernels if (kernel.folder, kernel.source) == source and kernel not in _traced]
        for start in range(0, len(of_source), VARIANTS_PER_LIBRARY):
            group = tuple(of_source[start : start + VARIANTS_PER_LIBRARY])
            _traced.update(dict.fromkeys(group, group))
    build_all(kernels, TRACE)


def _library_of(kernel: Kernel, how: Build) -> tuple[Kernel, ...]:
    """The kernels that are built together with this one."""
    listed = _of_same_source(kernel)
    if how is TRACE and kernel.folder == SOURCE_FOLDER:
        return _traced.get(kernel, (kernel,))
    if kernel not in listed:
        if kernel.folder != SOURCE_FOLDER:
            return (kernel,)
        raise LookupError(f"{kernel} is launched but not listed in its module's VARIANTS")
    start = listed.index(kernel) // VARIANTS_PER_LIBRARY * VARIANTS_PER_LIBRARY
    return tuple(listed[start : start + VARIANTS_PER_LIBRARY])


@cache
def entry(kernel: Kernel, how: Build) -> Entry:
    kernels = _library_of(kernel, how)
    _build_source(tuple(_of_same_source(kernel)) if how is not TRACE else kernels, how)
    library, lock = _loaded(kernels, how)
    return Entry(library, kernels.index(kernel), lock)


@cache
def _build_source(kernels: tuple[Kernel, ...], how: Build) -> None:
    """Whoever launches one kernel of a source launches others: build their libraries side by side."""
    build_all(kernels, how)


@cache
def _loaded(kernels: tuple[Kernel, ...], how: Build) -> tuple[ctypes.CDLL, threading.Lock]:
    return ctypes.CDLL(str(_library_file(kernels, how))), threading.Lock()


def _library_file(kernels: tuple[Kernel, ...], how: Build) -> Path:
    text = _translation_unit(kernels)
    others = [_other_object(how.with_file)] if how.with_file else []

    def build(target: Path) -> None:
        source = target.with_suffix(".cpp")
        source.write_text(text)
        try:
            _run_compiler(*how.flags, "-c", str(source), "-o", str(target.with_suffix(".o")))
        except subprocess.CalledProcessError as error:
            message = f"{kernels[0].source} does not compile on the host:\n{error.stderr[:8000]}"
            raise RuntimeError(message) from None
        sanitizers = [flag for flag in how.flags if flag.startswith("-fsanitize") and not others]
        _run_compiler(*sanitizers, "-shared", str(target.with_suffix(".o")), *map(str, others), "-o", str(target))

    parts = (*how.flags, _headers(), "".join(other.name for other in others), text)
    return _kept(f"{Path(kernels[0].source).stem}.so", parts, build)


@cache
def _other_object(name: str) -> Path:
    source = HERE / name
    flags = ("-O2", "-DCUDA_ON_HOST_TRACE", "-c", str(source))
    return _kept(
        f"{source.stem}.o",
        (*flags, _headers(), source.read_text()),
        lambda target: _run_compiler(*flags, "-o", str(target)),
    )


def _kept(name: str, parts: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The file that `build` makes from `parts`, from the user's cache folder where it is there."""
    key = "\0".join([_compiler_version(), *COMMON, *parts])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adjoint" / "cuda_on_host"
    stem, suffix = os.path.splitext(name)
    path = folder / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / name
            build(built)
            os.replace(built, path)
    return path


def _run_compiler(*arguments: str) -> None:
    # The compiler itself need not run under a preloaded sanitizer.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler() or "g++", *COMMON, *arguments]
    subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


_SHARED_VARIABLE = re.compile(r"__shared__\s[^;#]*?\b(\w+)\s*(\[[^;#]*\])?\s*;")
_SHARED_VARIABLES = re.compile(r"__shared__\s[^;#]*\]\s*,[^;#]*;")


def _translation_unit(kernels: tuple[Kernel, ...]) -> str:
    several = _SHARED_VARIABLES.search(kernels[0].text())
    if several:
        raise ValueError(f"{kernels[0].source}: declare shared variables one by one, not as in `{several.group()}`")
    # The runner must know shared variables, which are static here; no attribute puts those of templates in a section.
    text = _SHARED_VARIABLE.sub(r"\g<0> CUDA_ON_HOST_SHARED_VARIABLE(\g<1>);", kernels[0].text())
    # In an anonymous namespace, because AddressSanitizer does not guard the static (here: shared) arrays of
    # templates that other files might define too.
    lines = ['#include "cuda_on_host.h"', "namespace {", f'#line 1 "{kernels[0].source}"', text]
    lines += ["}"]
    lines += [f"CUDA_ON_HOST_ENTRY({number}, {kernel.name})" for number, kernel in enumerate(kernels)]
    return "\n".join(lines)


@cache
def _headers() -> str:
    return "".join(path.read_text() for path in sorted(HERE.glob("*.h")))


@cache
def _compiler_version() -> str:
    return subprocess.run([compiler() or "g++", "--version"], capture_output=True, text=True).stdout
