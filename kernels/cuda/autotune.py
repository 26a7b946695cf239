"""ADJOINT_CONV_AUTOTUNE=1: which kernel runs a convolution is measured, once for each problem and device.

All variants that can run the problem do so, each a few times, and the fastest is remembered: in this process, and in
the user's cache folder (~/.cache/adjoint/conv) for later ones. What is remembered counts for one device, driver, CuPy
and text of the kernels. While a stream is captured nothing is measured: what is not known yet is chosen by the table
of `conv_choice.py`, as without the variable. Variants add in different orders, so that results may differ by rounding
from one choice to another; with the same choice they repeat bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import conv_choice, launch, user_cache
from .conv_choice import Problem, Variant
from .kernel import SOURCE_FOLDER

VARIABLE = "ADJOINT_CONV_AUTOTUNE"
MEASUREMENTS = 5
HOPELESS = 3.0  # times the best so far: measured twice is enough

Run = Callable[[Variant], None]

_known: dict[tuple[str, ...], Variant] = {}
_lock = threading.Lock()


def choose(problem: Problem, details: Any, run: Run, like: Any) -> Variant:
    """The variant for a problem: the table's, or with ADJOINT_CONV_AUTOTUNE=1 the fastest.

    `details` is what besides the problem makes one launch differ from another: shapes, strides, epilogues. `run`
    computes the whole result with a variant, on the device of the array `like`.
    """
    if os.environ.get(VARIABLE) != "1":
        return conv_choice.choose(problem)
    with _lock:
        return _fastest(problem, details, run, like)


def forget() -> None:
    """Of what was measured keep only what is on disk."""
    _known.clear()


def _fastest(problem: Problem, details: Any, run: Run, like: Any) -> Variant:
    key = (launch.description(like), _sources(), repr(problem), repr(details))
    if key in _known:
        return _known[key]
    by_table = conv_choice.choose(problem)
    candidates = list(dict.fromkeys([by_table, *conv_choice.candidates(problem)]))
    path = user_cache.file("conv", *key)
    variant = _remembered(path, candidates)
    if variant is None:
        if launch.captures(like):
            return by_table
        variant = _measured(candidates, run, like, path, key)
    _known[key] = variant
    return variant


def _remembered(path: Path, candidates: Sequence[Variant]) -> Variant | None:
    name = (user_cache.read(path) or {}).get("variant")
    return next((variant for variant in candidates if repr(variant) == name), None)


def _measured(candidates: Sequence[Variant], run: Run, like: Any, path: Path, key: Sequence[str]) -> Variant:
    """The fastest; where none runs, the first, whose error its caller then meets."""
    seconds: dict[Variant, float] = {}
    failed: dict[Variant, Exception] = {}
    for variant in candidates:
        try:
            seconds[variant] = _seconds(variant, run, like, min(seconds.values(), default=float("inf")))
        except Exception as error:  # the others may do: a compiler, a driver or the memory refuses this one
            failed[variant] = error
    if failed:
        reasons = "".join(f"\n{variant}: {type(error).__name__}: {error}" for variant, error in failed.items())
        warnings.warn(f"{VARIABLE}: these kernels do not run here and are left out:{reasons}", RuntimeWarning, 2)
    if not seconds:
        return candidates[0]
    fastest = min(seconds, key=seconds.__getitem__)
    device, _, problem, details = key
    times = {repr(variant): taken for variant, taken in seconds.items()}
    user_cache.write(
        path, {"device": device, "problem": problem, "details": details, "variant": repr(fastest), "seconds": times}
    )
    return fastest


def _seconds(variant: Variant, run: Run, like: Any, best: float) -> float:
    run(variant)  # compiles and loads
    taken: list[float] = []
    while len(taken) < MEASUREMENTS and not (len(taken) == 2 and min(taken) > HOPELESS * best):
        taken.append(launch.seconds(lambda: run(variant), like))
    return statistics.median(taken)


@cache
def _sources() -> str:
    """A digest of all kernels and of what launches them."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCE_FOLDER.iterdir(), *Path(__file__).parent.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
