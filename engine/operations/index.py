"""What stands between the brackets: an index as PyTorch reads it, taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import array_module, device_of, is_array, transfer
from ..recorder import refuse
from ..tensor import as_array
from .positions import flat_positions


class Arrays(NamedTuple):
    """Integer arrays of one shape that index some dims of a tensor, the others (None) being taken whole."""

    indices: tuple[Any, ...]
    unique: bool = False  # no element is named twice

    @property
    def dims(self) -> list[int]:
        """The indexed dims."""
        return [d for d, index in enumerate(self.indices) if index is not None]

    @property
    def key(self) -> tuple[Any, ...]:
        """What NumPy's indexing takes."""
        return tuple(slice(None) if index is None else index for index in self.indices)

    @property
    def index_shape(self) -> tuple[int, ...]:
        """The shape of the index arrays."""
        return self.indices[self.dims[0]].shape

    @property
    def start(self) -> int:
        """The dim of the result at which those of the index arrays stand: the first indexed one where all are
        neighbours, else 0."""
        dims = self.dims
        return dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0

    def result_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what indexing a tensor of `shape` gives."""
        rest = [size for size, index in zip(shape, self.indices, strict=True) if index is None]
        return (*rest[: self.start], *self.index_shape, *rest[self.start :])

    def front_order(self) -> list[int]:
        """The dims of the indexed tensor, those that are indexed first."""
        return sorted(range(len(self.indices)), key=lambda d: self.indices[d] is None)

    def values_to_front(self, values: Any) -> Any:
        """`values`, shaped as the result of indexing, with the dims of the index arrays first."""
        moved = range(self.start, self.start + len(self.index_shape))
        return values.transpose([*moved, *(d for d in range(values.ndim) if d not in moved)])

    def positions(self, shape: Sequence[int]) -> Any:
        """Where the elements stand among the indexed dims of an array of `shape`, flattened."""
        dims = self.dims
        return flat_positions([self.indices[d] for d in dims], [shape[d] for d in dims])


def _is_scalar_index(item: Any) -> bool:
    return isinstance(item, int | np.integer) and not isinstance(item, bool | np.bool_)


def parse(index: Any, x: Any) -> tuple[Any, Arrays | None]:
    """An index as PyTorch reads it: first what makes a view, then the arrays, which index that view.

    Either part is None where it changes nothing.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    items = [_plain(item, x) for item in items]
    used = sum(item.ndim if is_mask(item) else 1 for item in items if item is not None and item is not Ellipsis)
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("index: expected at most one Ellipsis")
    if used > x.ndim:
        raise IndexError(f"index: too many indices ({used}) for a tensor of shape {x.shape}")
    whole = [slice(None)] * (x.ndim - used)
    place = ellipses[0] if ellipses else len(items)
    items[place : place + 1] = whole
    basic: list[Any] = []
    indices: list[Any] = []
    masks = others = 0
    dim = 0  # of x
    for item in items:
        if item is None or isinstance(item, slice):
            basic.append(item)
            indices.append(None)
            dim += item is not None
        elif not is_array(item):
            size = x.shape[dim]
            if not -size <= item < size:
                raise IndexError(f"index: {item} is out of range for dim {dim} of size {size}")
            basic.append(item)
            dim += 1
        elif not is_mask(item):
            basic.append(slice(None))
            indices.append(item)
            others += 1
            dim += 1
        else:
            shape = x.shape[dim : dim + item.ndim]
            if item.shape != shape:
                raise IndexError(f"index: a mask of shape {item.shape} does not fit dims {shape} of shape {x.shape}")
            refuse("index by a mask, whose result has a size that depends on values")
            masks += 1
            basic.extend([slice(None)] * item.ndim or [None])
            indices.extend(item.nonzero() if item.ndim else [item.reshape(1).nonzero()[0]])
            dim += item.ndim
    trivial = all(item == slice(None) for item in basic) and len(basic) == x.ndim
    key = None if trivial and masks + others else (*basic, Ellipsis)
    if not masks + others:
        return key, None
    arrays = [item for item in indices if item is not None]
    try:
        same = array_module(arrays[0]).broadcast_arrays(*arrays)
    except ValueError:
        raise IndexError(f"index: index arrays of shapes {[a.shape for a in arrays]} do not broadcast") from None
    whole_arrays = iter(same)
    full = tuple(None if item is None else next(whole_arrays) for item in indices)
    if others:
        _check_range(full, x, key)
    return key, Arrays(full, unique=masks == 1 and not others)


def is_mask(item: Any) -> bool:
    """Whether `item` is a bool array."""
    return is_array(item) and item.dtype == bool


def _plain(item: Any, x: Any) -> Any:
    """One part of an index as None, Ellipsis, a slice, an int, or an array on the device of `x`."""
    if item is None or item is Ellipsis:
        return item
    if isinstance(item, slice):
        return slice(*(None if part is None else part.__index__() for part in (item.start, item.stop, item.step)))
    if _is_scalar_index(item):
        return int(item)
    if isinstance(item, bool | np.bool_):
        return array_module(x).asarray(bool(item))
    try:
        array = as_array(item)
    except (TypeError, ValueError):
        raise TypeError(
            f"index: expected integers, slices, None, Ellipsis, bools or tensors, got {type(item).__name__}"
        ) from None
    if not array.size and not hasattr(item, "dtype"):
        array = array.astype(np.int64)  # an empty list
    if array.dtype == np.uint8:
        raise IndexError("index: a uint8 tensor is neither mask nor index; use .bool() or .long()")
    if array.dtype.kind not in "iub":
        raise IndexError(f"index: expected integers, slices, bools or tensors of them, got dtype {array.dtype}")
    if array.ndim == 0 and array.dtype.kind == "i":
        if not isinstance(array, np.ndarray):
            refuse("look at values")
        return int(array)
    return transfer(array, device_of(x))


def _check_range(indices: tuple[Any, ...], x: Any, key: Any) -> None:
    shape = x.shape if key is None else np.broadcast_to(np.empty((), bool), x.shape)[key].shape
    for dim, index in enumerate(indices):
        if index is not None:
            check_range("index", index, dim, shape, -shape[dim])


def check_range(name: str, index: Any, dim: int, shape: Sequence[int], lowest: int = 0) -> None:
    """Raise where an index on the CPU is not in [lowest, size of dim); on a GPU a check would wait for it."""
    if isinstance(index, np.ndarray) and index.size:
        low, high = int(index.min()), int(index.max())
        if low < lowest or high >= shape[dim]:
            wrong = low if low < lowest else high
            raise IndexError(f"{name}: index {wrong} is out of range for dim {dim} of shape {tuple(shape)}")
