"""Shapes and settings of pooling."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import AXES, Pair, Shape, check_pair, check_rank, check_same, is_int


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
    check_pair(operation, "dilation", dilation, 1)
    shape = _pool2d(operation, x_shape, kernel_size, stride, padding, dilation, ceil_mode)
    for axis, size, taps, step, pad, gap in zip(AXES, x_shape[2:], kernel_size, stride, padding, dilation, strict=True):
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
    check_same("max_pool2d_scatter", dy_shape, tuple(offsets_shape))


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
    if divisor_override is not None and (not is_int(divisor_override) or divisor_override == 0):
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
    check_same(
        operation,
        dy_shape,
        avg_pool2d(x_shape, kernel_size, stride, padding, ceil_mode, divisor_override, operation),
    )


def _pool2d(
    operation: str,
    x_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> Shape:
    check_rank(operation, "input", x_shape, "(N, C, H, W)")
    check_pair(operation, "kernel_size", kernel_size, 1)
    check_pair(operation, "stride", stride, 1)
    check_pair(operation, "padding", padding, 0)
    out = []
    for axis, size, taps, step, pad, gap in zip(AXES, x_shape[2:], kernel_size, stride, padding, dilation, strict=True):
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
