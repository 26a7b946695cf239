"""Compile kernels for any architecture, without a device, and read what they use from log and machine code."""

from __future__ import annotations

import importlib
import importlib.metadata
import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from . import machine_code, user_cache
from .kernel import OLDEST_CAPABILITY, OPTIONS, Kernel, compile_for

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
OLDER_ARCHITECTURES = ("sm_70",)  # the last that NVRTC 12 compiles for, and NVRTC 13 does not

_MOST_WORKERS = 16

_HOW_TO_INSTALL = (
    "pip install 'cupy-cuda12x[ctk]' (or 'cupy-cuda13x[ctk]'); to compile on a machine without a GPU, this is "
    "enough: pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12"
)


@dataclass(frozen=True)
class Resources:
    """What one kernel uses on one architecture. Stack and spills lie in device memory."""

    kernel: Kernel
    arch: str
    registers: int
    shared_bytes: int  # static; dynamic shared memory is given at the launch
    stack_bytes: int
    spill_bytes: int
    seconds: float
    # Products on tensor cores among the inner loop's instructions: between these (machine_code.tensor_share).
    least_tensor_share: float | None = None
    most_tensor_share: float | None = None

    @property
    def tensor_share(self) -> str:
        """For a table."""
        if self.least_tensor_share is None or self.most_tensor_share is None:
            return "-"
        return f"{100 * self.least_tensor_share:.0f}-{self.most_tensor_share:.0%}"


def architectures() -> tuple[str, ...]:
    """The default architectures that the installed NVRTC knows."""
    major, _ = require_compiler()
    return (*OLDER_ARCHITECTURES, *ARCHITECTURES) if major <= 12 else ARCHITECTURES


def require_compiler() -> tuple[int, int]:
    """The version of NVRTC. Raises RuntimeError, with what to install, where CuPy or NVRTC is missing."""
    try:
        importlib.import_module("cupy")
        return importlib.import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"compiling kernels needs CuPy, NVRTC and CUDA's headers: {error}\n{_HOW_TO_INSTALL}"
        ) from error


def compile_kernels(
    kernels: Sequence[Kernel], archs: Sequence[str], together: int = 1, workers: int | None = None
) -> Iterator[Resources]:
    """Compile each kernel for each architecture that runs it, in `workers` processes (None: as many as cores).

    Up to `together` kernels of one source are compiled at once, which spares time, but hides how long each
    one takes. Raises RuntimeError with the names and the compiler's log for what does not compile.
    """
    require_compiler()
    jobs = [
        (group, arch)
        for arch in archs
        for group in _groups([kernel for kernel in kernels if runs_on(kernel, arch)], together)
    ]
    if not jobs:
        return
    # NVRTC compiles one program at a time in a process. Spawned, because forks inherit locks that threads may
    # hold.
    workers = min(workers or os.cpu_count() or 1, _MOST_WORKERS, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_compile, group, arch) for group, arch in jobs]
        try:
            for future in futures:
                yield from future.result()
        finally:
            for future in futures:
                future.cancel()


def runs_on(kernel: Kernel, arch: str) -> bool:
    """Whether devices of an architecture such as "sm_90" run the kernel."""
    return kernel.runs_on(_capability(arch))


def resources_of(kernels: Sequence[Kernel], archs: Sequence[str], together: int = 20) -> Iterator[Resources]:
    """As `compile_kernels`, but what the same compiler said of the same text before is read from the user's cache.

    Only what compiled is kept, so that nothing which fails is hidden.
    """
    require_compiler()
    unknown: dict[tuple[Kernel, ...], list[str]] = {}
    for arch in archs:
        rows = {kernel: _kept(kernel, arch) for kernel in kernels if runs_on(kernel, arch)}
        yield from (row for row in rows.values() if row is not None)
        unknown.setdefault(tuple(kernel for kernel, row in rows.items() if row is None), []).append(arch)
    for some, of_archs in unknown.items():
        for row in compile_kernels(some, of_archs, together):
            _keep(row)
            yield row


def table(rows: Sequence[Resources]) -> str:
    """The resources as text, one line each."""
    heading = ("kernel", "arch", "registers", "shared", "stack", "spills", "tensor", "seconds")
    cells = [heading] + [
        (
            str(row.kernel),
            row.arch,
            *(str(n) for n in (row.registers, row.shared_bytes, row.stack_bytes, row.spill_bytes)),
            row.tensor_share,
            f"{row.seconds:.2f}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _kept(kernel: Kernel, arch: str) -> Resources | None:
    try:
        return Resources(kernel=kernel, arch=arch, **user_cache.read(_file(kernel, arch)) or {})
    except TypeError:  # other fields, or none
        return None


def _keep(row: Resources) -> None:
    numbers = {field.name: getattr(row, field.name) for field in fields(row) if field.name not in ("kernel", "arch")}
    user_cache.write(_file(row.kernel, row.arch), numbers)


def _file(kernel: Kernel, arch: str) -> Path:
    return user_cache.file("resources", _compiler_name(), *OPTIONS, arch, kernel.name, kernel.text(), _reader())


@cache
def _reader() -> str:
    """What reads the machine code."""
    return Path(machine_code.__file__).read_text()


@cache
def _compiler_name() -> str:
    """What the result depends on besides the text: the compiler, CuPy's options, CUDA's headers."""
    installed = {
        distribution.name: distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.name and distribution.name.startswith(("cupy", "nvidia-cuda"))
    }
    return f"{require_compiler()} {sorted(installed.items())}"


def _groups(kernels: Sequence[Kernel], size: int) -> Iterator[list[Kernel]]:
    for source in dict.fromkeys((kernel.source, kernel.only) for kernel in kernels):
        of_source = [kernel for kernel in kernels if (kernel.source, kernel.only) == source]
        for start in range(0, len(of_source), size):
            yield of_source[start : start + size]


def _compile(kernels: Sequence[Kernel], arch: str) -> list[Resources]:
    start = time.perf_counter()
    compiled = compile_for(kernels, kernels[0].only or arch)
    seconds = (time.perf_counter() - start) / len(kernels)
    shares = {
        kernel: machine_code.tensor_share(one.cubin, one.symbol, _capability(arch)) or (None, None)
        for kernel, one in compiled.items()
    }
    return [
        Resources(
            kernel,
            arch,
            registers=_largest(one.log, r"Used (\d+) registers"),
            shared_bytes=_largest(one.log, r"(\d+) bytes smem", least=0),
            stack_bytes=_largest(one.log, r"(\d+) bytes stack frame"),
            spill_bytes=sum(_largest(one.log, rf"(\d+) bytes spill {way}") for way in ("stores", "loads")),
            seconds=seconds,
            least_tensor_share=shares[kernel][0],
            most_tensor_share=shares[kernel][1],
        )
        for kernel, one in compiled.items()
    ]


def _capability(arch: str) -> int:
    number = re.fullmatch(r"sm_(\d+)a?", arch)
    if number is None:
        raise RuntimeError(f"an architecture is named as in sm_90, got {arch!r}")
    if int(number[1]) < OLDEST_CAPABILITY:
        raise RuntimeError(f"the kernels need sm_{OLDEST_CAPABILITY} or newer, got {arch}")
    return int(number[1])


def _largest(log: str, pattern: str, least: int | None = None) -> int:
    numbers = [int(number) for number in re.findall(pattern, log)]
    if not numbers and least is None:
        raise RuntimeError(f"the compiler's log has no {pattern!r}:\n{log}")
    return max(numbers, default=least or 0)
