"""Array in, array out: the numerical kernels, on NumPy and on CUDA.

Each function checks shapes and settings, then calls `kernels.cpu` or `kernels.cuda` by the type of its
arrays. Arrays may have any strides and may be empty; inputs are never changed; results are new C-contiguous
arrays of the input's dtype, which is float32, float64, float16 or bfloat16 (the half types compute in float32
and round once). Images are (N, C, H, W), filters (K, C / groups, R, S); pairs are (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from . import cpu, geometry
from .geometry import Padding, Pair

__all__ = [
    "avg_pool2d",
    "avg_pool2d_input_grad",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "max_pool2d",
    "max_pool2d_gather",
    "max_pool2d_indices",
    "max_pool2d_scatter",
    "softmax_cross_entropy",
    "softmax_cross_entropy_scale",
]

Array = Any

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_NUMPY = {np.ndarray}
_ONE_FLOAT = ({"f"}, {"d"}, {"e"})


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolve (N, C, H, W) with (K, C / groups, R, S) to (N, K, P, Q).

    `padding` is ((top, bottom), (left, right)).
    """
    _check_arrays("conv2d", x=x, weight=weight, bias=bias)
    bias_shape = None if bias is None else bias.shape
    geometry.conv2d(x.shape, weight.shape, bias_shape, stride, padding, dilation, groups)
    return _side(x).conv2d(x, weight, bias, stride, padding, dilation, groups)


