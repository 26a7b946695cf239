"""Pooling on CUDA: chooses the variant and describes the pooling to it. The kernels are in src/*_pool.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import geometry
from ..geometry import Pair, Shape
from . import launch
from .launch import Kernel

Array = Any
Window = tuple[int, int, int]

# Square windows (kernel, stride, padding) that have kernels of their own, in every type but float64.
_FIXED = ((2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1))

_BLOCK = 256
_COLUMNS = 4  # input columns of one thread in a kernel for a fixed window
_WORK_PER_SLAB = 2**30  # of planes; the numbers of its places must stay below 2^31
_LARGEST_PLANE = 2**31 - 1  # positions in a plane are int32

# From so many elements of a window on, so many neighbouring threads share one average.
_LANES = ((512, 32), (32, 8), (0, 1))

_DIVISOR = np.dtype([("multiplier", np.uint32), ("shift", np.int32)], align=True)
_POOL = np.dtype(
    [
        ("planes", np.int64),
        ("planes_per_slab", np.int32),
        ("rows", np.int32),
        ("groups", np.int32),
        ("by_rows", _DIVISOR),
        ("by_groups", _DIVISOR),
        ("input", np.int32, 2),
        ("output", np.int32, 2),
        ("kernel", np.int32, 2),
        ("stride", np.int32, 2),
        ("padding", np.int32, 2),
        ("dilation", np.int32, 2),
        ("by_kernel_w", _DIVISOR),
        ("by_stride", _DIVISOR, 2),
        ("offset_bytes", np.int32),
        ("count_include_pad", np.int32),
        ("lanes", np.int32),
        ("divisor", np.float64),
    ],
    align=True,
)


def max_pool2d(
    x: Array,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    shape = geometry.max_pool2d(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    pool = _Pooling("max_pool2d", x.shape, shape, kernel_size, stride, padding, dilation)
    fixed = pool.fixed(x.dtype)
    x = launch.contiguous(x)
    y = launch.empty(shape, x.dtype, x)
    offsets = launch.empty(shape, _offset_dtype(kernel_size), x)
    pool.launch(pool.variant(x.dtype, fixed), (x, y, offsets), pool.over_output(fixed), offsets=offsets)
    return y, offsets


def max_pool2d_scatter(
    dy: Array,
    offsets: Array,
    input_shape: Shape,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Array:
    pool = _Pooling("max_pool2d_scatter", input_shape, dy.shape, kernel_size, stride, padding, dilation)
    fixed = pool.fixed(dy.dtype) if offsets.dtype == np.uint8 else None
    dy, offsets = launch.contiguous(dy), launch.contiguous(offsets)
    dx = launch.empty(input_shape, dy.dtype, dy)
    pool.launch(pool.variant(dy.dtype, fixed), (dy, offsets, dx), pool.over_input(fixed), offsets=offsets)
    return dx


def max_pool2d_gather(
    x: Array, offsets: Array, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    pool = _Pooling("max_pool2d_gather", x.shape, offsets.shape, kernel_size, stride, padding, dilation)
    kernel = Kernel("max_pool.cu", f"max_pool2d_gather<{launch.c_type(x.dtype)}>")
    x, offsets = launch.contiguous(x), launch.contiguous(offsets)
    y = launch.empty(offsets.shape, x.dtype, x)
    pool.launch(kernel, (x, offsets, y), pool.over_output(), offsets=offsets)
    return y


def max_pool2d_indices(
    offsets: Array, input_shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    pool = _Pooling("max_pool2d_indices", input_shape, offsets.shape, kernel_size, stride, padding, dilation)
    kernel = Kernel("max_pool.cu", "max_pool2d_indices<int64>")
    offsets = launch.contiguous(offsets)
    indices = launch.empty(offsets.shape, np.int64, offsets)
    pool.launch(kernel, (offsets, indices), pool.over_output(), offsets=offsets)
    return indices


def avg_pool2d(
    x: Array,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    shape = geometry.avg_pool2d(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    pool = _Pooling("avg_pool2d", x.shape, shape, kernel_size, stride, padding)
    fixed = pool.fixed(x.dtype)
    taps = kernel_size[0] * kernel_size[1]
    lanes = 1 if fixed else next(lanes for least, lanes in _LANES if taps >= least)
    x = launch.contiguous(x)
    y = launch.empty(shape, x.dtype, x)
    pool.launch(
        pool.variant(x.dtype, fixed),
        (x, y),
        pool.over_output(fixed),
        lanes=lanes,
        count_include_pad=count_include_pad,
        divisor=pool.common_divisor(count_include_pad, divisor_override),
    )
    return y


def avg_pool2d_input_grad(
    dy: Array,
    input_shape: Shape,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Array:
    pool = _Pooling("avg_pool2d_input_grad", input_shape, dy.shape, kernel_size, stride, padding)
    fixed = pool.fixed(dy.dtype)
    dy = launch.contiguous(dy)
    dx = launch.empty(input_shape, dy.dtype, dy)
    pool.launch(
        pool.variant(dy.dtype, fixed),
        (dy, dx),
        pool.over_input(fixed),
        count_include_pad=count_include_pad,
        divisor=pool.common_divisor(count_include_pad, divisor_override),
    )
    return dx


class _Pooling:
    """One pooling, and how its kernels are chosen and launched."""

    def __init__(
        self,
        operation: str,
        x_shape: Shape,
        y_shape: Shape,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
    ) -> None:
        if x_shape[2] * x_shape[3] > _LARGEST_PLANE:
            raise ValueError(
                f"{operation}: on CUDA one image of one channel may have {_LARGEST_PLANE} elements, "
                f"got {x_shape[2]} x {x_shape[3]}"
            )
        self.operation = operation
        self.planes = x_shape[0] * x_shape[1]
        self.input, self.output = tuple(x_shape[2:]), tuple(y_shape[2:])
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def fixed(self, dtype: Any) -> Window | None:
        """The window, where it has kernels of its own."""
        window = (self.kernel_size[0], self.stride[0], self.padding[0])
        square = all(len(set(pair)) == 1 for pair in (self.kernel_size, self.stride, self.padding))
        if square and window in _FIXED and self.dilation == (1, 1) and dtype != np.float64:
            return window
        return None

    def variant(self, dtype: Any, fixed: Window | None) -> Kernel:
        return _variant(self.operation, launch.c_type(dtype), fixed)

    def over_input(self, fixed: Window | None = None) -> Pair:
        """Rows and groups of columns of a plane, where threads take elements of the input."""
        return self.input[0], launch.divide_up(self.input[1], _COLUMNS if fixed else 1)

    def over_output(self, fixed: Window | None = None) -> Pair:
        """The same, where threads take elements of the output."""
        return self.output[0], launch.divide_up(self.output[1], _COLUMNS // fixed[1] if fixed else 1)

    def common_divisor(self, count_include_pad: bool, divisor_override: int | None) -> float:
        """What every window is divided by; 0 where windows differ."""
        if divisor_override is not None:
            return float(divisor_override)
        whole = all(
            (count - 1) * stride + taps <= size + 2 * pad
            for count, stride, taps, size, pad in zip(
                self.output, self.stride, self.kernel_size, self.input, self.padding, strict=True
            )
        )
        if whole and (count_include_pad or self.padding == (0, 0)):
            return float(self.kernel_size[0] * self.kernel_size[1])
        return 0.0

    def launch(
        self,
        kernel: Kernel,
        arrays: tuple[Array, ...],
        over: Pair,
        offsets: Array | None = None,
        lanes: int = 1,
        count_include_pad: bool = False,
        divisor: float = 0.0,
    ) -> None:
        rows, groups = over
        planes_per_slab = min(max(1, _WORK_PER_SLAB // (rows * groups)), max(1, self.planes))
        # A stride or dilation that no window ever uses may be any number.
        stride, dilation = (tuple(min(n, 2**30) for n in pair) for pair in (self.stride, self.dilation))
        pool = launch.struct(
            _POOL,
            planes=self.planes,
            planes_per_slab=planes_per_slab,
            rows=rows,
            groups=groups,
            by_rows=_divisor(rows),
            by_groups=_divisor(groups),
            input=self.input,
            output=self.output,
            kernel=self.kernel_size,
            stride=stride,
            padding=self.padding,
            dilation=dilation,
            by_kernel_w=_divisor(self.kernel_size[1]),
            by_stride=[_divisor(n) for n in stride],
            offset_bytes=0 if offsets is None else offsets.dtype.itemsize,
            count_include_pad=count_include_pad,
            lanes=lanes,
            divisor=divisor,
        )
        threads = planes_per_slab * rows * groups * lanes
        grid = (launch.divide_up(threads, _BLOCK), launch.divide_up(self.planes, planes_per_slab))
        launch.launch(kernel, grid, (_BLOCK,), (*arrays, pool))


def _variant(operation: str, scalar: str, fixed: Window | None = None) -> Kernel:
    source = "max_pool.cu" if operation.startswith("max") else "avg_pool.cu"
    if fixed:
        return Kernel(source, f"{operation}_fixed<{scalar}, {fixed[0]}, {fixed[1]}, {fixed[2]}>")
    return Kernel(source, f"{operation}_any<{scalar}>")


def _offset_dtype(kernel_size: Pair) -> np.dtype:
    window = kernel_size[0] * kernel_size[1]
    return np.dtype(np.uint8 if window <= 256 else np.int16 if window <= 32768 else np.int32)


def _divisor(n: int) -> tuple[int, int]:
    """The fields of the struct Divisor in pool.cuh, for 1 <= n <= 2^31."""
    shift = 31 + (n - 1).bit_length()
    return (1 << shift) // n + 1, shift


VARIANTS = [
    Kernel("max_pool.cu", "max_pool2d_indices<int64>"),
    *(
        variant
        for scalar in launch.FLOAT_TYPES
        for variant in (
            Kernel("max_pool.cu", f"max_pool2d_gather<{scalar}>"),
            *(
                _variant(operation, scalar, fixed)
                for operation in ("max_pool2d", "max_pool2d_scatter", "avg_pool2d", "avg_pool2d_input_grad")
                for fixed in (None, *_FIXED)
                if scalar != "double" or fixed is None
            ),
        )
    ),
]
