"""Convolution by wgmma, which only sm_90a has."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...cuda import conv, conv_choice, conv_input_grad
from ...cuda.conv_choice import BulkTile
from ..case import Case, itemsize, normal

_COPIES = (
    "image and filters are copied once with their channels last, which is a read and a write more of both; at the "
    "traced size filters are larger beside the images than at the benchmark's; rows of 16 bytes begin within a sector "
    "where planes are 14 x 14"
)


def _case(operation: str, c: int, size: int, filters: int) -> Case:
    x, weight, y = (6, c, size, size), (filters, c, 3, 3), (6, filters, size, size)
    settings = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)

    def prepare() -> Callable[[], object]:
        w = normal(weight, "bfloat16", 1)
        given = normal(x, "bfloat16") if operation == "forward" else normal(y, "bfloat16")

        def run() -> object:
            with conv_choice.only(BulkTile()):
                if operation == "forward":
                    return conv(given, w, None, *settings)
                return conv_input_grad(given, w, x, *settings)

        return run

    return Case(
        operation=operation,
        shape=f"3x3, 64x256x{size}x{size} to 256",
        dtype="bfloat16",
        prepare=prepare,
        needed=itemsize("bfloat16") * (prod(x) + prod(weight) + prod(y)),
        operations=2 * prod(y) * prod(weight[1:]),
        capability=90,
        most_bytes=3.0,
        why=_COPIES,
    )


CASES = [_case("forward", 16, 14, 128), _case("input gradient", 128, 14, 16)]
