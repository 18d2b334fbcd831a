"""Takes in a directory, by descriptors: nothing that it finds is looked up by its path a second time.

A link to a regular file inside the directory is followed, and the file goes in under the link's name.  One other link
is kept as it is: `parent` beside images, by which CRIU finds the images that they increment.  Any other is an error,
since what it stands for would not be in the sealed file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sealpoint.checkpoint.tables.seen import Passing
from sealpoint.checkpoint.tables.whole import PARENT, ImageSet, Taken
from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError, UsageError

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_DEPTH: Final = 64
_MAX_LINKS: Final = 16  # from one link to the next
_MAX_PARENTS: Final = 4096
_STEP: Final = 1024 * 1024
_COPY: Final = "replace it with a copy of what it points to"

Add = Callable[[str, Any, int, dict[str, Any]], int]


class Gathering:
    """One directory that is taken in.  add: takes name, contents or None, size and attributes; returns bytes read."""

    def __init__(self, path: str, taken: Taken, add: Add) -> None:
        self._path, self._taken, self._add = path, taken, add
        self._top = -1
        self._walked: dict[
            tuple[int, int], str
        ] = {}  # what names in a directory begin with, by its inode
        self._outside: dict[tuple[int, int], ImageSet] = {}
        self._parents: list[tuple[str, int]] = []

    def run(self) -> None:
        """Raises UsageError, FileError, OSError with the path that it is about."""
        self._top = os.open(self._path, _DIRECTORY)
        try:
            self._directory(self._top, [])
            for prefix, parent in self._parents:
                self._link(self._taken.set(prefix), parent, 0)
        finally:
            for _, parent in self._parents:
                os.close(parent)
            os.close(self._top)

    def _directory(self, fd: int, at: list[str]) -> None:
        """at: the parts of its name."""
        prefix = "".join(f"{part}/" for part in at)
        if len(at) > _MAX_DEPTH:
            raise UsageError(f"{self._path}: its directories are nested too deeply")
        status = os.fstat(fd)
        self._walked[status.st_dev, status.st_ino] = prefix
        names = sorted(os.listdir(fd))
        images = any(name.endswith(".img") for name in names)
        for name in names:
            _utf8(prefix + name)
            with self._named(prefix + name), _opened(os.open(name, _LOOK, dir_fd=fd)) as found:
                if images and name == PARENT and self._parent(found, fd, prefix):
                    continue
                self._entry(found, [*at, name])

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """What the system says is about this."""
        try:
            yield
        except OSError as error:
            if not str(error.filename).startswith(f"{self._path}/"):  # of what lies deeper
                error.filename = f"{self._path}/{name}"
            raise

    def _entry(self, found: int, at: list[str]) -> None:
        name, status = "/".join(at), os.fstat(found)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            self._file(found, name)
        elif kind == stat.S_IFDIR:
            self._add(name, None, 0, _attributes(status) | {"type": "directory"})
            with _opened(os.open(f"/proc/self/fd/{found}", _DIRECTORY)) as fd:
                self._directory(fd, at)
        elif kind == stat.S_IFLNK:
            self._symlink(found, at)
        else:
            raise UsageError(
                f"{self._path}/{name} is neither file, directory nor link",
                hint="only those can be sealed",
            )

    def _file(self, found: int, name: str) -> None:
        with open(os.open(f"/proc/self/fd/{found}", _READ), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if not self._taken.as_files and is_pages(name.rpartition("/")[2]) and _has_holes(file):
                self._taken.freed(name)
            size = self._add(name, file, before.st_size, _attributes(before))
            after = os.fstat(file.fileno())
            if (size, after.st_size, after.st_mtime_ns) != (
                before.st_size, before.st_size, before.st_mtime_ns,
            ):  # fmt: skip
                raise FileError(
                    f"{self._path}/{name} was changed while it was sealed",
                    hint="wait until nothing writes to it any more",
                )

    def _symlink(self, found: int, at: list[str]) -> None:
        name = "/".join(at)
        link = os.readlink("", dir_fd=found)
        with _opened(self._follow(name, at[:-1], link)) as target:
            status = os.fstat(target)
            if self._taken.as_files:
                _utf8(link)
                attributes = _attributes(os.fstat(found)) | {"type": "symlink", "link": link}
                self._add(name, None, 0, attributes)
            elif stat.S_ISREG(status.st_mode):
                self._file(target, name)
            else:
                raise UsageError(
                    f"{self._path}/{name} is a link to something that is not a regular file",
                    hint=_COPY,
                )

    def _follow(self, name: str, at: list[str], link: str) -> int:
        """What a link leads to, if that is inside; no directory on the way may be a link."""
        for _ in range(_MAX_LINKS):
            parts = self._inside(at, link)
            if parts is None:
                raise UsageError(
                    f"{self._path}/{name} is a link that leads out of the directory", hint=_COPY
                )
            *at, last = parts or ["."]
            directory = os.dup(self._top)
            try:
                for part in at:
                    flags = _DIRECTORY | os.O_NOFOLLOW
                    directory, above = os.open(part, flags, dir_fd=directory), directory
                    os.close(above)
                found = os.open(last, _LOOK, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                raise UsageError(
                    f"{self._path}/{name} is a link to something that is not there, or behind another link",
                    hint=_COPY,
                ) from None
            finally:
                os.close(directory)
            if not stat.S_ISLNK(os.fstat(found).st_mode):
                return found
            with _opened(found):
                link = os.readlink("", dir_fd=found)
        raise UsageError(f"{self._path}/{name} is a link that leads nowhere", hint=_COPY)

    def _inside(self, at: list[str], link: str) -> list[str] | None:
        """The parts of the name to which a link in `at` leads; None where it leads out."""
        parts = list(at)
        if link.startswith("/"):
            top = os.path.realpath(self._path)
            if link != top and not link.startswith(top.rstrip("/") + "/"):
                return None
            parts, link = [], link[len(top.rstrip("/")) :]
        for part in link.split("/"):
            if part == "..":
                if not parts:
                    return None
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return parts

    def _parent(self, found: int, fd: int, prefix: str) -> bool:
        """Whether this is CRIU's own link, or a directory in its place; what it leads to is looked at later."""
        status = os.fstat(found)
        link = stat.S_ISLNK(status.st_mode)
        if not link and not stat.S_ISDIR(status.st_mode):
            return False
        try:
            parent = os.open(PARENT, _DIRECTORY, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{self._path}/{prefix}{PARENT} leads to no directory: the images that these increment are missing"
            ) from None
        self._parents.append((prefix, parent))
        self._taken.set(prefix).linked = True
        if link:
            target = os.readlink("", dir_fd=found)
            _utf8(target)
            attributes = _attributes(status) | {"type": "symlink", "link": target}
            self._add(prefix + PARENT, None, 0, attributes)
        return link

    def _link(self, images: ImageSet, parent: int, depth: int) -> None:
        """Join a set with its parent, which is taken in as well or lies elsewhere."""
        status = os.fstat(parent)
        key = (status.st_dev, status.st_ino)
        if self._taken.as_files or depth > _MAX_PARENTS:
            return
        if key in self._walked:
            images.parent = self._taken.set(self._walked[key])
            return
        if key in self._outside:
            images.parent = self._outside[key]
            return
        where = f"{os.readlink(f'/proc/self/fd/{parent}')}/"
        images.parent = self._outside[key] = _observed(parent, where)
        try:
            above = os.open(PARENT, _DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            return
        images.parent.linked = True
        with _opened(above):
            self._link(images.parent, above, depth + 1)


def _observed(directory: int, where: str) -> ImageSet:
    """The images of a directory that is not taken in."""
    taken = Taken()
    taken.sets[""] = images = ImageSet(where)
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".img"):
            continue
        try:
            fd = os.open(name, _READ, dir_fd=directory)
        except OSError as error:
            error.filename = where + name
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            taken.stub(name)
            continue
        with open(fd, "rb", buffering=0) as file:
            passing = taken.image(name)
            if passing is not None:
                _pass(passing, file, status.st_size, name)
            if is_pages(name) and _has_holes(file):
                taken.freed(name)
    return images


def _pass(passing: Passing, file: Any, size: int, name: str) -> None:
    if is_pages(name):
        passing.count(size)
    else:
        while data := file.read(_STEP):
            passing.add(data)
    passing.end()


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _has_holes(file: Any) -> bool:
    """Whether parts of a file are not on the disk: CRIU frees pages that a later dump has again."""
    size = os.fstat(file.fileno()).st_size
    if not size:
        return False
    hole: int = file.seek(0, os.SEEK_HOLE)
    file.seek(0)
    return hole < size


def _attributes(status: os.stat_result) -> dict[str, Any]:
    return {
        "type": "file",
        "mode": str(stat.S_IMODE(status.st_mode)),
        "uid": str(status.st_uid),
        "gid": str(status.st_gid),
        "mtime": str(max(0, status.st_mtime_ns)),
    }


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FileError(
            f"the name '{text}' is not UTF-8, as names in a sealed file must be",
            hint="rename it, or leave it out",
        ) from None
    return text
