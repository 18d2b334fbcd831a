"""A directory of plain images, as CRIU writes it, or one in which an engine's archive was unpacked.

Links are not followed, with one exception: `parent`, by which CRIU itself finds the images of the parent.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sealpoint.criu.roles import role_of
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError, left_out
from sealpoint.format.manifest import check_name
from sealpoint.inspect.source import READ_LIMIT, Source
from sealpoint.names import is_utf8

if TYPE_CHECKING:
    from sealpoint.format.constants import Role
    from sealpoint.inspect.source import Access

STEP: Final = 1024 * 1024
_MAX_NAMES: Final = 1 << 19
_MAX_DEPTH: Final = 16
_OPEN_FILES: Final = 32
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectorySource:
    """See Source."""

    def __init__(self, path: str, access: Access, find: Callable[[str, Access], Source]) -> None:
        """find: opens a parent, of whatever kind it is.  Raises UsageError, SystemEnvironmentError."""
        self.label = path
        self._access, self._find = access, find
        self._parents: dict[str, Source] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        self._names: list[str] | None = None
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{path} is not a directory") from None
        except OSError as error:
            raise SystemEnvironmentError(f"cannot open {path}: {error.strerror}") from None

    def names(self) -> list[str]:
        """See Source; sorted."""
        if self._names is None:
            self._names = []
            self._list(self._root, "", 0)
        return self._names

    def _list(self, directory: int, prefix: str, depth: int) -> None:
        assert self._names is not None
        if depth > _MAX_DEPTH:
            raise FileError(f"{self.label}: its directories are nested too deeply")
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda e: e.name)
        for entry in entries:
            if len(self._names) >= _MAX_NAMES:
                raise FileError(f"{self.label} has too many files to be a checkpoint")
            if not is_utf8(entry.name):
                left_out(
                    f"{self.label}/{prefix}{entry.name}: its name is not UTF-8, and it is not read"
                )
            elif entry.is_file(follow_symlinks=False):
                self._names.append(prefix + entry.name)
            elif entry.is_dir(follow_symlinks=False):
                self._descend(directory, prefix + entry.name, depth)
            elif entry.name.endswith(".img"):
                left_out(
                    f"{self.label}/{prefix}{entry.name} is not a regular file, and is not read"
                )

    def _descend(self, directory: int, name: str, depth: int) -> None:
        try:
            fd = os.open(name.rpartition("/")[2], _DIRECTORY, dir_fd=directory)
        except FileNotFoundError:
            return
        except OSError as error:
            left_out(f"{self.label}/{name} cannot be read: {error.strerror}")
            return
        try:
            self._list(fd, name + "/", depth + 1)
        finally:
            os.close(fd)

    def _file(self, name: str) -> int:
        fd = self._files.get(name)
        if fd is not None:
            self._files.move_to_end(name)
            return fd
        try:
            fd = self._open(name)
        except (FileNotFoundError, NotADirectoryError):
            raise FileError(f"{self.label} has no {name}") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileError(f"{self.label}/{name} is a link, which is not followed") from None
            raise SystemEnvironmentError(
                f"cannot open {self.label}/{name}: {error.strerror}"
            ) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileError(f"{self.label}/{name} is not a file")
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[name] = fd
        return fd

    def _open(self, name: str) -> int:
        """A descriptor, without following a link in any part of the name.  Raises OSError, FileError."""
        *directories, last = check_name(name).split("/")
        at = self._root
        try:
            for part in directories:
                below = os.open(part, _DIRECTORY, dir_fd=at)
                if at != self._root:
                    os.close(at)
                at = below
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(last, flags, dir_fd=at)
        finally:
            if at != self._root:
                os.close(at)

    def exists(self, name: str) -> bool:
        """See Source."""
        try:
            self._file(name)
        except (FileError, SystemEnvironmentError) as error:
            if self._is_there(name):
                left_out(error.message)
            return False
        return True

    def _is_there(self, name: str) -> bool:
        try:
            os.stat(check_name(name), dir_fd=self._root, follow_symlinks=False)
        except FileError:
            return False
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)
        return True

    def withheld(self, name: str) -> bool:  # noqa: ARG002 - see Source
        """Nothing is."""
        return False

    def size(self, name: str) -> int:
        """See Source."""
        return os.fstat(self._file(name)).st_size

    def role(self, name: str) -> Role:
        """See Source."""
        return role_of(name)

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """See Source."""
        data = self.pread(name, 0, limit + 1)
        if len(data) > limit:
            raise FileError(f"{self.label}/{name} is larger than {limit} bytes")
        return data

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """See Source."""
        fd = self._file(name)
        return pread(fd, offset, min(size, max(0, os.fstat(fd).st_size - offset)), self.label)

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """See Source."""
        fd = os.dup(self._file(name))  # the cache may close its own meanwhile
        try:
            rest = max(0, os.fstat(fd).st_size - offset)
            yield from chunks(fd, offset, rest if size is None else min(size, rest), self.label)
        finally:
            os.close(fd)

    def parent(self, prefix: str) -> tuple[Source, str] | None:
        """See Source."""
        path = f"{self.label}/{prefix}parent"
        if not os.path.lexists(path):
            return None
        if not os.path.isdir(path):
            raise FileError(f"{path}: the parent of these images is missing")
        if prefix not in self._parents:
            self._parents[prefix] = self._find(os.path.realpath(path), self._access)
        return self._parents[prefix], ""

    def close(self) -> None:
        """See Source."""
        while self._parents:
            self._parents.popitem()[1].close()
        while self._files:
            os.close(self._files.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def pread(fd: int, offset: int, size: int, label: str) -> bytes:
    """`size` bytes from `offset`, fewer only at the end.  Raises SystemEnvironmentError."""
    data = bytearray(size)
    view, have = memoryview(data), 0
    try:
        while have < size and (got := os.preadv(fd, [view[have:]], offset + have)):
            have += got
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read {label}: {error.strerror}") from None
    return bytes(data) if have == size else bytes(view[:have])


def chunks(fd: int, offset: int, size: int, label: str) -> Iterator[memoryview]:
    """The same piece by piece in one reused buffer."""
    buffer = memoryview(bytearray(min(STEP, size)))
    while size > 0:
        try:
            got = os.preadv(fd, [buffer[: min(len(buffer), size)]], offset)
        except OSError as error:
            raise SystemEnvironmentError(f"cannot read {label}: {error.strerror}") from None
        if not got:
            return
        yield buffer[:got]
        offset += got
        size -= got
