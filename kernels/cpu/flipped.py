"""The input gradient with stride 1 as a convolution by flipped filters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .conv_choice import FORWARD, Problem
from .images import reach

Run = Callable[[Problem, np.ndarray, np.ndarray, None], np.ndarray]


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray, run: Run) -> np.ndarray | None:
    """dx, which `run` makes as a convolution of dy; None if the filters are not all finite."""
    # It sees zeros around dy, and 0 * inf is not 0.
    if not np.isfinite(weight).all():
        return None
    filters = weight.reshape(problem.groups, problem.outputs, problem.inside, *problem.taps)
    filters = filters.swapaxes(1, 2)[..., ::-1, ::-1].reshape(-1, problem.outputs, *problem.taps)
    dy, around = reach(problem, dy)
    turned = problem.of(
        operation=FORWARD,
        x_shape=dy.shape,
        weight_shape=filters.shape,
        y_shape=problem.x_shape,
        padding=around,
    )
    return run(turned, dy, filters, None)
