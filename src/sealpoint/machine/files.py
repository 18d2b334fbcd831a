"""Single files in a directory that is held by a descriptor: written whole and durably, told apart by their contents."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Final

NEW_SUFFIX: Final = ".sealpoint-new"
READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def write_in(directory: int, name: str, data: bytes, mode: int) -> None:
    temporary = name + NEW_SUFFIX
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        remove_in(directory, temporary)  # of one that was interrupted
        with open(os.open(temporary, flags, mode, dir_fd=directory), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def hash_of(fd: int) -> str:
    with open(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_in(directory: int, name: str) -> str:
    """Empty if there is none, or a link that leads nowhere.  Raises OSError."""
    try:
        return hash_of(os.open(name, READ, dir_fd=directory))
    except FileNotFoundError:
        return ""


def remove_in(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def status_in(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
