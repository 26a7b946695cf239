"""What a user types: the names in `adjoint`, and the README's example."""

from __future__ import annotations

import re
from pathlib import Path

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


def test_the_readme_example_learns_and_differentiates(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(blocks[0], "README.md", "exec"), {})
    first, second = capsys.readouterr().out.strip().splitlines()
    accuracy = float(re.search(r"accuracy ([\d.]+)%", first).group(1))
    assert accuracy > 97
    assert second == "tensor([ 6., 12.])"
