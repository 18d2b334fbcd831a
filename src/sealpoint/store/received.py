"""What a receiver keeps of migrations: one directory for each, until its tree runs.

A tree that moves exists as a frozen process at the sender and as a sealed file here, then only as the file, then only
as a process here.  So the file and the copies that it continues are durable before the sender ends the tree, and they
go when the tree runs.  A directory that is left says how far its migration came.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import re
import shutil
import time
from typing import Final, NamedTuple

from sealpoint import ownership
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store import limits
from sealpoint.store.output import OutputFile

_STATE: Final = "STATE"
_NAME: Final = re.compile(
    r"[0-9]{8}T[0-9]{6}Z-.+", re.DOTALL
)  # of a directory that `Received` made
_MAX_STATE: Final = 64  # bytes
_SUFFIX: Final = ".sealed"
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE
_NO_FALLOCATE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Stage(enum.StrEnum):
    """How far a migration came, as its directory says."""

    ARRIVING = "arriving"  # nothing was promised: the tree runs at the sender
    READY = "ready"  # the sender was told that the tree is here: it may have ended there
    GONE = "gone"  # the sender has said that the tree ended there


class Left(NamedTuple):
    """A directory that is there.

    file: the newest sealed file, None if no file is complete; size: bytes of all; busy: its receiver lives.
    """

    path: str
    stage: Stage
    file: str | None
    size: int
    busy: bool


def make_directory(path: str) -> None:
    """Make the directory for all migrations, 0700; nobody but root may write to any level of it.

    Raises SystemEnvironmentError.
    """
    try:
        ownership.make_private(path, "the directory for received files")
    except SystemEnvironmentError as error:
        error.hint = error.hint or "name another directory with --keep"
        raise


class Received:
    """The directory of one migration, held by a lock while its receiver lives.  `close` lets go of it."""

    def __init__(self, root: str, name: str, limit: int | None = None) -> None:
        """name: distinguishes migrations of the same second; limit: bytes of all files, None for what is free.

        Raises SystemEnvironmentError.
        """
        make_directory(root)
        self.root = os.path.realpath(root)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = f"{self.root}/{stamp}-{name}"
        self._count = 0
        self._allowance = None if limit is None else limits.Allowance(limit, self.root)
        try:
            os.mkdir(self.path, 0o700)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.set_stage(Stage.ARRIVING)
            _sync(self.root)
        except OSError as error:
            raise self._problem(error) from None

    def next_file(self, bound: int) -> OutputFile:
        """The next sealed file, with room for `bound` bytes.  Raises SystemEnvironmentError if there is none."""
        if self._allowance is not None and bound > self._allowance.left:
            raise limits.too_large(self._allowance.left, self.root, bound)
        self._count += 1
        out = OutputFile(f"{self.path}/{self._count:02}{_SUFFIX}")
        try:
            _reserve(out.fd, bound, self.root)
        except BaseException:
            out.close()
            raise
        return out

    def take(self, size: int) -> None:
        """Count bytes that have arrived.  Raises SystemEnvironmentError if that is too much."""
        if self._allowance is not None:
            self._allowance.take(size)

    def set_stage(self, stage: Stage) -> None:
        """Durable when this returns.  Raises SystemEnvironmentError."""
        temporary = f".{_STATE}.new"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o600, dir_fd=self._fd)
            try:
                os.write(fd, f"{stage}\n".encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, _STATE, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as error:
            raise self._problem(error) from None

    def _problem(self, error: OSError) -> SystemEnvironmentError:
        return SystemEnvironmentError(f"cannot keep the migration in {self.root}: {error.strerror}")

    def discard(self) -> None:
        """Nothing of it is needed any more.  Raises SystemEnvironmentError."""
        try:
            shutil.rmtree(self.path)
            _sync(self.root)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot remove {self.path}, which is not needed any more: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)


def trim(out: OutputFile) -> None:
    """Give back the room that a complete file did not need."""
    try:
        os.ftruncate(out.fd, os.fstat(out.fd).st_size)
    except OSError:
        pass  # it is given back with the file


def left(root: str) -> list[Left]:
    """The migrations that are kept, oldest first.  Raises SystemEnvironmentError."""
    found = []
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read {root}: {error.strerror}") from None
    for name in names:
        if not _NAME.fullmatch(name):
            continue
        try:
            found.append(_look(f"{root}/{name}"))
        except OSError:
            continue  # no directory, or gone meanwhile
    return found


def _look(path: str) -> Left:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy = False
        except BlockingIOError:
            busy = True
        files = sorted(n for n in os.listdir(fd) if n.endswith(_SUFFIX) and not n.startswith("."))
        size = sum(os.stat(n, dir_fd=fd, follow_symlinks=False).st_size for n in files)
        newest = f"{path}/{files[-1]}" if files else None
        return Left(path, _stage(fd), newest, size, busy)
    finally:
        os.close(fd)


def _stage(directory: int) -> Stage:
    try:
        fd = os.open(_STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return Stage.ARRIVING
    try:
        return Stage(os.read(fd, _MAX_STATE).decode(errors="replace").strip())
    except ValueError:
        return Stage.READY  # damaged: nothing can be said of the tree
    finally:
        os.close(fd)


def remove(root: str, name: str) -> None:
    """Remove what is kept of one migration.  Raises UsageError: there is none, or it is under way."""
    path = f"{root}/{name}"
    ours = _NAME.fullmatch(name) and "/" not in name
    if not ours or os.path.islink(path) or not os.path.isdir(path):
        raise UsageError(f"no migration {name!r} is kept in {root}")
    if _look(path).busy:
        raise UsageError(f"the migration {name} is under way")
    try:
        shutil.rmtree(path)
        _sync(root)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot remove {path}: {error.strerror}") from None


def _reserve(fd: int, size: int, where: str) -> None:
    """Room for `size` bytes, before the tree is frozen for them.  Raises SystemEnvironmentError."""
    status = os.fstatvfs(fd)
    free = status.f_bavail * status.f_frsize
    try:
        if size <= limits.space_share(where):
            _fallocate(
                fd, size
            )  # the file itself does not grow by that; `trim` gives back what was not needed
            return
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SystemEnvironmentError(f"cannot keep it in {where}: {error.strerror}") from None
    raise SystemEnvironmentError(
        f"no space left in {where}: up to {size} bytes are to come, {free} are free, and a tenth of that stays free",
        hint="free some space, or name another directory with --keep",
    )


def _fallocate(fd: int, size: int) -> None:
    """Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    while size and libc.fallocate(fd, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        if number in _NO_FALLOCATE:
            return  # the free space was seen; others may take it
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
