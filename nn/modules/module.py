"""Module: parameters, buffers and other modules under names, and a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ...engine import Tensor
from ...engine.backend import Device, transfer
from ...engine.dtypes import bfloat16, float16, float32, float64, is_floating
from ...engine.grad_mode import mode as thread
from ...engine.operations.conversion import destination
from ..parameter import Buffer, Parameter
from .hooks import Hooked
from .state import IncompatibleKeys, load, own_tensors

M = TypeVar("M", bound="Module")

_STORES = ("_parameters", "_buffers", "_modules")


class Module(Hooked):
    """Base of all layers and networks: subclasses assign parameters and modules and define `forward`."""

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _transient: set[str]  # names of the buffers that are not in the state_dict

    def __init__(self) -> None:
        self.__dict__.update(training=True, _parameters={}, _buffers={}, _modules={}, _transient=set(), _hooks={})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; called by `module(...)`."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    # ---- attributes

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self._forget(name, "_parameters")
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self._forget(name, "_modules")
            self.register_module(name, value)
        elif isinstance(value, Buffer):
            self._forget(name, "_buffers")
            self.register_buffer(name, value, value.persistent)
        elif (store := self._store_of(name)) is None:
            object.__setattr__(self, name, value)
        elif value is None or (store == "_buffers" and isinstance(value, Tensor)):
            self.__dict__[store][name] = value
        else:
            wanted = {"_parameters": "a Parameter", "_buffers": "a Tensor", "_modules": "a Module"}[store]
            raise TypeError(f"cannot assign {type(value).__name__} as {name!r}: expected {wanted} or None")

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__
        for store in _STORES:
            if store in fields and name in fields[store]:
                return fields[store][name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        if (store := self._store_of(name)) is not None:
            del self.__dict__[store][name]
            self._transient.discard(name)
        else:
            object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        names = {*super().__dir__(), *self._parameters, *self._buffers, *self._modules}
        return sorted(name for name in names if not name[0].isdigit())

    def _store_of(self, name: str) -> str | None:
        """Which of the three dicts holds `name`."""
        fields = self.__dict__
        for store in _STORES:
            if name in fields.get(store, ()):
                return store
        return None

    def _forget(self, name: str, keep: str) -> None:
        """Drop what `name` meant before, except in `keep`, where it is replaced in its place."""
        self.__dict__.pop(name, None)
        for store in _STORES:
            if store != keep and store in self.__dict__:
                self.__dict__[store].pop(name, None)
        if "_transient" in self.__dict__:
            self._transient.discard(name)

    def _register(self, store: str, name: str, value: Any) -> None:
        what = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "module"}[store]
        if store not in self.__dict__:
            raise AttributeError(f"cannot assign {what}s before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"the name of a {what} must be a string, got {type(name).__name__}")
        if not name or "." in name:
            raise KeyError(f'the name of a {what} must not be empty or contain ".", got {name!r}')
        if hasattr(self, name) and name not in self.__dict__[store]:
            raise KeyError(f"attribute {name!r} exists already")
        self.__dict__[store][name] = value

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter; None keeps the name for later."""
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(f"cannot assign {type(param).__name__} as parameter {name!r}: expected a Parameter or None")
        if param is not None and not param.is_leaf:
            raise ValueError(f"cannot assign a tensor that was computed as parameter {name!r}: expected a leaf")
        self._register("_parameters", name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that belongs to the module but does not learn; `persistent`: in the `state_dict`."""
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"cannot assign {type(tensor).__name__} as buffer {name!r}: expected a Tensor or None")
        self._register("_buffers", name, tensor)
        (self._transient.discard if persistent else self._transient.add)(name)

    def register_module(self, name: str, module: Module | None) -> None:
        """Add a child module."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"cannot assign {type(module).__name__} as module {name!r}: expected a Module or None")
        self._register("_modules", name, module)

    add_module = register_module

    # ---- walking

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it with their full names, each once unless `remove_duplicate` is off."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one with their names, each once."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly below this one, each once."""
        return (module for _, module in self.named_children())

    def _named_tensors(
        self, store: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen = set()
        modules = self.named_modules(None, prefix, remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, tensor in module.__dict__[store].items():
                if tensor is None or tensor in seen:
                    continue
                if remove_duplicate:
                    seen.add(tensor)
                yield f"{path}.{name}" if path else name, tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters with their full names, shared ones once."""
        return self._named_tensors("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, shared ones once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers with their full names, shared ones once."""
        return self._named_tensors("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, shared ones once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module below this one with the full name `target`; "" is this one."""
        module = self
        for name in target.split(".") if target else ():
            child = module._modules.get(name)
            if child is None:
                raise AttributeError(f"{type(module).__name__} has no module {name!r} (looking for {target!r})")
            module = child
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter with the full name `target`."""
        return self._get_tensor("_parameters", "parameter", target)

    def get_buffer(self, target: str) -> Tensor:
        """The buffer with the full name `target`."""
        return self._get_tensor("_buffers", "buffer", target)

    def _get_tensor(self, store: str, what: str, target: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if (tensor := module.__dict__[store].get(name)) is None:
            raise AttributeError(f"{type(module).__name__} has no {what} {name!r} (looking for {target!r})")
        return tensor

    def apply(self: M, fn: Callable[[Module], None]) -> M:
        """Call `fn` on all modules below this one, then on this one."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # ---- mode, gradients, dtype and device

    def train(self: M, mode: bool = True) -> M:
        """Set training mode here and below."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: mode must be a bool, got {mode!r}")
        if thread.recorder is not None:
            thread.recorder.write(self, "training")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self: M) -> M:
        """Set evaluation mode here and below."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set `requires_grad` of all parameters."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or set them to zero."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad = parameter.grad.detach().zero_()

    def to(self: M, *args: Any, dtype: Any = None, device: Any = None) -> M:
        """Move all parameters and buffers to a device, the floating ones to a dtype; a tensor gives both."""
        kind, place = destination(f"{type(self).__name__}.to", args, dtype, device)
        if kind is not None and not is_floating(kind):
            raise TypeError(f"{type(self).__name__}.to: expected a floating dtype, got {kind}")

        def convert(array: Any) -> Any:
            array = array if place is None else transfer(array, place)
            return array.astype(kind) if kind is not None and is_floating(array.dtype) else array

        for _, tensor in (*self.named_parameters(), *self.named_buffers()):
            for part in (tensor, tensor.grad):
                if part is not None:
                    part.data = convert(part._data)
        return self

    def cpu(self: M) -> M:
        """Move everything into CPU memory."""
        return self.to("cpu")

    def cuda(self: M, device: int | None = None) -> M:
        """Move everything to a GPU, the current one by default."""
        return self.to(Device("cuda", device))

    def float(self: M) -> M:
        """Floating parameters and buffers in float32."""
        return self.to(float32)

    def double(self: M) -> M:
        """Floating parameters and buffers in float64."""
        return self.to(float64)

    def half(self: M) -> M:
        """Floating parameters and buffers in float16."""
        return self.to(float16)

    def bfloat16(self: M) -> M:
        """Floating parameters and buffers in bfloat16."""
        return self.to(bfloat16)

    # ---- state

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Parameters and persistent buffers by full name; detached unless `keep_vars`, memory is shared."""
        tensors = own_tensors(self, prefix)
        return tensors if keep_vars else {name: tensor.detach() for name, tensor in tensors.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copy tensors or arrays, by full name, into the parameters and buffers, whose dtype and device stay.

        `assign` puts the given arrays in their place. Keys that are missing or unexpected (when `strict`) and
        shapes that differ are listed in one RuntimeError, and then nothing has changed.
        """
        return load(self, state_dict, strict, assign)

    # ---- text

    def extra_repr(self) -> str:
        """The settings, as `repr` shows them."""
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        children = [(f"({name})", repr(module)) for name, module in self._modules.items()]
        return layout(self._get_name(), self.extra_repr(), children)


def layout(name: str, extra: str, children: list[tuple[str, str]]) -> str:
    """`name(extra)` on one line, or its settings and children each on lines of their own."""
    lines = extra.split("\n") if extra else []
    if len(lines) < 2 and not children:
        return f"{name}({extra})"
    lines += [f"{label}: {text}" for label, text in children]
    body = "\n".join(lines).replace("\n", "\n  ")
    return f"{name}(\n  {body}\n)"
