"""Locks of who changes a sealed file in place, and how readers do without one (docs/adr/0049).

A lock that needs no more than a readable descriptor, flock or a read lock, can be taken by anybody and held for ever.
So readers take none, and a writer waits for no lock that a reader can have.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.store.naming import make_directories

_T = TypeVar("_T")
_FLOCK: Final = struct.Struct("hhqqi4x")  # of fcntl: type, whence, start, length, pid
_RECENT: Final = 0.2  # seconds: a change of so long ago may not have come to its end
_LONGEST: Final = 2.0  # seconds for which a reader goes on reading again
_PAUSE: Final = 0.01
_ROOT_S: Final = "/run/sealpoint/locks"


@contextlib.contextmanager
def writing(fd: int, path: str) -> Iterator[None]:
    """Keep other writers away from the sealed file that `fd` has open for writing.

    Raises SystemEnvironmentError at once if another one is at work.
    """
    busy = SystemEnvironmentError(
        f"{path} is being rekeyed or pruned by another process", hint="try again when it has ended"
    )
    if not _lock_bytes(fd):
        raise busy
    try:
        held = _lock_private(os.fstat(fd))
    except BlockingIOError:
        raise busy from None
    try:
        yield
    finally:
        if held is not None:
            directory, lock, name = held
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            os.close(lock)
            os.close(directory)
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def _lock_bytes(fd: int) -> bool:
    """A write lock, for which the kernel asks a writable descriptor; False if another writer has one.

    Where a reader's lock is in the way there is none to be had, and the private lock must do.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return True  # a file system without locks
    else:
        return True
    try:
        # Read locks are no obstacle to a read lock: what is in its way is a writer's.
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    except OSError:
        return True
    return kind != fcntl.F_WRLCK


def _private_directory() -> int | None:
    """A directory in which nobody else can open anything; None where there is no place for it."""
    if os.geteuid() == 0:
        path = _ROOT_S
    elif os.path.isabs(own := os.environ.get("XDG_RUNTIME_DIR", "")):
        path = f"{own}/sealpoint/locks"
    else:
        return None
    try:
        make_directories(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        return None
    return fd


def _lock_private(file: os.stat_result) -> tuple[int, int, str] | None:
    """(directory, lock, name); None where there is no place for it.

    Raises BlockingIOError if another writer has it.
    """
    directory = _private_directory()
    if directory is None:
        return None
    name = f"{file.st_dev:x}-{file.st_ino:x}"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = -1
    try:
        while True:
            lock = os.open(name, flags, 0o600, dir_fd=directory)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return directory, lock, name
            os.close(lock)  # who had it has removed it
            lock = -1
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        os.close(directory)
        if isinstance(error, BlockingIOError):
            raise
        return None


def read_settled(
    fd: int | None, read: Callable[[], _T], unsettled: Callable[[_T], bool] = lambda _: False
) -> _T:
    """What `read` returns, read again while a writer may be amid a change of the file.

    fd: of the file; None where it cannot be seen amid a change.  unsettled: whether a result may be that of a file
    amid a change.  Raises what `read` raises: FileError only if the
    file was not changed a moment ago, or goes on changing for too long.
    """
    if fd is None:
        return read()
    end = time.monotonic() + _LONGEST
    while True:
        before = os.fstat(fd)
        try:
            result = read()
            if not unsettled(result) or not _may_be_changing(fd, before, end):
                return result
        except FileError:
            if not _may_be_changing(fd, before, end):
                raise
        time.sleep(_PAUSE)


def _may_be_changing(fd: int, before: os.stat_result, end: float) -> bool:
    now = os.fstat(fd)
    if time.monotonic() >= end or not stat.S_ISREG(now.st_mode) or _cannot_change(fd):
        return False
    changed = (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)
    return changed or 0 <= time.time() - now.st_mtime < _RECENT


def _cannot_change(fd: int) -> bool:
    """Whether it is sealed memory."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)
    except OSError:
        return False
