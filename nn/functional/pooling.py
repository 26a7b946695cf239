"""Pooling over one, two or three axes: one implementation for all ranks, PyTorch's names in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine import Tensor
from ...engine.operations import pooling
from .checks import check_tensor, per_axis, with_batch

Sizes = tuple[int, ...]


def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of (N, C, L) or (C, L); stride None: windows side by side.

    With `return_indices` also the position of each maximum, int64.
    """
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of (N, C, H, W) or (C, H, W); stride None: windows side by side.

    With `return_indices` also the position h * W + w of each maximum in its plane, int64.
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of (N, C, D, H, W) or (C, D, H, W); stride None: windows side by side.

    With `return_indices` also the position (d * H + h) * W + w of each maximum in its volume, int64.
    """
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Zeros with the elements of (N, C, L) or (C, L) at the `indices` that `max_pool1d` gave.

    Of several elements for one place the last stays, and alone gets a gradient. `output_size` (the last
    dimensions or all of them) may differ from the size that the window makes by less than a stride.
    """
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Zeros with the elements of (N, C, H, W) or (C, H, W) at the `indices` that `max_pool2d` gave.

    For repeated indices and `output_size` see `max_unpool1d`.
    """
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Zeros with the elements of (N, C, D, H, W) or (C, D, H, W) at the `indices` that `max_pool3d` gave.

    For repeated indices and `output_size` see `max_unpool1d`.
    """
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)


def avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of (N, C, L) or (C, L); stride None: windows side by side.

    Zeros of the padding count unless `count_include_pad` is off.
    """
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of (N, C, H, W) or (C, H, W); stride None: windows side by side.

    Zeros of the padding count unless `count_include_pad` is off; `divisor_override` divides instead.
    """
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of (N, C, D, H, W) or (C, D, H, W); stride None: windows side by side.

    Zeros of the padding count unless `count_include_pad` is off; `divisor_override` divides instead.
    """
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def lp_pool1d(
    input: Tensor, norm_type: int | float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm (Σ x^p)^(1/p) of each window of (N, C, L) or (C, L), p = `norm_type`.

    A window that `ceil_mode` lets reach past the end is scaled up to its full size. A window of zeros passes
    no gradient on.
    """
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor, norm_type: int | float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm (Σ x^p)^(1/p) of each window of (N, C, H, W) or (C, H, W); see `lp_pool1d`."""
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor, norm_type: int | float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm (Σ x^p)^(1/p) of each window of (N, C, D, H, W) or (C, D, H, W); see `lp_pool1d`."""
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """(N, C, L) or (C, L) max-pooled to the length `output_size`, with `return_indices` also the positions.

    Window o of O is [floor(o L / O), ceil((o + 1) L / O)).
    """
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """(N, C, H, W) or (C, H, W) max-pooled to `output_size`, an int or a pair; None keeps a size."""
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """(N, C, D, H, W) or (C, D, H, W) max-pooled to `output_size`, an int or three; None keeps a size."""
    return _adaptive_max_pool(3, input, output_size, return_indices)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """(N, C, L) or (C, L) averaged to the length `output_size`; for the windows see `adaptive_max_pool1d`."""
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """(N, C, H, W) or (C, H, W) averaged to `output_size`, an int or a pair; None keeps a size."""
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """(N, C, D, H, W) or (C, D, H, W) averaged to `output_size`, an int or three; None keeps a size."""
    return _adaptive_avg_pool(3, input, output_size)


def _unbatched(result: Any, alone: bool) -> Any:
    if not alone:
        return result
    return tuple(tensor.squeeze(0) for tensor in result) if isinstance(result, tuple) else result.squeeze(0)


def _windows(operation: str, kernel_size: Any, stride: Any, padding: Any, rank: int) -> tuple[Sizes, Sizes, Sizes]:
    size = per_axis(operation, "kernel_size", kernel_size, rank, 1)
    unset = stride is None or (isinstance(stride, tuple | list) and not stride)
    step = size if unset else per_axis(operation, "stride", stride, rank, 1)
    return size, step, per_axis(operation, "padding", padding, rank, 0)


