"""Tensors that a module keeps: parameters, which learn, and buffers, which do not."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import Tensor
from ..engine.tensor import wrap


class Parameter(Tensor):
    """A tensor that becomes a parameter of the module it is assigned to. It shares the memory of `data`."""

    def __init__(self, data: Any = None, requires_grad: bool = True) -> None:
        _share(self, data)
        self.requires_grad = requires_grad

    def __repr__(self) -> str:
        return f"Parameter containing:\n{wrap(self._data, self._edge)!r}"


class Buffer(Tensor):
    """A tensor that becomes a buffer of the module it is assigned to; `persistent`: in the `state_dict`."""

    persistent = True

    def __init__(self, data: Any = None, *, persistent: bool = True) -> None:
        _share(self, data)
        self.persistent = persistent


def _share(tensor: Tensor, data: Any) -> None:
    Tensor.__init__(tensor, np.empty(0, np.float32) if data is None else data)
    if isinstance(data, Tensor):
        tensor._versions = data._versions  # one memory, one count of its changes
