"""Giving a complete file its name, or taking it away again: in a directory that is opened once, and by names in it.

Whatever fails, the name is afterwards that of the file that had it before, or of the new one, whole (docs/adr/0049).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from typing import Final

from sealpoint.errors import SystemEnvironmentError, UsageError

_NO_LINKS: Final = (
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.EMLINK,
)  # FAT and some network file systems
NO_EXCHANGE: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_UNNAMED: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_AT_FDCWD: Final = -100
_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2
PARTIAL: Final = ".partial"
_REPLACEABLE: Final = (stat.S_IFREG, stat.S_IFLNK)
_LONGEST: Final = 255  # bytes of a name
_NAME_BYTES: Final = 200  # of a name in a temporary one, which may have 255


class Place:
    """A name in a directory, and a file that is to have it.  `close` removes what was not named."""

    def __init__(self, path: str) -> None:
        """Raises UsageError: no such directory, or it names a directory itself; SystemEnvironmentError."""
        self.path = os.path.abspath(path)
        self.name = os.path.basename(self.path)
        if os.path.isdir(self.path) or not os.path.basename(path):
            raise UsageError(f"{path} is a directory", hint="name a file")
        where = os.path.dirname(self.path)
        try:
            directory = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"there is no directory {where}") from None
        except OSError as error:
            raise _create_error(error, self.path) from None
        self._enter(directory)

    @classmethod
    def within(cls, directory: int, name: str) -> Place:
        """In a directory that is open already; the caller keeps that descriptor."""
        place = cls.__new__(cls)
        place.path = place.name = name
        place._enter(os.dup(directory))  # noqa: SLF001 - it is one of these
        return place

    def _enter(self, directory: int) -> None:
        self._directory = directory
        self._temporary: str | None = None  # a name that the new file has meanwhile
        self._old: str | None = None  # a name that the old file has while the new one has its own
        self._fd = -1
        self._replaced = False

    def exists(self) -> bool:
        """Whether anything has the name."""
        return self._status() is not None

    def is_replaceable(self) -> bool:
        """Whether what has the name, if anything has, is a file or a link: neither a device nor a pipe."""
        status = self._status()
        return status is None or stat.S_IFMT(status.st_mode) in _REPLACEABLE

    def _status(self) -> os.stat_result | None:
        try:
            return os.stat(self.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def create(self) -> int:
        """A new file, 0600, without a name where the file system can do that; the caller closes it."""
        try:
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            self._fd = os.open(".", flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise _create_error(error, self.path) from None
            self._fd = self._create_named()
        return self._fd

    def _create_named(self) -> int:
        name = self._random_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise _create_error(error, self.path) from None
        self._temporary = name
        return fd

    def _random_name(self) -> str:
        return temporary_name(self.name, PARTIAL)

    def commit(self, *, force: bool) -> None:
        """Give the file, which is durable, its name, and make that durable.

        Raises OSError, FileExistsError among them: whoever had the name has it again.  Where even that cannot be done,
        the new file has it, the old one another, and the error says which.
        """
        try:
            self._name_first()
        except FileExistsError:
            if not force:
                raise
            self._name_instead()
        try:
            os.fsync(self._directory)
        except OSError as error:
            self._undo(error)
            raise
        if self._old is not None:
            self._remove(self._old)
            self._old = None

    def _name_first(self) -> None:
        """Raises OSError; FileExistsError if anything has the name."""
        source = self._temporary or f"/proc/self/fd/{self._fd}"
        try:
            link_file(source, self.name, self._directory)
        except OSError as error:
            if self._temporary is None or error.errno not in _NO_LINKS:
                raise
            rename(self._directory, self._temporary, self.name, _NOREPLACE)
        else:
            if self._temporary is not None:
                self._remove(self._temporary)
        self._temporary = None

    def _name_instead(self) -> None:
        """Take the place of what has the name, which gets another one for as long as this may have to be undone."""
        status = self._status()
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory now", self.path)
        if not self.is_replaceable():
            raise OSError(errno.EINVAL, "it is not a regular file now", self.path)
        new = self._temporary
        if new is None:
            new = self._random_name()
            link_file(f"/proc/self/fd/{self._fd}", new, self._directory)
            self._temporary = new
        try:
            rename(self._directory, new, self.name, _EXCHANGE)
        except OSError as error:
            if error.errno not in NO_EXCHANGE:
                raise
            self._replace(new)
        else:
            self._old = new
        self._replaced, self._temporary = True, None

    def _replace(self, new: str) -> None:
        """Where two names cannot be exchanged: a second name for the old file, if files can have two."""
        directory, old = self._directory, self._random_name()
        try:
            os.link(
                self.name, old, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False
            )
            self._old = old
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        try:
            os.rename(new, self.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            if self._old is not None:
                self._remove(self._old)
                self._old = None
            raise

    def _undo(self, error: OSError) -> None:
        """The name is not durable, so the new file must not be taken for one that is."""
        if self._old is not None:
            try:
                rename(self._directory, self._old, self.name)
            except OSError:
                where = os.path.join(os.path.dirname(self.path), self._old)
                error.strerror = f"{error.strerror}; what {self.path} was before is {where} now"
            self._old = None
        elif not self._replaced and self.is_ours():
            self._remove(self.name)
        with contextlib.suppress(OSError):
            os.fsync(self._directory)

    def is_ours(self) -> bool:
        """Whether the file that was made here has the name."""
        status = self._status()
        return status is not None and os.path.samestat(status, os.fstat(self._fd))

    def rename_aside(self, suffix: str) -> str | None:
        """Another name for the file that was made here; the path that it has then, None if it has lost its own."""
        if not self.is_ours():
            return None
        aside = os.fsdecode(os.fsencode(self.name)[: _LONGEST - len(suffix)]) + suffix
        try:
            rename(self._directory, self.name, aside)
        except OSError:
            return self.path
        with contextlib.suppress(OSError):
            os.fsync(self._directory)
        return os.path.join(os.path.dirname(self.path), aside)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._directory)

    def close(self) -> None:
        """The file that was made loses the name that it had meanwhile."""
        if self._temporary is not None:
            self._remove(self._temporary)
            self._temporary = None
        os.close(self._directory)


def temporary_name(name: str, suffix: str) -> str:
    """One that begins with a dot and the name, shortened if it must be, and that nobody else has."""
    short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
    return f".{short}.{os.urandom(6).hex()}{suffix}"


def write_file(directory: int, name: str, data: bytes, *, replace: bool = True) -> None:
    """A file with this content, 0600, whole and durable, or none; what has the name is replaced.

    Without `replace` that raises FileExistsError.  Raises OSError, SystemEnvironmentError.
    """
    place = Place.within(directory, name)
    try:
        with open(place.create(), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            place.commit(force=replace)
    finally:
        place.close()


def link_file(source: str, target: str, directory: int | None = None) -> None:
    """One more name for a file; `source` may be the link in /proc that names an unnamed one.  Raises OSError.

    directory: names that are not absolute are below it.
    """
    # Only with a directory descriptor does Python call linkat, which follows that link.
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        at = root if directory is None else directory
        os.link(source, target, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=True)
    finally:
        os.close(root)


def rename(directory: int, source: str, target: str, flags: int = 0) -> None:
    """renameat2 within a directory.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(source), os.fsencode(target))
    if libc.renameat2(directory, names[0], directory, names[1], ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def exchange(one: str, other: str) -> None:
    """Two names, by path.  Raises OSError, with one of NO_EXCHANGE where that cannot be done."""
    rename(_AT_FDCWD, one, other, _EXCHANGE)


def make_directories(path: str) -> None:
    """Every level that is missing, 0700 and durable.  Raises OSError."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(os.path.abspath(path))
    make_directories(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    sync_directory(above)


def sync_directory(path: str) -> None:
    """Make names in it durable.  Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_durable(path: str, directory: int | None = None) -> None:
    """A file that someone else wrote, and its name: something is about to depend on it.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    if directory is not None:
        os.fsync(directory)
    else:
        sync_directory(os.path.dirname(os.path.realpath(path)))


def _create_error(error: OSError, path: str) -> SystemEnvironmentError:
    return SystemEnvironmentError(f"cannot create {path}: {error.strerror}")
