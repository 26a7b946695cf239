"""Average pooling, and pooling by a p-norm, of volumes on threads: in the three ways of `max_pooling`."""

from __future__ import annotations

import numpy as np

from ..geometry import pooling as geometry
from ..geometry.pooling import Sizes
from . import gathered, taps
from .pooled_volumes import Volumes
from .taps import Window


def avg_pool(
    x: np.ndarray,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    shape = geometry.avg_pool(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    volumes = Volumes(x.shape, shape, kernel_size, stride, padding, (1,) * len(stride), x.dtype)
    y = np.empty(shape, x.dtype)
    divisors = _divisors(volumes.window, count_include_pad, divisor_override, volumes.dtype)

    def piece(rows: np.ndarray | None, x: np.ndarray, y: np.ndarray) -> None:
        np.divide(_totals(volumes, rows, x, y.shape), divisors, out=y, casting="unsafe")

    volumes(piece, 0, x, y)
    return y


def avg_pool_input_grad(
    dy: np.ndarray,
    input_shape: Sizes,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> np.ndarray:
    volumes = Volumes(input_shape, dy.shape, kernel_size, stride, padding, (1,) * len(stride), dy.dtype)
    dx = np.empty(input_shape, dy.dtype)
    divisors = _divisors(volumes.window, count_include_pad, divisor_override, volumes.dtype)

    def piece(rows: np.ndarray | None, dy: np.ndarray, dx: np.ndarray) -> None:
        share = np.divide(dy, divisors, dtype=divisors.dtype, casting="unsafe")
        _hand_out(volumes, rows, share, dx)

    volumes(piece, 0, dy, dx)
    return dx


def lp_pool(x: np.ndarray, norm_type: float, kernel_size: Sizes, stride: Sizes, ceil_mode: bool = False) -> np.ndarray:
    shape = geometry.lp_pool(x.shape, norm_type, kernel_size, stride, ceil_mode)
    volumes, weights = _norms(x.shape, shape, kernel_size, stride, x.dtype)
    y = np.empty(shape, x.dtype)

    def piece(rows: np.ndarray | None, x: np.ndarray, y: np.ndarray) -> None:
        powers = _power(x.astype(volumes.dtype, copy=False), norm_type)
        sums = _totals(volumes, rows, powers, y.shape)
        if weights is not None:
            sums = sums * weights
        np.copyto(y, _power(sums, 1 / norm_type), casting="unsafe")

    volumes(piece, 0, x, y)
    return y


def lp_pool_input_grad(
    dy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    norm_type: float,
    kernel_size: Sizes,
    stride: Sizes,
    ceil_mode: bool,
) -> np.ndarray:
    volumes, weights = _norms(x.shape, dy.shape, kernel_size, stride, dy.dtype)
    dx = np.empty(x.shape, dy.dtype)

    def piece(rows: np.ndarray | None, dy: np.ndarray, x: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        y = y.astype(volumes.dtype, copy=False)
        share = dy / y if norm_type == 2 else dy * _power(y, 1 - norm_type)
        np.copyto(share, 0, where=y == 0)
        if weights is not None:
            share *= weights
        x = x.astype(volumes.dtype, copy=False)
        if norm_type == 1:
            _hand_out(volumes, rows, share, dx)
        elif dx.dtype == volumes.dtype:
            _hand_out(volumes, rows, share, dx)
            np.multiply(dx, _power(x, norm_type - 1), out=dx)
        else:
            sums = np.empty(dx.shape, volumes.dtype)
            _hand_out(volumes, rows, share, sums)
            np.multiply(sums, _power(x, norm_type - 1), out=dx, casting="unsafe")

    volumes(piece, 0, dy, x, y, dx)
    return dx


def _totals(volumes: Volumes, rows: np.ndarray | None, x: np.ndarray, shape: Sizes) -> np.ndarray:
    """The sum of each window."""
    if rows is not None:
        sums = _sums(volumes, volumes.runs.split(volumes.slices(x), rows))
        return volumes.runs.outputs(sums).reshape(shape)
    sums = np.empty(shape, volumes.dtype)
    (gathered if volumes.apart else taps).total(x, volumes.window, sums)
    return sums


def _hand_out(volumes: Volumes, rows: np.ndarray | None, share: np.ndarray, dx: np.ndarray) -> None:
    """To each element the sum of the shares of the windows that hold it."""
    if rows is not None:
        volumes.runs.merge(_spread(volumes, share), volumes.slices(dx), rows)
    elif volumes.apart:
        gathered.spread(share, volumes.window, dx)
    else:
        volumes.in_compute_dtype(dx, lambda dx: taps.spread(share, volumes.window, dx))


def _sums(volumes: Volumes, phases: np.ndarray) -> np.ndarray:
    """The sum of each window, at the pitch of a phase."""
    runs = volumes.runs
    for axis, pitch in ((1, 1), (0, runs.qp)):
        flat = phases.reshape(runs.stride[axis], -1)
        total = flat[0].copy()
        for tap, phase, shift in runs.taps(axis):
            if tap:
                total[: total.size - shift * pitch] += flat[phase, shift * pitch :]
        phases = total
    if not volumes.deep:
        return phases
    slices = volumes.stack(phases, volumes.window.size[0])
    sums = np.zeros((len(slices), volumes.window.pooled[0], slices.shape[2]), slices.dtype)
    for _, out, source in volumes.spans:
        sums[:, out] += slices[:, source]
    return sums


def _spread(volumes: Volumes, share: np.ndarray) -> list[np.ndarray | None]:
    """Column phases of the sum of what each window gives to all its elements."""
    runs = volumes.runs
    if volumes.deep:
        slices = np.zeros((len(share), volumes.window.size[0], *share.shape[2:]), share.dtype)
        for _, out, source in volumes.spans:
            slices[:, source] += share[:, out]
        share = slices
    flat = runs.spread(volumes.slices(share), runs.dtype)
    down = np.zeros((runs.stride[0], flat.size), runs.dtype)
    for _, phase, shift in runs.taps(0):
        down[phase, shift * runs.qp :] += flat[: flat.size - shift * runs.qp]
    wide = down.reshape(-1)
    phases: list[np.ndarray | None] = [None] * runs.stride[1]
    for _, phase, shift in runs.taps(1):
        if phases[phase] is None and shift == 0:
            phases[phase] = wide if runs.kernel_size[1] <= runs.stride[1] else wide.copy()
        else:
            if phases[phase] is None:
                phases[phase] = np.zeros_like(wide)
            phases[phase][shift:] += wide[: wide.size - shift]  # type: ignore[index]
    return phases


def _divisors(window: Window, count_include_pad: bool, divisor_override: int | None, dtype: np.dtype) -> np.ndarray:
    """What each window is divided by; parts of it beyond the padding never count."""
    if divisor_override is not None:
        return np.full((1,) * len(window.pooled), divisor_override, dtype)
    divisors = np.ones((), dtype)
    for size, count, taps_, step, pad, _ in zip(*window, strict=True):
        start = np.arange(count) * step - pad
        stop = np.minimum(start + taps_, size + pad)
        if not count_include_pad:
            start, stop = np.maximum(start, 0), np.minimum(stop, size)
        divisors = np.multiply.outer(divisors, (stop - start).astype(dtype))
    return divisors


def _norms(
    x_shape: Sizes, y_shape: Sizes, kernel_size: Sizes, stride: Sizes, dtype: np.dtype
) -> tuple[Volumes, np.ndarray | None]:
    """The windows of pooling by a p-norm, and the weights of their sums where not all are 1."""
    rank = len(kernel_size)
    volumes = Volumes(x_shape, y_shape, kernel_size, stride, (0,) * rank, (1,) * rank, dtype)
    if not volumes.reach_out:
        return volumes, None
    inside = _divisors(volumes.window, False, None, volumes.dtype)
    return volumes, np.prod(volumes.window.kernel_size, dtype=volumes.dtype) / inside


def _power(x: np.ndarray, exponent: float) -> np.ndarray:
    """x ** exponent, by multiplications and roots where it is one of them."""
    if exponent == 1:
        return x
    if exponent == 2:
        return x * x
    if exponent == 3:
        return x * x * x
    if exponent == 0.5:
        return np.sqrt(x)
    return np.power(x, x.dtype.type(exponent))
