"""What a Tensor tells of its array, and how its elements come out as Python numbers. No gradients here."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import backend
from .backend import Device
from .dtypes import is_floating
from .recorder import refuse


class ArrayHolder:
    """Something that wraps one NumPy or CuPy array, with PyTorch's names for what can be asked of it."""

    _data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of elements along each dimension."""
        return self._data.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self._data.ndim

    @property
    def dtype(self) -> np.dtype:
        """The type of the elements, a NumPy dtype."""
        return self._data.dtype

    @property
    def device(self) -> Device:
        """Where the array lives."""
        return backend.device_of(self._data)

    @property
    def is_cuda(self) -> bool:
        """Whether the array lives on a GPU."""
        return not isinstance(self._data, np.ndarray)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self._data.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._data.nbytes

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the number of elements along `dim`."""
        return self._data.shape if dim is None else self._data.shape[dim]

    def dim(self) -> int:
        """The number of dimensions."""
        return self._data.ndim

    def numel(self) -> int:
        """The number of elements."""
        return self._data.size

    nelement = numel

    def element_size(self) -> int:
        """Bytes of one element."""
        return self._data.dtype.itemsize

    def stride(self, dim: int | None = None) -> Any:
        """Steps between neighbours along each dimension, or along `dim`, in elements."""
        strides = tuple(step // self._data.dtype.itemsize for step in self._data.strides)
        return strides if dim is None else strides[dim]

    def is_contiguous(self) -> bool:
        """Whether the elements lie in memory in C order without gaps."""
        return bool(self._data.flags.c_contiguous)

    def is_floating_point(self) -> bool:
        """Whether the dtype is a floating one."""
        return is_floating(self._data.dtype)

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self._data.ctypes.data if isinstance(self._data, np.ndarray) else self._data.data.ptr

    def item(self) -> Any:
        """The only element as a Python number; on a GPU this waits for its work."""
        if self._data.size != 1:
            raise RuntimeError(f"item: expected a tensor of one element, got shape {self.shape}")
        return self._on_host().item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        return self._on_host().tolist()

    def _on_host(self) -> Any:
        """The array, whose values a Python number is about to be made of."""
        if not isinstance(self._data, np.ndarray):
            refuse("look at values")
        return self._data

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise RuntimeError(f"the truth of a tensor of shape {self.shape} is ambiguous: use any() or all()")
        return bool(self._on_host().item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self._data.dtype.kind not in "iub":
            raise TypeError(f"only an integer tensor of one element is an index, got dtype {self.dtype}")
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __len__(self) -> int:
        if not self._data.ndim:
            raise TypeError("len() of a 0-d tensor")
        return len(self._data)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self._data.ndim == 0 else object.__format__(self, spec)
