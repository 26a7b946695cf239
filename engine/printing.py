"""How a tensor prints: like PyTorch's, the long ones shortened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend
from .dtypes import get_default_dtype

if TYPE_CHECKING:
    from .tensor import Tensor

THRESHOLD = 1000  # from so many elements on, only the edges are shown
EDGE = 3
WIDTH = 80
DIGITS = 4


def tensor_repr(tensor: Tensor) -> str:
    """`tensor([1., 2.])`, with dtype, device and gradient where they are not the usual ones."""
    name = "tensor" if type(tensor).__name__ == "Tensor" else type(tensor).__name__
    array = tensor._data
    summarised = array.size > THRESHOLD
    shown = backend.transfer(_edges(array) if summarised else array, backend.CPU)
    notes = []
    if array.dtype not in (get_default_dtype(), np.dtype(np.int64), np.dtype(bool)):
        notes.append(f"dtype={array.dtype}")
    if not array.size and array.shape != (0,):
        notes.insert(0, f"size={tuple(array.shape)}")
    if tensor.is_cuda:
        notes.append(f"device='{tensor.device}'")
    if tensor.grad_fn is not None:
        notes.append(f"grad_fn={tensor.grad_fn!r}")
    elif tensor.requires_grad:
        notes.append("requires_grad=True")
    prefix = f"{name}("
    body = "[]" if not array.size else _lines(shown, array.shape, _formatter(shown), len(prefix))
    if not notes:
        return f"{prefix}{body})"
    tail = ", ".join(notes)
    if len(prefix) + len(body.splitlines()[-1]) + len(tail) + 3 <= WIDTH or "\n" not in body + tail:
        return f"{prefix}{body}, {tail})"
    return f"{prefix}{body},\n{' ' * len(prefix)}{tail})"


def _edges(array: Any) -> Any:
    """The first and last elements along each long dim."""
    for dim, size in enumerate(array.shape):
        if size > 2 * EDGE:
            before = (slice(None),) * dim
            parts = [array[(*before, slice(EDGE))], array[(*before, slice(-EDGE, None))]]
            array = backend.array_module(array).concatenate(parts, axis=dim)
    return array


def _formatter(array: np.ndarray) -> Callable[[Any], str]:
    """One way of writing for all elements: whole numbers as `1.`, others with 4 digits or an exponent."""
    if array.dtype.kind in "iub":
        width = max(len(str(value)) for value in array.ravel().tolist())
        return lambda value: str(value).rjust(width)
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    nonzero = finite[finite != 0]
    low, high = (np.abs(nonzero).min(), np.abs(nonzero).max()) if nonzero.size else (1.0, 1.0)
    far = high / low > 1000 or high > 1e8
    if (finite == np.floor(finite)).all():
        write = _exponent if far else _whole
    else:
        write = _exponent if far or low < 1e-4 else _decimal
    width = max((len(write(value)) for value in nonzero.tolist()), default=1)
    return lambda value: write(value).rjust(width)


def _whole(value: float) -> str:
    return f"{value:.0f}." if np.isfinite(value) else str(value)


def _decimal(value: float) -> str:
    return f"{value:.{DIGITS}f}"


def _exponent(value: float) -> str:
    return f"{value:.{DIGITS}e}"


def _lines(array: np.ndarray, shape: tuple[int, ...], write: Callable[[Any], str], indent: int) -> str:
    """The elements in nested brackets; `shape` says where `array` leaves the middle out."""
    if array.ndim == 0:
        return write(array.item()).strip()
    cut = [EDGE] if len(array) < shape[0] else []
    margin = " " * (indent + 1)
    if array.ndim > 1:
        parts = [_lines(part, shape[1:], write, indent + 1) for part in array]
        for place in cut:
            parts.insert(place, "...")
        separator = "," + "\n" * (array.ndim - 1) + margin
        return f"[{separator.join(parts)}]"
    words = [write(value) for value in array.tolist()]
    for place in cut:
        words.insert(place, " ...")
    per_line = max(1, (WIDTH - indent) // (len(words[0]) + 2))
    rows = [", ".join(words[i : i + per_line]) for i in range(0, len(words), per_line)]
    return "[" + f",\n{margin}".join(rows) + "]"
