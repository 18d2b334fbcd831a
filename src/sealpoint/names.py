"""Names are bytes: one way to hold them, one to show them, one to write them as JSON, one to read them from /proc.

What the kernel, an image or an engine hands over (commands, paths, mappings, variables, containers) may be any bytes.
In Python they are `str` as of PEP 383: UTF-8, each byte that is none as a lone surrogate.  Nothing is lost by that, and
`encode` gives back the very bytes.  No such text is printed but through `printable`, which never shows two alike.
"""

from __future__ import annotations

import base64
import codecs
import os
from typing import Any, Final

ERROR_HANDLER: Final = "sealpoint.names"
_SUFFIX: Final = "_base64"
_SHORT: Final = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def text(name: str | bytes) -> str:
    """A name as text from which `encode` makes the same bytes again; protobuf has either, depending on the contents."""
    return name if isinstance(name, str) else bytes(name).decode(errors="surrogateescape")


def encode(name: str) -> bytes:
    """The bytes of a name.  Half a surrogate pair, as hostile JSON can hold, is kept as three bytes."""
    try:
        return name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return b"".join(_bytes_of(c) for c in name)


def _bytes_of(character: str) -> bytes:
    handler = "surrogateescape" if _is_byte(character) else "surrogatepass"
    return character.encode(errors=handler)


def _is_byte(character: str) -> bool:
    """One byte that is no UTF-8, as `text` has it."""
    return "\udc80" <= character <= "\udcff"


def printable(name: str | bytes) -> str:
    """A name, or a line with names in it, for a terminal, a log or a page: of printable characters only.

    A control character could steer a terminal, an invisible one or one that changes the direction of writing could hide
    something: each becomes the \\xNN of its bytes, as do bytes that are no UTF-8, and a backslash becomes two.  So
    different names are shown differently, and what is shown says what the bytes are.
    """
    whole = text(name)
    if whole.isprintable() and "\\" not in whole:
        return whole
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in whole)


def cell(name: str | bytes) -> str:
    """A name in a table, where blanks fill up the column: at its end, one that belongs to it is \\x20."""
    shown = printable(name)
    return f"{shown[:-1]}\\x20" if shown.endswith(" ") else shown


def quoted(name: str | bytes) -> str:
    """A name amid a sentence, in quotation marks out of which nothing in it leads.  Not to be made printable again."""
    shown = printable(name).replace("'", "\\x27")
    return f"'{shown}'"


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if "\ud800" <= character <= "\udfff" and not _is_byte(character):
        return f"\\u{ord(character):04x}"
    return "".join(f"\\x{byte:02x}" for byte in _bytes_of(character))


def unescape(shown: str) -> str:
    """The name that `printable` shows; a backslash that it would not have written is kept."""
    if "\\" not in shown:
        return shown
    out, at = bytearray(), 0
    back = {value[1]: key for key, value in _SHORT.items()}
    while at < len(shown):
        following = shown[at + 1 : at + 2]
        if shown[at] == "\\" and following in back:
            out += back[following].encode()
            at += 2
        elif shown[at] == "\\" and following == "x" and _is_hex(shown[at + 2 : at + 4]):
            out.append(int(shown[at + 2 : at + 4], 16))
            at += 4
        else:
            out += encode(shown[at])
            at += 1
    return text(bytes(out))


def _is_hex(digits: str) -> bool:
    return len(digits) == 2 and all(c in "0123456789abcdef" for c in digits)


def is_utf8(name: str) -> bool:
    """Whether the bytes are UTF-8, and so JSON holds the name as it is."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def for_json(value: Any) -> Any:
    """A JSON value in which names that are no UTF-8 are printable, and beside each what it is.

    A member `x` with such a name in it (a string, a list, an object with such a key) gets a member `x_base64` beside
    it: the bytes; of a list one per item, null where the item is UTF-8; of an object pairs of key and value.  The keys
    of an object that has such a key are all printable, so that none is there twice.
    """
    if isinstance(value, dict):
        return _object(value)
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    return printable(value) if isinstance(value, str) and not is_utf8(value) else value


def _object(value: dict[Any, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    strange = any(isinstance(key, str) and not is_utf8(key) for key in value)
    for key, item in value.items():
        shown = printable(key) if strange and isinstance(key, str) else key
        result[shown] = for_json(item)
        beside = _beside(item)
        if beside is not None and isinstance(key, str):
            result.setdefault(shown + _SUFFIX, beside)
    return result


def _beside(item: Any) -> Any:
    if isinstance(item, str):
        return None if is_utf8(item) else _base64(item)
    if isinstance(item, list | tuple):
        strange = any(isinstance(x, str) and not is_utf8(x) for x in item)
        return [_beside(x) if isinstance(x, str) else None for x in item] if strange else None
    if isinstance(item, dict) and any(isinstance(k, str) and not is_utf8(k) for k in item):
        pairs = ((str(k), v) for k, v in item.items())
        return [[_base64(k), _base64(v) if isinstance(v, str) else None] for k, v in pairs]
    return None


def _base64(name: str) -> str:
    return base64.b64encode(encode(name)).decode()


def proc(path: str) -> str:
    """A file of /proc or /sys as text, whatever is in it: names of commands and paths in them are anybody's choice.

    Raises OSError.
    """
    with open(path, "rb") as file:
        return os.fsdecode(file.read())


def proc_lines(path: str) -> list[str]:
    """Its lines, which a line feed ends and nothing else: a carriage return in a name begins none.  Raises OSError."""
    lines = proc(path).split("\n")
    return lines if lines[-1] else lines[:-1]


def unmangle(field: str) -> str:
    """A path as mountinfo and swaps have it, with octal escapes for what would end the field."""
    parts = os.fsencode(field).split(b"\\")
    for n, part in enumerate(parts[1:], 1):
        digits = part[:3]
        octal = len(digits) == 3 and all(c in b"01234567" for c in digits) and digits[0] < ord("4")
        parts[n] = bytes([int(digits, 8)]) + part[3:] if octal else b"\\" + part
    return os.fsdecode(b"".join(parts))


def _encodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """What an encoding cannot hold, as the \\xNN of its UTF-8 bytes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join(f"\\x{byte:02x}" for c in part for byte in _bytes_of(c)), error.end


codecs.register_error(ERROR_HANDLER, _encodable)
