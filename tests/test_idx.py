"""IDX files, as MNIST comes in them, whole and damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from adjoint.data import read_idx

# Two images of 2×3 bytes, written out from the description of the format.
HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3])
IMAGES = HEADER + bytes(range(12))


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_an_array_is_read(tmp_path: Path, pack) -> None:
    array = read_idx(written(tmp_path, pack(IMAGES)))
    assert array.dtype == np.uint8 and array.flags.writeable
    np.testing.assert_array_equal(array, np.arange(12).reshape(2, 2, 3))


def test_wide_numbers_are_big_endian(tmp_path: Path) -> None:
    array = read_idx(written(tmp_path, bytes([0, 0, 0x0B, 1, 0, 0, 0, 2, 0, 1, 0xFF, 0xFE])))
    assert array.tolist() == [1, -2] and array.dtype == np.int16


DAMAGED = {
    "empty": (b"", "not an IDX file .it begins with nothing"),
    "zip": (b"PK\x03\x04" + bytes(20), "not an IDX file .it begins with 50 4b 03 04"),
    "type": (b"\0\0\x07\x01" + bytes(8), "not an IDX file"),
    "header": (HEADER[:9], "ends within its header of 16 bytes"),
    "short": (IMAGES[:-1], r"has 27 bytes, but its shape \(2, 2, 3\) needs 28"),
    "long": (IMAGES + b"\0", "has 29 bytes"),
    "huge": (b"\0\0\x08\x03" + b"\xff" * 12, "has 16 bytes, but its shape"),
    "short gzip": (gzip.compress(IMAGES)[:-9], "damaged gzip file"),
    "wrong gzip": (gzip.compress(IMAGES)[:12] + bytes(30), "damaged gzip file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=f"^read_idx: {path} .*{message}"):
        read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"read_idx: .*absent: there is no such file"):
        read_idx(tmp_path / "absent")
