"""Losses."""

from __future__ import annotations

import warnings

from ...engine import Tensor
from ...engine.grad_mode import is_grad_enabled
from ...engine.operations.cross_entropy import SoftmaxCrossEntropy, overwriting_cross_entropy
from ...engine.operations.gathering import gather
from .activation import logsigmoid
from .checks import check_probability, check_reduction, check_tensor


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    inplace_grad: bool = False,
) -> Tensor:
    """Cross-entropy of softmax(input) with the target: −Σ weight · target · log softmax(input) over classes.

    input: logits (C,), (N, C) or (N, C, d1, ...). target: integer class indices, of its shape without C,
    where `ignore_index` leaves a row out; or probabilities of the input's shape and dtype. weight: (C,), of
    the input's dtype. "mean" divides by the weights of the rows that count, for probabilities by their
    number. An index out of range is an error on the CPU; on a GPU, where finding it would mean to wait,
    its row's loss and gradient are NaN.

    inplace_grad: where a gradient is wanted, it is written over `input`, an (N, C) result of other operations
    that nothing needs any more, which halves the memory of a large vocabulary. `input` then counts as changed in
    place: what has saved it, or uses it later, raises in backward, and so does a second derivative.
    """
    name = "cross_entropy"
    check_reduction(name, reduction)
    check_probability(name, label_smoothing, "label_smoothing")
    rows, picks = _rows_and_targets(name, input, target, allow_probabilities=True)
    if weight is not None:
        _check_weight(name, weight, input)
    settings = {
        "weight": None if weight is None else weight._data, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing, "reduction": reduction,
    }  # fmt: skip
    if inplace_grad and is_grad_enabled() and input.requires_grad:
        if rows is not input:
            raise ValueError(f"{name}: inplace_grad=True needs logits of the shape (N, C), got {input.shape}")
        return overwriting_cross_entropy(input, picks, **settings)
    loss = SoftmaxCrossEntropy.apply(rows, picks, overwritten=None, **settings)
    return loss if reduction != "none" else loss.reshape(_without_classes(input))


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """−weight · input at each row's class, for log-probabilities (C,), (N, C) or (N, C, d1, ...).

    target: class indices of the input's shape without C. "mean" divides by the weights of rows that count.
    """
    name = "nll_loss"
    check_reduction(name, reduction)
    rows, picks = _rows_and_targets(name, input, target, allow_probabilities=False)
    kept = picks != ignore_index
    index = picks * kept
    losses = -gather(rows, 1, index.to("int64").unsqueeze(1)).squeeze(1)
    share = kept.to(input.dtype)
    if weight is not None:
        _check_weight(name, weight, input)
        share = share * weight.detach()[index]
    losses = share.where(kept, 0.0) * losses.where(kept, 0.0)
    if reduction == "none":
        return losses.reshape(_without_classes(input))
    return losses.sum() if reduction == "sum" else losses.sum() / share.sum()


def _without_classes(input: Tensor) -> tuple[int, ...]:
    return input.shape[:1] + input.shape[2:] if input.ndim > 1 else ()


def _rows_and_targets(name: str, input: Tensor, target: Tensor, allow_probabilities: bool) -> tuple[Tensor, Tensor]:
    """The input as (rows, C), and the targets of these rows."""
    check_tensor(name, "input", input)
    if not check_tensor(name, "target", target).is_floating_point():
        wanted = _without_classes(input)
        if target.dtype.kind not in "iu":
            raise TypeError(f"{name}: target must hold class indices or probabilities, got dtype {target.dtype}")
    elif allow_probabilities:
        wanted = input.shape
    else:
        raise TypeError(f"{name}: target must hold integer class indices, got dtype {target.dtype}")
    if not input.ndim or target.shape != wanted:
        raise ValueError(
            f"{name}: for input {input.shape} the target must have the shape {wanted} "
            f"({'class indices' if wanted != input.shape else 'probabilities'}), got {target.shape}"
        )
    if input.ndim == 2:
        return input, target
    return _rows(input), _rows(target) if target.is_floating_point() else target.reshape(-1)


def _rows(x: Tensor) -> Tensor:
    """(C,) or (N, C, d1, ...) as (rows, C)."""
    return x.unsqueeze(0) if x.ndim == 1 else x.movedim(1, -1).reshape(-1, x.shape[1])


def _check_weight(name: str, weight: Tensor, input: Tensor) -> None:
    classes = input.shape[1 if input.ndim > 1 else 0]
    if check_tensor(name, "weight", weight).shape != (classes,):
        raise ValueError(f"{name}: weight must have the shape ({classes},), one per class, got {weight.shape}")
    if weight.dtype != input.dtype:
        raise TypeError(f"{name}: weight must have the input's dtype {input.dtype}, got {weight.dtype}")
    if weight.requires_grad:
        raise ValueError(f"{name}: there is no gradient for weight; give weight.detach()")


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """(input − target)², elementwise, times `weight`, then summed or averaged (by the weights)."""
    check_reduction("mse_loss", reduction)
    _same_shapes("mse_loss", input, target)
    losses = (input - target).square()
    if weight is None:
        return _reduced(losses, reduction)
    if check_tensor("mse_loss", "weight", weight).shape != input.shape:
        raise ValueError(f"mse_loss: weight must have the input's shape {input.shape}, got {weight.shape}")
    losses = losses * weight
    return losses.sum() / weight.sum() if reduction == "mean" else _reduced(losses, reduction)


def _same_shapes(name: str, input: Tensor, target: Tensor) -> None:
    check_tensor(name, "input", input)
    if check_tensor(name, "target", target).shape != input.shape:
        warnings.warn(
            f"{name}: input {input.shape} and target {target.shape} differ in shape and are broadcast, "
            "which is seldom meant",
            stacklevel=3,
        )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """−weight · (pos_weight · target · log sigmoid(input) + (1 − target) · log sigmoid(−input)).

    No overflow. target: probabilities of the input's shape. weight and pos_weight broadcast with it.
    """
    name = "binary_cross_entropy_with_logits"
    check_reduction(name, reduction)
    check_tensor(name, "input", input)
    if check_tensor(name, "target", target).shape != input.shape:
        raise ValueError(f"{name}: target must have the input's shape {input.shape}, got {target.shape}")
    for label, factor in {"weight": weight, "pos_weight": pos_weight}.items():
        if factor is not None and not _broadcasts(check_tensor(name, label, factor).shape, input.shape):
            raise ValueError(f"{name}: {label} of shape {factor.shape} does not broadcast to {input.shape}")
    positive = logsigmoid(input)
    if pos_weight is None:
        losses = (1 - target) * input - positive
    else:
        losses = (1 - target) * input - ((pos_weight - 1) * target + 1) * positive
    return _reduced(losses if weight is None else losses * weight, reduction)


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) > len(wanted):
        return False
    return all(size in (1, other) for size, other in zip(shape[::-1], wanted[::-1], strict=False))
