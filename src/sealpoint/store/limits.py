"""How much may be held of what someone sends: half of the memory that is available, or nine tenths of free space."""

from __future__ import annotations

import os
from typing import Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.names import proc_lines

_MEMORY_SHARE: Final = 0.5
_SPACE_SHARE: Final = 0.9


def available_memory() -> int:
    """Bytes that can be had without swapping (/proc/meminfo); 0 if the kernel does not tell."""
    for line in proc_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def memory_share() -> int:
    """Bytes that may be held in memory unless someone says otherwise."""
    return int(available_memory() * _MEMORY_SHARE)


def space_share(directory: str) -> int:
    """Bytes of files that may be held in a directory unless someone says otherwise.  Raises OSError."""
    status = os.statvfs(directory)
    return int(status.f_bavail * status.f_frsize * _SPACE_SHARE)


def default(directory: str | None) -> int:
    """For what is held in a directory, in memory if None.  Raises SystemEnvironmentError."""
    if directory is None:
        return memory_share()
    try:
        return space_share(directory)
    except OSError as error:
        raise SystemEnvironmentError(
            f"cannot hold the checkpoint in {directory}: {error.strerror}"
        ) from None


class Allowance:
    """Counts what arrives."""

    def __init__(self, limit: int | None, where: str, directory: str | None = None) -> None:
        """limit: bytes, None for what is usual; where: it is held, for the message; directory: the same, if it is one.

        Raises SystemEnvironmentError.
        """
        self._scarce = limit is None and directory is not None
        self._limit = default(directory) if limit is None else limit
        self._where = where
        self._size = 0

    @property
    def left(self) -> int:
        """Bytes that may still come."""
        return self._limit - self._size

    def take(self, size: int) -> None:
        """Raises SystemEnvironmentError if that is too much."""
        self._size += size
        if self._size > self._limit:
            error = too_large(self._limit, self._where)
            if self._scarce:
                error.message = f"no space left: nine tenths of it are used; {error.message}"
            raise error


def too_large(limit: int, where: str, announced: int | None = None) -> SystemEnvironmentError:
    """The error for more than may be held."""
    more = "more is coming" if announced is None else f"up to {announced} bytes are to come"
    return SystemEnvironmentError(
        f"at most {limit} bytes are held in {where}, and {more}",
        hint="to allow more, give --max-size BYTES; to keep it elsewhere, --spool or --keep",
    )
