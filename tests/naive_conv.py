"""Convolution of any number of axes in float64, one tap at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """The shapes and settings of a convolution."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def settings(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups


def under(
    x: np.ndarray, tap: Sequence[int], outputs: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> np.ndarray:
    """What a tap sees of padded images from all outputs."""
    axes = zip(tap, outputs, stride, dilation, strict=True)
    return x[:, :, *(slice(t * d, t * d + (count - 1) * s + 1, s) for t, count, s, d in axes)]


def naive(
    x: np.ndarray,
    weight: np.ndarray,
    dy: Callable[[tuple[int, ...]], np.ndarray],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """y, dy, dx and dw; dy is made by a function of y's shape."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    (n, _, *sizes), (k, c, *taps) = x.shape, weight.shape
    wide = np.pad(x, ((0, 0), (0, 0), *padding))
    axes = zip(wide.shape[2:], taps, stride, dilation, strict=True)
    outputs = [(size - gap * (count - 1) - 1) // step + 1 for size, count, step, gap in axes]
    upstream = dy((n, k, *outputs))
    grads = upstream.astype(np.float64).reshape(n, groups, k // groups, prod(outputs))
    y, dx, dw = np.zeros(upstream.shape), np.zeros_like(wide), np.zeros_like(weight)
    for tap in product(*map(range, taps)):
        filters: Any = (slice(None), slice(None), *tap)
        factors = weight[filters].reshape(groups, k // groups, c)
        seen = under(wide, tap, outputs, stride, dilation)
        flat = seen.reshape(n, groups, c, prod(outputs))
        y += np.einsum("ngcp,gkc->ngkp", flat, factors).reshape(y.shape)
        dw[filters] = np.einsum("ngcp,ngkp->gkc", flat, grads).reshape(k, c)
        under(dx, tap, outputs, stride, dilation)[...] += np.einsum("ngkp,gkc->ngcp", grads, factors).reshape(
            seen.shape
        )
    unpadded: Any = (..., *(slice(before, before + size) for size, (before, _) in zip(sizes, padding, strict=True)))
    return y, upstream, dx[unpadded], dw
