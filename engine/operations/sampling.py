"""Random tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import inplace
from ..backend import Device, array_module, as_device, is_array, on_device
from ..dtypes import as_dtype, get_default_dtype, int64, is_floating, is_half
from ..grad_mode import mode
from ..random import Generator, default_generator
from ..tensor import Tensor, wrap
from .creation import finished, lengths_of
from .define import public


def _stream(name: str, generator: Generator | None, device: Device) -> Any:
    """The array module's generator to draw from."""
    if generator is None:
        return default_generator(device).stream
    if generator.device != device:
        raise RuntimeError(f"{name}: expected a generator on {device}, got one on {generator.device}")
    if mode.recorder is not None:
        mode.recorder.keep(generator.stream.place)
    return generator.stream


def _floats(name: str, kind: str, shape: tuple[int, ...], dtype: Any, device: Any, generator: Generator | None) -> Any:
    """An array of uniform ("random": in [0, 1)) or "standard_normal" numbers, halves rounded from float32."""
    dtype = get_default_dtype() if dtype is None else as_dtype(dtype)
    if not is_floating(dtype):
        raise TypeError(f"{name}: expected a floating dtype, got {dtype}")
    place = as_device(generator.device if device is None and generator is not None else device)
    with on_device(place):
        wide = np.float32 if is_half(dtype) else dtype
        drawn = getattr(_stream(name, generator, place), kind)(size=shape, dtype=wide)
        if kind == "random" and is_half(dtype):  # rounding must not carry a number up to 1
            drawn = drawn.clip(0, float(np.nextafter(dtype.type(1), dtype.type(0))))
        return drawn.astype(dtype, copy=False) if shape else array_module(drawn).asarray(drawn, dtype=dtype)


@public(method=False)
def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform numbers in [0, 1)."""
    return finished(_floats("rand", "random", lengths_of("rand", size), dtype, device, generator), requires_grad)


@public(method=False)
def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers of mean 0 and standard deviation 1."""
    return finished(
        _floats("randn", "standard_normal", lengths_of("randn", size), dtype, device, generator), requires_grad
    )


@public(method=False)
def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Whole numbers in [low, high): `randint(high, size)` or `randint(low, high, size)`; int64 by default."""
    if size is None:
        low, high, size = 0, low, high
    if size is None or high is None or not isinstance(high, int | np.integer):
        raise TypeError("randint: expected randint(high, size) or randint(low, high, size)")
    if low >= high:
        raise ValueError(f"randint: expected low < high, got {low} and {high}")
    shape = lengths_of("randint", (size,))
    place = as_device(generator.device if device is None and generator is not None else device)
    with on_device(place):
        drawn = _stream("randint", generator, place).integers(low, high, size=shape, dtype=np.int64)
        drawn = drawn if is_array(drawn) else np.asarray(drawn)
        return finished(drawn.astype(int64 if dtype is None else as_dtype(dtype), copy=False), requires_grad)


@public(method=False)
def randperm(n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None) -> Tensor:
    """The whole numbers below `n` in random order; int64 by default."""
    (n,) = lengths_of("randperm", (n,))
    place = as_device(generator.device if device is None and generator is not None else device)
    kind = int64 if dtype is None else as_dtype(dtype)
    with on_device(place):
        stream = _stream("randperm", generator, place)
        if place.type == "cpu":
            order = stream.permutation(n)
        else:  # CuPy's generator has no permutation
            keys = stream.random(size=(n,), dtype=np.float64)
            order = keys.argsort()
        return finished(order.astype(kind, copy=False), False)


def _like(input: Tensor, dtype: Any, device: Any) -> dict[str, Any]:
    return {
        "dtype": input.dtype if dtype is None else dtype,
        "device": input.device if device is None else device,
    }


@public(method=False)
def rand_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """`rand` in the shape and dtype and on the device of `input`."""
    return rand(input.shape, requires_grad=requires_grad, **_like(input, dtype, device))


@public(method=False)
def randn_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """`randn` in the shape and dtype and on the device of `input`."""
    return randn(input.shape, requires_grad=requires_grad, **_like(input, dtype, device))


@public(method=False)
def randint_like(input: Tensor, low: int, high: int | None = None, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`randint` in the shape and dtype and on the device of `input`."""
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, input.shape, **_like(input, dtype, device))


