"""What was freed in a sealed file for the sake of a later one of its chain (docs/spec.md, Prune records).

A prune record is appended behind the trailer; only when it is durable are the frames that it names emptied.  Nothing
that was there before changes but those frames, so index and origin stay true of all that is left.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import blake3

from sealpoint.errors import FileError
from sealpoint.format import strictjson
from sealpoint.format.constants import (
    FRAME_HEAD_SIZE,
    HASH_SIZE,
    ID_SIZE,
    MAX_FRAMES,
    MAX_PRUNE_RECORDS,
    MAX_PRUNE_STATEMENT,
    MEMORY_MANIFEST,
    METADATA_MANIFEST,
    PRUNE_MAGIC,
    PRUNE_TAIL_SIZE,
    VERSION,
)
from sealpoint.format.statement import ParentRef, decode_signers
from sealpoint.format.strictjson import Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sealpoint.format.index import Index

_TAIL: Final = struct.Struct("<8sQQQQ8x16s")
_CHECKSUM: Final = 16
_WHAT: Final = "prune statement"


class PruneTail(NamedTuple):
    """The last 64 bytes of a pruned file.  sealed_size: of the file without prune records, up to its trailer's end."""

    sealed_size: int
    statement_offset: int
    statement_size: int
    file_size: int
    checksum: bytes

    @classmethod
    def create(cls, sealed_size: int, statement_offset: int, statement: bytes) -> PruneTail:
        """For a record that begins at `statement_offset`; `statement`: as stored."""
        size = statement_offset + len(statement) + PRUNE_TAIL_SIZE
        tail = cls(sealed_size, statement_offset, len(statement), size, bytes(_CHECKSUM))
        return tail._replace(checksum=tail._sum(statement))

    def _sum(self, statement: bytes) -> bytes:
        fields = self._replace(checksum=bytes(_CHECKSUM)).encode()
        return blake3.blake3(fields + statement).digest(_CHECKSUM)

    def check(self, statement: bytes) -> None:
        """Raises FileError if the stored statement was damaged where no signature covers it."""
        if self._sum(statement) != self.checksum:
            raise FileError("the prune record was damaged")

    def encode(self) -> bytes:
        """{8 magic, u64 sealed size, statement offset, statement size, file size, 8 zero, 16 checksum}."""
        return _TAIL.pack(
            PRUNE_MAGIC,
            self.sealed_size,
            self.statement_offset,
            self.statement_size,
            self.file_size,
            self.checksum,
        )

    @classmethod
    def decode(cls, data: bytes, file_size: int) -> PruneTail:
        """Raises FileError unless the record fills the end of the file of `file_size` bytes."""
        tail = cls(*_TAIL.unpack(data)[1:])
        if (
            tail.encode() != data
            or tail.file_size != file_size
            or not 0 < tail.statement_size <= MAX_PRUNE_STATEMENT
            or not 0 < tail.sealed_size <= tail.statement_offset
            or tail.statement_offset - tail.sealed_size > MAX_PRUNE_RECORDS
            or tail.statement_offset + tail.statement_size + PRUNE_TAIL_SIZE != file_size
        ):
            raise FileError("the prune record contradicts the file")
        return tail


class PruneStatement(NamedTuple):
    """Which frames were freed, and for whom.

    child: the file whose chain holds every page of them anew; frames: bit p % 8 of byte p // 8 stands for frame p;
    freed: bytes of those frames, heads included; earlier: BLAKE3 of the prune records before this one; created: seconds
    since 1970.
    """

    checkpoint_id: bytes
    origin_digest: bytes
    sequence: int
    child: ParentRef
    frames: bytes
    freed: int
    earlier: bytes
    created: int
    signers: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The payload to be signed."""
        return strictjson.encode(
            {
                "version": str(VERSION),
                "checkpoint": self.checkpoint_id.hex(),
                "origin": self.origin_digest.hex(),
                "sequence": str(self.sequence),
                "child": {
                    "checkpoint": self.child.checkpoint_id.hex(),
                    "origin": self.child.origin_digest.hex(),
                },
                "frames": base64.b64encode(self.frames).decode(),
                "freed": str(self.freed),
                "earlier": self.earlier.hex(),
                "created": str(self.created),
                "signers": list(self.signers),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> PruneStatement:
        """Raises FileError."""
        f = Fields(strictjson.decode(payload, _WHAT), _WHAT)
        if f.u64("version") != VERSION:
            raise FileError(f"{_WHAT}: of an unknown version")
        checkpoint_id, origin = f.hex("checkpoint", ID_SIZE), f.hex("origin", HASH_SIZE)
        sequence = f.u64("sequence")
        nested = f.fields("child")
        child = ParentRef(nested.hex("checkpoint", ID_SIZE), nested.hex("origin", HASH_SIZE))
        nested.done()
        frames = strictjson.parse_base64(f.text("frames", limit=MAX_FRAMES // 4), _WHAT)
        freed, earlier = f.u64("freed"), f.hex("earlier", HASH_SIZE)
        created, signers = f.time("created"), decode_signers(f)
        f.done()
        found = cls(
            checkpoint_id, origin, sequence, child, frames, freed, earlier, created, signers
        )
        if sequence == 0 or child.checkpoint_id == checkpoint_id or found.encode() != payload:
            raise FileError(f"{_WHAT}: contradicts itself or is not in canonical form")
        return found

    def frees(self, position: int) -> bool:
        """Whether a frame was freed."""
        return bool(self.frames[position >> 3] >> (position & 7) & 1)

    def positions(self) -> Iterator[int]:
        """The frames that were freed, in rising order."""
        for at, byte in enumerate(self.frames):
            if byte:
                yield from (at * 8 + bit for bit in range(8) if byte >> bit & 1)

    def check_index(self, index: Index) -> None:
        """Raises FileError unless the statement fits the file's frames."""
        count = len(index)
        if len(self.frames) != (count + 7) // 8 or int.from_bytes(self.frames, "little") >> count:
            raise FileError(f"{_WHAT}: is about other frames than the file has")
        freed = 0
        for position in self.positions():
            number, _, size, _ = index.entry(position)
            if number in (METADATA_MANIFEST, MEMORY_MANIFEST):
                raise FileError(f"{_WHAT}: a manifest cannot be freed")
            freed += FRAME_HEAD_SIZE + size
        if freed == 0 or freed != self.freed:
            raise FileError(f"{_WHAT}: does not free what it says")


def bitmap(positions: Iterable[int], count: int) -> bytes:
    """The frames of a file of `count` frames, as a statement names them."""
    bits = bytearray((count + 7) // 8)
    for position in positions:
        bits[position >> 3] |= 1 << (position & 7)
    return bytes(bits)
