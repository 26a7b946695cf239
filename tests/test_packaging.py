"""The distribution holds exactly the package's files, and importing it stays light."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Top-level folders of the repository that are Python packages but no part of the distribution.
NOT_SHIPPED = {"bench", "tests", "examples", "docs", "build", "dist"}


def shipped_folders() -> list[Path]:
    return [
        folder
        for folder in ROOT.iterdir()
        if folder.is_dir() and folder.name not in NOT_SHIPPED and (folder / "__init__.py").exists()
    ]


def files_of_the_package() -> set[str]:
    inside = (path for folder in shipped_folders() for path in folder.rglob("*"))
    files = [path for path in inside if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in [ROOT / "__init__.py", ROOT / "py.typed", *files]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, so that earlier builds in the tree play no part."""
    pytest.importorskip("setuptools", reason="building the wheel needs setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py", "py.typed"):
        shutil.copy(ROOT / name, source)
    for folder in shipped_folders():
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-c", build, target], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_files_of_the_tree(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == {f"adjoint/{name}" for name in files_of_the_package()}
    assert any(name.endswith(".cu") for name in shipped)


def test_the_wheel_works_alone(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "import adjoint; print(adjoint.__file__); print(float((adjoint.ones(2, 3) * 2).sum()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "ADJOINT_BACKEND": "numpy"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    where, total = run.stdout.split()
    assert Path(where).parent == tmp_path / "adjoint"
    assert float(total) == 12


def test_the_wheel_names_its_licence_and_needs(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = wheel.read(name).decode().splitlines()
    assert "License-Expression: MIT" in lines
    always = [line for line in lines if line.startswith("Requires-Dist: ") and ";" not in line]
    needs = {line.removeprefix("Requires-Dist: ").partition(">")[0] for line in always}
    assert needs == {"numpy", "safetensors", "ml_dtypes"}


def test_every_extra_of_the_makefile_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cuda12", "cuda13", "examples", "test", "lint", "peers"} <= extras.keys()
    # Any other specifier of torch brings in several GB of CUDA libraries.
    assert [need for need in extras["peers"] if need.startswith("torch")] == ["torch==2.13.0"]


def test_import_leaves_the_heavy_and_the_optional_alone():
    code = "import sys, adjoint; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    imported = set(run.stdout.split())
    assert "adjoint" in imported
    heavy = {"cupy", "cupyx", "cupy_backends", "matplotlib", "sklearn", "scipy", "torch", "tqdm"}
    assert not imported & heavy


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    wanted = {"demo", "test", "test-gpu", "lint", "bench", "bench-gpu", "kernels", "clean", "help"}
    assert set(listed) >= wanted


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench", "kernels"])
def test_make_says_which_python_it_needs(target, tmp_path):
    command = ["make", target, "PYTHON=no-such-python", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()
