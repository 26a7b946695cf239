"""What was measured on: the device, versions, ceilings, and who else was using it."""

from __future__ import annotations

import os
import platform
import time
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .ceilings import Ceilings
from .library import THREADS, Library

# More processors than this in use by others spoil a measurement.
QUIET = 0.2
STAT = Path("/proc/stat")


class Others:
    """How many processors other processes have used since this object was made; None where that is not known.

    Threads that wait for each other at barriers, as PyTorch's do, lose far more by it than those that do not.
    """

    def __init__(self) -> None:
        self._start = self._now()

    def processors(self) -> float | None:
        """The mean number of processors."""
        if self._start is None or (now := self._now()) is None:
            return None
        (wall, all_busy, own), (wall_before, all_before, own_before) = now, self._start
        return max(0.0, (all_busy - all_before - (own - own_before)) / (wall - wall_before))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Wall-clock time, seconds of work of all processors, and of this process with its children."""
        if not STAT.exists():
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split(maxsplit=9)[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, sum(os.times()[:4])


def describe(ours: Library, peer: Library | None, ceilings: Ceilings) -> dict[str, Any]:
    """Device, versions, threads and ceilings."""
    names = ("numpy", "cupy-cuda12x", "cupy-cuda13x")
    versions = {name: metadata.version(name) for name in names if _installed(name)}
    versions |= {library.name: library.version for library in (ours, peer) if library is not None}
    return {
        "device": device_name(ours.device),
        "threads": THREADS,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
        "bandwidth_bytes_per_s": ceilings.bandwidth,
        "matmul_operations_per_s": ceilings.rates,
        "others": {},
        "seconds": {},
        "failed": [],
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def headline(machine: dict[str, Any]) -> str:
    """The machine in a few lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    matmul = machine["matmul_operations_per_s"]
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in matmul.items())
    bandwidth = machine["bandwidth_bytes_per_s"] / 1e9
    threads = f"{machine['threads']} threads on both sides"
    return (
        f"{machine['device']}, {threads}\n{versions}\n"
        f"ceilings measured here: copy {bandwidth:,.1f} GB/s, matmul {rates}"
    )


def device_name(device: str) -> str:
    """The processor's or the GPU's own name."""
    if device == "cuda":
        import cupy

        return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model} ({os.cpu_count()} processors)"


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
