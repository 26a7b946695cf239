"""The launches of convolutions whose tiles come by bulk tensor copies: what `src/conv_wgmma.cu` gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import launch
from .tensor_map import MOST_OFFSET, TensorMap, Window

Array = Any
_LINES = 128  # kLines in conv_wgmma.cu


def possible(passes: Sequence[dict[str, Any]]) -> bool:
    """Whether tensor maps describe the source of these passes: one group, up to two dims, small corners and offsets."""
    return all(
        fields["groups"] == 1
        and fields["source"][0] == fields["taps"][0] == fields["out"][0] == 1
        and _window(fields).is_possible()
        and max((taps - 1) * abs(tap) for taps, tap in _axes(fields, "taps", "tap")) <= MOST_OFFSET
        for fields in passes
    )


def maps(source: Array, weight: Array, fields: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of source (images, places, channels) and filters (rows, taps, channels), as the kernel's parameters."""
    c_type, channels = launch.c_type(source.dtype), fields["channels"]
    _, height, width = fields["source"]
    of_source = TensorMap(
        c_type,
        dims=(channels, width, height, source.shape[0]),
        pitches=(channels, channels * width, channels * width * height),
        lines=_LINES,
        window=_window(fields),
    )
    _, taps_h, taps_w = fields["taps"]
    _, filter_h, filter_w = fields["filter"]
    of_weight = TensorMap(
        c_type,
        dims=(channels, taps_w, taps_h, fields["rows"]),
        pitches=(filter_w, filter_h, fields["filter_row"]),
        lines=_LINES,
    )
    filters = weight.reshape(-1)[fields["filter_first"] :]
    return launch.encode(of_source, source), launch.encode(of_weight, filters)


def _axes(fields: dict[str, Any], *names: str) -> list[tuple[int, ...]]:
    """The fields along (width, height)."""
    return [tuple(fields[name][axis] for name in names) for axis in (2, 1)]


def _window(fields: dict[str, Any]) -> Window:
    """Where the first tap in memory lies for each pixel: the last tap where taps go backward."""
    corners = []
    for source, out, step, first, taps, tap in _axes(fields, "source", "out", "step", "first", "taps", "tap"):
        lower = first + min(0, (taps - 1) * tap)
        corners.append((lower, lower + (out - 1) * step - (source - 1), step))
    (left, right, across), (above, below, down) = corners
    return Window((left, above), (right, below), (across, down))
