"""Shapes and settings of convolution of one, two or three axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .checks import AXES, INPUTS, Sizes, is_int, is_pair, remembered

Pads = tuple[tuple[int, int], ...]

ACTIVATIONS = ("relu", "silu")  # that can follow a convolution in the same kernel

_FILTERS = ("(K, C / groups, S)", "(K, C / groups, R, S)", "(K, C / groups, T, R, S)")
_SIDES = ("((left, right),)", "((top, bottom), (left, right))", "((front, back), (top, bottom), (left, right))")
_NUMBERS = ("one integer", "two integers", "three integers")


def conv_name(stride: Any, suffix: str = "") -> str:
    """What a convolution with this stride is called in errors."""
    rank = len(stride) if isinstance(stride, tuple) else 0
    return f"conv{rank}d{suffix}" if 1 <= rank <= 3 else f"conv{suffix}"


@remembered
def conv(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
    suffix: str = "",
) -> Sizes:
    """Shape (N, K, *outputs) of the convolution of (N, C, *sizes) with (K, C / groups, *taps)."""
    operation = conv_name(stride, suffix)
    rank = _check_settings(operation, stride, padding, dilation, groups)
    _check_rank(operation, "input", x_shape, INPUTS[rank - 1])
    _check_rank(operation, "weight", weight_shape, _FILTERS[rank - 1])
    n, c, *sizes = x_shape
    k, c_group, *taps = weight_shape
    if min(k, *taps) < 1:
        raise ValueError(
            f"{operation}: weight needs at least one filter and one tap, got the shape {tuple(weight_shape)}"
        )
    if k % groups:
        raise ValueError(
            f"{operation}: groups must divide the output channels, got {k} output channels "
            f"(weight {tuple(weight_shape)}) and groups={groups}"
        )
    if c != c_group * groups:
        raise ValueError(
            f"{operation}: weight {tuple(weight_shape)} with groups={groups} wants "
            f"{c_group * groups} input channels, "
            f"got {c} (input {tuple(x_shape)})"
        )
    if bias_shape is not None and tuple(bias_shape) != (k,):
        raise ValueError(
            f"{operation}: bias must have the shape ({k},), one per output channel, got {tuple(bias_shape)}"
        )
    out = []
    for axis, size, count, step, pads, gap in zip(AXES[-rank:], sizes, taps, stride, padding, dilation, strict=True):
        extent = gap * (count - 1) + 1
        padded = size + pads[0] + pads[1]
        if extent > padded:
            raise ValueError(
                f"{operation}: the kernel is larger than the padded input: {axis} {extent} (kernel {count}, "
                f"dilation {gap}) over {padded} (input {size}, padding {pads[0]} and {pads[1]})"
            )
        out.append((padded - extent) // step + 1)
    return (n, k, *out)


@remembered
def conv_grad(
    suffix: str,
    dy_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> None:
    """Check that `dy_shape` is the shape of the convolution's result."""
    wanted = conv(x_shape, weight_shape, None, stride, padding, dilation, groups, suffix)
    if tuple(dy_shape) != wanted:
        raise ValueError(
            f"{conv_name(stride, suffix)}: the gradient must have the shape {wanted} of the result, "
            f"got {tuple(dy_shape)}"
        )


def conv_epilogue(operation: str, shape: Sizes, activation: str | None, residual_shape: Sequence[int] | None) -> None:
    """Check what follows a convolution whose result has this shape."""
    if activation is not None and activation not in ACTIVATIONS:
        supported = ", ".join(f'"{name}"' for name in ACTIVATIONS)
        raise ValueError(f"{operation}: activation must be None or one of {supported}, got {activation!r}")
    if residual_shape is not None and tuple(residual_shape) != shape:
        raise ValueError(
            f"{operation}: residual must have the shape {shape} of the result, got {tuple(residual_shape)}"
        )


def _check_settings(operation: str, stride: Sizes, padding: Pads, dilation: Sizes, groups: int) -> int:
    """Check what does not depend on shapes; the number of axes."""
    rank = len(stride) if isinstance(stride, tuple) else 0
    if not 1 <= rank <= 3 or not _are_ints(stride, rank):
        raise ValueError(f"{operation}: stride must be one to three integers of at least 1, got {stride!r}")
    if not _are_ints(dilation, rank):
        raise ValueError(f"{operation}: dilation must be {_NUMBERS[rank - 1]} of at least 1, got {dilation!r}")
    sided = isinstance(padding, tuple) and len(padding) == rank
    if not sided or not all(is_pair(pads, 0) for pads in padding):
        raise ValueError(
            f"{operation}: padding must be {_SIDES[rank - 1]} of integers that are not negative, got {padding!r}"
        )
    if not is_int(groups) or groups < 1:
        raise ValueError(f"{operation}: groups must be a positive integer, got {groups!r}")
    return rank


def _are_ints(value: Any, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(map(is_int, value)) and min(value) >= 1


def _check_rank(operation: str, name: str, shape: Sequence[int], wanted: str) -> None:
    if len(shape) != wanted.count(",") + 1 or not all(map(is_int, shape)) or min(shape) < 0:
        raise ValueError(f"{operation}: {name} must have the shape {wanted}, got {tuple(shape)}")
