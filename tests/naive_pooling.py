"""Pooling of any rank by loops over windows, in float64: what the kernels are compared with."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

ALL = slice(None)


class Windows:
    """The windows of a pooling: for each output its taps inside the input, as (number of the tap, position)."""

    def __init__(self, size, pooled, kernel, stride=None, padding=None, dilation=None):
        rank = len(size)
        self.size, self.pooled, self.kernel = tuple(size), tuple(pooled), tuple(kernel)
        self.stride, self.padding, self.dilation = stride or kernel, padding or (0,) * rank, dilation or (1,) * rank

    def taps(self, out):
        for number, tap in enumerate(product(*map(range, self.kernel))):
            axes = zip(out, tap, self.stride, self.padding, self.dilation, strict=True)
            place = tuple(o * step - pad + j * gap for o, j, step, pad, gap in axes)
            if all(0 <= at < n for at, n in zip(place, self.size, strict=True)):
                yield number, place

    def padded(self, out):
        """Elements of a window inside the padded input."""
        axes = zip(out, self.kernel, self.stride, self.padding, self.size, strict=True)
        return prod(min(o * step - pad + taps, n + pad) - (o * step - pad) for o, taps, step, pad, n in axes)


class Adaptive(Windows):
    """The windows of an adaptive pooling, by PyTorch's definition."""

    def __init__(self, size, pooled):
        super().__init__(size, pooled, (1,) * len(size))

    def taps(self, out):
        axes = zip(out, self.size, self.pooled, strict=True)
        spans = [range(o * n // count, -(-(o + 1) * n // count)) for o, n, count in axes]
        yield from enumerate(product(*spans))


def maxima(x, windows):
    """y, the numbers of the taps and the positions in the plane; of several NaN the last wins."""
    shape = (*x.shape[:2], *windows.pooled)
    y, numbers, positions = np.zeros(shape), np.zeros(shape, int), np.zeros(shape, int)
    for out in np.ndindex(*windows.pooled):
        taps = list(windows.taps(out))
        values = np.stack([x[(ALL, ALL, *place)].astype(np.float64) for _, place in taps])
        last = len(taps) - 1 - np.isnan(values[::-1]).argmax(axis=0)
        pick = np.where(np.isnan(values).any(axis=0), last, values.argmax(axis=0))
        at = (ALL, ALL, *out)
        y[at] = np.take_along_axis(values, pick[None], 0)[0]
        numbers[at] = np.array([number for number, _ in taps])[pick]
        positions[at] = np.array([np.ravel_multi_index(place, windows.size) for _, place in taps])[pick]
    return y, numbers, positions


def scattered(dy, positions, size):
    """dy added up at its positions."""
    planes = dy.shape[0] * dy.shape[1]
    dx = np.zeros((planes, prod(size)))
    np.add.at(dx, (np.arange(planes)[:, None], positions.reshape(planes, -1)), dy.reshape(planes, -1).astype(float))
    return dx.reshape(*dy.shape[:2], *size)


def averages(x, dy, windows, include_pad=True, override=None):
    """y and dx."""
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for out in np.ndindex(*windows.pooled):
        places = [place for _, place in windows.taps(out)]
        divisor = override or (windows.padded(out) if include_pad else len(places))
        for place in places:
            y[(ALL, ALL, *out)] += x[(ALL, ALL, *place)].astype(np.float64) / divisor
            dx[(ALL, ALL, *place)] += dy[(ALL, ALL, *out)].astype(np.float64) / divisor
    return y, dx


def norms(x, dy, windows, p):
    """y and dx by the chain rule of PyTorch's formula; no gradient where a window's sum is 0."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for out in np.ndindex(*windows.pooled):
        places, at = [place for _, place in windows.taps(out)], (ALL, ALL, *out)
        weight = prod(windows.kernel) / len(places)
        sums = weight * sum(x[(ALL, ALL, *place)] ** p for place in places)
        y[at] = sums ** (1 / p)
        slope = np.where(sums == 0, 0, dy[at] * weight * np.where(sums == 0, 1, sums) ** (1 / p - 1))
        for place in places:
            dx[(ALL, ALL, *place)] += slope * x[(ALL, ALL, *place)] ** (p - 1)
    return y, dx


def unpooled(x, indices, size):
    """y, and the elements that stay."""
    y, kept = np.zeros((*x.shape[:2], prod(size))), np.zeros(x.shape, bool)
    for n, c in np.ndindex(*x.shape[:2]):
        last = {}
        for out in np.ndindex(*x.shape[2:]):
            last[indices[(n, c, *out)]] = out
        for place, out in last.items():
            y[n, c, place], kept[(n, c, *out)] = x[(n, c, *out)], True
    return y.reshape(*x.shape[:2], *size), kept
