"""Max and average pooling of planes on threads.

Three ways: by long runs (`windows`) for all but large strides; there by whole windows (`gathered`) if they
lie apart; and else, and where a NaN decides, by `taps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .. import geometry
from ..geometry import Pair, Shape
from . import gathered, parallel, taps
from .arithmetic import compute_dtype
from .taps import Window
from .windows import Windows

# With more phases than this their runs are short.
_MOST_PHASES = 16
_BITS: dict[int, type[np.integer]] = {4: np.int32, 8: np.int64}


def max_pool2d(
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    shape = geometry.max_pool2d(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    window = Window(x.shape[2:], shape[2:], kernel_size, stride, padding, dilation)
    apart = gathered.serves(window)
    y = np.empty(shape, x.dtype)
    offsets = np.empty(shape, _offset_dtype(kernel_size))

    def piece(run: Windows | None, rows: np.ndarray | None, x: np.ndarray, y: np.ndarray, offsets: np.ndarray) -> None:
        if run is not None and rows is not None:
            best, first = _maxima(run, run.split(x, rows), offsets.dtype)
            np.copyto(y, run.outputs(best), casting="unsafe")
            np.copyto(offsets, run.outputs(first))
            highest = y.max()
            # Runs tell neither which NaN was the last nor -inf from what is around the input.
            if not (np.isnan(highest) or (run.reach_out and y.min() == -np.inf)):
                return
        elif apart and gathered.maximum(x, window, y, offsets):
            return
        taps.maximum(x, window, y, offsets)

    _over_planes(piece, window, x.dtype, -np.inf, x, y, offsets)
    return y, offsets


def max_pool2d_scatter(
    dy: np.ndarray,
    offsets: np.ndarray,
    input_shape: Shape,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> np.ndarray:
    window = Window(input_shape[2:], dy.shape[2:], kernel_size, stride, padding, dilation)
    apart = gathered.serves(window)
    dx = np.empty(input_shape, dy.dtype)

    def piece(
        run: Windows | None, rows: np.ndarray | None, dy: np.ndarray, offsets: np.ndarray, dx: np.ndarray
    ) -> None:
        if run is not None and rows is not None:
            run.merge(_scattered(run, dy, offsets), dx, rows)
        elif apart:
            gathered.scatter(dy, offsets, window, dx)
        else:
            _in_compute_dtype(dx, lambda dx: taps.scatter(dy, offsets, window, dx))

    _over_planes(piece, window, dy.dtype, 0, dy, offsets, dx)
    return dx


def max_pool2d_gather(
    x: np.ndarray, offsets: np.ndarray, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> np.ndarray:
    window = Window(x.shape[2:], offsets.shape[2:], kernel_size, stride, padding, dilation)
    y = np.zeros(offsets.shape, x.dtype)

    def piece(run: Windows | None, rows: np.ndarray | None, x: np.ndarray, offsets: np.ndarray, y: np.ndarray) -> None:
        taps.gather(x, offsets, window, y)

    _over_planes(piece, window, x.dtype, 0, x, offsets, y)
    return y


def max_pool2d_indices(
    offsets: np.ndarray, input_shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> np.ndarray:
    i, j = np.divmod(np.arange(kernel_size[0] * kernel_size[1]), kernel_size[1])
    steps = i * dilation[0] * input_shape[3] + j * dilation[1]
    rows = np.arange(offsets.shape[2])[:, None] * stride[0] - padding[0]
    columns = np.arange(offsets.shape[3]) * stride[1] - padding[1]
    indices = steps.take(offsets)
    indices += rows * input_shape[3] + columns
    return indices


def avg_pool2d(
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    shape = geometry.avg_pool2d(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    window = Window(x.shape[2:], shape[2:], kernel_size, stride, padding, (1, 1))
    apart = gathered.serves(window)
    y = np.empty(shape, x.dtype)
    divisors = _divisors(window, count_include_pad, divisor_override, compute_dtype(x.dtype))

    def piece(run: Windows | None, rows: np.ndarray | None, x: np.ndarray, y: np.ndarray) -> None:
        if run is not None and rows is not None:
            sums = run.outputs(_sums(run, run.split(x, rows)))
        else:
            sums = np.empty(y.shape, divisors.dtype)
            (gathered if apart else taps).total(x, window, sums)
        np.divide(sums, divisors, out=y, casting="unsafe")

    _over_planes(piece, window, x.dtype, 0, x, y)
    return y


def avg_pool2d_input_grad(
    dy: np.ndarray,
    input_shape: Shape,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> np.ndarray:
    window = Window(input_shape[2:], dy.shape[2:], kernel_size, stride, padding, (1, 1))
    apart = gathered.serves(window)
    dx = np.empty(input_shape, dy.dtype)
    divisors = _divisors(window, count_include_pad, divisor_override, compute_dtype(dy.dtype))

    def piece(run: Windows | None, rows: np.ndarray | None, dy: np.ndarray, dx: np.ndarray) -> None:
        share = np.divide(dy, divisors, dtype=divisors.dtype, casting="unsafe")
        if run is not None and rows is not None:
            run.merge(_spread(run, share), dx, rows)
        elif apart:
            gathered.spread(share, window, dx)
        else:
            _in_compute_dtype(dx, lambda dx: taps.spread(share, window, dx))

    _over_planes(piece, window, dy.dtype, 0, dy, dx)
    return dx


def _over_planes(piece: Callable[..., None], window: Window, dtype: np.dtype, fill: float, *arrays: np.ndarray) -> None:
    """Call `piece` with runs, their memory and some planes of each array, on all threads."""
    run = Windows(window, compute_dtype(dtype))
    planes = arrays[0].shape[0] * arrays[0].shape[1]
    flat = [array.reshape(planes, *array.shape[2:]) for array in arrays]
    by_runs = run.stride[0] * run.stride[1] <= _MOST_PHASES

    def work(parts: Iterator[slice]) -> None:
        rows = run.rows(min(run.planes, planes), fill) if by_runs else None
        for part in parts:
            piece(run if by_runs else None, rows, *(array[part] for array in flat))

    parallel.share(work, parallel.split(planes, run.planes))


def _in_compute_dtype(dx: np.ndarray, fill: Callable[[np.ndarray], None]) -> None:
    """Let sums be made in the compute type and rounded once."""
    sums = np.empty(dx.shape, compute_dtype(dx.dtype))
    fill(sums)
    np.copyto(dx, sums, casting="unsafe")


def _maxima(run: Windows, phases: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of each window and its offset, at the pitch of a phase."""
    best, offsets = _along(run, phases, 1, None, 1, dtype)
    return _along(run, best.reshape(run.stride[0], -1), 0, offsets.reshape(run.stride[0], -1), run.qp, dtype)


