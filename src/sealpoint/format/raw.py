"""Reading bytes of a sealed file at an offset: all of them, or an error."""

from __future__ import annotations

import os

from sealpoint.errors import FileError, SystemEnvironmentError


def read_exactly(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes at `offset`.  Raises FileError, SystemEnvironmentError."""
    data = bytearray(size)
    read_exactly_into(fd, memoryview(data), offset)
    return bytes(data)


def read_exactly_into(fd: int, out: memoryview, offset: int) -> None:
    """Fill `out` from `offset`.  Raises FileError, SystemEnvironmentError."""
    have = 0
    try:
        while have < len(out):
            got = os.preadv(fd, [out[have:]], offset + have)
            if not got:
                raise FileError("the sealed file ends before it should")
            have += got
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read the sealed file: {error.strerror}") from None
