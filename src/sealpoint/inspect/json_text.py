"""JSON as Python's json module writes it, piece by piece: an image may be larger than what should be in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sealpoint.inspect.image import Payload

Write = Callable[[str], object]


def write_image(
    name: str, entries: Iterable[dict[str, Any]], write: Write, *, indent: int | None
) -> None:
    """{"magic": name, "entries": [...]}; valid JSON also where `entries` ends with an exception, which is passed on."""
    outer, inner = _breaks(indent, 1), _breaks(indent, 2)
    comma = "," + (inner or " ")
    write(f'{{{outer}"magic": {json.dumps(name)},{outer or " "}"entries": [')
    started = False
    try:
        for entry in entries:
            write(comma if started else inner)
            started = True
            write_value(entry, write, indent, 2)
    finally:
        write(f"{outer if started else ''}]{_breaks(indent, 0)}}}")


def write_value(value: Any, write: Write, indent: int | None, level: int) -> None:
    """Any JSON value, in which a Payload stands for its base64."""
    if isinstance(value, Payload):
        _write_payload(value.base64(), write)
    elif not _has_payload(value):
        text = json.dumps(value, indent=indent)
        # Strings have no raw line breaks in JSON, so every one of them is the layout's.
        write(text if indent is None else text.replace("\n", _breaks(indent, level)))
    elif isinstance(value, dict):
        items: Iterator[tuple[str, Any]] = ((f"{json.dumps(k)}: ", v) for k, v in value.items())
        _write_items(items, "{}", write, indent, level)
    else:
        _write_items((("", v) for v in value), "[]", write, indent, level)


def _write_items(
    items: Iterable[tuple[str, Any]], brackets: str, write: Write, indent: int | None, level: int
) -> None:
    inner = _breaks(indent, level + 1)
    write(brackets[0])
    for n, (key, item) in enumerate(items):
        if n:
            write("," + (inner or " "))
        else:
            write(inner)
        write(key)
        write_value(item, write, indent, level + 1)
    write(_breaks(indent, level) + brackets[1])


def _breaks(indent: int | None, level: int) -> str:
    return "" if indent is None else "\n" + " " * (indent * level)


def _has_payload(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_payload(v) for v in value.values())
    if isinstance(value, list):
        # Lists with payloads are short (the messages of a queue); numbers of a pagemap are not looked through.
        return any(isinstance(v, Payload | dict) and _has_payload(v) for v in value)
    return isinstance(value, Payload)


def _write_payload(pieces: Iterable[str], write: Write) -> None:
    write('"')
    for piece in pieces:
        write(piece.replace("\n", "\\n"))
    write('"')
