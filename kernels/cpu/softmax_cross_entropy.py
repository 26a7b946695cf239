"""Softmax-cross-entropy with its gradient."""

from __future__ import annotations

import numpy as np

from .arithmetic import compute_dtype


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
    share = np.ones(classes, dtype) if weight is None else weight.astype(dtype)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        z = logits.astype(dtype)
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total = e.sum(axis=1, keepdims=True)
        z -= np.log(total)
        if target.ndim == 1:
            keep = target != ignore_index
            index = _indices(target, keep, classes)
            rows = np.arange(n)
            picked = share[index]
            loss = -(1 - label_smoothing) * picked * z[rows, index]
            if label_smoothing:
                loss -= label_smoothing / classes * (z * share).sum(axis=1)
            loss = np.where(keep, loss, 0)
            count = picked[keep].sum(dtype=dtype)
        else:
            target = target.astype(dtype) * (1 - label_smoothing) + label_smoothing / classes
            loss = -(z * target * share).sum(axis=1)
            count = dtype.type(n)
        grad = None
        if with_grad:
            p = e / total
            if target.ndim == 1:
                mass = (1 - label_smoothing) * picked + label_smoothing / classes * share.sum()
                grad = p * mass[:, None] - label_smoothing / classes * share
                grad[rows, index] -= (1 - label_smoothing) * picked
                grad[~keep] = 0
            else:
                target *= share
                grad = p * target.sum(axis=1, keepdims=True) - target
            if reduction == "mean":
                grad /= count
            grad = grad.astype(logits.dtype, copy=False)
        if reduction != "none":
            loss = loss.sum()
            if reduction == "mean":
                loss = loss / count
    return np.asarray(loss, dtype=logits.dtype), grad


def softmax_cross_entropy_scale(grad: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    dtype = compute_dtype(grad.dtype)
    factor = upstream.astype(dtype).reshape(-1, 1)
    return (grad.astype(dtype, copy=False) * factor).astype(grad.dtype, copy=False)


def _indices(target: np.ndarray, keep: np.ndarray, classes: int) -> np.ndarray:
    """The class of each row, 0 for ignored ones."""
    index = np.where(keep, target, 0)
    wrong = (index < 0) | (index >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"softmax_cross_entropy: class index {int(target[row])} in row {row} is out of range for {classes} classes"
        )
    return index.astype(np.intp)
