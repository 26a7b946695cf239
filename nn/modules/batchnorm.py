"""Batch normalisation as modules."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor
from ...engine.operations.creation import empty, zeros
from .. import functional as F
from .. import init
from ..functional.checks import positive
from ..parameter import Parameter
from .module import Module


class _BatchNorm(Module):
    """Batch normalisation (Ioffe & Szegedy, 2015) over all dimensions but the channels, dimension 1.

    Called with `residual`, a tensor of the input's shape, it adds that, and with `relu=True` it takes the ReLU of
    the result, all in the same pass over memory.
    """

    ranks: tuple[int, ...]
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = positive(type(self).__name__, "num_features", num_features)
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        shape = (num_features,)
        for name, wanted in {"weight": affine, "bias": affine and bias}.items():
            value = Parameter(empty(shape, dtype=dtype, device=device)) if wanted else None
            self.register_parameter(name, value)
        if track_running_stats:
            self.register_buffer("running_mean", empty(shape, dtype=dtype, device=device))
            self.register_buffer("running_var", empty(shape, dtype=dtype, device=device))
            self.register_buffer("num_batches_tracked", zeros((), dtype="int64", device=device))
        else:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                self.register_buffer(name, None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batch counted."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and fresh running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if input.ndim not in self.ranks:
            wanted = " or ".join(map(str, self.ranks))
            raise ValueError(f"{type(self).__name__}: expected {wanted} dimensions, got shape {input.shape}")
        moves = self.training and self.track_running_stats
        known = moves or not self.training
        momentum = self.momentum
        if momentum is None and self.num_batches_tracked is None:
            momentum = 0.0
        return F.batch_norm(
            input,
            self.running_mean if known else None,
            self.running_var if known else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            residual=residual,
            relu=relu,
            num_batches_tracked=self.num_batches_tracked if moves else None,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L)."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W)."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of (N, C, D, H, W)."""

    ranks = (5,)
