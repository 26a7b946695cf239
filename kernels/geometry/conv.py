"""Shapes and settings of conv."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import AXES, Padding, Pair, Shape, check_pair, check_rank, check_same, is_int, is_pair


def conv2d(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    operation: str = "conv2d",
) -> Shape:
    """Shape (N, K, P, Q) of the convolution of (N, C, H, W) with (K, C / groups, R, S)."""
    check_rank(operation, "input", x_shape, "(N, C, H, W)")
    check_rank(operation, "weight", weight_shape, "(K, C / groups, R, S)")
    check_pair(operation, "stride", stride, 1)
    check_pair(operation, "dilation", dilation, 1)
    if not (isinstance(padding, tuple) and len(padding) == 2 and is_pair(padding[0], 0) and is_pair(padding[1], 0)):
        raise ValueError(
            f"{operation}: padding must be ((top, bottom), (left, right)) of integers that are not negative, "
            f"got {padding!r}"
        )
    if not is_int(groups) or groups < 1:
        raise ValueError(f"{operation}: groups must be a positive integer, got {groups!r}")
    n, c, h, w = x_shape
    k, c_group, r, s = weight_shape
    if k < 1 or r < 1 or s < 1:
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
    for axis, size, taps, step, pads, gap in zip(AXES, (h, w), (r, s), stride, padding, dilation, strict=True):
        extent = gap * (taps - 1) + 1
        padded = size + pads[0] + pads[1]
        if extent > padded:
            raise ValueError(
                f"{operation}: the kernel is larger than the padded input: {axis} {extent} (kernel {taps}, "
                f"dilation {gap}) over {padded} (input {size}, padding {pads[0]} and {pads[1]})"
            )
        out.append((padded - extent) // step + 1)
    return n, k, out[0], out[1]


def conv2d_grad(
    operation: str,
    dy_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    """Check that `dy_shape` is the shape of the convolution's result."""
    check_same(operation, dy_shape, conv2d(x_shape, weight_shape, None, stride, padding, dilation, groups, operation))