def _max_pool(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    operation = f"max_pool{rank}d"
    batch, alone = with_batch(operation, input, rank)
    size, step, pad = _windows(operation, kernel_size, stride, padding, rank)
    result = pooling.MaxPool.apply(
        batch,
        kernel_size=size,
        stride=step,
        padding=pad,
        dilation=per_axis(operation, "dilation", dilation, rank, 1),
        ceil_mode=bool(ceil_mode),
        return_indices=bool(return_indices),
    )
    return _unbatched(result, alone)


def _max_unpool(
    rank: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Sequence[int] | None,
) -> Tensor:
    operation = f"max_unpool{rank}d"
    batch, alone = with_batch(operation, input, rank)
    check_tensor(operation, "indices", indices)
    if indices.shape != input.shape:
        raise ValueError(f"{operation}: indices must have the shape {input.shape} of input, got {indices.shape}")
    size, step, pad = _windows(operation, kernel_size, stride, padding, rank)
    whole = _unpooled_size(operation, input.shape[-rank:], size, step, pad, output_size)
    result = pooling.MaxUnpool.apply(batch, indices.unsqueeze(0) if alone else indices, output_size=whole)
    return _unbatched(result, alone)


def _unpooled_size(
    operation: str, pooled: Sizes, size: Sizes, stride: Sizes, padding: Sizes, output_size: Sequence[int] | None
) -> Sizes:
    rank = len(size)
    made = tuple(
        (count - 1) * step + taps - 2 * pad
        for count, taps, step, pad in zip(pooled, size, stride, padding, strict=True)
    )
    if output_size is None:
        if min(made) < 1:
            raise ValueError(f"{operation}: the output would have the size {made}: input {pooled}, padding {padding}")
        return made
    wanted = tuple(output_size)
    if len(wanted) not in (rank, rank + 1, rank + 2):
        raise ValueError(f"{operation}: output_size must have {rank} or {rank + 2} elements, got {len(wanted)}")
    wanted = wanted[-rank:]
    for axis, (n, default, step) in enumerate(zip(wanted, made, stride, strict=True)):
        if not default - step < n < default + step:
            raise ValueError(
                f"{operation}: output_size must be between {default - step + 1} and {default + step - 1} in dimension "
                f"{axis - rank}, got {tuple(output_size)}"
            )
    return tuple(n.__index__() for n in wanted)


def _avg_pool(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    operation = f"avg_pool{rank}d"
    batch, alone = with_batch(operation, input, rank)
    size, step, pad = _windows(operation, kernel_size, stride, padding, rank)
    result = pooling.AvgPool.apply(
        batch,
        kernel_size=size,
        stride=step,
        padding=pad,
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )
    return _unbatched(result, alone)


def _lp_pool(
    rank: int, input: Tensor, norm_type: int | float, kernel_size: Any, stride: Any, ceil_mode: bool
) -> Tensor:
    operation = f"lp_pool{rank}d"
    batch, alone = with_batch(operation, input, rank)
    size, step, _ = _windows(operation, kernel_size, stride, 0, rank)
    result = pooling.LpPool.apply(batch, norm_type=norm_type, kernel_size=size, stride=step, ceil_mode=bool(ceil_mode))
    return _unbatched(result, alone)


def _adaptive_max_pool(rank: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    operation = f"adaptive_max_pool{rank}d"
    batch, alone = with_batch(operation, input, rank)
    counts = _output_size(operation, output_size, batch.shape[2:])
    equal = _equal_windows(batch.shape[2:], counts)
    if equal is not None:
        result = pooling.MaxPool.apply(
            batch, kernel_size=equal, stride=equal, padding=(0,) * rank, dilation=(1,) * rank, ceil_mode=False,
            return_indices=bool(return_indices),
        )  # fmt: skip
    else:
        result = pooling.AdaptiveMaxPool.apply(batch, output_size=counts, return_indices=bool(return_indices))
    return _unbatched(result, alone)


def _adaptive_avg_pool(rank: int, input: Tensor, output_size: Any) -> Tensor:
    operation = f"adaptive_avg_pool{rank}d"
    batch, alone = with_batch(operation, input, rank)
    counts = _output_size(operation, output_size, batch.shape[2:])
    equal = _equal_windows(batch.shape[2:], counts)
    if equal is not None:
        result = pooling.AvgPool.apply(
            batch, kernel_size=equal, stride=equal, padding=(0,) * rank, ceil_mode=False, count_include_pad=True,
            divisor_override=None,
        )  # fmt: skip
    else:
        result = pooling.AdaptiveAvgPool.apply(batch, output_size=counts)
    return _unbatched(result, alone)


def _output_size(operation: str, output_size: Any, size: Sizes) -> Sizes:
    """`output_size` with the input's size for None."""
    rank = len(size)
    given = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size,) * rank
    if len(given) == 1:
        given *= rank
    if len(given) != rank:
        raise ValueError(f"{operation}: output_size must be an integer or {rank} of them, got {output_size!r}")
    counts = tuple(length if count is None else count for count, length in zip(given, size, strict=True))
    return per_axis(operation, "output_size", counts, rank, 0)


def _equal_windows(size: Sizes, counts: Sizes) -> Sizes | None:
    """The windows' size where an adaptive pooling's are all equal, and so an ordinary pooling's."""
    if min(counts) < 1 or min(size) < 1 or any(n % count for n, count in zip(size, counts, strict=True)):
        return None
    return tuple(n // count for n, count in zip(size, counts, strict=True))
