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


def pair(operation: str, name: str, value: Any, least: int) -> Pair:
    """An int, or a sequence of one or two, as (height, width)."""
    if type(value) is int and value >= least:
        return value, value
    if hasattr(value, "__index__"):
        value = (value, value)
    elif isinstance(value, tuple | list):
        value = tuple(value) * (2 if len(value) == 1 else 1)
    else:
        raise TypeError(f"{operation}: {name} must be an integer or a pair of them, got {value!r}")
    if len(value) != 2 or not all(hasattr(item, "__index__") and not isinstance(item, bool) for item in value):
        raise ValueError(f"{operation}: {name} must be an integer or a pair of them, got {value!r}")
    if min(value) < least:
        raise ValueError(f"{operation}: {name} must be at least {least}, got {value}")
    return value[0].__index__(), value[1].__index__()


def sides(
    operation: str, padding: Any, kernel_size: tuple[int, ...], stride: Pair, dilation: Pair
) -> tuple[Pair, Pair]:
    """Padding given as an int, a pair, "same" or "valid" as ((top, bottom), (left, right))."""
    if not isinstance(padding, str):
        height, width = pair(operation, "padding", padding, least=0)
        return (height, height), (width, width)
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f'{operation}: padding must be an int, a pair, "same" or "valid", got {padding!r}')
    if stride != (1, 1):
        raise ValueError(f'{operation}: padding="same" needs stride 1, got stride {stride}')
    total_h, total_w = (gap * (taps - 1) for gap, taps in zip(dilation, kernel_size, strict=True))
    return (total_h // 2, total_h - total_h // 2), (total_w // 2, total_w - total_w // 2)


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


def with_batch(operation: str, input: Tensor) -> tuple[Tensor, bool]:
    """`input` as (N, C, H, W), and whether it was one image (C, H, W) to which the batch had to be added."""
    check_tensor(operation, "input", input)
    if input.ndim == 4:
        return input, False
    if input.ndim == 3:
        return input.unsqueeze(0), True
    raise ValueError(f"{operation}: input must have the shape (N, C, H, W) or (C, H, W), got {input.shape}")


def positive(operation: str, name: str, value: Any, least: int = 1) -> int:
    """`value` if it is an integer of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{operation}: {name} must be an integer, got {type(value).__name__}")
    if value.__index__() < least:
        raise ValueError(f"{operation}: {name} must be at least {least}, got {value}")
    return value.__index__()
