"""The report's cases: each module here lists those of one family of kernels as `CASES`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from ..case import Case


def all_cases() -> list[Case]:
    """The cases of all modules of this package, by family."""
    families = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [
        replace(case, family=family)
        for family in families
        for case in importlib.import_module(f".{family}", __name__).CASES
    ]
