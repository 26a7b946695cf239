"""Embeddings as modules."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor
from ...engine.grad_mode import no_grad
from ...engine.operations.creation import empty
from .. import functional as F
from .. import init
from ..functional.checks import positive
from ..functional.embedding import row_of_padding
from ..parameter import Parameter
from .module import Module


class Embedding(Module):
    """A learned vector for each of `num_embeddings` integers: (...) gives (..., embedding_dim)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if sparse:
            raise ValueError("Embedding: there are no sparse gradients; leave sparse=True out")
        self.num_embeddings = positive("Embedding", "num_embeddings", num_embeddings, least=0)
        self.embedding_dim = positive("Embedding", "embedding_dim", embedding_dim, least=0)
        self.padding_idx = row_of_padding("Embedding", padding_idx, num_embeddings)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        shape = (self.num_embeddings, self.embedding_dim)
        if _weight is None:
            self.weight = Parameter(empty(shape, dtype=dtype, device=device), requires_grad=not _freeze)
            self.reset_parameters()
        elif _weight.shape == shape:
            self.weight = Parameter(_weight, requires_grad=not _freeze)
        else:
            raise ValueError(f"Embedding: _weight must have the shape {shape}, got {_weight.shape}")

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Embedding:
        """A module whose weight shares the memory of embeddings (V, D); `freeze`: it does not learn."""
        if embeddings.ndim != 2:
            raise ValueError(f"from_pretrained: embeddings must have the shape (V, D), got {embeddings.shape}")
        rows, columns = embeddings.shape
        return cls(
            rows,
            columns,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            _weight=embeddings,
            _freeze=freeze,
        )

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1), the row of the padding being 0."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx].fill_(0)

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )

    def extra_repr(self) -> str:
        shown = [str(self.num_embeddings), str(self.embedding_dim)]
        defaults = {"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False}
        shown += [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join(shown)
