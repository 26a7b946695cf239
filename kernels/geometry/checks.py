"""Checks of shapes and settings that several families share."""

from __future__ import annotations

import functools
import marshal
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Shape = tuple[int, int, int, int]
Sizes = tuple[int, ...]  # one for each axis, or a whole shape

# Of so many axes the last; and the inputs of one, two and three.
AXES = ("depth", "height", "width")
INPUTS = ("(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)")

Check = TypeVar("Check", bound=Callable[..., Any])
_MOST_REMEMBERED = 4096


def remembered(check: Check) -> Check:
    """A function of numbers, names and tuples of them that works once for each list of arguments, unless it raises.

    Unlike functools.lru_cache it takes 1, 1.0 and True for different arguments, and lists too.
    """
    known: dict[bytes, Any] = {}

    @functools.wraps(check)
    def ask(*args: Any) -> Any:
        try:
            key = marshal.dumps(args, 2)  # its second version writes equal values alike
        except ValueError:  # not of Python's own types
            return check(*args)
        result = known.get(key, known)  # which no check returns
        if result is known:
            result = check(*args)
            if not _is_plain(args):  # of NumPy's scalars and arrays the key has the bytes alone
                return result
            if len(known) >= _MOST_REMEMBERED:
                known.clear()
            known[key] = result
        return result

    return ask  # type: ignore[return-value]


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (int, float, bool, str)


def check_same(operation: str, got: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(got) != tuple(wanted):
        raise ValueError(
            f"{operation}: the gradient must have the shape {tuple(wanted)} of the result, got {tuple(got)}"
        )


def is_pair(value: Any, least: int) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_int, value)) and min(value) >= least


def is_int(value: object) -> bool:
    # The first question is the cheap one, and enough for nearly every call.
    return type(value) is int or (isinstance(value, int) and not isinstance(value, bool))
