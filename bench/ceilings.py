"""What this machine can do at best, measured: a time's floor is bytes and operations over these."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .library import THREADS, Library


class Ceilings(NamedTuple):
    """Rates of a device."""

    bandwidth: float  # bytes per second, read and written ones together, while copying
    rates: dict[str, float]  # operations per second in a matrix product, by dtype or tf32

    def floor(self, bytes: int, operations: int, arithmetic: str) -> float | None:
        """The least seconds for so many bytes and operations; None where neither is given."""
        if not bytes and not operations:
            return None
        return max(bytes / self.bandwidth, operations / self.rates[arithmetic])


def measure(device: str, peer: Library | None, quick: bool = False) -> Ceilings:
    """The best of what NumPy or CuPy and the peer reach."""
    return _cuda(quick) if device == "cuda" else _cpu(peer, quick)


def _best(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _cpu(peer: Library | None, quick: bool) -> Ceilings:
    # Far beyond the last cache, and cut into one part for each thread.
    size, side, repeats = (1 << 22, 512, 2) if quick else (1 << 26, 2048, 10)
    source, target = np.ones(size, np.float32), np.empty(size, np.float32)
    parts = [slice(i * size // THREADS, (i + 1) * size // THREADS) for i in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        seconds = _best(lambda: list(pool.map(lambda p: np.copyto(target[p], source[p]), parts)), repeats)
    rates = {}
    for dtype in ("float32", "float64"):
        a = np.ones((side, side), dtype)
        runs: list[Callable[[], object]] = [lambda a=a: a @ a]  # type: ignore[misc]
        if peer is not None:
            b = peer.tensor(a)
            runs.append(lambda b=b: b @ b)  # type: ignore[misc]
        rates[dtype] = 2 * side**3 / min(_best(run, repeats) for run in runs)
    return Ceilings(2 * source.nbytes / seconds, rates)


def _cuda(quick: bool) -> Ceilings:
    import cupy

    def best(run: Callable[[], object]) -> float:
        def synchronous() -> None:
            run()
            cupy.cuda.Device().synchronize()

        return _best(synchronous, 3 if quick else 10)

    source = cupy.ones(1 << 24 if quick else 1 << 28, np.float32)
    target = cupy.empty_like(source)
    seconds = best(lambda: cupy.copyto(target, source))
    side = 1024 if quick else 8192
    rates = {}
    for dtype in ("float32", "float64", "float16"):
        a = cupy.ones((side, side), dtype)
        rates[dtype] = 2 * side**3 / best(lambda a=a: a @ a)  # type: ignore[misc]
    # Tensor cores take both half types at one rate, of which CuPy multiplies one, and since Ampere TF32 at half of
    # it. Three products in TF32 make one that is as exact as float32's.
    rates["bfloat16"] = rates["float16"]
    tensor_cores_take_tf32 = int(cupy.cuda.Device().compute_capability) >= 80
    rates["tf32"] = rates["float16"] / 2 if tensor_cores_take_tf32 else rates["float32"]
    rates["float32"] = max(rates["float32"], rates["tf32"] / 3)
    return Ceilings(2 * source.nbytes / seconds, rates)
