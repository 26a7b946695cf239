"""Copies, other dtypes, other devices, and writing one tensor into another."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import inplace
from ..backend import CPU, Device, as_device, device_of, transfer
from ..dtypes import as_dtype, bfloat16, bool_, float16, float32, float64, int16, int32, int64
from ..operation import Operation
from ..tensor import Tensor, as_array, wrap
from .define import public


class Cast(Operation):
    def forward(ctx, x: Any) -> Any:
        return x.astype(ctx.dtype)

    def backward(ctx, grad: Tensor) -> Tensor:
        return grad  # the graph brings it to the dtype of the input


class Transfer(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.source = device_of(x)
        return transfer(x, ctx.device)

    def backward(ctx, grad: Tensor) -> Tensor:
        return Transfer.apply(grad, device=ctx.source)


class Clone(Operation):
    def forward(ctx, x: Any) -> Any:
        return x.copy()

    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


@public()
def clone(input: Tensor) -> Tensor:
    """A copy, through which gradients flow."""
    return Clone.apply(input)


@public()
def contiguous(input: Tensor) -> Tensor:
    """The tensor itself where its elements lie in C order, else a copy in which they do."""
    return input if input.is_contiguous() else Clone.apply(input)


def destination(name: str, args: tuple[Any, ...], dtype: Any, device: Any) -> tuple[np.dtype | None, Device | None]:
    """The dtype and the device that arguments of a `to` ask for, None where they ask for none."""
    for value in args:
        if isinstance(value, Tensor):
            dtype, device = value.dtype, value.device
        elif isinstance(value, Device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda")):
            device = value
        elif value is not None and not isinstance(value, bool):  # PyTorch's positional non_blocking
            dtype = value
    try:
        kind = None if dtype is None else as_dtype(dtype)
    except TypeError as error:
        raise TypeError(f'{name}: expected a tensor, "cpu", "cuda", "cuda:N" or a dtype; {error}') from None
    return kind, None if device is None else as_device(device)


@public()
def to(input: Tensor, *args: Any, dtype: Any = None, device: Any = None, copy: bool = False) -> Tensor:
    """The tensor in another dtype, on another device, or like another tensor; itself if nothing changes."""
    kind, place = destination("to", args, dtype, device)
    result = input
    if place is not None and place != input.device:
        result = Transfer.apply(result, device=place)
    if kind is not None and kind != input.dtype:
        result = Cast.apply(result, dtype=kind)
    return Clone.apply(result) if copy and result is input else result


@public()
def cpu(input: Tensor) -> Tensor:
    """The tensor in CPU memory."""
    return to(input, device=CPU)


@public()
def cuda(input: Tensor, device: int | None = None) -> Tensor:
    """The tensor on a GPU, the current one by default."""
    return to(input, device=Device("cuda", device))


@public()
def type_as(input: Tensor, other: Tensor) -> Tensor:
    """The tensor in the dtype and on the device of `other`."""
    return to(input, other)


def _dtype_method(name: str, dtype: np.dtype) -> None:
    def method(self: Tensor) -> Tensor:
        return to(self, dtype=dtype)

    method.__name__ = name
    method.__doc__ = f"The tensor in dtype {dtype}."
    setattr(Tensor, name, method)


for _name, _dtype in {
    "float": float32, "double": float64, "half": float16, "bfloat16": bfloat16, "short": int16, "int": int32,
    "long": int64, "bool": bool_,
}.items():  # fmt: skip
    _dtype_method(_name, _dtype)


def _value(input: Tensor, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return wrap(as_array(value, None if hasattr(value, "dtype") else input.dtype))


def _copy_(self: Tensor, source: Any) -> Tensor:
    """Write `source`, broadcast and converted to this dtype and device, into this tensor."""
    inplace.check_may_change(self, "copy_")
    value = to(_value(self, source), device=self.device)
    try:
        value = value.expand(self.shape)
    except ValueError:
        raise ValueError(f"copy_: shape {value.shape} does not broadcast to {self.shape}") from None
    return inplace.assign(self, value)


def _fill_(self: Tensor, value: Any) -> Tensor:
    """Set every element to a number."""
    if not isinstance(value, Tensor):
        inplace.check_may_change(self, "fill_")
        self._data[...] = value
        return inplace.record_change(self, None)
    return _copy_(self, value)


def _zero_(self: Tensor) -> Tensor:
    """Set every element to 0."""
    return _fill_(self, 0)


for _name, _method in {"copy_": _copy_, "fill_": _fill_, "zero_": _zero_}.items():
    _method.__name__ = _method.__qualname__ = _name
    setattr(Tensor, _name, _method)
