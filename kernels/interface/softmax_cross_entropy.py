"""Softmax-cross-entropy."""

from __future__ import annotations

from .. import geometry
from .checks import Array, check_arrays, same_kind, side


def softmax_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    with_grad: bool = False,
    inplace_grad: bool = False,
) -> tuple[Array, Array | None]:
    """Cross-entropy of softmax(logits) with class indices (N,) or probabilities (N, C), as in PyTorch.

    Returns the loss, (N,) for reduction "none" and 0-d for "sum" and "mean", and, `with_grad`, its gradient
    (N, C) with respect to the logits (for "none", each row's own loss). `inplace_grad`: it is written over the
    logits, which must be C-contiguous. An index that is no class and not `ignore_index` is a ValueError on the
    CPU; on CUDA, where finding it would cost a synchronisation, its row's loss and gradient are NaN.
    """
    operation = "softmax_cross_entropy"
    is_integer = same_kind(operation, logits=logits, target=target).dtype.kind in "iu"
    if is_integer:
        check_arrays(operation, logits=logits, weight=weight)
    else:
        check_arrays(operation, logits=logits, target=target, weight=weight)
    weight_shape = None if weight is None else weight.shape
    geometry.softmax_cross_entropy(
        logits.shape, target.shape, is_integer, weight_shape, ignore_index, label_smoothing, reduction
    )
    if inplace_grad and not (with_grad and _is_plain(logits)):
        raise ValueError(f"{operation}: inplace_grad needs with_grad, and logits that are C-contiguous and writeable")
    return side(logits).softmax_cross_entropy(
        logits, target, weight, ignore_index, label_smoothing, reduction, with_grad, inplace_grad
    )


def softmax_cross_entropy_scale(grad: Array, upstream: Array, in_place: bool = False) -> Array:
    """grad (N, C) times the upstream gradient, one number or one per row.

    `in_place` the result may be `grad` itself, changed: for a caller who alone has it. Times 1 costs nothing then.
    """
    operation = "softmax_cross_entropy_scale"
    check_arrays(operation, grad=grad, upstream=upstream)
    if grad.ndim != 2 or upstream.shape not in ((), grad.shape[:1]):
        raise ValueError(
            f"{operation}: grad must have the shape (N, C) and upstream () or (N,), "
            f"got {grad.shape} and {upstream.shape}"
        )
    return side(grad).softmax_cross_entropy_scale(grad, upstream, in_place)


def _is_plain(array: Array) -> bool:
    """Whether a kernel can write over the array as it lies in memory; CuPy's are always aligned and writeable."""
    flags = array.flags
    return flags.c_contiguous and getattr(flags, "behaved", True)
