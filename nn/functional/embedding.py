"""Embeddings."""

from __future__ import annotations

from ...engine import Tensor
from ...engine.operations.embedding import Embedding, renorm_rows
from .checks import check_tensor


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The rows of weight (V, D) that the integers of input (...) name, as (..., D).

    padding_idx: a row without gradient; negative counts from the end. max_norm: rows that are taken are first
    scaled, in place, to a `norm_type`-norm of at most this. scale_grad_by_freq: the gradient of a row is divided by
    how often it was taken. Gradients are dense and repeat bit for bit. An index out of range is an error on the CPU;
    on a GPU, where finding it would mean to wait, its row is NaN.
    """
    name = "embedding"
    if check_tensor(name, "input", input).dtype.kind not in "iu":
        raise TypeError(f"{name}: input must hold integer indices, got dtype {input.dtype}")
    if check_tensor(name, "weight", weight).ndim != 2:
        raise ValueError(f"{name}: weight must have the shape (V, D), got {weight.shape}")
    if sparse:
        raise ValueError(f"{name}: there are no sparse gradients; leave sparse=True out")
    row = row_of_padding(name, padding_idx, weight.shape[0])
    if max_norm is not None:
        renorm_rows(weight, input, max_norm, norm_type)
    return Embedding.apply(weight, input, padding_idx=-1 if row is None else row, scale_grad_by_freq=scale_grad_by_freq)


def row_of_padding(name: str, padding_idx: int | None, num_embeddings: int) -> int | None:
    """`padding_idx` counted from the start."""
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not hasattr(padding_idx, "__index__"):
        raise TypeError(f"{name}: padding_idx must be an integer, got {type(padding_idx).__name__}")
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError(f"{name}: padding_idx {padding_idx} is out of range for {num_embeddings} embeddings")
    return padding_idx.__index__() % num_embeddings
