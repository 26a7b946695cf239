"""Every kernel variant that the wrappers can launch, so that all can be compiled before they are used."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from .kernel import Kernel


@cache
def all_variants() -> tuple[Kernel, ...]:
    """The `VARIANTS` of all modules of this package."""
    package = importlib.import_module(__package__ or "")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f".{name}", __package__) for name in names]
    variants = [variant for module in modules for variant in getattr(module, "VARIANTS", ())]
    return tuple(dict.fromkeys(variants))
