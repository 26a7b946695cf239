"""Softmax-cross-entropy and its gradient: one exponential, in pieces of rows that stay in the cache.

For a row with logits z and coefficients a (what of each -log p_c the loss takes) the loss is sum_c a_c
(lse(z) - z_c) and its gradient sum(a) softmax(z) - a. For class indices a is the weight of the row's class
there, plus, with label smoothing, a multiple of all weights; for probabilities it is the smoothed target
times the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import parallel
from .arithmetic import compute_dtype

_PIECE_BYTES = 1 << 19
# Above this OpenBLAS shares a dot product among its own threads.
_LONGEST_DOT = 8192


def softmax_cross_entropy(
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    with_grad: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    n, classes = logits.shape
    dtype = compute_dtype(logits.dtype)
    weights = None if weight is None else weight.astype(dtype, copy=False)
    rows: _Indices | _Probabilities
    if target.ndim == 1:
        rows = _Indices(target, weights, ignore_index, label_smoothing, classes, dtype)
    else:
        rows = _Probabilities(target, weights, label_smoothing, dtype)
    count = rows.count() if reduction == "mean" else None
    losses = np.empty(n, dtype)
    grad = np.empty(logits.shape, logits.dtype) if with_grad else None
    step = _rows(classes, dtype)

    def work(parts: Iterator[slice]) -> None:
        # A gradient of the compute type is made where it will stay.
        stays = grad is not None and grad.dtype == dtype
        scratch = np.empty((0 if stays else min(step, n), classes), dtype)
        for part in parts:
            z = grad[part] if grad is not None and stays else scratch[: part.stop - part.start]
            np.subtract(logits[part], logits[part].max(axis=1, keepdims=True), out=z, dtype=dtype, casting="unsafe")
            taken, mass = rows.take(part, z)
            np.exp(z, out=z)
            totals = _sums(z)
            loss = np.log(totals)
            loss *= mass
            loss -= taken
            rows.leave_out(part, loss)
            losses[part] = loss
            if grad is not None:
                mass = mass / totals if count is None else mass / (totals * count)
                z *= mass[:, None]
                rows.subtract(part, z, count)
                rows.leave_out(part, z)
                if not stays:
                    np.copyto(grad[part], z, casting="unsafe")

    parallel.share(work, parallel.split(n, step))
    if reduction == "none":
        return losses.astype(logits.dtype, copy=False), grad
    loss = losses.sum()
    if count is not None:
        with np.errstate(all="ignore"):
            loss = loss / count
    return np.asarray(loss, dtype=logits.dtype), grad


def softmax_cross_entropy_scale(grad: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    dtype = compute_dtype(grad.dtype)
    factors = np.broadcast_to(upstream.astype(dtype), grad.shape[:1])
    scaled = np.empty(grad.shape, grad.dtype)

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            np.multiply(grad[part], factors[part, None], out=scaled[part], dtype=dtype, casting="unsafe")

    parallel.share(work, parallel.split(len(grad), _rows(grad.shape[1], dtype)))
    return scaled


class _Indices:
    """Coefficients of rows whose target is a class index."""

    def __init__(
        self,
        target: np.ndarray,
        weights: np.ndarray | None,
        ignore_index: int,
        label_smoothing: float,
        classes: int,
        dtype: np.dtype,
    ) -> None:
        self.ignored = target == ignore_index
        self.index = _checked(target, self.ignored, classes)
        self.any_ignored = bool(self.ignored.any())
        self.weights = weights
        self.picked = np.ones(len(target), dtype) if weights is None else weights[self.index]
        self.picked[self.ignored] = 0
        self.exact = self.picked * dtype.type(1 - label_smoothing)
        self.smooth = dtype.type(label_smoothing / classes)
        self.mass = dtype.type(classes) if weights is None else weights.sum()

    def count(self) -> np.floating:
        return self.picked.sum()

    def take(self, part: slice, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sum of each row's coefficients times z, and of the coefficients."""
        exact = self.exact[part]
        taken = z[np.arange(len(z)), self.index[part]] * exact
        if not self.smooth:
            return taken, exact
        taken += self.smooth * (_sums(z) if self.weights is None else _sums(z * self.weights))
        return taken, exact + self.smooth * self.mass

    def subtract(self, part: slice, out: np.ndarray, count: np.floating | None) -> None:
        """Take the coefficients, divided by `count`, away from each row."""
        if self.smooth:
            smooth = self.smooth if self.weights is None else self.smooth * self.weights
            out -= smooth if count is None else smooth / count
        exact = self.exact[part]
        out[np.arange(len(out)), self.index[part]] -= exact if count is None else exact / count

    def leave_out(self, part: slice, out: np.ndarray) -> None:
        """Set what belongs to ignored rows to zero."""
        if self.any_ignored:
            out[self.ignored[part]] = 0


class _Probabilities:
    """Coefficients of rows whose target is a probability of each class."""

    def __init__(self, target: np.ndarray, weights: np.ndarray | None, label_smoothing: float, dtype: np.dtype) -> None:
        self.target = target
        self.weights = weights
        self.keep = dtype.type(1 - label_smoothing)
        self.smooth = dtype.type(label_smoothing / target.shape[1])
        self.dtype = dtype

    def count(self) -> np.floating:
        return self.dtype.type(len(self.target))

    def take(self, part: slice, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sum of each row's coefficients times z, and of the coefficients."""
        coefficients = self._coefficients(part)
        return _sums(coefficients * z), _sums(coefficients)

    def subtract(self, part: slice, out: np.ndarray, count: np.floating | None) -> None:
        """Take the coefficients, divided by `count`, away from each row."""
        coefficients = self._coefficients(part)
        out -= coefficients if count is None else coefficients / count

    def leave_out(self, part: slice, out: np.ndarray) -> None:
        """No row is ignored."""

    def _coefficients(self, part: slice) -> np.ndarray:
        coefficients = np.multiply(self.target[part], self.keep, dtype=self.dtype, casting="unsafe")
        if self.smooth:
            coefficients += self.smooth
        if self.weights is not None:
            coefficients *= self.weights
        return coefficients


def _rows(classes: int, dtype: np.dtype) -> int:
    """How many rows a piece has."""
    return max(1, _PIECE_BYTES // (classes * dtype.itemsize))


def _sums(values: np.ndarray) -> np.ndarray:
    """The sum of each row."""
    if values.shape[1] > _LONGEST_DOT:
        return values.sum(axis=1)
    return np.vecdot(values, np.ones(values.shape[1], values.dtype))


def _checked(target: np.ndarray, ignored: np.ndarray, classes: int) -> np.ndarray:
    """The class index of each row, 0 for ignored ones."""
    wrong = ((target < 0) | (target >= classes)) & ~ignored
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"softmax_cross_entropy: class index {int(target[row])} in row {row} is out of range for {classes} classes"
        )
    return np.where(ignored, 0, target).astype(np.intp)
