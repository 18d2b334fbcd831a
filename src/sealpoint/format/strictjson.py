"""JSON as the statements and manifests use it: strict on both sides, so that two readers never disagree.

Strict UTF-8, no duplicate keys, no numbers (u64 are decimal strings), one object, nothing before or after it, and one
spelling only: no spaces, no escapes but those that JSON demands.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NoReturn

from sealpoint.errors import FileError
from sealpoint.format.constants import MAX_JSON_VALUES, MAX_TIME, MAX_U64


def encode(value: Any) -> bytes:
    """Compact UTF-8 JSON, keys in insertion order.  Raises FileError for text that UTF-8 cannot hold."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: the trace of a file name that is not UTF-8
        raise FileError("a name or text is not valid UTF-8") from None


def decode(data: bytes | memoryview, what: str) -> dict[str, Any]:
    """One JSON object.  `what` names the part of the file in errors.  Raises FileError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise FileError(f"{what}: a key appears twice")
        return result

    def number(_: str) -> NoReturn:
        raise FileError(f"{what}: holds a bare number")

    raw = bytes(data)
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise FileError(f"{what}: holds too many values")
    try:
        text = raw.decode("utf-8", errors="strict")
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_float=number,
            parse_int=number,
            parse_constant=number,
        )
    except (ValueError, RecursionError):  # nesting is bounded by the interpreter's recursion limit
        raise FileError(f"{what}: not valid JSON") from None
    if not isinstance(value, dict):
        raise FileError(f"{what}: not a JSON object")
    if encode(value) != raw:
        raise FileError(f"{what}: not in canonical form")
    return value


class Fields:
    """Typed access to a decoded object that insists on exactly the expected keys.

    Use as a context: read every field, then `done()`; an unread key is an error, because what a reader does not
    understand it must not pretend to have checked.
    """

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise FileError(f"{what}: not a JSON object")
        self._rest = dict(value)
        self.what = what

    def _take(self, key: str) -> Any:
        try:
            return self._rest.pop(key)
        except KeyError:
            raise FileError(f"{self.what}: lacks {key!r}") from None

    def has(self, key: str) -> bool:
        """Whether an optional key is present and still unread."""
        return key in self._rest

    def null(self, key: str) -> bool:
        """Whether the value is null; if so the key counts as read."""
        if self.has(key) and self._rest[key] is None:
            self._take(key)
            return True
        return False

    def text(self, key: str, *, limit: int = 4096) -> str:
        """A string of at most `limit` characters."""
        value = self._take(key)
        if not isinstance(value, str) or len(value) > limit:
            raise FileError(f"{self.what}: {key!r} is not a short string")
        return value

    def u64(self, key: str) -> int:
        """A canonical decimal string (no sign, no leading zero) below 2^64."""
        return parse_u64(self._take(key), f"{self.what}: {key!r}")

    def time(self, key: str) -> int:
        """Seconds since 1970, u64, before the year 10000."""
        value = self.u64(key)
        if value > MAX_TIME:
            raise FileError(f"{self.what}: {key!r} is not a time")
        return value

    def hex(self, key: str, size: int) -> bytes:
        """Lower-case hex of exactly `size` bytes."""
        return parse_hex(self._take(key), size, f"{self.what}: {key!r}")

    def array(self, key: str, *, limit: int) -> list[Any]:
        """An array of at most `limit` elements."""
        value = self._take(key)
        if not isinstance(value, list) or len(value) > limit:
            raise FileError(f"{self.what}: {key!r} is not an array of at most {limit}")
        return value

    def fields(self, key: str) -> Fields:
        """A nested object."""
        return Fields(self._take(key), f"{self.what}: {key!r}")

    def mapping(self, key: str) -> dict[str, Any]:
        """A nested object whose keys the caller checks."""
        value = self._take(key)
        if not isinstance(value, dict):
            raise FileError(f"{self.what}: {key!r} is not a JSON object")
        return value

    def keys(self) -> list[str]:
        """The keys not read yet."""
        return list(self._rest)

    def done(self) -> None:
        """All keys must have been read."""
        if self._rest:
            raise FileError(f"{self.what}: unknown key {min(self._rest)!r}")


def parse_u64(value: Any, what: str) -> int:
    """A canonical decimal string below 2^64 to int.  Raises FileError."""
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= 20
        or not value.isascii()
        or not value.isdigit()
        or (value[0] == "0" and value != "0")
        or int(value) > MAX_U64
    ):
        raise FileError(f"{what} is not a decimal u64")
    return int(value)


def parse_hex(value: Any, size: int, what: str) -> bytes:
    """Lower-case hex of exactly `size` bytes to bytes.  Raises FileError."""
    if (
        isinstance(value, str)
        and len(value) == 2 * size
        and not set(value) - set("0123456789abcdef")
    ):
        return bytes.fromhex(value)
    raise FileError(f"{what} is not {size} bytes of lower-case hex")


def parse_base64(value: Any, what: str) -> bytes:
    """Canonical base64 (RFC 4648, padded) to bytes.  Raises FileError."""
    try:
        if isinstance(value, str):
            data = base64.b64decode(value, validate=True)
            if base64.b64encode(data).decode() == value:
                return data
    except ValueError:  # binascii.Error is one; so is text that is not ASCII
        pass
    raise FileError(f"{what} is not base64")
