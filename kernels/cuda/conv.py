"""Convolution and its input gradient in CUDA: the same computation over differently described arrays.

`Gather` in `src/conv.cuh` is the description; `conv_choice.py` says which kernel runs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import geometry, precision
from ..geometry import Pads, Sizes
from . import autotune, conv_mma, conv_wgmma, depthwise, epilogue, launch
from .conv_axes import THREADS, axes_split, before, check_sizes, pitches, struct_type, three
from .conv_choice import FORWARD, INPUT_GRAD, BulkTile, Direct, Problem, Product, TensorTile, Variant, WithKernel
from .launch import divide_up
from .matmul import matmul

Array = Any


# The fields of the struct of the same name in src/conv.cuh, in their order.
_GATHER = struct_type(
    "pixels",
    "groups rows channels taps_d taps_h taps_w out_d out_h out_w "
    "source_d source_h source_w step_d step_h step_w tap_d tap_h tap_w first_d first_h first_w "
    "filter_group filter_row filter_channel filter_d filter_h filter_w filter_first "
    "target_plane target_first target_d target_h target_w ahead_d ahead_h ahead_w ahead_channels activation packed",
)


def conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    shape = geometry.conv(x.shape, weight.shape, None, stride, padding, dilation, groups)
    check_sizes(geometry.conv_name(stride), weight.shape, x.shape, shape)
    weight = launch.contiguous(weight)
    bias = None if bias is None else launch.contiguous(bias)
    residual = None if residual is None else launch.contiguous(residual)
    window = depthwise.window_of(x.dtype, weight.shape, stride, dilation, groups)
    if window is not None and x.size and math.prod(shape):
        y = launch.empty(shape, x.dtype, x)
        depthwise.forward(window, launch.contiguous(x), weight, bias, y, before(padding))
        epilogue.finish(y, activation, residual)
        return y
    filters, channels = weight.shape[:2]
    out, source, taps = three(shape[2:]), three(x.shape[2:]), three(weight.shape[2:])
    weights_of_row = math.prod(weight.shape[1:])
    pixels = x.shape[0] * math.prod(out)
    only = {
        "pixels": pixels,
        "groups": groups,
        "rows": filters // groups,
        "channels": channels,
        "taps": taps,
        "out": out,
        "source": source,
        "step": three(stride),
        "tap": three(dilation),
        "first": [-before for before in before(padding)],
        "filter_group": filters // groups * weights_of_row,
        "filter_row": weights_of_row,
        "filter_channel": math.prod(taps),
        "filter": pitches(taps),
        "filter_first": 0,
        "target_plane": math.prod(out),
        "target_first": 0,
        "target": pitches(out),
    }
    problem = _problem(FORWARD, x, weight, groups, filters // groups, channels, taps, pixels, [only])
    return _run(problem, x, weight, shape, [only], bias, residual, activation)


def conv_input_grad(
    dy: Array,
    weight: Array,
    input_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> Array:
    check_sizes(geometry.conv_name(stride, "_input_grad"), weight.shape, dy.shape, input_shape)
    weight = launch.contiguous(weight)
    window = depthwise.input_grad_window(dy.dtype, weight.shape, stride, padding, dilation, groups)
    if window is not None and dy.size and math.prod(input_shape):
        dx = launch.empty(input_shape, dy.dtype, dy)
        depthwise.input_grad(window, launch.contiguous(dy), weight, dx, before(padding))
        return dx
    filters, channels = weight.shape[:2]
    size, taps, steps = three(input_shape[2:]), three(weight.shape[2:]), three(stride)
    axes = zip(size, taps, steps, before(padding), three(dilation), strict=True)
    size_pitches, tap_pitches = pitches(size), pitches(taps)
    classes = list(itertools.product(*(_residues(*axis) for axis in axes)))
    most_pixels = input_shape[0] * max((math.prod(r.positions for r in residues) for residues in classes), default=0)
    most_taps = [max(residues[axis].taps for residues in classes) for axis in range(3)] if classes else (0, 0, 0)
    passes = []
    for residues in classes:
        met = all(residue.taps > 0 for residue in residues)
        out = [residue.positions for residue in residues]
        fields = {
            "pixels": input_shape[0] * math.prod(out),
            "groups": groups,
            "rows": channels,
            "channels": filters // groups if met else 0,
            "taps": [max(residue.taps, 1) for residue in residues],
            "out": out,
            "source": three(dy.shape[2:]),
            "step": (1, 1, 1),
            "tap": [residue.distance for residue in residues],
            "first": [residue.source for residue in residues],
            "filter_group": filters // groups * channels * math.prod(taps),
            "filter_row": math.prod(taps),
            "filter_channel": channels * math.prod(taps),
            "filter": [residue.tap_step * pitch for residue, pitch in zip(residues, tap_pitches, strict=True)],
            "filter_first": sum(residue.tap * pitch for residue, pitch in zip(residues, tap_pitches, strict=True)),
            "target_plane": math.prod(size),
            "target_first": sum(
                residue.position * pitch for residue, pitch in zip(residues, size_pitches, strict=True)
            ),
            "target": [step * pitch for step, pitch in zip(steps, size_pitches, strict=True)],
        }
        passes.append(fields)
    problem = _problem(INPUT_GRAD, dy, weight, groups, channels, filters // groups, most_taps, most_pixels, passes)
    return _run(problem, dy, weight, input_shape, passes)


def _problem(
    operation: str,
    source: Array,
    weight: Array,
    groups: int,
    rows: int,
    channels: int,
    taps: Sequence[int],
    pixels: int,
    passes: Sequence[dict[str, Any]],
) -> Problem:
    return Problem(
        operation=operation,
        c_type=launch.c_type(source.dtype),
        precision=precision.get_float32_matmul_precision(),
        capability=launch.capability(source),
        groups=groups,
        rows=rows,
        channels=channels,
        taps=math.prod(taps),
        pixels=pixels,
        places=math.prod(source.shape[2:]),
        plane=_plane(passes) if weight.size == rows * channels else 0,
        bulk=conv_wgmma.possible(passes),
    )


def _run(
    problem: Problem,
    source: Array,
    weight: Array,
    shape: Sizes,
    passes: Sequence[dict[str, Any]],
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
) -> Array:
    def run(variant: Variant) -> Array:
        if isinstance(variant, Product):
            return _product(problem, source, weight, bias, activation, residual).reshape(shape)
        target = launch.empty(shape, source.dtype, source)
        if isinstance(variant, TensorTile | BulkTile):
            *arrays, described = conv_mma.with_channels_last(variant, problem, source, weight, passes)
        else:
            arrays, described = [launch.contiguous(source), weight], list(passes)
        for fields in described:
            _gather(variant, target, [*arrays, bias, residual], fields, epilogue.kind(activation))
        return target

    details = (source.shape, source.strides, shape, passes, bias is not None, residual is not None, activation)
    return run(autotune.choose(problem, details, run, source))


def _plane(passes: Sequence[dict[str, Any]]) -> int:
    """Pixels of an image where a pass by one tap is a product of filters and images as they lie, else 0."""
    only, ones = passes[0] if len(passes) == 1 else {}, [1, 1, 1]
    as_it_lies = (
        only.get("groups") == 1
        and only["channels"] > 0  # none where no tap meets a position
        and list(only["taps"]) == list(only["step"]) == ones
        and list(only["out"]) == list(only["source"])
        and not any(only["first"])
    )
    return math.prod(only["out"]) if as_it_lies else 0


def _product(
    problem: Problem,
    source: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
) -> Array:
    """(images, rows, pixels)."""
    filters = weight.reshape(len(weight), -1)
    images = launch.contiguous(source).reshape(len(source), problem.channels, problem.places)
    column = None if bias is None else bias.reshape(-1, 1)
    last = activation if residual is None else None
    y = matmul(filters if problem.operation == FORWARD else filters.T, images, column, last)
    if residual is not None:
        epilogue.finish(y, activation, residual.reshape(y.shape))
    return y


def _gather(
    variant: WithKernel, target: Array, given: Sequence[Array | None], fields: dict[str, Any], activation: int
) -> None:
    groups, rows, pixels, plane = fields["groups"], fields["rows"], fields["pixels"], math.prod(fields["out"])
    if isinstance(variant, Direct):
        blocks = pixels // max(plane, 1) * divide_up(groups * rows * plane, THREADS)
    else:
        blocks = groups * divide_up(rows, variant.rows) * divide_up(pixels, variant.columns)
    threads, shared_bytes = THREADS, 0
    if isinstance(variant, TensorTile | BulkTile):
        threads, shared_bytes = variant.threads, variant.shared_bytes
    in_order = fields["target_plane"] == plane and tuple(fields["target"]) == pitches(fields["out"])
    aligned = all(array is None or launch.aligned(array, 16) for array in (target, given[-1]))
    packed = in_order and aligned and plane % 4 == 0
    *taps, channels = _stage(variant, fields, target.itemsize)
    more = {"ahead": taps, "ahead_channels": channels, "activation": activation, "packed": packed}
    settings = launch.struct(_GATHER, **axes_split(**fields, **more))
    kernel = variant.kernel(FORWARD, launch.c_type(target.dtype))
    arrays, reached = [*given, target], []
    if isinstance(variant, BulkTile) and blocks:
        source, filters, *_ = given
        arrays[:2], reached = conv_wgmma.maps(source, filters, fields), [source, filters]
    launch.launch(kernel, (blocks,), (threads,), [*arrays, settings], shared_bytes, reached)


def _stage(variant: WithKernel, fields: dict[str, Any], itemsize: int) -> Sequence[int]:
    """How far a stage goes in the reduction: taps along (depth, height, width), and channels."""
    _, height, width = fields["taps"]
    channels = fields["channels"]
    if isinstance(variant, Direct | BulkTile) or not channels:
        return 0, 0, 0, 0
    if isinstance(variant, TensorTile):  # the channels of each tap
        taps, channels = divmod(variant.line_bytes // itemsize, channels)
    else:  # the taps of each channel
        channels, taps = divmod(variant.depth, math.prod(fields["taps"]))
    return taps // width // height, taps // width % height, taps % width, channels


@dataclass(frozen=True)
class _Residue:
    """The positions of one residue modulo the stride, in one dimension, and the taps that reach them.

    Positions are position, position + stride, …; taps are tap, tap + tap_step, …. Position number i meets tap
    number t at source + i + t * distance in the convolution's output.
    """

    position: int
    positions: int
    tap: int
    tap_step: int
    taps: int
    source: int
    distance: int


def _residues(size: int, taps: int, stride: int, padding: int, dilation: int) -> list[_Residue]:
    # Tap r takes output p to position p * stride + r * dilation - padding. Solved for p, that divides evenly
    # for every tap_step-th tap or for none.
    tap_step = stride // math.gcd(stride, dilation)
    residues = []
    for position in range(min(stride, size)):
        reached = [t for t in range(min(taps, tap_step)) if (position + padding - t * dilation) % stride == 0]
        tap = reached[0] if reached else 0
        residues.append(
            _Residue(
                position=position,
                positions=len(range(position, size, stride)),
                tap=tap,
                tap_step=tap_step,
                taps=len(range(tap, taps, tap_step)) if reached else 0,
                source=(position + padding - tap * dilation) // stride,
                distance=-(tap_step * dilation // stride),
            )
        )
    return residues
