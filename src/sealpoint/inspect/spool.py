"""Plain bytes that are written once and read in any order, on a disk that never sees them in the clear.

The file has no name, and its key is in this process alone, so both are gone with it.  Each chunk has its own nonce
under that key (a counter), and what the disk gives back is authenticated.
"""

from __future__ import annotations

import collections
import os
import tempfile
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealpoint.errors import SystemEnvironmentError

CHUNK: Final = 1024 * 1024
_TAG: Final = 16
_CACHED: Final = 16  # chunks: short reads come many to a chunk


class Spool:
    """Append, then `finish`, then read."""

    def __init__(self) -> None:
        """In TMPDIR.  Raises SystemEnvironmentError."""
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot make a temporary file: {error.strerror}", hint="set TMPDIR"
            ) from None
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._pending = bytearray()
        self._written = 0  # chunks
        self._cache: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self.size = 0

    def append(self, data: bytes) -> None:
        """Raises SystemEnvironmentError."""
        self.size += len(data)
        self._pending += data
        while len(self._pending) >= CHUNK:
            self._write(bytes(memoryview(self._pending)[:CHUNK]))
            del self._pending[:CHUNK]

    def finish(self) -> None:
        """Nothing more comes.  Raises SystemEnvironmentError."""
        self._write(bytes(self._pending))
        self._pending.clear()

    def _write(self, plain: bytes) -> None:
        view = memoryview(self._cipher.encrypt(_nonce(self._written), plain, None))
        self._written += 1
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            where = tempfile.gettempdir()
            raise SystemEnvironmentError(
                f"cannot keep the decompressed archive in {where}: {error.strerror}",
                hint="set TMPDIR to a directory with room for it",
            ) from None

    def read(self, offset: int, size: int) -> bytes:
        """Up to the end of a chunk, so perhaps fewer than `size` bytes; none at the end."""
        number, start = divmod(offset, CHUNK)
        return self._chunk(number)[start : start + size] if number < self._written else b""

    def _chunk(self, number: int) -> bytes:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        stored = os.pread(self._file.fileno(), CHUNK + _TAG, number * (CHUNK + _TAG))
        try:
            plain = self._cipher.decrypt(_nonce(number), stored, None)
        except (InvalidTag, ValueError):
            raise SystemEnvironmentError(
                "the disk gave back other data of a temporary file than it got"
            ) from None
        self._cache[number] = plain
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return plain

    def close(self) -> None:
        """Its space is free again."""
        self._file.close()
        self._cache.clear()


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
