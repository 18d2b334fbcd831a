"""The public frame index: object number, length and hash of every frame, in file order; then references, if any.

Offsets are not stored: frames lie one after another, so an offset is the sum of what comes before it.  A reference
names a stored chunk: its id, and hash and length of the file that holds it (docs/spec.md, Index).
"""

from __future__ import annotations

import hmac
import struct
from array import array
from typing import TYPE_CHECKING, NamedTuple

import blake3

from sealpoint.errors import FileError
from sealpoint.format.constants import (
    FRAME_HEAD_SIZE,
    HASH_SIZE,
    INDEX_ENTRY_SIZE,
    MAX_CHUNK,
    MAX_FRAMES,
    MAX_REFERENCES,
    MAX_STORED_FILE,
    MAX_STREAMS,
    MIN_STORED_FILE,
    REFERENCE_SIZE,
    TAG_SIZE,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRY = struct.Struct("<II32s")
_REFERENCE = struct.Struct("<32s32sII")
_FRAME_HEAD = struct.Struct("<Q")


def frame_head(number: int) -> bytes:
    """The 8 bytes before every ciphertext: the object's number, u64 LE."""
    return _FRAME_HEAD.pack(number)


def frame_hash(head: bytes, ciphertext: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 over frame head and ciphertext."""
    state = blake3.blake3(head)
    state.update(ciphertext)
    return state.digest()


class Reference(NamedTuple):
    """A stored chunk.  identifier: 32 bytes; digest: BLAKE3 of the file that holds it; length: of that file."""

    identifier: bytes
    digest: bytes
    length: int


class IndexBuilder:
    """Collects entries while frames are written."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._references = bytearray()

    @property
    def references(self) -> int:
        """How many there are so far."""
        return len(self._references) // REFERENCE_SIZE

    def refer(self, reference: Reference) -> None:
        """One stored chunk."""
        self._references += _REFERENCE.pack(
            reference.identifier, reference.digest, reference.length, 0
        )

    def __len__(self) -> int:
        return len(self._data) // INDEX_ENTRY_SIZE

    def append(self, number: int, size: int, digest: bytes) -> None:
        """One frame of `size` ciphertext bytes of object `number`."""
        if len(self) >= MAX_FRAMES:
            raise FileError(f"the checkpoint needs more than {MAX_FRAMES} frames")
        self._data += _ENTRY.pack(number, size, digest)

    def encode(self) -> bytes:
        """The index section of the file."""
        return bytes(self._data + self._references)


class Index:
    """A decoded index.  Holds its own copy: a file that changes later is found out by the hashes."""

    def __init__(
        self, data: bytes, frames_offset: int, frames_size: int, *, references: int = 0
    ) -> None:
        """references: how many follow the entries.  Raises FileError unless the frames fill the region exactly."""
        size = len(data) - references * REFERENCE_SIZE
        if (
            size < 0
            or size % INDEX_ENTRY_SIZE
            or size > MAX_FRAMES * INDEX_ENTRY_SIZE
            or references > MAX_REFERENCES
        ):
            raise FileError("index: impossible length")
        self._data, whole = data[:size], data
        self.root = blake3.blake3(whole).digest()
        self._references = whole[size:]
        self._check_references()
        self._offsets = array("Q")
        self._frames: dict[int, array[int]] = {}
        at = frames_offset
        end = frames_offset + frames_size
        for position, (number, size, _) in enumerate(_ENTRY.iter_unpack(self._data)):
            if not TAG_SIZE <= size <= MAX_CHUNK + TAG_SIZE:
                raise FileError(f"index: frame {position} has an impossible length")
            self._offsets.append(at)
            at += FRAME_HEAD_SIZE + size
            if at > end:
                raise FileError("index: frames do not fit the file")
            if number not in self._frames:
                if len(self._frames) >= MAX_STREAMS:
                    raise FileError(f"index: more than {MAX_STREAMS} objects")
                self._frames[number] = array("I")
            self._frames[number].append(position)
        if at != end:
            raise FileError("index: frames do not fill the file")

    def __len__(self) -> int:
        return len(self._offsets)

    def _check_references(self) -> None:
        seen: set[bytes] = set()
        for identifier, _, length, zero in _REFERENCE.iter_unpack(self._references):
            if not MIN_STORED_FILE <= length <= MAX_STORED_FILE or zero:
                raise FileError("index: a reference has an impossible length")
            seen.add(identifier)
        if len(seen) * REFERENCE_SIZE != len(self._references):
            raise FileError("index: refers to a stored chunk twice")

    @property
    def references(self) -> int:
        """Number of stored chunks that the file refers to."""
        return len(self._references) // REFERENCE_SIZE

    def reference(self, number: int) -> Reference:
        """One of them, from 0."""
        found = _REFERENCE.unpack_from(self._references, number * REFERENCE_SIZE)
        return Reference(*found[:3])

    def entry(self, position: int) -> tuple[int, int, int, bytes]:
        """(object number, offset of the frame in the file, ciphertext length, hash) of the frame at `position`."""
        number, size, digest = _ENTRY.unpack_from(self._data, position * INDEX_ENTRY_SIZE)
        return number, self._offsets[position], size, digest

    def frames_of(self, number: int) -> array[int]:
        """Positions of an object's frames, in chunk order (empty if it has none)."""
        return self._frames.get(number, array("I"))

    def numbers(self) -> Iterator[int]:
        """Object numbers that have frames."""
        return iter(self._frames)

    def check(self, position: int, frame: bytes | bytearray | memoryview) -> None:
        """Check a whole frame (head and ciphertext) against the index.  Raises FileError."""
        number, _, size, digest = self.entry(position)
        if (
            len(frame) != FRAME_HEAD_SIZE + size
            or frame[:FRAME_HEAD_SIZE] != frame_head(number)
            or not hmac.compare_digest(blake3.blake3(frame).digest(), digest)
        ):
            raise FileError(
                f"frame {position} was changed after sealing (damaged or tampered with)"
            )


assert _ENTRY.size == INDEX_ENTRY_SIZE and HASH_SIZE == 32  # noqa: PT018
assert _REFERENCE.size == REFERENCE_SIZE
