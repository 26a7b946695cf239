"""Samples of two or more sides taken in turn, and the numbers drawn from them. Knows nothing of libraries."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Runs something `count` times and returns the seconds of all runs together.
Sampler = Callable[[int], float]


# Quartiles further apart than this, as a ratio, mark a measurement that something else disturbed.
UNSTEADY = 1.5
ROUNDING = 1e-10  # an exact value so much smaller than another one is zero


class Plan(NamedTuple):
    """How long to measure."""

    samples: int  # of each side
    least: int  # samples of each side that are taken even when the budget is spent
    seconds: float  # length of one sample; short runs are repeated within it
    settle: float  # pause before a sample: the other side's threads spin on for a while
    budget: float  # seconds for all samples of one case


FULL = Plan(samples=15, least=5, seconds=0.05, settle=0.03, budget=12.0)
# Events of a GPU are steady, and no threads spin.
GPU = Plan(samples=7, least=3, seconds=0.012, settle=0.0, budget=4.0)
QUICK = Plan(samples=3, least=2, seconds=0.002, settle=0.0, budget=1.0)


class Summary(NamedTuple):
    """Samples in a few numbers, per run."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    samples: int

    @property
    def unsteady(self) -> bool:
        """Whether half of the samples spread so widely that the median says little."""
        return self.high > UNSTEADY * self.low


def summary(samples: Sequence[float]) -> Summary:
    """Median and quartiles of at least one sample."""
    low, middle, high = (float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75)))
    return Summary(middle, low, high, len(samples))


def measure_in_turn(sides: Sequence[Sampler], plan: Plan) -> list[Summary]:
    """Seconds per run of each side. The sides take turns, and each round begins with another one."""
    counts = [_runs_per_sample(side, plan) for side in sides]
    taken: list[list[float]] = [[] for _ in sides]
    start = time.perf_counter()
    for turn in range(plan.samples):
        for offset in range(len(sides)):
            which = (turn + offset) % len(sides)
            time.sleep(plan.settle)
            sides[which](1)  # brings this side's data back into the caches and its threads to life
            taken[which].append(sides[which](counts[which]) / counts[which])
        if turn + 1 >= plan.least and time.perf_counter() - start > plan.budget:
            break
    return [summary(samples) for samples in taken]


def _runs_per_sample(side: Sampler, plan: Plan) -> int:
    side(2)  # the first runs allocate, compile and load
    count, seconds = 1, side(1)
    while seconds < plan.seconds / 2:
        count = min(4 * count, math.ceil(count * plan.seconds / max(seconds, 1e-9)))
        seconds = side(count)
    return max(1, round(count * plan.seconds / seconds))


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product of positive values; nan for none."""
    return statistics.geometric_mean(values) if values else math.nan


def relative_error(outputs: Sequence[Any], exact: Sequence[Any]) -> float:
    """The largest over the outputs of ‖output − exact‖₂ / ‖exact‖₂, in float64; nan if any is.

    What is zero but for rounding, as the gradient of a bias that a normalisation takes away, is held against the
    largest output.
    """
    if len(outputs) != len(exact):
        raise ValueError(f"relative_error: {len(outputs)} outputs, but {len(exact)} exact values")
    pairs = [
        (np.asarray(of, np.float64), np.asarray(truth, np.float64)) for of, truth in zip(outputs, exact, strict=True)
    ]
    for got, want in pairs:
        if got.shape != want.shape:
            raise ValueError(f"relative_error: an output has shape {got.shape}, its exact value {want.shape}")
    sizes = [float(np.linalg.norm(want.ravel())) for _, want in pairs]
    largest = max(sizes) or 1.0
    return float(
        np.max(
            [
                np.linalg.norm((got - want).ravel()) / (size if size > ROUNDING * largest else largest)
                for (got, want), size in zip(pairs, sizes, strict=True)
            ]
        )
    )
