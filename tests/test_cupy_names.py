"""Names that the engine asks of NumPy while CuPy's arrays are in its hands: CuPy must have them too."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

cupy = pytest.importorskip("cupy", reason="CuPy is not installed; its names cannot be looked up (it needs no GPU)")

ENGINE = Path(__file__).parent.parent / "engine"
FILES = sorted(ENGINE.glob("operations/*.py")) + [ENGINE / name for name in ("graph.py", "inplace.py", "gradients.py")]
# Names of arrays' modules in the engine: `np` itself, and what array_module, module_of and cupy return.
MAKERS = {"array_module", "module_of", "cupy"}
# NumPy alone is meant: of the dtypes and shapes, or under a test for NumPy's arrays.
NUMPY_ONLY = {
    "ndarray",
    "broadcast_shapes",
    "einsum_path",
    "errstate",
    "add.at",
    "add.reduceat",
    "random.Generator",
    "nextafter",
}


def dotted(node: ast.AST) -> list[str]:
    """`a.b.c` as its parts; empty where the root is no name or call of a maker."""
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return [*front, node.attr] if front else []
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
        return ["<module>"]
    return []


def names_used(tree: ast.AST) -> dict[str, int]:
    """Every name asked of an array module, with a line where it is."""
    roots = {"np", "<module>"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and dotted(node.value) == ["<module>"]:
            roots |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    used: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *rest = dotted(node) or [""]
            if root in roots:
                used.setdefault(".".join(rest), node.lineno)
    return used


def has(module: object, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_cupy_has_every_name(path: Path) -> None:
    used = names_used(ast.parse(path.read_text()))
    missing = {name: line for name, line in used.items() if name not in NUMPY_ONLY and not has(cupy, name)}
    assert not missing, f"{path.name} uses {missing}, which CuPy does not have"


def test_the_check_finds_names() -> None:
    code = "module = array_module(x)\nmodule.nonsense(x)\narray_module(x).folly\nnp.add.absurd\nother.thing\n"
    used = names_used(ast.parse(code))
    assert set(used) >= {"nonsense", "folly", "add.absurd"} and "thing" not in used
    assert not any(has(cupy, name) for name in ("nonsense", "folly", "add.absurd"))
    everything = {name for path in FILES for name in names_used(ast.parse(path.read_text()))}
    assert {"exp", "where", "zeros", "concatenate", "argsort"} <= everything
    assert all(has(np, name) for name in everything - {"cuda", "asnumpy"})


def test_getattr_on_a_module_asks_for_names_that_cupy_has() -> None:
    for name in ("maximum", "minimum", "tril", "triu", "argmax", "argmin"):
        assert hasattr(cupy, name)
    for name in (
        "max",
        "min",
        "all",
        "any",
        "sum",
        "prod",
        "cumsum",
        "diagonal",
        "clip",
        "nonzero",
        "argsort",
        "transpose",
    ):
        assert hasattr(cupy.ndarray, name)


def test_only_the_backend_and_kernels_import_cupy() -> None:
    for path in ENGINE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert path.name == "backend.py" or not any(name.split(".")[0] == "cupy" for name in names), path
