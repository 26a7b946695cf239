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
from ..functional.embedding_bag import MODES
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
        self.weight = _parameter("Embedding", (num_embeddings, embedding_dim), _weight, device, dtype)
        self.weight.requires_grad = not _freeze
        if _weight is None:
            self.reset_parameters()

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
        rows, columns = _sizes(embeddings)
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
        _draw(self.weight, self.padding_idx)

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


class EmbeddingBag(Module):
    """The sum, mean or maximum of the learned vectors of each bag of integers; see `functional.embedding_bag`."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'EmbeddingBag: mode must be "sum", "mean" or "max", got {mode!r}')
        if sparse:
            raise ValueError("EmbeddingBag: there are no sparse gradients; leave sparse=True out")
        self.num_embeddings = positive("EmbeddingBag", "num_embeddings", num_embeddings, least=0)
        self.embedding_dim = positive("EmbeddingBag", "embedding_dim", embedding_dim, least=0)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.mode = mode
        self.sparse = sparse
        self.include_last_offset = include_last_offset
        self.padding_idx = row_of_padding("EmbeddingBag", padding_idx, num_embeddings)
        self.weight = _parameter("EmbeddingBag", (num_embeddings, embedding_dim), _weight, device, dtype)
        if _weight is None:
            self.reset_parameters()

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> EmbeddingBag:
        """A module whose weight shares the memory of embeddings (V, D); `freeze`: it does not learn."""
        rows, columns = _sizes(embeddings)
        layer = cls(
            rows,
            columns,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            sparse=sparse,
            _weight=embeddings,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
        layer.weight.requires_grad = not freeze
        return layer

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1), the row of the padding being 0."""
        _draw(self.weight, self.padding_idx)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        return F.embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )

    def extra_repr(self) -> str:
        shown = [str(self.num_embeddings), str(self.embedding_dim)]
        defaults = {"max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False}
        shown += [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        shown.append(f"mode={self.mode!r}")
        if self.padding_idx is not None:
            shown.append(f"padding_idx={self.padding_idx}")
        return ", ".join(shown)


def _parameter(name: str, shape: tuple[int, int], given: Tensor | None, device: Any, dtype: Any) -> Parameter:
    """A parameter with the memory of `given`, or a new one."""
    if given is None:
        return Parameter(empty(shape, dtype=dtype, device=device))
    if given.shape != shape:
        raise ValueError(f"{name}: _weight must have the shape {shape}, got {given.shape}")
    return Parameter(given)


def _sizes(embeddings: Tensor) -> tuple[int, int]:
    if embeddings.ndim != 2:
        raise ValueError(f"from_pretrained: embeddings must have the shape (V, D), got {embeddings.shape}")
    rows, columns = embeddings.shape
    return rows, columns


def _draw(weight: Tensor, padding_idx: int | None) -> None:
    init.normal_(weight)
    if padding_idx is not None:
        with no_grad():
            weight[padding_idx].fill_(0)
