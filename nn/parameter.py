"""Tensors that a module keeps: parameters, which learn, and buffers, which do not."""

from __future__ import annotations

from typing import Any

from ..engine import Tensor
from ..engine.tensor import wrap


class Parameter(Tensor):
    """A tensor that becomes a parameter of the module it is assigned to. It shares the memory of `data`."""

    def __init__(self, data: Any = None, requires_grad: bool = True) -> None:
        super().__init__(() if data is None else data, requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{wrap(self._data, self._edge)!r}"


class Buffer(Tensor):
    """A tensor that becomes a buffer of the module it is assigned to; `persistent`: in the `state_dict`."""

    persistent = True

    def __init__(self, data: Any = None, *, persistent: bool = True) -> None:
        super().__init__(() if data is None else data)
        self.persistent = persistent
