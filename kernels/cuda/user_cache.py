"""Small files in the user's cache folder: what was measured or compiled once. Without the folder all goes on."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


def folder() -> Path:
    """Where this package keeps such files for its user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "adjoint"


def file(kind: str, *key: str) -> Path:
    """Where what `key` tells apart is kept, among the files of its kind."""
    return folder() / kind / f"{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:40]}.json"


def read(path: Path) -> dict[str, Any] | None:
    """What `write` put there; None where there is nothing, or nothing that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, also where several processes write or the disk is full."""
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(content, indent=1))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
