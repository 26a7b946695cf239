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
from .rows import largest, narrow_buffer, split_rows, sums


def softmax_cross_entropy(
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    with_grad: bool = False,
    inplace_grad: bool = False,
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
    grad = None
    if with_grad:
        grad = logits if inplace_grad else np.empty(logits.shape, logits.dtype)
    pieces = split_rows(n, classes, dtype)

    def work(parts: Iterator[slice]) -> None:
        # A gradient of the compute type is made where it will stay.
        stays = grad is not None and grad.dtype == dtype
        scratch = np.empty((0 if stays or not pieces else pieces[0].stop, classes), dtype)
        narrow_buffer(classes)
        for part in parts:
            given = logits[part]
            z = grad[part] if grad is not None and stays else scratch[: len(given)]
            np.subtract(given, largest(given, np.arange(len(given))), out=z, dtype=dtype, casting="unsafe")
            taken, mass = rows.take(part, z)
            np.exp(z, out=z)
            totals = sums(z)
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

    parallel.share(work, pieces)
    if reduction == "none":
        return losses.astype(logits.dtype, copy=False), grad
    loss = losses.sum()
    if count is not None:
        loss = loss / count if count else np.nan
    return np.asarray(loss, dtype=logits.dtype), grad


def softmax_cross_entropy_scale(grad: np.ndarray, upstream: np.ndarray, in_place: bool = False) -> np.ndarray:
    one_a_row = upstream.ndim == 1
    if in_place and not one_a_row and upstream == 1:
        return grad
    dtype = compute_dtype(grad.dtype)
    factors = upstream.astype(dtype)[..., None] if one_a_row else upstream.astype(dtype)
    scaled = grad if in_place else np.empty(grad.shape, grad.dtype)

    def work(parts: Iterator[slice]) -> None:
        narrow_buffer(grad.shape[1])
        for part in parts:
            factor = factors[part] if one_a_row else factors
            np.multiply(grad[part], factor, out=scaled[part], dtype=dtype, casting="unsafe")

    parallel.share(work, split_rows(len(grad), grad.shape[1], dtype))
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
        self.index, self.ignored = _checked(target, ignore_index, classes)
        self.weights = weights
        self.picked = np.ones(len(target), dtype) if weights is None else weights[self.index]
        self.leave_out(slice(None), self.picked)
        self.exact = self.picked * dtype.type(1 - label_smoothing) if label_smoothing else self.picked
        self.smooth = dtype.type(label_smoothing / classes)
        self.mass = classes if weights is None else weights.sum()

    def count(self) -> np.floating:
        if self.weights is None and self.ignored is None:
            return self.picked.dtype.type(len(self.picked))
        return self.picked.sum()

    def take(self, part: slice, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sum of each row's coefficients times z, and of the coefficients."""
        exact = self.exact[part]
        taken = z.reshape(-1)[self._places(part, z)] * exact
        if not self.smooth:
            return taken, exact
        taken += self.smooth * (sums(z) if self.weights is None else sums(z * self.weights))
        return taken, exact + self.smooth * self.mass

    def subtract(self, part: slice, out: np.ndarray, count: np.floating | None) -> None:
        """Take the coefficients, divided by `count`, away from each row."""
        if self.smooth:
            smooth = self.smooth if self.weights is None else self.smooth * self.weights
            out -= smooth if count is None else smooth / count
        exact = self.exact[part]
        out.reshape(-1)[self._places(part, out)] -= exact if count is None else exact / count

    def _places(self, part: slice, z: np.ndarray) -> np.ndarray:
        """Where the rows' classes stand in the memory of z; one index is much faster than two."""
        places = np.arange(0, z.size, z.shape[1])
        places += self.index[part]
        return places

    def leave_out(self, part: slice, out: np.ndarray) -> None:
        """Set what belongs to ignored rows to zero."""
        if self.ignored is not None:
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
        return sums(coefficients * z), sums(coefficients)

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


def _checked(target: np.ndarray, ignore_index: int, classes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The class index of each row, 0 for ignored ones; and which are ignored, None if no row is."""
    index = target.astype(np.intp, copy=False)
    # Without its sign a negative number is larger than any class.
    if not 0 <= ignore_index < classes and index.view(np.uintp).max(initial=0) < classes:
        return index, None
    ignored = target == ignore_index
    wrong = ((target < 0) | (target >= classes)) & ~ignored
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"softmax_cross_entropy: class index {int(target[row])} in row {row} is out of range for {classes} classes"
        )
    return np.where(ignored, 0, target).astype(np.intp), ignored
