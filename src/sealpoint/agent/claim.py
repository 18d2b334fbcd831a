"""Archives in a watched directory: which are complete, taking one over, giving it back, removing it.

An engine fills an archive under its final name, and a second checkpoint of the same second writes over it.  So an
archive is complete when nobody has it open for writing: the kernel then grants a read lease.  It is taken over by a
rename in its directory, after which nobody can open it for writing by the name that its writers know.  Everything is
done by the descriptor of the directory, and no link is followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from sealpoint.agent.faults import ChangedError, GoneError, RefusedArchiveError, UnfinishedError
from sealpoint.errors import SystemEnvironmentError
from sealpoint.format.constants import MAGIC
from sealpoint.ownership import open_owned
from sealpoint.store.naming import rename

_CLAIM: Final = ".sealpoint-"
_CLAIMED: Final = re.compile(r"\.sealpoint-([0-9a-f]{32})(?:\.(.*))?", re.DOTALL)
_LOCK: Final = ".sealpoint.lock"
_LONGEST: Final = 255  # bytes of a name
_NOREPLACE: Final = 1
_MAX_ENTRIES: Final = 1 << 17
_NO_LEASES: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)
_RETIRED: Final = 16
_BLOCK: Final = 512  # bytes of a tar archive


class FileState(NamedTuple):
    """By which a change of a file shows.  Times in nanoseconds."""

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Of one look at it."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class FoundFile(NamedTuple):
    """A file in a watched directory that may be an archive."""

    name: str
    state: FileState


def claim_name(identifier: str, name: str) -> str:
    """The name of an archive that the agent has taken over; as much of the old one in it as there is room for."""
    room = _LONGEST - len(_CLAIM) - len(identifier) - 1
    return f"{_CLAIM}{identifier}.{os.fsdecode(os.fsencode(name)[:room])}"


class WatchedDirectory:
    """One directory; it may be missing, and come and go."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.fd = -1
        self._lock = -1
        self._retired: list[int] = []  # descriptors that another thread may be using

    def open(self) -> bool:
        """Whether it is there; opened, if it is not yet, or is another one by now.

        Raises PolicyError (others than root could write there), SystemEnvironmentError (another agent watches it).
        """
        try:
            fd = open_owned(self.path, "the watched directory", os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            self._retire()
            return False
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot watch {self.path}: {error.strerror}", hint="name a directory with --watch"
            ) from None
        if self.fd >= 0 and os.path.samestat(os.fstat(fd), os.fstat(self.fd)):
            os.close(fd)
            return True
        try:
            lock = locked(fd, _LOCK, self.path)
        except BaseException:
            os.close(fd)
            raise
        self._retire()
        self.fd, self._lock = fd, lock
        return True

    def _retire(self) -> None:
        """The directory has gone or was replaced: nothing is taken from it any more."""
        if self.fd < 0:
            return
        os.close(self._lock)
        self._retired.append(self.fd)
        self.fd = self._lock = -1
        while len(self._retired) > _RETIRED:
            os.close(self._retired.pop(0))

    def close(self) -> None:
        """Let go of it."""
        self._retire()
        while self._retired:
            os.close(self._retired.pop())

    def found(self) -> Iterator[FoundFile]:
        """What is there that the agent has not taken over: the oldest first.  Raises OSError."""
        found: list[FoundFile] = []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                if entry.name.startswith(".") or len(found) >= _MAX_ENTRIES:
                    continue
                try:
                    found.append(
                        FoundFile(entry.name, FileState.of(entry.stat(follow_symlinks=False)))
                    )
                except FileNotFoundError:
                    continue
        return iter(sorted(found, key=lambda f: (f.state.modified, f.name)))

    def claimed(self) -> dict[str, str]:
        """Names that archives have which an agent has taken over, and what they were called.  Raises OSError."""
        with os.scandir(self.fd) as entries:
            matches = [_CLAIMED.fullmatch(entry.name) for entry in entries]
        return {m[0]: m[2] or m[0] for m in matches if m is not None}

    def state(self, name: str) -> FileState | None:
        """None if there is nothing of that name.  Raises OSError."""
        try:
            return FileState.of(os.stat(name, dir_fd=self.fd, follow_symlinks=False))
        except FileNotFoundError:
            return None

    @contextmanager
    def opened(self, name: str, max_size: int) -> Iterator[int]:
        """An archive that nobody writes, to be read, under a lease: whoever wants to write waits for it, or is noticed.

        Raises GoneError, RefusedArchiveError, UnfinishedError, SystemEnvironmentError.
        """
        where = f"{self.path}/{name}"
        try:
            fd = self._open(name, where)
        except FileNotFoundError:
            raise GoneError(f"{where} was removed by someone else") from None
        except OSError as error:
            raise SystemEnvironmentError(f"cannot read {where}: {error.strerror}") from None
        try:
            _check_kind(os.fstat(fd), where, max_size)
            take_lease(fd, where)
            _check_head(fd, where)
            yield fd
        finally:
            os.close(fd)

    def _open(self, name: str, where: str) -> int:
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise RefusedArchiveError(f"{where} is not a regular file: left alone")
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{place}", flags)
        finally:
            os.close(place)

    def take(self, name: str, claim: str, state: FileState) -> None:
        """Rename what was found.  Raises GoneError, ChangedError (the name was another file's), OSError."""
        try:
            rename(self.fd, name, claim, _NOREPLACE)
        except FileNotFoundError:
            raise GoneError(f"{name} was removed by someone else") from None
        now = self.state(claim)
        if now is None or now.inode != state.inode:
            self.give_back(claim, name)
            raise ChangedError(f"{name} was exchanged meanwhile")

    def give_back(self, claim: str, name: str) -> str:
        """Its old name, or where that is taken another like it; returns it.  Raises OSError."""
        number = 0
        while True:
            suffix = f".{number}" if number else ""
            room = _LONGEST - len(suffix)
            candidate = os.fsdecode(os.fsencode(name)[:room]) + suffix
            try:
                rename(self.fd, claim, candidate, _NOREPLACE)
            except FileExistsError:
                number += 1
            except FileNotFoundError:
                return candidate
            else:
                os.fsync(self.fd)
                return candidate

    def remove(self, claim: str, fd: int, state: FileState) -> None:
        """The archive `fd`, which is in the store as it was at `state`; durable.

        Raises GoneError (somebody else has removed it), ChangedError (it is another file, or was changed), OSError.
        """
        named = self.state(claim)
        if named is None:
            raise GoneError(f"{claim} was removed by someone else")
        if FileState.of(os.fstat(fd)) != state or named != state:
            raise ChangedError(f"{claim} was changed after it was sealed")
        os.unlink(claim, dir_fd=self.fd)
        os.fsync(self.fd)


