"""Open a sealed file into a directory or a tar archive: plain again, and treated as hostile until written.

Every byte is authenticated before it is written.  In a directory nothing is created outside it: each path component is
opened without following links, links that lead out are refused, and what fails half-way is removed.  An archive gets
what was sealed, unchanged, links and devices included: whoever unpacks it decides.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fnmatch
import os
import posixpath
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sealpoint.checkpoint.tables import tar
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.progress import Progress, Report
from sealpoint.store.naming import NO_EXCHANGE, PARTIAL, exchange, temporary_name
from sealpoint.store.output import OutputFile, destination, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealpoint.format.manifest import Entry
    from sealpoint.store.output import Target

_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.zst")
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNCHANGED_ID: Final = (1 << 32) - 1  # chown takes it for "leave as it is"
_MAX_TIME: Final = (1 << 63) - 1  # ns, what the kernel takes


def select(checkpoint: OpenFile, patterns: tuple[str, ...]) -> list[Entry]:
    """The objects that match one of the globs, as they were sealed; without globs all but the sealer's summary.

    A glob with a slash is matched against the whole name, one without against its last part.  Raises UsageError if
    nothing matches.
    """
    entries = sorted(checkpoint.entries.values(), key=lambda e: e.number)
    if not patterns:
        return [e for e in entries if e.name != SUMMARY_NAME]
    entries = [e for e in entries if any(_matches(e.name, p) for p in patterns)]
    if not entries:
        hint = "sealpoint info FILE -i IDENTITY lists the objects"
        if not checkpoint.has_memory:
            hint += "; this identity opens metadata only"
        raise UsageError("no object of the checkpoint matches --only", hint=hint)
    return entries


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name if "/" in pattern else posixpath.basename(name), pattern)


def is_archive_name(path: str) -> bool:
    """Whether an output path asks for an archive rather than a directory."""
    return destination(path).streams or path.endswith(_ARCHIVES)


def _check_space(directory: str, size: int) -> None:
    # Compressed chunks can stand for far more than the file holds: refuse before the disk is full, not after.
    free = shutil.disk_usage(directory).free
    if size > free:
        raise SystemEnvironmentError(
            f"the checkpoint opens to {size} bytes, but only {free} are free at {directory}"
        )


def _member(entry: Entry, captured: int) -> tar.Member:
    """What to tell of an object; an image of a dump has no attributes, then the time of capture counts."""
    values: dict[str, Any] | None = entry.attributes  # checked by sealpoint.format.attributes
    if values is None:
        return tar.Member(entry.name, size=entry.size, mtime=captured * 1_000_000_000)
    return tar.Member(
        entry.name,
        values["type"],
        entry.size,
        int(values["mode"]),
        int(values["uid"]),
        int(values["gid"]),
        int(values["mtime"]),
        values.get("user", ""),
        values.get("group", ""),
        values.get("link", ""),
        int(values.get("major", 0)),
        int(values.get("minor", 0)),
        {key: base64.b64decode(value) for key, value in values.get("xattrs", {}).items()},
    )


@dataclass(frozen=True, slots=True)
class Item:
    """One file, directory or link of the output.

    pieces: called when its turn comes; gives the contents, of which nothing is written that did not authenticate.
    """

    member: tar.Member
    pieces: Callable[[], Iterator[memoryview] | Iterator[bytes]] = lambda: iter(())


def _items(checkpoint: OpenFile, entries: list[Entry]) -> list[Item]:
    captured, scratch = checkpoint.authentic.origin.captured, Scratch()
    return [
        Item(_member(entry, captured), partial(checkpoint.read, entry, scratch))
        for entry in entries
    ]


class _Contents:
    """Reads contents and reports how far that is."""

    def __init__(self, items: list[Item], report: Report) -> None:
        self._report = report
        self._done = 0
        self.total = sum(item.member.size for item in items)

    def pieces(self, item: Item) -> Iterator[memoryview | bytes]:
        for piece in item.pieces():
            yield piece
            self._done += len(piece)
            self._report(Progress(self._done, self.total))


def extract_tar(
    checkpoint: OpenFile, entries: list[Entry], path: str, report: Report, *, force: bool
) -> None:
    """As write_tar, from a sealed file."""
    write_tar(_items(checkpoint, entries), path, report, force=force)


def write_tar(items: list[Item], path: str, report: Report, *, force: bool) -> None:
    """Write a tar archive: plain, gzip or zstd by its name; plain into a pipe.  See `store.output.destination`."""
    for item in items:
        tar.encode(item.member)  # what cannot be archived fails before anything is made
    contents = _Contents(items, report)
    where = destination(path)
    with where.open(force=force) as out:
        if isinstance(out, OutputFile):
            compresses = not path.endswith(".tar")
            _check_space(os.path.dirname(out.path), contents.total // (8 if compresses else 1))
        write, finish = _compressor("" if where.streams else path, out)
        for item in items:
            write(tar.encode(item.member))
            for piece in contents.pieces(item):
                write(piece)
            write(bytes(-item.member.size % tar.BLOCK))
        write(tar.END)
        finish()
        out.commit()


def _compressor(
    path: str, out: Target
) -> tuple[Callable[[bytes | memoryview], None], Callable[[], None]]:
    """How to write plain data and how to end it."""
    if path.endswith((".tar.gz", ".tgz")):
        import zlib

        gzip = zlib.compressobj(6, wbits=31)
        return lambda data: out.write(gzip.compress(data)), lambda: out.write(gzip.flush())
    if path.endswith(".tar.zst"):
        import zstandard

        zstd = zstandard.ZstdCompressor(write_checksum=True).compressobj()
        return lambda data: out.write(zstd.compress(data)), lambda: out.write(zstd.flush())
    return out.write, lambda: None


def extract_directory(
    checkpoint: OpenFile,
    entries: list[Entry],
    path: str,
    report: Report,
    *,
    force: bool,
    source: str = "-",
) -> None:
    """As write_directory, from the sealed file at `source`."""
    items = _items(checkpoint, entries)
    write_directory(items, path, report, force=force, source=source)


def write_directory(
    items: list[Item], path: str, report: Report, *, force: bool, source: str = "-"
) -> None:
    """Write files into the directory `path`, in which they appear only when all are complete.

    source: what is read, which `force` must not remove.  Not kept in a directory: set-user-id and set-group-id bits,
    extended attributes; owners, unless the caller is root.
    """
    _check_members([item.member for item in items])
    contents = _Contents(items, report)
    place = _Place(path, force=force, source=source)
    _check_space(place.parent, contents.total)
    try:
        place.make()
        root = os.open(place.temporary, _DIRECTORY_FLAGS)
        try:
            _Tree(root, contents).write(items)
        finally:
            os.close(root)
        place.commit()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST, errno.EMLINK):
            raise FileError(
                f"the checkpoint's object names contradict each other ({error.strerror})"
            ) from None
        raise _cannot_write(path, error) from None
    finally:
        place.discard()


def _cannot_write(path: str, error: OSError) -> SealpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemEnvironmentError(f"no space left for {path}", hint="choose another target")
    return SystemEnvironmentError(f"cannot write {path}: {error.strerror}")


class _Place:
    """Where a directory is made: beside its final name, or inside of it if it is there and empty."""

    def __init__(self, path: str, *, force: bool, source: str) -> None:
        self._path = path
        self._target = os.path.realpath(path)
        self._inside = False
        self._old: str | None = None
        base, name = os.path.split(self._target)
        if os.path.lexists(self._target):
            self._inside = os.path.isdir(self._target) and not os.listdir(self._target)
            if not self._inside and not force:
                raise UsageError(
                    f"{path} exists and is not an empty directory", hint="remove it or use --force"
                )
            if not self._inside:
                self._check_replaceable(source)
        elif not os.path.isdir(base):
            raise UsageError(f"there is no directory {base}")
        self.parent = self._target if self._inside else base
        self.temporary = f"{self.parent}/{temporary_name(name, PARTIAL)}"

    def _check_replaceable(self, source: str) -> None:
        for keep in map(os.path.realpath, (".", os.path.expanduser("~"), source)):
            if os.path.commonpath([keep, self._target]) == self._target:
                raise UsageError(f"--force does not replace {self._path}: it holds {keep}")

    def make(self) -> None:
        os.mkdir(self.temporary, 0o700)

    def commit(self) -> None:
        """Everything is in it: let it appear."""
        if self._inside:
            for name in os.listdir(self.temporary):
                _move(f"{self.temporary}/{name}", f"{self._target}/{name}")
            return
        if os.path.lexists(self._target):
            try:
                exchange(self.temporary, self._target)
            except OSError as error:
                if error.errno not in NO_EXCHANGE:
                    raise
            else:
                self._old = self.temporary
                return
            self._old = self.temporary.removesuffix(PARTIAL) + ".old"
            os.rename(self._target, self._old)
        try:
            os.rename(self.temporary, self._target)
        except OSError:
            if self._old is not None:
                os.rename(self._old, self._target)
                self._old = None
            raise

    def discard(self) -> None:
        """Remove what is left: the unfinished, and what was replaced."""
        for path in (self.temporary, self._old):
            if path is not None and os.path.isdir(path):
                _remove(path)
            elif path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _move(source: str, target: str) -> None:
    """Rename.  A directory has to be writable for that, because its parent changes."""
    mode = os.lstat(source).st_mode
    if not stat.S_ISDIR(mode):
        os.rename(source, target)
        return
    os.chmod(source, 0o700)
    os.rename(source, target)
    os.chmod(target, stat.S_IMODE(mode))


def _remove(directory: str) -> None:
    """With all that is in it, directories that are not writable included."""
    for path, names, _ in os.walk(directory):
        for name in names:
            if not os.path.islink(f"{path}/{name}"):
                with contextlib.suppress(OSError):
                    os.chmod(f"{path}/{name}", 0o700)
    shutil.rmtree(directory, ignore_errors=True)


def _check_members(members: list[tar.Member]) -> None:
    kinds = {m.name: m.kind for m in members}
    for member in members:
        if member.kind in ("character", "block", "fifo"):
            raise FileError(
                f"object {member.name!r} is a device or a named pipe, not made in a directory",
                hint="open to a .tar archive instead",
            )
        if member.kind == "symlink" and _leads_out(member.name, member.link):
            raise FileError(
                f"object {member.name!r} is a link that leads out of the checkpoint",
                hint="if you trust the archive anyway, open it to a .tar and unpack that",
            )
        if member.kind == "hardlink":
            target = posixpath.normpath(member.link)
            if target not in kinds:
                raise FileError(
                    f"object {member.name!r} is a hard link to {target!r}, which is not there",
                    hint="with --only, name that one as well",
                )
            if kinds[target] not in ("file", "hardlink"):
                raise FileError(f"object {member.name!r} is a hard link to a {kinds[target]}")


def _leads_out(name: str, link: str) -> bool:
    # `..` after another part is refused because that part may be a link itself: then it leads anywhere.  In front, it
    # climbs the object's own directories, which are no links.
    parts = [p for p in link.split("/") if p not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    return link.startswith("/") or ".." in parts[climbs:] or climbs > name.count("/")


class _Tree:
    """Makes members below a directory."""

    def __init__(self, root: int, contents: _Contents) -> None:
        self._root = root
        self._contents = contents

    def write(self, items: list[Item]) -> None:
        members = [item.member for item in items]
        for item in items:
            if item.member.kind == "directory":
                os.close(self._open_directory(item.member.name.split("/")))
            elif item.member.kind == "file":
                self._file(item)
        # Links come last: nothing is ever written through one.
        self._hardlinks({m.name: m for m in members if m.kind == "hardlink"})
        for member in members:
            if member.kind == "symlink":
                with self._parent(member.name) as (parent, name):
                    os.symlink(member.link, name, dir_fd=parent)
                    self._finish(parent, name, member)
        # Deepest first, because a directory may not be writable to its owner.
        directories = [m for m in members if m.kind == "directory"]
        for member in sorted(directories, key=lambda m: -m.name.count("/")):
            with self._parent(member.name) as (parent, name):
                self._finish(parent, name, member)

    def _open_directory(self, parts: list[str]) -> int:
        """Descriptor of a directory below the root, made as needed."""
        fd = os.dup(self._root)
        try:
            for part in parts:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
                below = os.open(part, _DIRECTORY_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Descriptor of the directory that holds `path`, and the last component."""
        *directories, name = path.split("/")
        fd = self._open_directory(directories)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def _file(self, item: Item) -> None:
        member = item.member
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._parent(member.name) as (parent, name):
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                for piece in self._contents.pieces(item):
                    write_all(fd, [piece], member.name)
            finally:
                os.close(fd)
            self._finish(parent, name, member)

    def _hardlinks(self, links: dict[str, tar.Member]) -> None:
        for first in links.values():
            member, seen = first, {first.name}
            target = posixpath.normpath(member.link)
            while target in links:  # a link to a link
                if target in seen:
                    raise FileError(f"object {first.name!r} is a hard link to itself")
                seen.add(target)
                target = posixpath.normpath(links[target].link)
            with (
                self._parent(target) as (source, source_name),
                self._parent(first.name) as (parent, name),
            ):
                os.link(
                    source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False
                )

    @staticmethod
    def _finish(parent: int, name: str, member: tar.Member) -> None:
        if os.geteuid() == 0:
            uid, gid = (-1 if n == _UNCHANGED_ID else n for n in (member.uid, member.gid))
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if member.kind != "symlink":
            # Never set-user-id or set-group-id: who made the checkpoint does not decide what runs as root here.
            os.chmod(name, member.mode & 0o777, dir_fd=parent)
        when = min(member.mtime, _MAX_TIME)
        os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)
