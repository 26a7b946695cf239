"""Batch normalisation on CUDA: cuts channels into parts and chooses the variant of src/batch_norm*.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import channel_runs
from . import launch
from .kernel import Kernel

Array = Any

_WARP = 32
_BLOCK = 256
_RESIDENT_BLOCK = 448
_VECTOR_BYTES = 16
# Constants, so that sums have the same order on every device: blocks enough for a large one, and not too many parts.
_BLOCKS = 1024
_MOST_PARTS = 256
_STEPS_PER_THREAD = 4
# Runs of at most so many elements are shared among lanes that lie along channels.
_SHORT_RUN = 16
_ROWS = 8  # of such lanes in a block
_MOST = 2**31 - 1  # of channels, and of elements of a run
# A channel may stay in the registers of a block if there are so many channels, or if it is small.
_MANY_CHANNELS = 64
_SMALL_CHANNEL = 1 << 12
# 4-byte words of an array that a thread keeps.
_KEPT_WORDS = (16, 32)
_GRAD_KEPT_WORDS = (8, 16)

_STRUCT = np.dtype(
    [
        ("count", np.int64),
        ("image", np.int64),
        ("run", np.int64),
        ("steps", np.int64),
        ("steps_per_part", np.int64),
        ("jump", np.int64),
        ("jump_in_run", np.int32),
        ("length", np.int32),
        ("eps", np.float64),
        ("momentum", np.float64),
        ("channels", np.int32),
        ("parts", np.int32),
        ("width", np.int32),
        ("channels_per_block", np.int32),
        ("wide_vectors", np.int32),
        ("cumulative", np.int32),
        ("inference", np.int32),
        ("relu", np.int32),
    ],
    align=True,
)


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    relu: bool = False,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float | None = 0.1,
    num_batches_tracked: Array | None = None,
) -> tuple[Array, Array, Array]:
    x, residual, weight, bias = _contiguous(x, residual, weight, bias)
    y, mean, inverse_std = _results(x)
    running = running_mean, running_var
    moved = _contiguous(*running)
    cut = _Cut(x, residual, y)
    words = None if momentum is None else cut.resident(_KEPT_WORDS)
    settings = {
        "eps": eps,
        "momentum": 0.0 if momentum is None else momentum,
        "cumulative": momentum is None,
        "relu": relu,
        "wide_vectors": _wide(x, weight, bias, *running),
    }
    if words:
        args = (x, residual, y, weight, bias, mean, inverse_std, *moved, num_batches_tracked)
        cut.launch(_variant("resident", x.dtype, words), args, settings)
    else:
        partials = launch.empty((cut.channels * cut.parts, 3), mean.dtype, x)
        cut.launch(_variant("statistics", x.dtype), (x, partials, num_batches_tracked), settings)
        args = (x, residual, y, weight, bias, partials, mean, inverse_std, *moved, num_batches_tracked)
        cut.launch(_variant("apply", x.dtype), args, settings)
    for given, used in zip(running, moved, strict=True):
        if given is not None and used is not given:
            given[...] = used
    return y, mean, inverse_std


def batch_norm_inference(
    x: Array,
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    relu: bool = False,
) -> tuple[Array, Array, Array]:
    x, residual, weight, bias = _contiguous(x, residual, weight, bias)
    running = _contiguous(running_mean, running_var)
    y, mean, inverse_std = _results(x)
    settings = {"eps": eps, "relu": relu, "inference": True, "wide_vectors": _wide(x, *running)}
    args = (x, residual, y, weight, bias, None, mean, inverse_std, *running, None)
    _Cut(x, residual, y).launch(_variant("apply", x.dtype), args, settings)
    return y, mean, inverse_std


def batch_norm_grad(
    dy: Array,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    inverse_std: Array,
    y: Array | None = None,
    residual: bool = False,
    inference: bool = False,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    given = weight if weight is not None else bias
    relu = y is not None
    dx = launch.empty(x.shape, x.dtype, x) if needs[0] else None
    gated = launch.empty(x.shape, x.dtype, x) if relu and residual else None
    vector_dtype = x.dtype if given is None else given.dtype
    dweight, dbias = (launch.empty(x.shape[1:2], vector_dtype, x) if needs[1] else None for _ in range(2))
    # Without a residual the mask follows from x, which is read in any case.
    dy, x, y = _contiguous(dy, x, y if residual else None)
    vectors = _contiguous(weight, bias, mean, inverse_std)
    settings = {"relu": relu, "inference": inference, "wide_vectors": _wide(x, given)}
    cut = _Cut(dy, x, y, dx, gated)
    words = cut.resident(_GRAD_KEPT_WORDS) if dx is not None and not inference else 0
    if words:
        args = (dy, x, y, gated, *vectors, dx, dweight, dbias)
        cut.launch(_variant("grad_resident", x.dtype, words), args, settings)
        return dx, dweight, dbias, gated
    partials = None
    source = dy, x, y, gated
    if needs[1] or not inference:
        partials = launch.empty((cut.channels * cut.parts, 2), mean.dtype, x)
        cut.launch(_variant("grad_sums", x.dtype), (*source, *vectors, partials), settings)
        if gated is not None:
            source, settings["relu"] = (gated, x, None, None), False
    cut.launch(_variant("grad_apply", x.dtype), (*source, *vectors, partials, dx, dweight, dbias), settings)
    return dx, dweight, dbias, gated


class _Cut:
    """How the channels of arrays of one shape are shared among blocks and threads."""

    def __init__(self, *arrays: Array | None) -> None:
        given = [array for array in arrays if array is not None]
        first = given[0]
        self.images, self.channels, self.run = channel_runs(first.shape)
        if max(self.channels, self.run) > _MOST:
            raise ValueError(
                f"batch_norm: on CUDA there may be {_MOST} channels and as many elements of one in one image, "
                f"got {self.channels} and {self.run}"
            )
        self.itemsize = first.dtype.itemsize
        self.width, self.channels_per_block = 1, 0
        if 0 < self.run <= _SHORT_RUN:
            self._along_channels()
        else:
            self.width = next(width for width in _widths(self.itemsize) if self._fits(width, given))
            self._along_runs()

    def _fits(self, width: int, arrays: list[Array]) -> bool:
        return self.run % width == 0 and all(launch.aligned(array, width * self.itemsize) for array in arrays)

    def _along_channels(self) -> None:
        self.channels_per_block = _WARP // self.run
        self.groups = launch.divide_up(self.channels, self.channels_per_block)
        self.block: tuple[int, ...] = (_WARP, _ROWS)
        self.steps, self.length, self.jump_in_run = self.images, 1, 0
        self.jump = _ROWS * self.channels * self.run
        self._cut(_ROWS)

    def _along_runs(self) -> None:
        self.groups = self.channels
        self.length = max(1, self.run // self.width)
        self.steps = self.images * self.run // self.width
        self._take(min(_BLOCK, _WARP * max(1, launch.divide_up(self.steps, _WARP))))
        self._cut(self.block[0])

    def _take(self, threads: int) -> None:
        self.block = (threads,)
        images, self.jump_in_run = divmod(threads, self.length)
        self.jump = images * self.channels * self.run + self.jump_in_run * self.width

    def _cut(self, threads: int) -> None:
        """Into parts, if the groups alone are too few blocks."""
        wanted = launch.divide_up(_BLOCKS, max(1, self.groups))
        most = launch.divide_up(self.steps, threads * _STEPS_PER_THREAD)
        parts = max(1, min(wanted, most, _MOST_PARTS))
        self.steps_per_part = max(1, launch.divide_up(launch.divide_up(self.steps, parts), threads) * threads)
        self.parts = max(1, launch.divide_up(self.steps, self.steps_per_part))

    def resident(self, words: tuple[int, ...]) -> int:
        """The least number of words that hold a channel in the registers of a block, 0 where that is not the way."""
        elements = self.images * self.run
        if self.channels_per_block or not elements:
            return 0
        if self.channels < _MANY_CHANNELS and elements > _SMALL_CHANNEL:
            return 0
        for kept in words:
            per_thread = kept if self.width == 1 and self.itemsize < 4 else kept * 4 // self.itemsize
            # Half of what fits, where that is enough for a block: more threads wait for memory together.
            threads = _WARP * launch.divide_up(elements, _WARP * max(self.width, per_thread // 2))
            if threads > _RESIDENT_BLOCK:
                threads = _RESIDENT_BLOCK
            if launch.divide_up(self.steps, threads) <= per_thread // self.width:
                self._take(threads)
                self.parts, self.steps_per_part = 1, self.steps
                return kept
        return 0

    def launch(self, kernel: Kernel, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
        fields = {
            "eps": 0.0, "momentum": 0.0, "cumulative": False, "inference": False, "relu": False, "wide_vectors": False,
            **settings,
        }  # fmt: skip
        struct = launch.struct(
            _STRUCT,
            count=self.images * self.run,
            image=self.channels * self.run,
            run=self.run,
            length=self.length,
            steps=self.steps,
            steps_per_part=self.steps_per_part,
            jump=self.jump,
            jump_in_run=self.jump_in_run,
            channels=self.channels,
            parts=self.parts,
            width=self.width,
            channels_per_block=self.channels_per_block,
            **fields,
        )
        launch.launch(kernel, (self.groups * self.parts,), self.block, (*args, struct))


def _contiguous(*arrays: Array | None) -> tuple[Any, ...]:
    return tuple(None if array is None else launch.contiguous(array) for array in arrays)


def _results(x: Array) -> tuple[Array, Array, Array]:
    statistics = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    y = launch.empty(x.shape, x.dtype, x)
    return y, launch.empty(x.shape[1:2], statistics, x), launch.empty(x.shape[1:2], statistics, x)


def _wide(x: Array, *vectors: Array | None) -> bool:
    """Whether vectors are float32 beside a half type."""
    return any(vector is not None and vector.dtype != x.dtype for vector in vectors)


def _widths(itemsize: int) -> tuple[int, ...]:
    widest = _VECTOR_BYTES // itemsize
    return (widest, widest // 2, 1) if itemsize == 2 else (widest, 1)


def _variant(name: str, dtype: Any, words: int | None = None) -> Kernel:
    return _kernel(name, launch.c_type(dtype), words)


def _kernel(name: str, scalar: str, words: int | None = None) -> Kernel:
    source = "batch_norm_grad.cu" if name.startswith("grad") else "batch_norm.cu"
    arguments = scalar if words is None else f"{scalar}, {words}"
    return Kernel(source, f"batch_norm_{name}<{arguments}>")


VARIANTS = [
    variant
    for scalar in launch.FLOAT_TYPES
    for variant in (
        *(_kernel(name, scalar) for name in ("statistics", "apply", "grad_sums", "grad_apply")),
        *(_kernel("resident", scalar, words) for words in _KEPT_WORDS),
        *(_kernel("grad_resident", scalar, words) for words in _GRAD_KEPT_WORDS),
    )
]
