"""Shapes and settings of pooling over one, two or three axes; arrays are (N, C, *spatial)."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import AXES, INPUTS, Sizes, check_same, is_int, remembered

_NUMBERS = ("a tuple of one integer", "two integers", "three integers")


def rank_of(operation: str, name: str, sizes: Sizes) -> int:
    """How many axes `sizes` is for."""
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= 3:
        raise ValueError(f"{operation}: {name} must be a tuple of one to three integers, got {sizes!r}")
    return len(sizes)


@remembered
def max_pool(
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
    suffix: str = "",
) -> Sizes:
    """Shape of the max-pooled input. Every window holds at least one element of the input."""
    rank = rank_of("max_pool", "kernel_size", kernel_size)
    operation = f"max_pool{rank}d{suffix}"
    _check_sizes(operation, "dilation", dilation, 1, rank)
    shape = _pooled(operation, x_shape, kernel_size, stride, padding, dilation, ceil_mode)
    if any(padding):
        axes = zip(AXES[-rank:], x_shape[2:], kernel_size, stride, padding, dilation, strict=True)
        for axis, size, taps, step, pad, gap in axes:
            # Only a window that starts in the padding can step over the whole input.
            for start in range(-pad, 0, step):
                first = start % gap
                if first >= size or first > start + gap * (taps - 1):
                    raise ValueError(
                        f"{operation}: a window holds no element of the input: {axis} {size} with kernel {taps}, "
                        f"dilation {gap} and padding {pad}"
                    )
    return shape


@remembered
def max_pool_offsets(
    suffix: str,
    offsets_shape: Sequence[int],
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> None:
    """Check that offsets of this shape can come from max-pooling `x_shape`, with or without `ceil_mode`."""
    shapes = []
    for ceil_mode in (False, True):
        try:
            shapes.append(max_pool(x_shape, kernel_size, stride, padding, dilation, ceil_mode, suffix))
            if shapes[-1] == tuple(offsets_shape):
                return
        except ValueError:
            # Only ceil_mode can give a window larger than its padded input a place.
            if ceil_mode:
                raise
    wanted = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
    raise ValueError(
        f"max_pool{len(kernel_size)}d{suffix}: the pooled shape {tuple(offsets_shape)} does not belong to the "
        f"input {tuple(x_shape)}, which gives {wanted}"
    )


@remembered
def max_pool_scatter(
    dy_shape: Sequence[int],
    offsets_shape: Sequence[int],
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> None:
    """Check the shapes of a max-pooling gradient."""
    max_pool_offsets("_scatter", offsets_shape, x_shape, kernel_size, stride, padding, dilation)
    check_same(f"max_pool{len(kernel_size)}d_scatter", dy_shape, tuple(offsets_shape))


@remembered
def avg_pool(
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    divisor_override: int | None,
    suffix: str = "",
) -> Sizes:
    """Shape of the average-pooled input."""
    rank = rank_of("avg_pool", "kernel_size", kernel_size)
    operation = f"avg_pool{rank}d{suffix}"
    if divisor_override is not None and (not is_int(divisor_override) or divisor_override == 0):
        raise ValueError(f"{operation}: divisor_override must be an integer other than 0, got {divisor_override!r}")
    return _pooled(operation, x_shape, kernel_size, stride, padding, (1,) * rank, ceil_mode)


@remembered
def avg_pool_grad(
    dy_shape: Sequence[int],
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    divisor_override: int | None,
) -> None:
    """Check the shapes of an average-pooling gradient."""
    wanted = avg_pool(x_shape, kernel_size, stride, padding, ceil_mode, divisor_override, "_input_grad")
    check_same(f"avg_pool{len(kernel_size)}d_input_grad", dy_shape, wanted)


@remembered
def lp_pool(
    x_shape: Sequence[int],
    norm_type: float,
    kernel_size: Sizes,
    stride: Sizes,
    ceil_mode: bool,
    suffix: str = "",
) -> Sizes:
    """Shape of the input pooled by a p-norm."""
    rank = rank_of("lp_pool", "kernel_size", kernel_size)
    operation = f"lp_pool{rank}d{suffix}"
    if isinstance(norm_type, bool) or not isinstance(norm_type, int | float):
        raise TypeError(f"{operation}: norm_type must be a number, got {type(norm_type).__name__}")
    if norm_type == 0:
        raise ValueError(f"{operation}: norm_type must not be 0")
    return _pooled(operation, x_shape, kernel_size, stride, (0,) * rank, (1,) * rank, ceil_mode)


def lp_pool_grad(
    dy_shape: Sequence[int],
    x_shape: Sequence[int],
    y_shape: Sequence[int],
    norm_type: float,
    kernel_size: Sizes,
    stride: Sizes,
    ceil_mode: bool,
) -> None:
    """Check the shapes of the gradient of pooling by a p-norm."""
    wanted = lp_pool(x_shape, norm_type, kernel_size, stride, ceil_mode, "_input_grad")
    operation = f"lp_pool{len(kernel_size)}d_input_grad"
    check_same(operation, dy_shape, wanted)
    if tuple(y_shape) != wanted:
        raise ValueError(f"{operation}: y must have the shape {wanted}, got {tuple(y_shape)}")


@remembered
def adaptive_pool(operation: str, x_shape: Sequence[int], output_size: Sizes, suffix: str = "") -> Sizes:
    """Shape of an input pooled to `output_size`; window o of an axis is [floor(o I / O), ceil((o + 1) I / O))."""
    rank = rank_of(operation, "output_size", output_size)
    operation = f"{operation}{rank}d{suffix}"
    _check_input(operation, x_shape, rank)
    _check_sizes(operation, "output_size", output_size, 0, rank)
    return (x_shape[0], x_shape[1], *output_size)


@remembered
def adaptive_pool_grad(operation: str, dy_shape: Sequence[int], x_shape: Sequence[int], suffix: str) -> None:
    """Check the shapes of an adaptive pooling's gradient."""
    rank = len(x_shape) - 2
    if not 1 <= rank <= 3 or len(dy_shape) != len(x_shape):
        raise ValueError(f"{operation}{suffix}: a gradient of shape {tuple(dy_shape)} for {tuple(x_shape)}")
    adaptive_pool(operation, x_shape, tuple(dy_shape[2:]), suffix)
    check_same(f"{operation}{rank}d{suffix}", dy_shape, (*x_shape[:2], *dy_shape[2:]))


