"""What the launches of a convolution share: sizes along three axes, the structs of src/conv.cuh, and their limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..geometry import Pads, Sizes

THREADS = 256

MOST_ELEMENTS = 2**30  # of one image and of all weights: offsets within them have 32 bits


def three(values: Sequence[int]) -> Sequence[int]:
    """Sizes, strides or dilations along (depth, height, width)."""
    return (1,) * (3 - len(values)) + tuple(values)


def before(padding: Pads) -> Sequence[int]:
    """The padding in front of (depth, height, width)."""
    return (0,) * (3 - len(padding)) + tuple(before for before, _ in padding)


def pitches(sizes: Sequence[int]) -> Sequence[int]:
    """How far neighbours along (depth, height, width) lie apart."""
    return sizes[1] * sizes[2], sizes[2], 1


def check_sizes(operation: str, weight: Sizes, *images: Sizes) -> None:
    sizes = {"an image": max(math.prod(shape[1:]) for shape in images), "the weight": math.prod(weight)}
    for name, size in sizes.items():
        if size > MOST_ELEMENTS:
            raise ValueError(f"{operation}: {name} has {size} elements, the kernels reach {MOST_ELEMENTS}")


def struct_type(wide: str, narrow: str) -> np.dtype:
    """A struct of 64-bit and then of 32-bit integers."""
    fields = [(name, np.int64) for name in wide.split()] + [(name, np.int32) for name in narrow.split()]
    return np.dtype(fields, align=True)


def axes_split(**fields: Any) -> dict[str, int]:
    """The fields with each triple `name` made into `name_d`, `name_h` and `name_w`."""
    split: dict[str, int] = {}
    for name, value in fields.items():
        if isinstance(value, (tuple, list)):
            split[f"{name}_d"], split[f"{name}_h"], split[f"{name}_w"] = value
        else:
            split[name] = value
    return split
