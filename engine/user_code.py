"""The line of the user's program that an operation was called from."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType
from typing import NamedTuple

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_OURS = tuple(os.path.join(_PACKAGE, folder, "") for folder in ("engine", "nn", "kernels"))
_LIBRARIES = ("numpy", "cupy", "cupyx", "contextlib")  # between two calls of ours, or below them


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        return f'File "{self.file}", line {self.line}, in {self.function}' + (f"\n    {source}" if source else "")


def calling_place(passing: CodeType | None = None) -> tuple[Place | None, bool]:
    """The innermost frame outside the package, and whether one that runs `passing` lies between it and here."""
    passed = False
    for frame in _frames():
        if _is_users(frame):
            return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name), passed
        passed = passed or frame.f_code is passing
    return None, passed


def called_function() -> str:
    """The function of the package that the innermost frame outside it has called."""
    name = ""
    for frame in _frames():
        if _is_users(frame):
            break
        name = frame.f_code.co_name
    return name


def raising_place(traceback: TracebackType | None) -> Place | None:
    """The innermost line outside the package among those that an error has passed."""
    place = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if _is_users(traceback.tb_frame):
            place = Place(code.co_filename, traceback.tb_lineno, code.co_name)
        traceback = traceback.tb_next
    return place


def _frames() -> Iterator[FrameType]:
    """The frames that lead here, the innermost first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_users(frame: FrameType) -> bool:
    library: str = frame.f_globals.get("__name__", "")
    return not frame.f_code.co_filename.startswith(_OURS) and library.partition(".")[0] not in _LIBRARIES
