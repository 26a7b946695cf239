"""Embeddings: rows of a matrix by their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import kernels
from ..backend import array_module
from ..grad_mode import no_grad
from ..inplace import check_may_change, record_change
from ..operation import Operation
from ..tensor import Tensor


class Embedding(Operation):
    """The rows of weight (V, D) that indices (...) name."""

    def forward(ctx, weight: Any, indices: Any) -> Any:
        ctx.save_inputs(1)
        ctx.num_embeddings = len(weight)
        return kernels.embedding(weight, indices)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        settings = {name: getattr(ctx, name) for name in ("num_embeddings", "padding_idx", "scale_grad_by_freq")}
        return EmbeddingWeightGrad.apply(grad, ctx.saved[0], **settings), None


class EmbeddingWeightGrad(Operation):
    """For each row of weight the sum of dy where it was taken."""

    def forward(ctx, dy: Any, indices: Any) -> Any:
        ctx.save_inputs(1)
        return kernels.embedding_weight_grad(dy, indices, ctx.num_embeddings, ctx.padding_idx, ctx.scale_grad_by_freq)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved
        rows = Embedding.apply(grad, indices, padding_idx=-1, scale_grad_by_freq=False)
        return rows if ctx.padding_idx < 0 and not ctx.scale_grad_by_freq else rows * ctx.factors(indices, rows), None

    def factors(ctx, indices: Tensor, rows: Tensor) -> Tensor:
        """What each row of dy was multiplied by, as (..., 1): 0 for the padding, 1 over how often its row was taken."""
        array, module = indices._data, array_module(indices._data)
        kept = (array != ctx.padding_idx)[..., None]
        if not ctx.scale_grad_by_freq:
            return Tensor(kept.astype(rows.dtype))
        ones = module.ones((*array.shape, 1), np.float32)
        counts = kernels.embedding(kernels.embedding_weight_grad(ones, array, ctx.num_embeddings), array)
        return Tensor((kept / counts).astype(rows.dtype))


def renorm_rows(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> None:
    """Scale the rows of weight that indices name to a norm of at most `max_norm`, in place and without a gradient."""
    with no_grad():
        check_may_change(weight, "embedding with max_norm")
        kernels.embedding_renorm(weight._data, indices._data, max_norm, norm_type)
        record_change(weight, None)