def conv2d_input_grad(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """The gradient of `conv2d` with respect to x, of the shape `input_shape`."""
    _check_arrays("conv2d_input_grad", dy=dy, weight=weight)
    shape = tuple(input_shape)
    geometry.conv2d_grad("conv2d_input_grad", dy.shape, shape, weight.shape, stride, padding, dilation, groups)
    return _side(dy).conv2d_input_grad(dy, weight, shape, stride, padding, dilation, groups)


def conv2d_weight_grad(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """The gradient of `conv2d` with respect to weight, of the shape `weight_shape`."""
    _check_arrays("conv2d_weight_grad", dy=dy, x=x)
    shape = tuple(weight_shape)
    geometry.conv2d_grad("conv2d_weight_grad", dy.shape, x.shape, shape, stride, padding, dilation, groups)
    return _side(dy).conv2d_weight_grad(dy, x, shape, stride, padding, dilation, groups)


def max_pool2d(
    x: Array,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """The maximum of each window, and its offset i * kernel_width + j inside the window.

    Offsets are uint8 for windows of at most 256 elements, else int16 up to 32,768, else int32. A NaN wins
    over everything (the last one of a window); among equal maxima the first in window order wins.
    """
    _check_arrays("max_pool2d", x=x)
    geometry.max_pool2d(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _side(x).max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d_scatter(
    dy: Array,
    offsets: Array,
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Array:
    """The gradient of `max_pool2d`: dy added up where its offsets point, zero elsewhere."""
    _check_arrays("max_pool2d_scatter", dy=dy)
    _check_offsets("max_pool2d_scatter", dy, offsets)
    shape = tuple(input_shape)
    geometry.max_pool2d_scatter(dy.shape, offsets.shape, shape, kernel_size, stride, padding, dilation)
    return _side(dy).max_pool2d_scatter(dy, offsets, shape, kernel_size, stride, padding, dilation)


def max_pool2d_gather(
    x: Array, offsets: Array, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """The element of x that each offset points to: the gradient of `max_pool2d_scatter`."""
    _check_arrays("max_pool2d_gather", x=x)
    _check_offsets("max_pool2d_gather", x, offsets)
    geometry.max_pool2d_offsets("max_pool2d_gather", offsets.shape, x.shape, kernel_size, stride, padding, dilation)
    return _side(x).max_pool2d_gather(x, offsets, kernel_size, stride, padding, dilation)


def max_pool2d_indices(
    offsets: Array, input_shape: Sequence[int], kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """The int64 positions h * W + w in the input plane that the offsets point to: PyTorch's indices."""
    _check_offsets("max_pool2d_indices", offsets, offsets)
    shape = tuple(input_shape)
    geometry.max_pool2d_offsets("max_pool2d_indices", offsets.shape, shape, kernel_size, stride, padding, dilation)
    return _side(offsets).max_pool2d_indices(offsets, shape, kernel_size, stride, padding, dilation)


def avg_pool2d(
    x: Array,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """The mean of each window of (N, C, H, W)."""
    _check_arrays("avg_pool2d", x=x)
    geometry.avg_pool2d(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    return _side(x).avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool2d_input_grad(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Array:
    """The gradient of `avg_pool2d` with respect to x, of the shape `input_shape`."""
    _check_arrays("avg_pool2d_input_grad", dy=dy)
    shape = tuple(input_shape)
    geometry.avg_pool2d_grad(dy.shape, shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    return _side(dy).avg_pool2d_input_grad(
        dy, shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def softmax_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    with_grad: bool = False,
) -> tuple[Array, Array | None]:
    """Cross-entropy of softmax(logits) with class indices (N,) or probabilities (N, C), as in PyTorch.

    Returns the loss, (N,) for reduction "none" and 0-d for "sum" and "mean", and, `with_grad`, its gradient
    (N, C) with respect to the logits (for "none", each row's own loss). An index that is no class and not
    `ignore_index` is a ValueError on the CPU; on CUDA, where finding it would cost a synchronisation, its
    row's loss and gradient are NaN.
    """
    operation = "softmax_cross_entropy"
    is_integer = _same_kind(operation, logits=logits, target=target).dtype.kind in "iu"
    if is_integer:
        _check_arrays(operation, logits=logits, weight=weight)
    else:
        _check_arrays(operation, logits=logits, target=target, weight=weight)
    weight_shape = None if weight is None else weight.shape
    geometry.softmax_cross_entropy(
        logits.shape, target.shape, is_integer, weight_shape, ignore_index, label_smoothing, reduction
    )
    return _side(logits).softmax_cross_entropy(
        logits, target, weight, ignore_index, label_smoothing, reduction, with_grad
    )


def softmax_cross_entropy_scale(grad: Array, upstream: Array, in_place: bool = False) -> Array:
    """grad (N, C) times the upstream gradient, one number or one per row.

    `in_place` the result may be `grad` itself, changed: for a caller who alone has it. Times 1 costs nothing then.
    """
    operation = "softmax_cross_entropy_scale"
    _check_arrays(operation, grad=grad, upstream=upstream)
    if grad.ndim != 2 or upstream.shape not in ((), grad.shape[:1]):
        raise ValueError(
            f"{operation}: grad must have the shape (N, C) and upstream () or (N,), "
            f"got {grad.shape} and {upstream.shape}"
        )
    return _side(grad).softmax_cross_entropy_scale(grad, upstream, in_place)


def _side(array: Array) -> ModuleType:
    """The implementation for this type of array."""
    if isinstance(array, np.ndarray):
        return cpu
    from . import cuda

    return cuda


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def _same_kind(operation: str, **arrays: Array | None) -> Array:
    """Check that all are NumPy arrays or all are CuPy arrays; the last one."""
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        if not _is_array(array):
            raise TypeError(f"{operation}: {name} must be a NumPy or CuPy array, got {type(array).__name__}")
    kinds = {name: "NumPy" if isinstance(array, np.ndarray) else "CuPy" for name, array in given.items()}
    if len(set(kinds.values())) > 1:
        listing = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise TypeError(f"{operation}: all arrays must live on one device, got: {listing}")
    return array


def _check_arrays(operation: str, **arrays: Array | None) -> None:
    """Check that all arrays are of one kind and of one floating-point dtype."""
    given = [array for array in arrays.values() if array is not None]
    # Nearly every call passes here; what follows finds out what is wrong, and knows bfloat16.
    if {type(array) for array in given} == _NUMPY and {array.dtype.char for array in given} in _ONE_FLOAT:
        return
    _same_kind(operation, **arrays)
    dtypes = {name: array.dtype.name for name, array in arrays.items() if array is not None}
    for name, dtype in dtypes.items():
        if dtype not in _FLOATS:
            raise TypeError(f"{operation}: {name} must be float32, float64, float16 or bfloat16, got {dtype}")
    if len(set(dtypes.values())) > 1:
        listing = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{operation}: all arrays must have one dtype, got: {listing}")


def _check_offsets(operation: str, array: Array, offsets: Array) -> None:
    _same_kind(operation, array=array, offsets=offsets)
    if offsets.dtype.name not in ("uint8", "int16", "int32"):
        raise TypeError(f"{operation}: offsets must be uint8, int16 or int32, got {offsets.dtype}")