def locked(directory: int, name: str, path: str) -> int:
    """A descriptor with a lock that one agent can have; only the owner can open that file.

    Raises SystemEnvironmentError if another one has it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot lock {path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise SystemEnvironmentError(
            f"another agent works in {path}", hint="let one agent watch it, or end the other"
        ) from None
    return fd


def take_lease(fd: int, where: str) -> None:
    """Raises UnfinishedError while anybody has the file open for writing; SystemEnvironmentError."""
    try:
        # The default signal of a lease that is broken, SIGIO, would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise UnfinishedError(f"{where} is still being written") from None
        if error.errno in _NO_LEASES:
            raise SystemEnvironmentError(
                f"{where}: this file system has no leases, so nobody can tell whether it is complete",
                hint="let the engine write to a local file system",
            ) from None
        raise SystemEnvironmentError(
            f"{where}: a lease is not granted: {error.strerror}",
            hint="the agent needs to own the archive, or CAP_LEASE",
        ) from None


def has_lease(fd: int) -> bool:
    """Whether nobody has wanted to write since `take_lease`."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def is_sealed(directory: int, name: str) -> bool:
    """Whether it begins as a sealed file does, so that there is nothing to do."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=directory)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(MAGIC), 0) == MAGIC
    finally:
        os.close(fd)


def _check_kind(status: os.stat_result, where: str, max_size: int) -> None:
    if status.st_nlink > 1:
        raise RefusedArchiveError(
            f"{where} has another name, under which it would stay: left alone",
            hint="remove the other name",
        )
    if status.st_nlink == 0:
        raise GoneError(f"{where} was removed by someone else")
    if status.st_size > max_size:
        raise RefusedArchiveError(
            f"{where} has {status.st_size} bytes, more than {max_size}: left alone",
            hint="--max-size SIZE allows more",
        )
    if not status.st_size:
        raise UnfinishedError(f"{where} is empty")


def _check_head(fd: int, where: str) -> None:
    """Raises RefusedArchiveError for what begins with zeros: an archive without members, or a file that is all hole."""
    head = os.pread(fd, _BLOCK, 0)
    if head == bytes(len(head)):
        raise RefusedArchiveError(f"{where} begins with zeros, as no archive does: left alone")
