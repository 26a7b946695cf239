import importlib

import pytest

conv = importlib.import_module("adjoint.kernels.cpu.conv")


@pytest.fixture(autouse=True)
def convolutions_are_planned_anew(monkeypatch):
    """So that what a test sets in `conv_choice` counts, also for shapes that were met before."""
    for name in ("_problem", "_ways"):
        monkeypatch.setattr(conv, name, getattr(conv, name).__wrapped__)
