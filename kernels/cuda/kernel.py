"""A kernel's source text, and its machine code for any architecture, which needs no device."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE_FOLDER = Path(__file__).parent / "src"

# The options of every kernel. CuPy adds the architecture, its include folders and -ftz=true.
OPTIONS = ("--std=c++17",)

OLDEST_CAPABILITY = 70  # of a device: 10 times its compute capability

_INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*$', re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One variant of a kernel: a file, and the C++ name of a function in it with its template arguments.

    `least` is the capability that a device needs to run it; `only` the architecture whose instructions it has where
    no newer one has them, such as "sm_90a".
    """

    source: str
    name: str
    folder: Path = SOURCE_FOLDER
    least: int = OLDEST_CAPABILITY
    only: str | None = None

    def runs_on(self, capability: int) -> bool:
        return capability == self.least if self.only else capability >= self.least

    def text(self) -> str:
        """The source with our own headers put in place of their `#include` lines."""
        return _inlined(self.folder / self.source)

    def __str__(self) -> str:
        return f"{self.name} ({self.source})"


@dataclass(frozen=True)
class Compiled:
    """One kernel in the machine code of one architecture, and what the compiler's log says of it."""

    cubin: bytes
    symbol: str  # the kernel's name in it
    log: str


def compile_for(kernels: Sequence[Kernel], arch: str) -> dict[Kernel, Compiled]:
    """Compile kernels of one source for an architecture such as "sm_90", which needs no device.

    Raises RuntimeError with the compiler's log if they do not compile.
    """
    from cupy._core.core import assemble_cupy_compiler_options
    from cupy.cuda import compiler

    # What CuPy itself passes for a RawModule, so that the report is about the code that will run.
    options = assemble_cupy_compiler_options(OPTIONS)
    options += ("-ftz=true", f"-arch={arch}", "--device-as-default-execution-space", "-Xptxas", "-v")
    names = tuple(kernel.name for kernel in kernels)
    program = compiler._NVRTCProgram(kernels[0].text(), kernels[0].source, name_expressions=names, method="cubin")
    log = io.StringIO()
    try:
        cubin, symbols = program.compile(options, log)
    except compiler.CompileException as error:
        raise compile_error(kernels, error, f" for {arch}") from error
    entries = {entry.partition("'")[0]: entry for entry in log.getvalue().split("Compiling entry function '")}
    cubin += b"\0"  # CuPy takes the last byte, which is zero, for the end of a text
    found = {kernel: symbols[kernel.name] for kernel in kernels}
    return {kernel: Compiled(cubin, symbol, entries[symbol]) for kernel, symbol in found.items()}


def compile_error(kernels: Sequence[Kernel], error: Exception, target: str = "") -> RuntimeError:
    hint = ""
    if "could not open source file" in str(error):
        hint = "\nCUDA's headers are missing: pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'"
    elif "invalid value for --gpu-architecture" in str(error):
        hint = "\nThis NVRTC does not know the architecture: Volta needs cupy-cuda12x, a new device a newer CuPy"
    names = ", ".join(map(str, kernels))
    return RuntimeError(f"{names}: compilation failed{target}:\n{error}{hint}")


@cache
def _inlined(path: Path) -> str:
    # CuPy's cache knows the source's text only: a header left as an #include could change unseen.
    seen: set[str] = set()

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(replacement, (SOURCE_FOLDER / name).read_text())

    return _INCLUDE.sub(replacement, path.read_text())
