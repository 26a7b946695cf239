"""The IDX files in which MNIST comes."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, gzipped or not, as yann.lecun.com/exdb/mnist describes the format.

    A missing file is a FileNotFoundError, one that is damaged or something else a ValueError.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"read_idx: {path}: there is no such file") from None
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"read_idx: {path} is a damaged gzip file ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise ValueError(f"read_idx: {path} is not an IDX file (it begins with {content[:4].hex(' ') or 'nothing'})")
    dtype, ndim = np.dtype(_TYPES[content[2]]), content[3]
    header = 4 + 4 * ndim
    if len(content) < header:
        raise ValueError(f"read_idx: {path} ends within its header of {header} bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, 4))
    wanted = header + math.prod(shape) * dtype.itemsize
    if len(content) != wanted:
        raise ValueError(f"read_idx: {path} has {len(content)} bytes, but its shape {shape} needs {wanted}")
    return np.frombuffer(content, dtype, offset=header).reshape(shape).astype(dtype.newbyteorder("="))
