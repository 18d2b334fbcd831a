"""Open a sealed file into a directory or a tar archive: plain again, and treated as hostile until written.

Every byte is authenticated before it is written.  In a directory nothing is created outside it: each path component is
opened without following links, links that lead out are refused, and what fails half-way is removed.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fnmatch
import gzip
import io
import os
import posixpath
import secrets
import shutil
import sys
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO, Final, cast

from sealpoint.checkpoint.progress import Progress, Report
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import MAX_U64
from sealpoint.format.manifest import Entry
from sealpoint.format.reader import OpenFile, Scratch

_TAR_TYPES: Final = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "character": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Attributes:
    """What an archive said of one member, checked.  Raises FileError."""

    def __init__(self, entry: Entry) -> None:
        self._values = entry.attributes or {}
        self._name = entry.name
        self.kind = self._text("type") or "file"
        if self.kind not in _TAR_TYPES:
            raise FileError(f"object {entry.name!r} is of an unknown type")
        self.mode = self.number("mode", 0o600) & 0o7777
        self.link = self._text("link")
        if self.kind != "file" and entry.size:
            raise FileError(f"object {entry.name!r} is a {self.kind} with contents")

    def _text(self, key: str) -> str:
        value = self._values.get(key, "")
        if not isinstance(value, str) or "\0" in value:
            raise FileError(f"object {self._name!r} has malformed attributes")
        return value

    def number(self, key: str, default: int = 0) -> int:
        """A number of the member."""
        text = self._text(key)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or int(text[:21]) > MAX_U64:
            raise FileError(f"object {self._name!r} has malformed attributes")
        return int(text)

    def tar_info(self, size: int) -> tarfile.TarInfo:
        """The tar header of the member."""
        info = tarfile.TarInfo(self._name)
        info.type = _TAR_TYPES[self.kind]
        info.size = size if self.kind == "file" else 0
        info.mode = self.mode
        info.uid, info.gid = self.number("uid"), self.number("gid")
        info.uname, info.gname = self._text("user"), self._text("group")
        info.mtime = self.number("mtime") / 1_000_000_000
        if info.mtime == int(info.mtime):
            info.mtime = int(info.mtime)
        info.linkname = self.link
        info.devmajor, info.devminor = self.number("major"), self.number("minor")
        info.pax_headers = self._xattrs()
        return info

    def _xattrs(self) -> dict[str, str]:
        values = self._values.get("xattrs", {})
        try:
            return {
                "SCHILY.xattr." + key: base64.b64decode(value, validate=True).decode(
                    "utf-8", "surrogateescape"
                )
                for key, value in values.items()
            }
        except (AttributeError, TypeError, ValueError, binascii.Error):
            raise FileError(f"object {self._name!r} has malformed attributes") from None


def select(checkpoint: OpenFile, patterns: tuple[str, ...]) -> list[Entry]:
    """The objects whose name matches one of the globs (all without globs), as they were sealed.

    Raises UsageError if nothing matches.
    """
    entries = sorted(checkpoint.entries.values(), key=lambda e: e.number)
    if patterns:
        entries = [e for e in entries if any(fnmatch.fnmatchcase(e.name, p) for p in patterns)]
        if not entries:
            raise UsageError("no object of the checkpoint matches --only")
    return entries


def is_archive_name(path: str) -> bool:
    """Whether an output path asks for an archive rather than a directory."""
    return path == "-" or path.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst"))


def _check_space(directory: str, size: int) -> None:
    # Compressed chunks can stand for far more than the file holds: refuse before the disk is full, not after.
    free = shutil.disk_usage(directory).free
    if size > free:
        raise SystemEnvironmentError(
            f"the checkpoint opens to {size} bytes, but only {free} are free at {directory}"
        )


def extract_tar(
    checkpoint: OpenFile, entries: list[Entry], path: str, report: Report, *, force: bool
) -> None:
    """Write a tar archive: plain, gzip or zstd by its name; "-" is plain to standard output."""
    for entry in entries:
        Attributes(entry)
    with ExitStack() as stack:
        done: Callable[[], None] = lambda: None  # noqa: E731
        if path == "-":
            if sys.stdout.isatty():
                raise UsageError("an archive is binary: not written to a terminal")
            out = cast("IO[bytes]", sys.stdout.buffer)
        else:
            directory = os.path.dirname(os.path.abspath(path))
            if os.path.lexists(path) and not force:
                raise UsageError(f"{path} exists", hint="remove it or use --force")
            if not os.path.isdir(directory):
                raise UsageError(f"there is no directory {directory}")
            _check_space(
                directory, sum(e.size for e in entries) // (1 if path.endswith(".tar") else 8)
            )
            out, done = _new_file(stack, path, directory)
        try:
            _write_tar(checkpoint, entries, out, path, report)
            out.flush()
        except BrokenPipeError:
            raise SystemEnvironmentError("the reader of the archive went away") from None
        except OSError as error:
            raise SystemEnvironmentError(f"cannot write {path}: {error.strerror}") from None
        done()


def _new_file(stack: ExitStack, path: str, directory: str) -> tuple[IO[bytes], Callable[[], None]]:
    temporary = f"{directory}/.{os.path.basename(path)[:200]}.{secrets.token_hex(6)}.partial"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot create {path}: {error.strerror}") from None
    stack.callback(lambda: os.path.lexists(temporary) and os.unlink(temporary))
    return stack.enter_context(os.fdopen(fd, "wb")), lambda: os.replace(temporary, path)


def _write_tar(
    checkpoint: OpenFile, entries: list[Entry], out: IO[bytes], path: str, report: Report
) -> None:
    with ExitStack() as stack:
        if path.endswith((".tar.gz", ".tgz")):
            out = stack.enter_context(
                gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0)
            )
        elif path.endswith(".tar.zst"):
            import zstandard

            out = stack.enter_context(zstandard.ZstdCompressor().stream_writer(out, closefd=False))
        tar = stack.enter_context(tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT))
        tar.copybufsize = 1 << 20  # type: ignore[attr-defined]
        total, scratch, done = sum(e.size for e in entries), Scratch(), 0
        for entry in entries:
            reader = _ObjectReader(checkpoint, entry, scratch, report, done, total)
            tar.addfile(Attributes(entry).tar_info(entry.size), cast("IO[bytes]", reader))
            tar.members = []
            done += entry.size


class _ObjectReader(io.RawIOBase):
    """An object as a file for tarfile."""

    def __init__(
        self,
        checkpoint: OpenFile,
        entry: Entry,
        scratch: Scratch,
        report: Report,
        done: int,
        total: int,
    ) -> None:
        self._pieces = checkpoint.read(entry, scratch)
        self._rest = memoryview(b"")
        self._report, self._done, self._total = report, done, total

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = next(self._pieces, memoryview(b""))
            self._done += len(self._rest)
            self._report(Progress(self._done, self._total))
        parts = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        while len(parts) < size and (piece := next(self._pieces, None)):
            take = size - len(parts)
            parts += bytes(piece[:take])
            self._rest = piece[take:]
        return parts


def extract_directory(
    checkpoint: OpenFile, entries: list[Entry], path: str, report: Report, *, force: bool
) -> None:
    """Write files into the directory `path`, which appears only when everything is in it."""
    target = os.path.abspath(path)
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise UsageError(f"there is no directory {parent}")
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        if not force:
            raise UsageError(
                f"{path} exists and is not an empty directory", hint="remove it or use --force"
            )
    members = [(entry, Attributes(entry)) for entry in entries]
    for entry, attributes in members:
        if attributes.kind in ("character", "block", "fifo"):
            raise FileError(
                f"object {entry.name!r} is a {attributes.kind} device or pipe, not created in a directory",
                hint="open to a .tar archive instead",
            )
        if attributes.kind in ("symlink", "hardlink"):
            _check_link(entry.name, attributes)
    _check_space(parent, sum(e.size for e in entries))
    temporary = f"{parent}/.{os.path.basename(target)[:200]}.{secrets.token_hex(6)}.partial"
    os.mkdir(temporary, 0o700)
    try:
        root = os.open(temporary, _DIRECTORY_FLAGS)
        try:
            _Tree(root, checkpoint, report, sum(e.size for e in entries)).write(members)
        finally:
            os.close(root)
        if os.path.isdir(target) and not os.path.islink(target):
            shutil.rmtree(target) if force else os.rmdir(target)
        os.rename(temporary, target)
    except OSError as error:
        where = SystemEnvironmentError(f"cannot write {path}: {error.strerror}")
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST, errno.EMLINK):
            raise FileError(
                f"the checkpoint's object names contradict each other ({error.strerror})"
            ) from None
        raise where from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_link(name: str, attributes: Attributes) -> None:
    base = "" if attributes.kind == "hardlink" else posixpath.dirname(name)
    target = posixpath.normpath(posixpath.join(base, attributes.link))
    if (
        not attributes.link
        or posixpath.isabs(attributes.link)
        or target == ".."
        or target.startswith("../")
    ):
        raise FileError(f"object {name!r} is a link that leads out of the checkpoint")


class _Tree:
    def __init__(self, root: int, checkpoint: OpenFile, report: Report, total: int) -> None:
        self._root = root
        self._checkpoint = checkpoint
        self._report = report
        self._total = total
        self._done = 0
        self._scratch = Scratch()

    def write(self, members: list[tuple[Entry, Attributes]]) -> None:
        # Links come last: nothing is ever written through one.
        kinds = {
            "directory": self._directory,
            "file": self._file,
            "hardlink": self._hardlink,
            "symlink": self._symlink,
        }
        for kind, create in kinds.items():
            for entry, attributes in members:
                if attributes.kind == kind:
                    create(entry, attributes)
        for entry, attributes in reversed(members):
            if attributes.kind == "directory" and entry.attributes:
                parent, name = self._parent(entry.name)
                self._finish(parent, name, attributes)

    def _parent(self, name: str) -> tuple[int, str]:
        """Descriptor of the directory that holds `name`, made as needed, and the last component."""
        *directories, last = name.split("/")
        fd = os.dup(self._root)
        for part in directories:
            try:
                os.mkdir(part, 0o700, dir_fd=fd)
            except FileExistsError:
                pass
            below = os.open(part, _DIRECTORY_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        return fd, last

    def _directory(self, entry: Entry, _: Attributes) -> None:
        fd, _name = self._parent(entry.name + "/x")
        os.close(fd)

    def _file(self, entry: Entry, attributes: Attributes) -> None:
        parent, name = self._parent(entry.name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            for piece in self._checkpoint.read(entry, self._scratch):
                view = piece
                while view:
                    view = view[os.write(fd, view) :]
                self._done += len(piece)
                self._report(Progress(self._done, self._total))
        finally:
            os.close(fd)
        if entry.attributes:
            self._finish(parent, name, attributes)
        else:
            os.close(parent)

    def _hardlink(self, entry: Entry, attributes: Attributes) -> None:
        source, source_name = self._parent(attributes.link)
        parent, name = self._parent(entry.name)
        os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        os.close(source)
        os.close(parent)

    def _symlink(self, entry: Entry, attributes: Attributes) -> None:
        parent, name = self._parent(entry.name)
        os.symlink(attributes.link, name, dir_fd=parent)
        os.close(parent)

    def _finish(self, parent: int, name: str, attributes: Attributes) -> None:
        if os.geteuid() == 0:
            uid, gid = attributes.number("uid"), attributes.number("gid")
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, attributes.mode & 0o777, dir_fd=parent)  # never set-user-id or set-group-id
        when = attributes.number("mtime")
        os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)
        os.close(parent)
