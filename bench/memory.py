"""`python -m bench.memory LIBRARY`: the most bytes by which the process grows in five LeNet-5 steps."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from .library import Library, load_ours, load_peer
from .suites.train import lenet_step

PROC = Path("/proc/self")
STEPS = 5


def _from_proc(field: str) -> int:
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def growth(library: Library) -> int:
    """The peak of resident memory during the steps less what was resident before the first."""
    step = lenet_step(library, "float32")
    if PROC.exists():
        (PROC / "clear_refs").write_text("5")  # the peak begins anew: importing may have had a higher one
        before = _from_proc("VmRSS")
    else:
        before = _peak_since_start()
    for _ in range(STEPS):
        step()
    return (_from_proc("VmHWM") if PROC.exists() else _peak_since_start()) - before


def _peak_since_start() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    name = sys.argv[1]
    print(growth(load_ours("cpu") if name == "adjoint" else load_peer(name, "cpu")))