def _along(
    run: Windows, phases: np.ndarray, axis: int, inner: np.ndarray | None, pitch: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Maxima along one axis with their offsets: the tap, or tap * kernel width + the inner offset."""
    flat = phases.reshape(run.stride[axis], -1)
    best = flat[0].copy()
    offsets = np.zeros(best.shape, dtype) if inner is None else inner[0].copy()
    better = np.empty(best.shape, bool)
    marks = better.view(np.uint8)
    for tap, phase, shift in run.taps(axis):
        if tap == 0:
            continue
        length = best.size - shift * pitch
        value, top = flat[phase, shift * pitch :], best[:length]
        np.greater(value, top, out=better[:length])
        np.maximum(value, top, out=top)
        # The offset of a later tap is always the larger one.
        if inner is None:
            found = np.multiply(marks[:length], tap, dtype=dtype)
        else:
            found = np.add(inner[phase, shift * pitch :], tap * run.kernel_size[1], dtype=dtype)
            found *= marks[:length]
        np.maximum(offsets[:length], found, out=offsets[:length])
    return best, offsets


def _scattered(run: Windows, dy: np.ndarray, offsets: np.ndarray) -> list[np.ndarray | None]:
    """Column phases of the sum of dy where its offset points."""
    values = run.spread(dy, run.dtype)
    bits = values.view(_BITS[run.dtype.itemsize])
    where = run.spread(offsets, offsets.dtype)
    hit = np.empty(where.shape, bool)
    part = np.empty(bits.shape, bits.dtype)
    phases: list[np.ndarray | None] = [None] * run.stride[1]
    for i, row, down in run.taps(0):
        for j, column, right in run.taps(1):
            if phases[column] is None:
                phases[column] = np.zeros((run.stride[0], values.size), run.dtype)
            np.equal(where, i * run.kernel_size[1] + j, out=hit)
            # Bits times 0 or 1: what is not hit is 0, were it NaN.
            np.multiply(bits, hit, out=part)
            shift = down * run.qp + right
            target = phases[column][row, shift:]  # type: ignore[index]
            np.add(target, part.view(run.dtype)[: target.size], out=target)
    return phases


def _sums(run: Windows, phases: np.ndarray) -> np.ndarray:
    """The sum of each window, at the pitch of a phase."""
    for axis, pitch in ((1, 1), (0, run.qp)):
        flat = phases.reshape(run.stride[axis], -1)
        total = flat[0].copy()
        for tap, phase, shift in run.taps(axis):
            if tap:
                total[: total.size - shift * pitch] += flat[phase, shift * pitch :]
        phases = total
    return phases


def _spread(run: Windows, share: np.ndarray) -> list[np.ndarray | None]:
    """Column phases of the sum of what each window gives to all its elements."""
    flat = run.spread(share, run.dtype)
    down = np.zeros((run.stride[0], flat.size), run.dtype)
    for _, phase, shift in run.taps(0):
        down[phase, shift * run.qp :] += flat[: flat.size - shift * run.qp]
    wide = down.reshape(-1)
    phases: list[np.ndarray | None] = [None] * run.stride[1]
    for _, phase, shift in run.taps(1):
        if phases[phase] is None and shift == 0:
            phases[phase] = wide if run.kernel_size[1] <= run.stride[1] else wide.copy()
        else:
            if phases[phase] is None:
                phases[phase] = np.zeros_like(wide)
            phases[phase][shift:] += wide[: wide.size - shift]  # type: ignore[index]
    return phases


def _offset_dtype(kernel_size: Pair) -> np.dtype:
    window = kernel_size[0] * kernel_size[1]
    return np.dtype(np.uint8 if window <= 256 else np.int16 if window <= 32768 else np.int32)


def _divisors(window: Window, count_include_pad: bool, divisor_override: int | None, dtype: np.dtype) -> np.ndarray:
    """What each window (P, Q) is divided by; parts of it beyond the padding never count."""
    if divisor_override is not None:
        return np.full(window.pooled, divisor_override, dtype)
    counts = []
    for size, count, taps_, step, pad, _ in zip(*window, strict=True):
        start = np.arange(count) * step - pad
        stop = np.minimum(start + taps_, size + pad)
        if not count_include_pad:
            start, stop = np.maximum(start, 0), np.minimum(stop, size)
        counts.append(stop - start)
    return np.multiply.outer(*counts).astype(dtype)
