"""What a sealed file is read from: bytes at an offset, all of them or an error."""

from __future__ import annotations

import os
import stat
from typing import Protocol

from sealpoint.errors import FileError, SystemEnvironmentError


class ByteSource(Protocol):
    """A sealed file, wherever it lies.  Nothing of it is authentic."""

    @property
    def size(self) -> int:
        """Bytes, at this moment.  Raises FileError if it is nothing of a certain size."""

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill `out` from `offset`.  From any thread.  Raises FileError (too short), SystemEnvironmentError."""

    def close(self) -> None:
        """Let go of it."""


class Descriptor:
    """A ByteSource that is a file, by a seekable descriptor `fd`, which `close` closes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def size(self) -> int:
        """See ByteSource."""
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileError("not a sealed checkpoint", hint="it is not a regular file")
        return status.st_size

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ByteSource."""
        have = 0
        try:
            while have < len(out):
                got = os.preadv(self.fd, [out[have:]], offset + have)
                if not got:
                    raise FileError("the sealed file ends before it should")
                have += got
        except OSError as error:
            raise SystemEnvironmentError(f"cannot read the sealed file: {error.strerror}") from None

    def close(self) -> None:
        """See ByteSource."""
        os.close(self.fd)


def read_exactly(source: ByteSource, size: int, offset: int) -> bytes:
    """`size` bytes at `offset`.  Raises FileError, SystemEnvironmentError."""
    data = bytearray(size)
    source.read_into(memoryview(data), offset)
    return bytes(data)
