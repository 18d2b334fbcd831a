"""What callers hand to the library: checked before anything is done, so that a mistake never means something else.

Python would take the text "web" for the list of three workloads, the number 5 for a passphrase of five zero bytes, and
the text "no" for true.  Out of scope: what the values mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sealpoint.errors import UsageError

_SCALARS: Final = (str, bytes, bytearray, memoryview, os.PathLike, Mapping)


def path(value: object, what: str) -> str:
    """A path as text.  Raises UsageError for what is none; what it says names no more than the type."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise UsageError(f"{what} must be a path, not {_kind(value)}")
    # A path that the configuration marks as its own (ownership.Configured) stays what it is.
    found = value if isinstance(value, str) else os.fsdecode(value)
    if "\0" in found:
        raise UsageError(f"{what} is not a path: it has a NUL byte")
    return found


def optional_path(value: object, what: str) -> str | None:
    """As `path`, or None."""
    return None if value is None else path(value, what)


def items(value: object, what: str) -> list[Any]:
    """The values of a list, a tuple or the like.  Raises UsageError, also for one text, which is no list."""
    if isinstance(value, _SCALARS) or not isinstance(value, Iterable):
        one = isinstance(value, str | os.PathLike)
        hint = f"write [{os.fspath(value)!r}]" if one else None  # type: ignore[call-overload]
        raise UsageError(f"{what} must be a list, not {_kind(value)}", hint=hint)
    return list(value)


def paths(value: object, what: str) -> list[str]:
    """A list of paths.  Raises UsageError."""
    return [path(v, f"each of {what}") for v in items(value, what)]


def text(value: object, what: str) -> str:
    """Raises UsageError for what is no text."""
    if not isinstance(value, str):
        raise UsageError(f"{what} must be text, not {_kind(value)}")
    return value


def texts(value: object, what: str) -> tuple[str, ...]:
    """A list of texts that can be arguments of a program.  Raises UsageError."""
    found = tuple(text(v, f"each of {what}") for v in items(value, what))
    if any("\0" in v for v in found):
        raise UsageError(f"one of {what} has a NUL byte")
    return found


def flag(value: object, what: str) -> bool:
    """Raises UsageError for anything but True and False: the text "no" is true."""
    if not isinstance(value, bool):
        raise UsageError(f"{what} must be True or False, not {_kind(value)}")
    return value


def whole_number(value: object, what: str) -> int:
    """Raises UsageError for anything but a whole number; True is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{what} must be a whole number, not {_kind(value)}")
    return value


def secret(value: object, what: str) -> bytes:
    """Bytes.  Raises UsageError for anything else, text included, whose encoding nobody chose."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise UsageError(f"{what} must be bytes, not {_kind(value)}")
    return bytes(value)


def instance(value: object, kind: type, what: str) -> None:
    """Raises UsageError for a value that is not of `kind`."""
    if not isinstance(value, kind):
        raise UsageError(f"{what} must be a sealpoint.{kind.__name__}, not {_kind(value)}")


def callback(value: object, what: str) -> None:
    """Raises UsageError for what cannot be called."""
    if not callable(value):
        raise UsageError(f"{what} must be a function, not {_kind(value)}")


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
