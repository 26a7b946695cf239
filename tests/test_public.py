"""What a user types: the names in `adjoint`, and the README's example."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import adjoint as ad
from adjoint.engine.operations.define import functions

ROOT = Path(__file__).parent.parent

# As in PyTorch, these are methods only.
METHODS = {"contiguous", "cpu", "cuda", "expand", "expand_as", "reshape_as", "to", "type_as", "view", "view_as"}


@pytest.mark.parametrize("name", sorted(set(functions) - METHODS))
def test_every_operation_is_a_name_in_adjoint(name):
    assert getattr(ad, name, None) is functions[name]


@pytest.mark.parametrize("name", sorted(functions))
def test_every_operation_says_what_it_does(name):
    assert (functions[name].__doc__ or "").strip().endswith("."), f"{name} has no docstring"


def test_operators_and_methods_under_a_second_name():
    x = ad.tensor([-1.0, 2.0])
    assert abs(x).tolist() == [1.0, 2.0] and +x is x
    assert x.clip(0, 1).tolist() == x.clone().clip_(0, 1).tolist() == [0.0, 1.0]
    assert x.short().dtype == ad.short


def test_modules_are_imported_by_the_names_under_which_they_are_found():
    import adjoint.cuda
    import adjoint.optim as optim
    from adjoint.autograd import Function
    from adjoint.data import DataLoader
    from adjoint.optim.lr_scheduler import StepLR

    assert optim is ad.optim is ad.nn.optim and StepLR is optim.lr_scheduler.StepLR
    assert Function is ad.autograd.Function and DataLoader is ad.data.DataLoader
    assert adjoint.cuda.is_available is ad.cuda.is_available


def readme_example(number: int) -> str:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[number]


def test_the_readme_example_learns_and_differentiates(capsys):
    exec(compile(readme_example(0), "README.md", "exec"), {})
    first, second = capsys.readouterr().out.strip().splitlines()
    accuracy = float(re.search(r"accuracy ([\d.]+)%", first).group(1))
    assert accuracy > 97
    assert second == "tensor([ 6., 12.])"


def test_the_readme_kernel_gets_a_gradient(monkeypatch):
    """On the CPU, with a stand-in for CuPy whose kernel computes in NumPy: the Function around it is what is tested."""

    def softsign(grid, block, args):
        x, y, n = args
        assert x.flags.c_contiguous
        assert (grid[0] - 1) * block[0] < n <= grid[0] * block[0]
        y[...] = x / (1 + np.abs(x))

    cupy = types.ModuleType("cupy")
    cupy.RawKernel = lambda source, name: softsign
    cupy.ascontiguousarray, cupy.empty_like = np.ascontiguousarray, np.empty_like
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    names: dict = {}
    exec(compile(readme_example(1).replace('device="cuda"', 'device="cpu"'), "README.md", "exec"), names)
    np.testing.assert_array_less(np.abs(names["y"].detach().numpy()), 1)
    x = ad.tensor(np.linspace(-2, 2, 6).reshape(2, 3).T, requires_grad=True)
    assert ad.autograd.gradcheck(names["Softsign"].apply, (x,))
    assert ad.autograd.gradgradcheck(names["Softsign"].apply, (x,))
