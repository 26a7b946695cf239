"""Output shapes of the kernels, and every error of shape and setting, in pure Python.

Nothing here touches an array: each function takes shapes and settings, raises ValueError naming the
operation, what it got and what it wanted, and returns the shape of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Shape = tuple[int, int, int, int]

_AXES = ("height", "width")


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
    _rank(operation, "input", x_shape, "(N, C, H, W)")
    _rank(operation, "weight", weight_shape, "(K, C / groups, R, S)")
    _pair(operation, "stride", stride, 1)
    _pair(operation, "dilation", dilation, 1)
    if not (isinstance(padding, tuple) and len(padding) == 2 and _is_pair(padding[0], 0) and _is_pair(padding[1], 0)):
        raise ValueError(
            f"{operation}: padding must be ((top, bottom), (left, right)) of integers that are not negative, "
            f"got {padding!r}"
        )
    if not _is_int(groups) or groups < 1:
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
    for axis, size, taps, step, pads, gap in zip(_AXES, (h, w), (r, s), stride, padding, dilation, strict=True):
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
    _same(operation, dy_shape, conv2d(x_shape, weight_shape, None, stride, padding, dilation, groups, operation))


def max_pool2d(
    x_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    operation: str = "max_pool2d",
) -> Shape:
    """Shape of the max-pooled (N, C, H, W). Every window holds at least one element of the input."""
    _pair(operation, "dilation", dilation, 1)
    shape = _pool2d(operation, x_shape, kernel_size, stride, padding, dilation, ceil_mode)
    for axis, size, taps, step, pad, gap in zip(
        _AXES, x_shape[2:], kernel_size, stride, padding, dilation, strict=True
    ):
        # Only a window that starts in the padding can step over the whole input.
        for start in range(-pad, 0, step):
            first = start % gap
            if first >= size or first > start + gap * (taps - 1):
                raise ValueError(
                    f"{operation}: a window holds no element of the input: {axis} {size} with kernel {taps}, "
                    f"dilation {gap} and padding {pad}"
                )
    return shape


def max_pool2d_offsets(
    operation: str,
    offsets_shape: Sequence[int],
    x_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> None:
    """Check that offsets of this shape can come from max-pooling `x_shape`, with or without `ceil_mode`."""
    shapes = []
    for ceil_mode in (False, True):
        try:
            shapes.append(max_pool2d(x_shape, kernel_size, stride, padding, dilation, ceil_mode, operation))
            if shapes[-1] == tuple(offsets_shape):
                return
        except ValueError:
            # Only ceil_mode can give a window larger than its padded input a place.
            if ceil_mode:
                raise
    wanted = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
    raise ValueError(
        f"{operation}: the pooled shape {tuple(offsets_shape)} does not belong to the "
        f"input {tuple(x_shape)}, which gives {wanted}"
    )


def max_pool2d_scatter(
    dy_shape: Sequence[int],
    offsets_shape: Sequence[int],
    x_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> None:
    """Check the shapes of a max-pooling gradient."""
    max_pool2d_offsets("max_pool2d_scatter", offsets_shape, x_shape, kernel_size, stride, padding, dilation)
    _same("max_pool2d_scatter", dy_shape, tuple(offsets_shape))


def avg_pool2d(
    x_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    divisor_override: int | None,
    operation: str = "avg_pool2d",
) -> Shape:
    """Shape of the average-pooled (N, C, H, W)."""
    if divisor_override is not None and (not _is_int(divisor_override) or divisor_override == 0):
        raise ValueError(f"{operation}: divisor_override must be an integer other than 0, got {divisor_override!r}")
    return _pool2d(operation, x_shape, kernel_size, stride, padding, (1, 1), ceil_mode)


def avg_pool2d_grad(
    dy_shape: Sequence[int],
    x_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    divisor_override: int | None,
) -> None:
    """Check the shapes of an average-pooling gradient."""
    operation = "avg_pool2d_input_grad"
    _same(
        operation,
        dy_shape,
        avg_pool2d(x_shape, kernel_size, stride, padding, ceil_mode, divisor_override, operation),
    )


def softmax_cross_entropy(
    logits_shape: Sequence[int],
    target_shape: Sequence[int],
    target_is_integer: bool,
    weight_shape: Sequence[int] | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    """Check the shapes and settings of a softmax-cross-entropy."""
    operation = "softmax_cross_entropy"
    if len(logits_shape) != 2:
        raise ValueError(f"{operation}: logits must have the shape (N, C), got {tuple(logits_shape)}")
    n, classes = logits_shape
    if classes < 1:
        raise ValueError(f"{operation}: logits need at least one class, got the shape {tuple(logits_shape)}")
    if target_is_integer and tuple(target_shape) != (n,):
        raise ValueError(
            f"{operation}: a target of class indices must have the shape ({n},) for logits {(n, classes)}, "
            f"got {tuple(target_shape)}"
        )
    if not target_is_integer and tuple(target_shape) != (n, classes):
        raise ValueError(
            f"{operation}: a target of probabilities must have the logits' shape {(n, classes)}, "
            f"got {tuple(target_shape)}"
        )
    if weight_shape is not None and tuple(weight_shape) != (classes,):
        raise ValueError(
            f"{operation}: weight must have the shape ({classes},), one per class, got {tuple(weight_shape)}"
        )
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"{operation}: reduction must be 'none', 'sum' or 'mean', got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{operation}: label_smoothing must be between 0 and 1, got {label_smoothing!r}")
    if not target_is_integer and ignore_index >= 0:
        raise ValueError(f"{operation}: ignore_index={ignore_index} has no meaning for a target of probabilities")


def _pool2d(
    operation: str,
    x_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> Shape:
    _rank(operation, "input", x_shape, "(N, C, H, W)")
    _pair(operation, "kernel_size", kernel_size, 1)
    _pair(operation, "stride", stride, 1)
    _pair(operation, "padding", padding, 0)
    out = []
    for axis, size, taps, step, pad, gap in zip(
        _AXES, x_shape[2:], kernel_size, stride, padding, dilation, strict=True
    ):
        if size < 1:
            raise ValueError(f"{operation}: input needs at least one element in {axis}, got {tuple(x_shape)}")
        if pad > taps // 2:
            raise ValueError(
                f"{operation}: padding must be at most half the kernel, got padding {pad} and kernel {taps} in {axis}"
            )
        extent = gap * (taps - 1) + 1
        room = size + 2 * pad - extent
        count = (room + (step - 1 if ceil_mode else 0)) // step + 1
        # The last window of ceil_mode must start inside the input or the padding before it.
        if ceil_mode and (count - 1) * step >= size + pad:
            count -= 1
        if count < 1:
            raise ValueError(
                f"{operation}: the kernel is larger than the padded input: {axis} {extent} (kernel {taps}, "
                f"dilation {gap}) over {size + 2 * pad} (input {size}, padding {pad} on both sides)"
            )
        out.append(count)
    return x_shape[0], x_shape[1], out[0], out[1]


def _rank(operation: str, name: str, shape: Sequence[int], wanted: str) -> None:
    if len(shape) != 4 or not all(map(_is_int, shape)) or min(shape) < 0:
        raise ValueError(f"{operation}: {name} must have the shape {wanted}, got {tuple(shape)}")


def _same(operation: str, got: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(got) != tuple(wanted):
        raise ValueError(
            f"{operation}: the gradient must have the shape {tuple(wanted)} of the result, got {tuple(got)}"
        )


def _pair(operation: str, name: str, value: Pair, least: int) -> None:
    if not _is_pair(value, least):
        raise ValueError(f"{operation}: {name} must be two integers of at least {least}, got {value!r}")


def _is_pair(value: Any, least: int) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_int, value)) and min(value) >= least


def _is_int(value: object) -> bool:
    # The first question is the cheap one, and enough for nearly every call.
    return type(value) is int or (isinstance(value, int) and not isinstance(value, bool))
