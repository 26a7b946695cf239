"""Where CuPy keeps compiled kernels: a folder that cannot be written to is no reason to stop."""

from __future__ import annotations

import os
import warnings
from pathlib import Path


def folder() -> Path:
    """CuPy's cache folder."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache").expanduser()


def prepare() -> None:
    """Before CuPy is imported, which fails where its cache folder is not there and cannot be made."""
    path = folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"no permission to write to {path}")
    except OSError as error:
        keep_in_memory(error)
    if not path.is_dir():
        os.environ["CUPY_CACHE_DIR"] = os.path.abspath(os.sep)  # any folder that is there: nothing is written to it


def keep_in_memory(error: OSError) -> bool:
    """Let this process keep compiled kernels in memory only, because of `error`. False where it does so already."""
    if os.environ.get("CUPY_CACHE_IN_MEMORY") == "1":
        return False
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
    warnings.warn(
        f"CuPy cannot keep compiled kernels in {folder()} ({error}), so that every process compiles them anew; "
        "CUPY_CACHE_DIR can name another folder",
        RuntimeWarning,
        stacklevel=2,
    )
    return True
