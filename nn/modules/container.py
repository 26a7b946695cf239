"""Modules that hold others: in a chain, a list or a dict."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...engine import Tensor
from ..parameter import Parameter
from .module import Module, layout


class _Indexed(Module):
    """Modules (or parameters) under the names "0", "1", …"""

    _store = "_modules"

    def _values(self) -> list[Any]:
        return list(self.__dict__[self._store].values())

    def _replace(self, values: Iterable[Any]) -> None:
        """Hold `values` in this order; an error leaves all as it was."""
        values = list(values)
        self._check(values)
        self.__dict__[self._store] = {str(i): value for i, value in enumerate(values)}

    def _check(self, values: list[Any]) -> None:
        for i, value in enumerate(values):
            if value is not None and not isinstance(value, Module):
                raise TypeError(f"{type(self).__name__}: expected modules, got {type(value).__name__} at {i}")

    def _like(self, values: list[Any]) -> Any:
        kind: Any = type(self)
        return kind(values)

    def _position(self, index: Any) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"{type(self).__name__}: index {position} is out of range for {len(self)} entries")
        return position % len(self)

    def __len__(self) -> int:
        return len(self.__dict__[self._store])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._like(self._values()[index])
        return self._values()[self._position(index)]

    def __setitem__(self, index: int, value: Any) -> None:
        values = self._values()
        values[self._position(index)] = value
        self._replace(values)

    def __delitem__(self, index: int | slice) -> None:
        values = self._values()
        del values[index if isinstance(index, slice) else self._position(index)]
        self._replace(values)

    def append(self, value: Any) -> Any:
        """Add one at the end."""
        self._replace([*self._values(), value])
        return self

    def extend(self, values: Iterable[Any]) -> Any:
        """Add several at the end."""
        self._replace([*self._values(), *values])
        return self

    def insert(self, index: int, value: Any) -> Any:
        """Add one before position `index`."""
        values = self._values()
        values.insert(index, value)
        self._replace(values)
        return self

    def pop(self, index: int = -1) -> Any:
        """Take one out and return it."""
        value = self[index]
        del self[index]
        return value

    def __add__(self, other: Iterable[Any]) -> Any:
        return self._like([*self._values(), *other])

    def __iadd__(self, other: Iterable[Any]) -> Any:
        return self.extend(other)


class ModuleList(_Indexed):
    """A list of modules; it has no forward of its own."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        self._replace(modules or ())

    def __repr__(self) -> str:
        children = []
        start = 0
        for text, group in itertools.groupby(repr(module) for module in self):
            count = len(list(group))
            place = f"({start})" if count == 1 else f"({start}-{start + count - 1})"
            children.append((place, text if count == 1 else f"{count} x {text}"))
            start += count
        return layout(self._get_name(), "", children)


class Sequential(_Indexed):
    """Modules called one after the other. Given one by one, or by name in a dict."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], Mapping):
            for name, module in args[0].items():
                self.register_module(name, module)
        else:
            self._replace(args)

    def _replace(self, values: Iterable[Any]) -> None:
        values = list(values)
        self._check(values)
        names = list(self._modules)
        extends = all(old is new for old, new in zip(self._modules.values(), values, strict=False))
        if len(values) != len(names):  # names given by the user stay in an exchange and before what is appended
            names = (names if extends else []) + [str(i) for i in range(len(names) if extends else 0, len(values))]
        if len(set(names)) != len(values):
            names = [str(i) for i in range(len(values))]
        self._modules = dict(zip(names, values, strict=True))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def __add__(self, other: Iterable[Any]) -> Sequential:
        return Sequential(*self, *other)

    def forward(self, input: Any) -> Any:
        for module in self._modules.values():
            input = module(input)  # type: ignore[misc]
        return input


class ModuleDict(Module):
    """Modules under names of their own; it has no forward."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, key: str) -> Module | None:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module | None) -> None:
        self.register_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> Iterable[Module | None]:
        """The modules."""
        return self._modules.values()

    def items(self) -> Iterable[tuple[str, Module | None]]:
        """Names with modules."""
        return self._modules.items()

    def pop(self, key: str) -> Module | None:
        """Take one out and return it."""
        return self._modules.pop(key)

    def clear(self) -> None:
        """Take all out."""
        self._modules.clear()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add modules from a dict or from pairs, replacing those with the same name."""
        for key, module in modules.items() if isinstance(modules, Mapping) else modules:
            self[key] = module


class ParameterList(_Indexed):
    """A list of parameters; tensors given to it become parameters that share their memory."""

    _store = "_parameters"

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._replace(values or ())

    def _replace(self, values: Iterable[Any]) -> None:
        super()._replace(
            Parameter(value) if isinstance(value, Tensor) and not isinstance(value, Parameter) else value
            for value in values
        )

    def _check(self, values: list[Any]) -> None:
        for i, value in enumerate(values):
            if not isinstance(value, Parameter):
                raise TypeError(f"ParameterList: expected tensors, got {type(value).__name__} at {i}")

    def extra_repr(self) -> str:
        return "\n".join(
            f"({i}): Parameter containing: [{value.dtype} of size {'x'.join(map(str, value.shape))}]"
            for i, value in enumerate(self)
        )
