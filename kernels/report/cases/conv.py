"""Convolution's benchmark shapes: a few images and channels, by the kernels that the whole shapes get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from ...cuda import conv, conv_choice, conv_input_grad, conv_weight_grad, launch
from ...cuda.conv_choice import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Problem
from ...precision import using
from ..case import Case, itemsize, normal
from ..measure import CAPABILITY

WAYS = {FORWARD: "forward", INPUT_GRAD: "input gradient", WEIGHT_GRAD: "weight gradient"}

_COPIES = (
    "what has its channels first is copied once with its channels last, which is a read and a write more of the image "
    "or gradient and of the weight; at the traced size weights and partial sums are larger beside them than at the "
    "benchmark's"
)
_SMALL_PLANES = "planes of 14 x 14 begin within a sector, as their rows of 16 bytes do; and " + _COPIES
_EVERY_SECOND = (
    "the positions of an input gradient that meet the same taps are every second one of a row: each of four launches "
    "writes half of each sector that it touches; and " + _COPIES
)
_FEW_CHANNELS = (
    "three channels lie four bytes (floats, read as they are) or eight (halves, padded) apart for each tap of a window "
    "that moves by two; and " + _COPIES
)
_NARROW = "a thread computes one output, and a warp's 32 are of two rows of 28, which begin within a sector"


class Shape(NamedTuple):
    """x (n, c, *size) by square windows, padded by half of them."""

    n: int
    c: int
    size: tuple[int, ...]
    filters: int
    taps: tuple[int, ...]
    stride: int = 1
    groups: int = 1

    @property
    def x(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.size)

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.filters, self.c // self.groups, *self.taps)

    @property
    def out(self) -> tuple[int, ...]:
        axes = zip(self.size, self.taps, strict=True)
        return tuple((size + taps // 2 * 2 - taps) // self.stride + 1 for size, taps in axes)

    @property
    def y(self) -> tuple[int, ...]:
        return (self.n, self.filters, *self.out)

    def problem(self, operation: str, dtype: str, precision: str) -> Problem:
        """What the table is asked for this shape."""
        c, k = self.c // self.groups, self.filters // self.groups
        pixels, taps, places = self.n * prod(self.out), prod(self.taps), prod(self.size)
        rows, channels = k, c
        if operation == INPUT_GRAD:
            # The largest of the classes of positions that meet the same taps.
            taps = prod(launch.divide_up(count, self.stride) for count in self.taps)
            pixels = self.n * prod(launch.divide_up(size, self.stride) for size in self.size)
            rows, channels, places = c, k, prod(self.out)
        is_product = taps == self.stride == self.groups == 1
        sizes = (self.groups, rows, channels, taps, pixels, places, places if is_product else 0)
        return Problem(operation, launch.c_type(dtype), precision, CAPABILITY, *sizes)


def _cases(
    whole: Shape,
    few: int,
    images: int = 1,
    size: Sequence[int] | None = None,
    formats: Sequence[tuple[str, str]] = (("bfloat16", "highest"),),
    of_input_grad: Mapping[str, Any] | None = None,
    **limits: Any,
) -> list[Case]:
    """The three passes of a shape, at up to 128 rows of results and `few` channels to sum over."""
    size = tuple(size or whole.size)
    rows = whole._replace(n=images, c=min(whole.c, few), size=size, filters=min(whole.filters, 128))
    turned = rows._replace(c=min(whole.c, 128), filters=few)
    return [
        case
        for dtype, precision in formats
        for case in (
            _case(FORWARD, whole, rows, dtype, precision, **limits),
            _case(INPUT_GRAD, whole, turned, dtype, precision, **limits | dict(of_input_grad or {})),
            _case(WEIGHT_GRAD, whole, rows, dtype, precision, **limits),
        )
    ]


def _case(operation: str, whole: Shape, traced: Shape, dtype: str, precision: str = "highest", **limits: Any) -> Case:
    axes = len(traced.taps)
    settings = ((traced.stride,) * axes, tuple((n // 2, n // 2) for n in traced.taps), (1,) * axes, traced.groups)

    def prepare() -> Callable[[], object]:
        x, weight, dy = normal(traced.x, dtype), normal(traced.weight, dtype, 1), normal(traced.y, dtype, 2)
        variant = conv_choice.choose(whole.problem(operation, dtype, precision))

        def run() -> object:
            with using(precision), conv_choice.only(variant):
                if operation == FORWARD:
                    return conv(x, weight, None, *settings)
                if operation == INPUT_GRAD:
                    return conv_input_grad(dy, weight, traced.x, *settings)
                return conv_weight_grad(dy, x, traced.weight, *settings)

        return run

    windows = "x".join(map(str, traced.taps)) + (f"/{traced.stride}" if traced.stride > 1 else "")
    sizes = "x".join(map(str, whole.x))
    groups = f" g{whole.groups}" if whole.groups > 1 else ""
    return Case(
        operation=WAYS[operation],
        shape=f"{windows}, {sizes} to {whole.filters}{groups}{', TF32' if precision == 'high' else ''}",
        dtype=dtype,
        prepare=prepare,
        needed=itemsize(dtype) * (prod(traced.x) + prod(traced.weight) + prod(traced.y)),
        operations=2 * prod(traced.y) * prod(traced.weight[1:]),
        **{"most_bytes": 3.0, "why": _COPIES, **limits},
    )


_SQUARE = (3, 3)
_DEEP = Shape(64, 256, (14, 14), 256, _SQUARE)
_STRIDE_2 = Shape(64, 128, (56, 56), 128, _SQUARE, 2)
_STEM = Shape(64, 3, (224, 224), 64, (7, 7), 2)
_LENET = Shape(64, 1, (28, 28), 6, (5, 5))
_STEM_TRACED = _STEM._replace(n=1, size=(64, 64))
CASES = [
    *_cases(
        _DEEP,
        16,
        6,
        formats=(("float32", "highest"), ("float32", "high"), ("bfloat16", "highest")),
        most_sectors=1.3,
        why=_SMALL_PLANES,
    ),
    *_cases(_STRIDE_2, 16, 2, of_input_grad={"most_sectors": 4.5, "why": _EVERY_SECOND}),
    *_cases(Shape(64, 64, (56, 56), 64, _SQUARE), 16),
    *_cases(Shape(64, 64, (56, 56), 256, (1, 1)), 32),
    *_cases(Shape(8, 64, (8, 56, 56), 64, (3, 3, 3)), 16, 1, (4, 16, 16), most_bytes=3.5),
    *_cases(Shape(64, 128, (56, 56), 128, _SQUARE, groups=4), 64, 2, (28, 28)),
    *(
        _case(operation, _STEM, _STEM_TRACED, dtype, most_sectors=1.4, why=_FEW_CHANNELS)
        for dtype in ("float32", "bfloat16")
        for operation in (FORWARD, WEIGHT_GRAD)
    ),
    _case(FORWARD, _LENET, _LENET._replace(n=2), "float32", most_bytes=1.1, most_sectors=1.5, why=_NARROW),
]
