"""Settings of layers checked and brought to the form that the kernels take."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor

Pair = tuple[int, int]
REDUCTIONS = ("none", "mean", "sum")


def check_tensor(operation: str, name: str, value: Any) -> Tensor:
    """`value` if it is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} must be a Tensor, got {type(value).__name__}")
    return value


def per_axis(operation: str, name: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    """An int, or a sequence of one or of `axes` of them, as one for each axis."""
    if type(value) is int and value >= least:
        return (value,) * axes
    wanted = "an integer or " + ("a sequence of one", "a pair of them", "a triple of them")[axes - 1]
    if hasattr(value, "__index__"):
        value = (value,) * axes
    elif isinstance(value, tuple | list):
        value = tuple(value) * (axes if len(value) == 1 else 1)
    else:
        raise TypeError(f"{operation}: {name} must be {wanted}, got {value!r}")
    if len(value) != axes or not all(hasattr(item, "__index__") and not isinstance(item, bool) for item in value):
        raise ValueError(f"{operation}: {name} must be {wanted}, got {value!r}")
    if min(value) < least:
        raise ValueError(f"{operation}: {name} must be at least {least}, got {value if axes > 1 else value[0]}")
    return tuple(item.__index__() for item in value)


def sides(
    operation: str, padding: Any, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Pair, ...]:
    """Padding given as an int, one for each axis, "same" or "valid" as (before, after) of each axis."""
    if not isinstance(padding, str):
        return tuple((pad, pad) for pad in per_axis(operation, "padding", padding, len(stride), least=0))
    if padding == "valid":
        return ((0, 0),) * len(stride)
    if padding != "same":
        numbers = ("a sequence of one", "a pair", "a triple")[len(stride) - 1]
        raise ValueError(f'{operation}: padding must be an int, {numbers}, "same" or "valid", got {padding!r}')
    if set(stride) != {1}:
        raise ValueError(f'{operation}: padding="same" needs stride 1, got stride {stride}')
    totals = [gap * (taps - 1) for gap, taps in zip(dilation, kernel_size, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def check_reduction(operation: str, reduction: str) -> None:
    """Raise unless `reduction` is one of PyTorch's three."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'{operation}: reduction must be "none", "mean" or "sum", got {reduction!r}')


def check_probability(operation: str, p: Any, name: str = "p") -> None:
    """Raise unless `p` is a number from 0 to 1."""
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise TypeError(f"{operation}: {name} must be a number, got {type(p).__name__}")
    if not 0 <= p <= 1:
        raise ValueError(f"{operation}: {name} must be between 0 and 1, got {p}")


_AXES = ("L", "H, W", "D, H, W")


def with_batch(operation: str, input: Tensor, axes: int = 2) -> tuple[Tensor, bool]:
    """`input` as (N, C, *sizes), and whether it was one image (C, *sizes) to which the batch had to be added."""
    check_tensor(operation, "input", input)
    if input.ndim == axes + 2:
        return input, False
    if input.ndim == axes + 1:
        return input.unsqueeze(0), True
    names = _AXES[axes - 1]
    raise ValueError(f"{operation}: input must have the shape (N, C, {names}) or (C, {names}), got {input.shape}")


def positive(operation: str, name: str, value: Any, least: int = 1) -> int:
    """`value` if it is an integer of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{operation}: {name} must be an integer, got {type(value).__name__}")
    if value.__index__() < least:
        raise ValueError(f"{operation}: {name} must be at least {least}, got {value}")
    return value.__index__()


def check_number(operation: str, name: str, value: Any) -> float:
    """`value` as a float if it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{operation}: {name} must be a number, got {type(value).__name__}")
    return float(value)
