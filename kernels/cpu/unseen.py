"""What has no part in a convolution: taps that see nothing but padding, elements that no tap sees."""

from __future__ import annotations

from math import prod

import numpy as np

from ..geometry import Pair
from .conv_choice import Problem


def without_taps(problem: Problem) -> tuple[Problem, tuple[slice, ...]]:
    """The same with one tap where all others see nothing but padding, and which taps that leaves.

    Where several see anything, to copy them out of the filters costs more than products with zeros.
    """
    sizes, outputs = problem.x_shape[2:], problem.y_shape[2:]
    axes = zip(sizes, outputs, problem.taps, problem.stride, problem.padding, problem.dilation, strict=True)
    seeing = [_seeing(*axis) for axis in axes]
    found = [one for one in seeing if one is not None]
    if len(found) < len(seeing) or prod(problem.taps) == 1:
        return problem, tuple(slice(0, count) for count in problem.taps)
    weight_shape = (*problem.weight_shape[:2], *(1 for _ in found))
    left = problem.of(weight_shape=weight_shape, padding=tuple(padding for _, padding in found))
    return left, tuple(slice(tap, tap + 1) for tap, _ in found)


def _seeing(size: int, outputs: int, taps: int, step: int, padding: Pair, gap: int) -> tuple[int, Pair] | None:
    """The only tap of an axis that sees any of it, with the padding left to it; None if there are others."""
    before, reach = padding[0], (outputs - 1) * step
    firsts = [tap * gap - before for tap in range(taps)]
    # The first place inside that a tap may see, and whether it gets so far.
    seeing = [first for first in firsts if max(first, first % step) < size and first + reach >= 0]
    if len(seeing) != 1 or seeing[0] > 0:
        return None
    after = seeing[0] + reach + 1 - size
    if step == 1 and after < 0:  # with stride 1 no way expects elements that nothing sees
        return None
    return firsts.index(seeing[0]), (-seeing[0], max(0, after))


def leaves_gaps(problem: Problem) -> bool:
    """Whether there is one tap, which no padding meets and a stride lets see some of the elements only."""
    return max(problem.stride) > 1 and prod(problem.taps) == 1 and not any(map(any, problem.padding))


def without_gaps(problem: Problem, x: np.ndarray) -> tuple[Problem, np.ndarray]:
    """The same with stride 1 over the elements that are seen, where one tap leaves out others."""
    if not leaves_gaps(problem):
        return problem, x
    axes = zip(problem.y_shape[2:], problem.stride, strict=True)
    seen = tuple(slice(0, (count - 1) * step + 1, step) for count, step in axes)
    x = x[:, :, *seen]
    return problem.of(x_shape=x.shape, stride=(1,) * len(problem.stride)), x
