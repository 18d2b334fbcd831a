"""The fixed first 64 bytes and the fixed last 64 bytes: all that is parsed before a signature was checked."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import blake3

from sealpoint.errors import FileError
from sealpoint.format.constants import (
    FRAME_HEAD_SIZE,
    ID_SIZE,
    INDEX_ENTRY_SIZE,
    MAGIC,
    MAX_FRAMES,
    MAX_REFERENCES,
    MAX_STATEMENT,
    PREAMBLE_SIZE,
    REFERENCE_SIZE,
    SLOT_SIZES,
    TAG_SIZE,
    TRAILER_MAGIC,
    TRAILER_SIZE,
    VERSION,
    Suite,
)

_PREAMBLE = struct.Struct("<8sHHI16s32s")
_TRAILER = struct.Struct("<8sQQQQQ16s")
_CHECKSUM = 16


class Preamble(NamedTuple):
    """Format version 1: suite, size of each header slot, checkpoint id (16 random bytes), creation salt (32)."""

    suite: Suite
    slot_size: int
    checkpoint_id: bytes
    salt: bytes

    @classmethod
    def create(cls, suite: Suite, slot_size: int) -> Preamble:
        """For a new sealed file: id and salt are drawn afresh at every creation."""
        return cls(suite, slot_size, os.urandom(ID_SIZE), os.urandom(32))

    def encode(self) -> bytes:
        """{8 magic, u16 version, u16 suite, u32 slot size, 16 id, 32 salt}, little-endian."""
        return _PREAMBLE.pack(
            MAGIC, VERSION, self.suite, self.slot_size, self.checkpoint_id, self.salt
        )

    @classmethod
    def decode(cls, data: bytes) -> Preamble:
        """Raises FileError: not a sealed file, unknown version or suite, impossible slot size."""
        if len(data) != PREAMBLE_SIZE or data[: len(MAGIC)] != MAGIC:
            raise FileError("not a sealed checkpoint", hint="it does not start as one does")
        _, version, suite, slot_size, checkpoint_id, salt = _PREAMBLE.unpack(data)
        if version != VERSION:
            raise FileError(
                f"sealed in format version {version}; this sealpoint reads version {VERSION}",
                hint="use a newer sealpoint",
            )
        if suite not in list(Suite):
            raise FileError(f"sealed with the unknown suite {suite}", hint="use a newer sealpoint")
        if slot_size not in SLOT_SIZES:
            raise FileError(f"header slots of {slot_size} bytes do not exist in this format")
        return cls(Suite(suite), slot_size, checkpoint_id, salt)

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the encoded preamble, as the origin statement records it."""
        return blake3.blake3(self.encode()).digest()

    @property
    def frames_offset(self) -> int:
        """Where the first frame starts."""
        return PREAMBLE_SIZE + 2 * self.slot_size

    def slot_offset(self, slot: int) -> int:
        """Where header slot 0 or 1 starts."""
        return PREAMBLE_SIZE + slot * self.slot_size


class Trailer(NamedTuple):
    """Where the index and the origin statement lie.  All offsets in bytes from the start of the file."""

    index_offset: int
    index_size: int
    origin_offset: int
    origin_size: int
    file_size: int
    checksum: bytes

    @classmethod
    def create(cls, index_offset: int, index_size: int, origin: bytes) -> Trailer:
        """For the parts of a new file; `origin`: the origin statement as stored."""
        origin_offset = index_offset + index_size
        size = origin_offset + len(origin) + TRAILER_SIZE
        trailer = cls(index_offset, index_size, origin_offset, len(origin), size, b"")
        return trailer._replace(checksum=trailer._sum(origin))

    def _sum(self, origin: bytes) -> bytes:
        fields = self._replace(checksum=bytes(_CHECKSUM)).encode()
        return blake3.blake3(fields + origin).digest(_CHECKSUM)

    def check_origin(self, origin: bytes) -> None:
        """Raises FileError if the stored statement was damaged in a part that no signature covers.

        That is a checksum and no authentication: whoever changes those bytes on purpose can change it as well.
        """
        if self._sum(origin) != self.checksum:
            raise FileError("the origin statement or the trailer was damaged")

    def encode(self) -> bytes:
        """{8 magic, u64 index offset, index size, origin offset, origin size, file size, 16 checksum}."""
        return _TRAILER.pack(
            TRAILER_MAGIC,
            self.index_offset,
            self.index_size,
            self.origin_offset,
            self.origin_size,
            self.file_size,
            self.checksum,
        )

    @classmethod
    def decode(cls, data: bytes, preamble: Preamble, file_size: int) -> Trailer:
        """Raises FileError unless the parts lie one after another and fill the file of `file_size` bytes."""
        if len(data) != TRAILER_SIZE or data[: len(TRAILER_MAGIC)] != TRAILER_MAGIC:
            raise FileError(
                "the sealed file is incomplete",
                hint="it has no trailer: the copy or the dump that made it was cut short",
            )
        trailer = cls(*_TRAILER.unpack(data)[1:])
        # How much of the index is frames and how much references, the origin says: `AuthenticFile` compares.
        largest = MAX_FRAMES * INDEX_ENTRY_SIZE + MAX_REFERENCES * REFERENCE_SIZE
        frames_size = trailer.index_offset - preamble.frames_offset
        if (
            trailer.file_size != file_size
            or not INDEX_ENTRY_SIZE <= trailer.index_size <= largest
            or frames_size < FRAME_HEAD_SIZE + TAG_SIZE
            or trailer.origin_offset != trailer.index_offset + trailer.index_size
            or not 0 < trailer.origin_size <= MAX_STATEMENT
            or trailer.origin_offset + trailer.origin_size + TRAILER_SIZE != file_size
        ):
            raise FileError("the trailer of the sealed file contradicts the file")
        return trailer
