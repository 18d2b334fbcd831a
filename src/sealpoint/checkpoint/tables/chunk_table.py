"""Which pages of a sealed file come from which stored chunks (docs/spec.md, Chunk table).

A memory object of the file says so, with the chunks' keys; ids and hashes are in the index, which is public and signed.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from typing import Final

from sealpoint.checkpoint.tables.delta import (
    MAX_PAGES,
    PageRuns,
    TableReader,
    check_claim,
    encode_images,
)
from sealpoint.criu.pagemap import PAGE
from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError
from sealpoint.format.constants import ID_SIZE, KEY_SIZE, MAX_REFERENCES, MAX_STORED

TABLE_NAME: Final = "sealpoint-chunks"
_MAGIC: Final = b"SPCHUNK\x01"
_COUNT: Final = struct.Struct("<I")
_PREFIX: Final = "checkpoint/"  # of images in an engine's archive


def can_be_stored(name: str, size: int) -> bool:
    """Whether an object is one whose pages can lie in stored chunks."""
    return size % PAGE == 0 and _names_pages(name)


def _names_pages(name: str) -> bool:
    return is_pages(name.removeprefix(_PREFIX))


@dataclass(slots=True)
class ChunkTable:
    """tenant: id; pages: of each chunk, in the order of the references; keys: of the same, 32 bytes each.

    images: `own` runs are pages that lie in the file itself, others are counted through all chunks.
    """

    tenant: bytes
    pages: array[int] = field(default_factory=lambda: array("I"))
    keys: bytearray = field(default_factory=bytearray)
    images: dict[str, PageRuns] = field(default_factory=dict)

    def key(self, number: int) -> bytes:
        """Of one chunk."""
        return bytes(self.keys[number * KEY_SIZE : (number + 1) * KEY_SIZE])

    def encode(self) -> bytes:
        """The object's bytes."""
        return b"".join(
            (
                _MAGIC,
                self.tenant,
                _COUNT.pack(len(self.pages)),
                self.pages.tobytes(),
                self.keys,
                *encode_images(self.images),
            )
        )


def decode(data: bytes) -> ChunkTable:
    """Raises FileError."""
    reader = TableReader(data, _MAGIC, _names_pages)
    table = ChunkTable(reader.take(ID_SIZE))
    count = reader.number()
    if count > MAX_REFERENCES:
        raise FileError("the table of chunks is too long")
    table.pages = array("I", reader.take(4 * count))
    table.keys = bytearray(reader.take(KEY_SIZE * count))
    total = sum(table.pages)
    if (count and not 0 < min(table.pages) <= max(table.pages) <= MAX_STORED // PAGE) or (
        total > MAX_PAGES
    ):
        raise FileError("the table of chunks contradicts itself")
    table.images = reader.images(total)
    check_claim(table.images, total)
    return table
