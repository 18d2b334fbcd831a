"""The stored memory of a process as text: address, bytes in hexadecimal, characters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sealpoint.inspect.memory import AddressSpace
from sealpoint.names import printable

_LINE: Final = 16
# What is no printable ASCII character becomes a dot.
_SHOWN: Final = bytes(byte if 32 <= byte < 127 else ord(".") for byte in range(256))


def lines(space: AddressSpace) -> Iterator[str]:
    """Sixteen bytes a line, like hexdump -C; a line of stars stands for lines that repeat the one before.

    A mapping that has a name has it printable.  Raises FileError.
    """
    for mapping in space.mappings:
        stored = False
        for block in space.blocks(mapping):
            if not stored:
                name = f" {printable(mapping.name)}" if mapping.name else ""
                yield f"{mapping.start:x}-{mapping.end:x} {mapping.access}{name}"
                stored = True
            for position, size, address in block.spans:
                yield from _dump(block.data[position : position + size], address)


def _dump(data: memoryview, address: int) -> Iterator[str]:
    last, repeats = b"", False
    for at in range(0, len(data), _LINE):
        line = bytes(data[at : at + _LINE])
        if line == last:
            if not repeats:
                yield "*"
            repeats = True
            continue
        last, repeats = line, False
        text = line.translate(_SHOWN).decode()
        yield f"{address + at:016x}  {line.hex(' '):<47}  |{text}|"


def context(before: bytes, data: bytes, after: bytes) -> str:
    """A match with what stands around it, as characters."""
    return (before + data + after).translate(_SHOWN).decode()
