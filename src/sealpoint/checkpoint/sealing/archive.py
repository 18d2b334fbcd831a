"""Seal what exists in the clear: a directory of images, or an engine's archive (tar, plain or in gzip or zstd).

An archive is recognised by its content.  Out of scope: opening again (`extract`), the tar format itself (`tar`).
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from sealpoint.checkpoint.opening import parts
from sealpoint.checkpoint.sealing.builder import PACK_LIMIT, CheckpointBuilder
from sealpoint.checkpoint.sealing.gather import Gathering
from sealpoint.checkpoint.tables import whole
from sealpoint.checkpoint.tables.tar import TarReader
from sealpoint.checkpoint.tables.whole import Taken
from sealpoint.criu.roles import SUMMARY_NAME, is_pages, role_of
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.attributes import check as check_attributes
from sealpoint.format.constants import MAGIC
from sealpoint.format.manifest import check_name
from sealpoint.format.raw import Descriptor
from sealpoint.format.statement import ParentRef
from sealpoint.keys.load import in_file
from sealpoint.progress import Progress, Report
from sealpoint.store.source import hold_from

if TYPE_CHECKING:
    from sealpoint.checkpoint.tables.seen import Passing
    from sealpoint.checkpoint.tables.tar import Member, TarSource

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_WINDOW: Final = 128 * 1024 * 1024  # of a zstd archive: what its decoder may allocate
_HEAD: Final = 4096  # of a large image: enough for the summary
_WANTED: Final = "seal needs an image directory or an engine's archive (tar, tar.gz, tar.zst)"


class ArchiveContents(Protocol):
    """What an object is read from."""

    def readinto(self, out: memoryview, /) -> int:
        """Read into the beginning of `out`; 0 only at the end."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """properties: for the manifest; ignored: keys of an archive's pax headers that were not kept.

    kinds: of sets of images, by what their names begin with; parentless: sets whose parent is not within reach.
    """

    properties: dict[str, str]
    ignored: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    parentless: tuple[str, ...] = ()


def seal_path(
    path: str,
    builder: CheckpointBuilder,
    report: Report,
    *,
    as_files: bool = False,
    file: IO[bytes] | None = None,
) -> Sealed:
    """Add everything in `path` ("-" is an archive from standard input) to the builder.

    It must be sets of images, each of them whole; as_files: it may be anything.  file: see `seal`.

    Raises UsageError (not something that can be sealed), FileError (a damaged archive, a set that is not whole),
    SystemEnvironmentError.
    """
    taken = Taken(as_files=as_files)
    adder = Adder(builder, report, taken)
    try:
        if file is not None:
            sealed = adder.archive(file, path)
        elif path != "-" and os.path.isdir(path):
            Gathering(path, taken, adder.add).run()
            sealed = Sealed({"layout": "directory"} | parts.properties(adder.parts))
        elif path == "-":
            if os.isatty(0):
                raise UsageError("standard input is a terminal", hint=_WANTED)
            with open(0, "rb", closefd=False) as standard:
                sealed = adder.archive(standard, "standard input")
        else:
            with open(path, "rb") as opened:
                sealed = adder.archive(opened, path)
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename or path} does not exist") from None
    except OSError as error:
        name = error.filename or path
        raise SystemEnvironmentError(f"cannot read {name}: {error.strerror or error}") from None
    if not builder.count:
        raise UsageError(f"{path} is empty: there is nothing to seal", hint=_WANTED)
    kinds = taken.judge("standard input" if path == "-" else path)
    properties = sealed.properties | whole.properties(kinds)
    return replace(sealed, properties=properties, kinds=kinds, parentless=taken.parentless())


def seal_archive(
    file: IO[bytes], name: str, builder: CheckpointBuilder, report: Report, taken: Taken
) -> Sealed:
    """Add the members of an archive to a builder that may have other objects; `name` is for messages.

    file: buffered, so that it can be peeked into.  Raises UsageError, FileError.
    """
    return Adder(builder, report, taken).archive(file, name)


class Adder:
    """Adds objects of any size to a builder: small ones go into packs, large ones are streamed.

    taken: is told of all of them.  parts: the sealed files among them, by their names.
    """

    def __init__(self, builder: CheckpointBuilder, report: Report, taken: Taken) -> None:
        self._builder = builder
        self._report = report
        self._taken = taken
        self._names: set[str] = set()
        self._plain: IO[bytes] | None = None
        self.parts: dict[str, ParentRef] = {}

    def add(
        self,
        name: str,
        source: ArchiveContents | None,
        size: int,
        attributes: dict[str, Any] | None,
    ) -> int:
        """One object of `size` bytes, as far as is known before it is read; `source` is None for what has no contents.

        Returns how many bytes it has.  Raises FileError, UsageError.
        """
        check_name(name)
        if attributes is not None:
            check_attributes(attributes, 0, f"{name!r}")
        if name == SUMMARY_NAME:
            raise UsageError(f"{name} exists already, and sealing adds its own", hint="remove it")
        if name in self._names:
            raise FileError(f"archive member {name!r} occurs twice")
        self._names.add(name)
        if source is None:
            if attributes is None or attributes["type"] != "directory":
                self._taken.stub(name)
            self._builder.add(name, b"", attributes)
            return 0
        head = _read(source, self._head_size(name, size))
        if parts.is_place(name) and head.startswith(MAGIC) and not self._taken.as_files:
            return self._part(name, head, source, size, attributes)
        passing = self._taken.image(name)
        done = self._contents(name, head, source, size, attributes, _Watched(passing, name))
        if passing is not None:
            passing.end()
        return done

    @staticmethod
    def _head_size(name: str, size: int) -> int:
        """Bytes that are read at first: all of a small object, and one more if it has grown."""
        return size + 1 if size <= PACK_LIMIT[role_of(name)] else _HEAD

    def _part(
        self,
        name: str,
        head: bytes,
        source: ArchiveContents,
        size: int,
        attributes: dict[str, Any] | None,
    ) -> int:
        """A sealed file stays as it is, and is bound by what it says of itself."""
        file = self._plain if self._plain is not None else source
        with ExitStack() as stack:
            if isinstance(file, io.IOBase) and file.seekable():
                whole_part = _Section(file.fileno(), file.tell() - len(head), size)
            else:  # encrypted as it is, so it may be held
                fd = stack.enter_context(_held(head, source))
                whole_part = _Section(fd.fileno(), 0, os.fstat(fd.fileno()).st_size)
                fd.seek(len(head))
                source = fd
            try:
                self.parts[name] = parts.look(whole_part)
            except FileError as error:
                raise in_file(error, f"the sealed file {name!r}") from None
            self._taken.part(name)
            done = self._contents(name, head, source, size, attributes, _Watched(None, name))
            if done != whole_part.size:
                raise FileError(f"{name!r} was changed while it was sealed")
            return done

    def _contents(
        self,
        name: str,
        head: bytes,
        source: ArchiveContents,
        size: int,
        attributes: dict[str, Any] | None,
        watched: _Watched,
    ) -> int:
        limit = PACK_LIMIT[role_of(name)]
        watched.saw(head)
        if len(head) <= size <= limit:
            self._builder.add(name, head, attributes)
            return len(head)
        self._builder.summary.observe(name, head)
        large, done = self._builder.large(name, attributes), len(head)
        try:
            large.write(head)
            while got := source.readinto(space := large.space()):
                watched.saw(space[:got])
                large.wrote(got)
                done += got
                self._progress()
            large.finish()
        except BaseException:
            large.abandon()
            raise
        return done

    def _progress(self) -> None:
        pipeline = self._builder.pipeline
        self._report(
            Progress(
                pipeline.plain_bytes, zero=pipeline.zero_bytes, compressed=pipeline.compressed_bytes
            )
        )

    def archive(self, file: IO[bytes], path: str) -> Sealed:
        magic = file.peek(len(MAGIC))[: len(MAGIC)]  # type: ignore[attr-defined]
        if magic == MAGIC:
            raise UsageError(
                f"{path} is a sealed checkpoint already",
                hint="to change who can open it, use sealpoint rekey; to make it plain again, sealpoint open",
            )
        source: TarSource = file
        compression = "none"
        if magic.startswith(_GZIP):
            import gzip

            source, compression = gzip.GzipFile(fileobj=file), "gzip"
        elif magic.startswith(_ZSTD):
            import zstandard

            reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            source, compression = reader.stream_reader(file, read_across_frames=True), "zstd"
        self._plain = file if compression == "none" and file.seekable() else None
        tar = TarReader(source)
        try:
            for member in tar:
                self._tar_member(tar, member)
        except FileError as error:
            if not tar.started:
                raise UsageError(
                    f"{path} is neither a directory nor a tar archive", hint=_WANTED
                ) from None
            raise FileError(f"{path}: {error.message}", hint=error.hint) from None
        except _decoder_errors(compression) as error:
            raise FileError(f"{path}: damaged {compression} data ({error})") from None
        told = {"layout": "archive", "compression": compression} | parts.properties(self.parts)
        return Sealed(told, tuple(sorted(tar.ignored)))

    def _tar_member(self, tar: TarReader, member: Member) -> None:
        name = member.name
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        name = name.rstrip("/")
        if name in ("", "."):
            if member.kind != "directory":
                raise FileError("the archive has a member without a name")
            return  # the archive's own root
        attributes: dict[str, Any] = {
            "type": member.kind,
            "mode": str(member.mode),
            "uid": str(member.uid),
            "gid": str(member.gid),
            "mtime": str(member.mtime),
        }
        if member.user:
            attributes["user"] = member.user
        if member.group:
            attributes["group"] = member.group
        if member.kind in ("symlink", "hardlink"):
            attributes["link"] = member.link
            self._taken.link(name, member.link)
        if member.kind in ("character", "block"):
            attributes |= {"major": str(member.major), "minor": str(member.minor)}
        if member.xattrs:
            attributes["xattrs"] = {
                key: base64.b64encode(value).decode() for key, value in member.xattrs.items()
            }
        self.add(name, tar if member.kind == "file" else None, member.size, attributes)


class _Watched:
    """Contents of an image as they pass; of pages only how many."""

    def __init__(self, passing: Passing | None, name: str) -> None:
        self._passing = passing
        self._pages = is_pages(name.rpartition("/")[2])

    def saw(self, data: bytes | memoryview) -> None:
        if self._passing is None:
            return
        if self._pages:
            self._passing.count(len(data))
        else:
            self._passing.add(data)


class _Section:
    """A ByteSource: a part of a file, by a descriptor that stays the caller's."""

    def __init__(self, fd: int, begin: int, size: int) -> None:
        self._file, self._begin = Descriptor(fd), begin
        self.size = size

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ByteSource."""
        if offset + len(out) > self.size:
            raise FileError("the sealed file ends before it should")
        self._file.read_into(out, self._begin + offset)

    def close(self) -> None:
        """The file stays open."""


def _held(head: bytes, source: ArchiveContents) -> io.FileIO:
    """All of an object that cannot be read twice where it comes from.  Raises SystemEnvironmentError."""
    rest = memoryview(head)

    def read(buffer: memoryview) -> int:
        nonlocal rest
        if not rest:
            return source.readinto(buffer)
        take = min(len(buffer), len(rest))
        buffer[:take], rest = rest[:take], rest[take:]
        return take

    return io.FileIO(hold_from(read, None))


def _read(source: ArchiveContents, size: int) -> bytes:
    """`size` bytes, fewer only at the end."""
    data = memoryview(bytearray(size))
    have = 0
    while have < size and (got := source.readinto(data[have:])):
        have += got
    return bytes(data[:have])


def _decoder_errors(compression: str) -> tuple[type[Exception], ...]:
    if compression == "gzip":
        import gzip
        import zlib

        return (EOFError, zlib.error, gzip.BadGzipFile)
    if compression == "zstd":
        import zstandard

        return (zstandard.ZstdError,)
    return ()