def positions(operation: str, indices_shape: Sequence[int], x_shape: Sequence[int]) -> None:
    """Check that indices of this shape can name elements of the planes of `x_shape`."""
    if len(indices_shape) != len(x_shape) or tuple(indices_shape[:2]) != tuple(x_shape[:2]):
        raise ValueError(
            f"{operation}: indices must have the batch and channels {tuple(x_shape[:2])} and the rank of "
            f"{tuple(x_shape)}, got {tuple(indices_shape)}"
        )


def max_unpool(x_shape: Sequence[int], indices_shape: Sequence[int], output_size: Sizes) -> Sizes:
    """Shape of the unpooled input."""
    rank = rank_of("max_unpool", "output_size", output_size)
    operation = f"max_unpool{rank}d"
    _check_shape(operation, x_shape, rank)
    _check_sizes(operation, "output_size", output_size, 0, rank)
    if tuple(indices_shape) != tuple(x_shape):
        raise ValueError(f"{operation}: indices must have the shape {tuple(x_shape)}, got {tuple(indices_shape)}")
    return (x_shape[0], x_shape[1], *output_size)


def _pooled(
    operation: str,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
) -> Sizes:
    rank = len(kernel_size)
    _check_shape(operation, x_shape, rank)
    _check_sizes(operation, "kernel_size", kernel_size, 1, rank)
    _check_sizes(operation, "stride", stride, 1, rank)
    _check_sizes(operation, "padding", padding, 0, rank)
    _check_input(operation, x_shape, rank)
    out = [x_shape[0], x_shape[1]]
    axes = zip(AXES[-rank:], x_shape[2:], kernel_size, stride, padding, dilation, strict=True)
    for axis, size, taps, step, pad, gap in axes:
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
    return tuple(out)


def _check_shape(operation: str, shape: Sequence[int], rank: int) -> None:
    if len(shape) != rank + 2 or not all(map(is_int, shape)) or min(shape) < 0:
        raise ValueError(f"{operation}: input must have the shape {INPUTS[rank - 1]}, got {tuple(shape)}")


def _check_input(operation: str, shape: Sequence[int], rank: int) -> None:
    _check_shape(operation, shape, rank)
    if min(shape[2:]) < 1:
        axis = AXES[-rank:][min(range(rank), key=lambda i: shape[2 + i])]
        raise ValueError(f"{operation}: input needs at least one element in {axis}, got {tuple(shape)}")


def _check_sizes(operation: str, name: str, value: Sizes, least: int, rank: int) -> None:
    if not isinstance(value, tuple) or len(value) != rank or not all(map(is_int, value)) or min(value) < least:
        raise ValueError(f"{operation}: {name} must be {_NUMBERS[rank - 1]} of at least {least}, got {value!r}")
