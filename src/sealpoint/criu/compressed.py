"""Entries of a pagemap whose pages CRIU compressed (versions after 4.2).

A present entry then lists stored sizes of blocks of `pages_per_block` pages (1 if it is not said), the last block
perhaps shorter: 0 is a block of zeros, the plain size a block stored as it is, anything between an LZ4 block without a
frame.  Flag 8 of an entry says that its data begins at the next multiple of a page.

Two layouts were in CRIU's development branch: the list, its sum and the pages per block as fields of the entry, and the
same in a message of its own.  No released version has settled the field numbers, so the fields are recognised by what
has to hold of them: as many sizes as there are blocks, a sum that is right.  What does not fit is refused, not guessed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

from sealpoint.errors import FileError

ALIGNED: Final = 8  # PE_PAYLOAD_ALIGNED
_PAGE: Final = 4096
_MAX_BLOCK: Final = 4 * 1024 * 1024  # bytes of a block: CRIU's own limit
_VARINT, _BYTES = 0, 2


def sizes_of(record: Any, pages: int, where: str) -> tuple[Sequence[int], int] | None:
    """Stored sizes of an entry's blocks and pages per block, None if it is not compressed.  Raises FileError."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    found: Any = UnknownFieldSet(record)
    if not len(found):
        return None
    fields = [(f.field_number, f.wire_type, f.data) for f in found]
    for candidate in (fields, _nested(fields)):
        layout = _layout(candidate, pages)
        if layout is not None:
            return layout
    raise FileError(
        f"{where}: an entry has fields of a newer CRIU that are not understood",
        hint="if its pages are compressed, let that CRIU's own crit decompress them",
    )


def _nested(fields: list[tuple[int, int, Any]]) -> list[tuple[int, int, Any]]:
    """The fields of the message that is the only field."""
    if len(fields) != 1 or fields[0][1] != _BYTES:
        return []
    found: list[tuple[int, int, Any]] = []
    data, at = bytes(fields[0][2]), 0
    value: Any
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == _VARINT:
            value, at = _varint(data, at)
        elif tag & 7 == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            return []
        if at > len(data) or at < 0:
            return []
        found.append((tag >> 3, tag & 7, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; -1 where it does not end."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
    return 0, -1


def _layout(fields: list[tuple[int, int, Any]], pages: int) -> tuple[Sequence[int], int] | None:
    lists: dict[int, list[int]] = {}
    for number, kind, data in fields:
        if kind == _VARINT:
            lists.setdefault(number, []).append(int(data))
        elif kind == _BYTES and number not in lists:
            packed = _packed(bytes(data))
            if packed is None:
                return None
            lists[number] = packed
        else:
            return None
    for number, sizes in lists.items():
        others = [values for n, values in lists.items() if n != number]
        if len(others) > 2 or any(len(values) != 1 for values in others):
            continue
        numbers = [values[0] for values in others]
        for per_block in [*numbers, 1]:
            rest = list(numbers)
            if per_block in rest:
                rest.remove(per_block)
            fits = 0 < per_block <= _MAX_BLOCK // _PAGE and len(sizes) == -(-pages // per_block)
            if fits and rest == [sum(sizes)] and _bounded(sizes, pages, per_block):
                return array("I", sizes), per_block
    return None


def _packed(data: bytes) -> list[int] | None:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        if at < 0:
            return None
        found.append(value)
    return found


def _bounded(sizes: Sequence[int], pages: int, per_block: int) -> bool:
    last = len(sizes) - 1
    return all(
        size <= (per_block if n < last else pages - last * per_block) * _PAGE
        for n, size in enumerate(sizes)
    )
