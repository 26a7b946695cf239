"""The launches of convolutions on tensor cores: what `src/conv_mma.cu` gets for what the other kernels get."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .channels_last import channels_last, images_with_channels_last
from .conv_choice import FORWARD, BulkTile, Problem, TensorTile

Array = Any


def with_channels_last(
    tile: TensorTile | BulkTile, problem: Problem, source: Array, weight: Array, passes: Sequence[dict[str, Any]]
) -> tuple[Array, Array, list[dict[str, Any]]]:
    """Copies of source and filters, and the passes over them: rows of filters are (taps, channels) in both."""
    padded = tile.padded(problem.channels, problem.c_type)
    to_tf32 = problem.c_type == "float" and not tile.strict
    source = images_with_channels_last(source, problem.groups, padded, to_tf32)
    taps = math.prod(weight.shape[2:])
    # The input gradient sums over filters: they become the channels.
    matrices, plane = (len(weight), taps) if problem.operation == FORWARD else (problem.groups, problem.rows * taps)
    weight = channels_last(weight, matrices, problem.channels, plane, padded, to_tf32)
    return source, weight, [_over_copies(fields, padded, taps) for fields in passes]


def _over_copies(fields: dict[str, Any], padded: int, taps: int) -> dict[str, Any]:
    met = fields["channels"] > 0
    return {
        **fields,
        "channels": padded,
        "taps": fields["taps"] if met else (0, 1, 1),
        "filter_group": fields["rows"] * taps * padded,
        "filter_row": taps * padded,
        "filter_channel": 1,
        "filter": [pitch * padded for pitch in fields["filter"]],
        "filter_first": fields["filter_first"] * padded,
    }
