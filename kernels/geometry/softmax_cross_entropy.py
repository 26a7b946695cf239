"""Shapes and settings of softmax-cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence


def softmax_cross_entropy(
    logits_shape: Sequence[int],
    target_shape: Sequence[int],
    target_is_integer: bool,
    weight_shape: Sequence[int] | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    """Check the shapes and settings of a softmax-cross-entropy."""
    operation = "softmax_cross_entropy"
    if len(logits_shape) != 2:
        raise ValueError(f"{operation}: logits must have the shape (N, C), got {tuple(logits_shape)}")
    n, classes = logits_shape
    if classes < 1:
        raise ValueError(f"{operation}: logits need at least one class, got the shape {tuple(logits_shape)}")
    if target_is_integer and tuple(target_shape) != (n,):
        raise ValueError(
            f"{operation}: a target of class indices must have the shape ({n},) for logits {(n, classes)}, "
            f"got {tuple(target_shape)}"
        )
    if not target_is_integer and tuple(target_shape) != (n, classes):
        raise ValueError(
            f"{operation}: a target of probabilities must have the logits' shape {(n, classes)}, "
            f"got {tuple(target_shape)}"
        )
    if weight_shape is not None and tuple(weight_shape) != (classes,):
        raise ValueError(
            f"{operation}: weight must have the shape ({classes},), one per class, got {tuple(weight_shape)}"
        )
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"{operation}: reduction must be 'none', 'sum' or 'mean', got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{operation}: label_smoothing must be between 0 and 1, got {label_smoothing!r}")
    if not target_is_integer and ignore_index >= 0:
        raise ValueError(f"{operation}: ignore_index={ignore_index} has no meaning for a target of probabilities")
