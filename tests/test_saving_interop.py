"""Files of tensors, and memory shared with NumPy, PyTorch and everything that speaks DLPack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from adjoint.engine import Tensor
from adjoint.engine.operations.define import functions
from adjoint.engine.saving import load, save

from_dlpack, from_numpy, tensor, as_tensor = (
    functions[n] for n in ("from_dlpack", "from_numpy", "tensor", "as_tensor")
)

CONTENT: dict[str, Any] = {
    "weight": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "backwards": np.arange(5)[::-1],
    "half": np.array([1.5, -2], np.float16),
    "bfloat": np.array([1.5, -2, np.inf], ml_dtypes.bfloat16),
    "number": np.float32(3),
    "empty": np.zeros((0, 3)),
    "mask": np.array([[True], [False]]),
    "bytes": np.arange(3, dtype=np.uint8),
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save({name: Tensor(np.asarray(a)) if name != "mask" else a for name, a in CONTENT.items()}, path)
    loaded = load(path)
    assert loaded.keys() == CONTENT.keys()
    for name, array in CONTENT.items():
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
        assert loaded[name].data.tobytes() == np.ascontiguousarray(array).tobytes()
        loaded[name].zero_()  # memory of its own, that may be written
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_other_libraries_read_it_and_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the other library (extra `peers`)")
    files = pytest.importorskip("safetensors.torch")
    save({name: np.asarray(array) for name, array in CONTENT.items()}, tmp_path / "a")
    for name, value in files.load_file(tmp_path / "a").items():
        expected = CONTENT[name]
        np.testing.assert_array_equal(value.double().numpy(), np.asarray(expected).astype(np.float64))
    files.save_file({"x": torch.arange(3).bfloat16()}, tmp_path / "b")
    assert load(tmp_path / "b")["x"].dtype == ml_dtypes.bfloat16
    assert load(tmp_path / "b")["x"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("keep", [0, 4, 50, -1])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    save(CONTENT, tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"^load: .*a: not a whole safetensors file \("):
        load(tmp_path / "a")


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^load: .*nothing: there is no such file"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"^save: .*its folder does not exist"):
        save(CONTENT, tmp_path / "no" / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": [1.0]}, "save: 'x': expected a tensor or array, got list"),
        ({"x": np.zeros(2, complex)}, "save: 'x': dtype complex128 is not supported"),
        ({1: np.zeros(2)}, "save: expected names of type str, got 1"),
        ([np.zeros(2)], "save: expected a dict"),
    ],
)
def test_wrong_content_is_named_and_the_old_file_stays(tmp_path: Path, content: Any, message: str) -> None:
    save(CONTENT, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(TypeError, match=message):
        save(content, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before


def test_the_old_file_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(CONTENT, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save({"x": np.zeros(3)}, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before and os.listdir(tmp_path) == ["a"]


def test_memory_is_shared_with_numpy() -> None:
    array = np.arange(4.0)
    for shared in (from_numpy(array), as_tensor(array), Tensor(array), from_dlpack(array)):
        shared[0] += 1
        assert np.shares_memory(np.asarray(shared), array)
    assert array[0] == 4.0
    copy = tensor(array)
    copy[0] = 0.0
    assert array[0] == 4.0
    np.testing.assert_array_equal(np.from_dlpack(from_numpy(array)), array)
    assert np.shares_memory(np.from_dlpack(from_numpy(array)), array)
    assert np.asarray(from_numpy(array), dtype=np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.add(array, 1), np.asarray(array + Tensor(np.ones(4))))


def test_memory_is_shared_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the other side (extra `peers`)")
    there = torch.arange(6.0).reshape(2, 3)
    here = from_dlpack(there.t())
    assert here.shape == (3, 2) and here.tolist() == there.t().tolist()
    here[2, 1] = 50.0
    assert there[1, 2] == 50.0
    back = torch.from_dlpack(here)
    back[0, 0] = -1
    assert float(here[0, 0]) == -1.0
    assert tensor(there).data is not None and not np.shares_memory(tensor(there).data, here.data)


def test_what_needs_a_gradient_is_not_given_away() -> None:
    x = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(x)
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(x)
    with pytest.raises(TypeError, match="from_numpy: expected a NumPy array, got list"):
        from_numpy([1, 2])
    with pytest.raises(TypeError, match="__dlpack__, got list"):
        from_dlpack([1, 2])
    assert from_dlpack(x) is x