@public(method=False)
def normal(
    mean: Any = 0.0,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers of the given mean and standard deviation, which are numbers (with `size`) or tensors."""
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    if size is None and not tensors:
        raise TypeError("normal: expected a size, or mean or std as a tensor")
    if not isinstance(std, Tensor) and std < 0:
        raise ValueError(f"normal: expected a standard deviation of at least 0, got {std}")
    if tensors:
        size = np.broadcast_shapes(*(value.shape for value in tensors))
        dtype, device = dtype or tensors[0].dtype, device or tensors[0].device
    drawn = wrap(_floats("normal", "standard_normal", lengths_of("normal", (size,)), dtype, device, generator))
    return finished((drawn * _constant(std) + _constant(mean)).data, requires_grad)


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _uniform(like: Tensor, generator: Generator | None) -> Any:
    """Uniform numbers, as many as a tensor has, fine enough to compare with probabilities."""
    dtype = like.dtype if is_floating(like.dtype) and not is_half(like.dtype) else np.float32
    return _floats("bernoulli", "random", like.shape, dtype, like.device, generator)


@public()
def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that each element of `input` is (or with `p`), else 0."""
    if not is_floating(input.dtype):
        raise TypeError(f"bernoulli: expected a floating tensor, got dtype {input.dtype}")
    limit = input._data if p is None else _probability("bernoulli", p)
    return wrap((_uniform(input, generator) < limit).astype(input.dtype))


def _probability(name: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {p}")
    return p


@public()
def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """int64 indices drawn with the weights of each row of `input` (n,) or (m, n), which may have any sum."""
    if not is_floating(input.dtype) or input.ndim not in (1, 2) or not input.shape[-1]:
        raise ValueError(f"multinomial: expected floating weights (n,) or (m, n), got {input.dtype} of {input.shape}")
    if num_samples < 1 or (not replacement and num_samples > input.shape[-1]):
        raise ValueError(f"multinomial: cannot draw {num_samples} of {input.shape[-1]} (replacement={replacement})")
    weights = input._data.astype(np.float64)
    if isinstance(weights, np.ndarray):
        enough = 1 if replacement else num_samples
        if not np.isfinite(weights).all() or (weights < 0).any() or ((weights > 0).sum(-1) < enough).any():
            raise ValueError(f"multinomial: expected finite weights of at least 0, {enough} or more of them above 0")
    module = array_module(weights)
    if replacement:
        shape = (*input.shape[:-1], num_samples)
        drawn = _floats("multinomial", "random", shape, np.float64, input.device, generator)
        sums = weights.cumsum(axis=-1)
        found = (drawn[..., None] * sums[..., None, -1:] >= sums[..., None, :]).sum(axis=-1)
        return wrap(module.asarray(found, dtype=np.int64).clip(0, input.shape[-1] - 1))
    # The smallest exponential numbers over weights: a draw without replacement (Efraimidis and Spirakis).
    drawn = _floats("multinomial", "random", input.shape, np.float64, input.device, generator)
    keys = module.where(weights > 0, -np.log1p(-drawn) / module.where(weights > 0, weights, 1), np.inf)
    return wrap(module.asarray(keys.argsort(axis=-1)[..., :num_samples], dtype=np.int64))


def _overwritten(self: Tensor, array: Any) -> Tensor:
    self._data[...] = array
    return inplace.record_change(self, None)


def _uniform_(self: Tensor, a: float = 0, b: float = 1, *, generator: Generator | None = None) -> Tensor:
    """Fill with uniform numbers in [a, b)."""
    inplace.check_may_change(self, "uniform_")
    if not a <= b:
        raise ValueError(f"uniform_: expected a <= b, got {a} and {b}")
    drawn = _floats("uniform_", "random", self.shape, self.dtype, self.device, generator)
    return _overwritten(self, drawn * (b - a) + a)


def _normal_(self: Tensor, mean: float = 0, std: float = 1, *, generator: Generator | None = None) -> Tensor:
    """Fill with normal numbers."""
    inplace.check_may_change(self, "normal_")
    if std < 0:
        raise ValueError(f"normal_: expected a standard deviation of at least 0, got {std}")
    drawn = _floats("normal_", "standard_normal", self.shape, self.dtype, self.device, generator)
    return _overwritten(self, drawn * std + mean)


def _bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Fill with 1 with probability `p`, a number or a tensor of probabilities, else 0."""
    inplace.check_may_change(self, "bernoulli_")
    limit = p._data if isinstance(p, Tensor) else _probability("bernoulli_", p)
    return _overwritten(self, _uniform(self, generator) < limit)


for _method in (_uniform_, _normal_, _bernoulli_):
    _method.__name__ = _method.__qualname__ = _method.__name__.removeprefix("_")
    setattr(Tensor, _method.__name__, _method)
