"""Seal what exists in the clear: a directory of images, or an engine's archive (tar, plain or in gzip or zstd).

An archive is recognised by its content.  Out of scope: opening again (`extract`), the tar format itself (`tar`).
"""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from sealpoint.checkpoint.builder import PACK_LIMIT, CheckpointBuilder
from sealpoint.checkpoint.progress import Progress, Report
from sealpoint.checkpoint.tar import TarReader
from sealpoint.criu.roles import SUMMARY_NAME, role_of
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.attributes import check as check_attributes
from sealpoint.format.constants import MAGIC
from sealpoint.format.manifest import check_name

if TYPE_CHECKING:
    from sealpoint.checkpoint.tar import Member, Source

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_WINDOW: Final = 128 * 1024 * 1024  # of a zstd archive: what its decoder may allocate
_HEAD: Final = 4096  # of a large image: enough for the summary
_WANTED: Final = "seal needs an image directory or an engine's archive (tar, tar.gz, tar.zst)"


class Contents(Protocol):
    """What an object is read from."""

    def readinto(self, out: memoryview, /) -> int:
        """Read into the beginning of `out`; 0 only at the end."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """properties: for the manifest; ignored: keys of an archive's pax headers that were not kept."""

    properties: dict[str, str]
    ignored: tuple[str, ...] = ()


def seal_path(path: str, builder: CheckpointBuilder, report: Report) -> Sealed:
    """Add everything in `path` ("-" is an archive from standard input) to the builder.

    Raises UsageError (not something that can be sealed), FileError (damaged archive), SystemEnvironmentError.
    """
    adder = Adder(builder, report)
    try:
        if path != "-" and os.path.isdir(path):
            adder.directory(path, "")
            sealed = Sealed({"layout": "directory"})
        elif path == "-":
            if os.isatty(0):
                raise UsageError("standard input is a terminal", hint=_WANTED)
            with open(0, "rb", closefd=False) as file:
                sealed = adder.archive(file, "standard input")
        else:
            with open(path, "rb") as file:
                sealed = adder.archive(file, path)
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename or path} does not exist") from None
    except OSError as error:
        name = error.filename or path
        raise SystemEnvironmentError(f"cannot read {name}: {error.strerror or error}") from None
    if not builder.count:
        raise UsageError(f"{path} is empty: there is nothing to seal", hint=_WANTED)
    return sealed


def seal_archive(file: IO[bytes], name: str, builder: CheckpointBuilder, report: Report) -> Sealed:
    """Add the members of an archive to a builder that may have other objects; `name` is for messages.

    file: buffered, so that it can be peeked into.  Raises UsageError, FileError.
    """
    return Adder(builder, report).archive(file, name)


class Adder:
    """Adds objects of any size to a builder: small ones go into packs, large ones are streamed."""

    def __init__(self, builder: CheckpointBuilder, report: Report) -> None:
        self._builder = builder
        self._report = report
        self._names: set[str] = set()

    def add(
        self, name: str, source: Contents | None, size: int, attributes: dict[str, Any] | None
    ) -> None:
        """One object of `size` bytes, as far as is known before it is read; `source` is None for what has no contents.

        Raises FileError, UsageError.
        """
        check_name(name)
        if attributes is not None:
            check_attributes(attributes, 0, f"{name!r}")
        if name == SUMMARY_NAME:
            raise UsageError(
                f"{name} is there already, and sealing makes its own", hint="remove it"
            )
        if name in self._names:
            raise FileError(f"archive member {name!r} occurs twice")
        self._names.add(name)
        if source is None:
            self._builder.add(name, b"", attributes)
            return
        limit = PACK_LIMIT[role_of(name)]
        head = _read(source, size + 1 if size <= limit else _HEAD)
        if len(head) <= size <= limit:
            self._builder.add(name, head, attributes)
            return
        self._builder.summary.observe(name, head)
        large = self._builder.large(name, attributes)
        try:
            large.write(head)
            while got := source.readinto(large.space()):
                large.wrote(got)
                self._progress()
            large.finish()
        except BaseException:
            large.abandon()
            raise

    def _progress(self) -> None:
        pipeline = self._builder.pipeline
        self._report(
            Progress(
                pipeline.plain_bytes, zero=pipeline.zero_bytes, compressed=pipeline.compressed_bytes
            )
        )

    def directory(self, path: str, prefix: str) -> None:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                name = prefix + _utf8(entry.name)
                self._member(entry.path, name, entry.stat(follow_symlinks=False))

    def _member(self, path: str, name: str, status: os.stat_result) -> None:
        attributes = {
            "type": "file",
            "mode": str(stat.S_IMODE(status.st_mode)),
            "uid": str(status.st_uid),
            "gid": str(status.st_gid),
            "mtime": str(max(0, status.st_mtime_ns)),
        }
        if stat.S_ISREG(status.st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with open(fd, "rb", buffering=0) as file:
                self.add(name, file, status.st_size, attributes)
        elif stat.S_ISDIR(status.st_mode):
            self.add(name, None, 0, attributes | {"type": "directory"})
            self.directory(path, name + "/")
        elif stat.S_ISLNK(status.st_mode):
            link = _utf8(os.readlink(path))
            self.add(name, None, 0, attributes | {"type": "symlink", "link": link})
        else:
            raise UsageError(
                f"{path} is neither file, directory nor link", hint="only those can be sealed"
            )

    def archive(self, file: IO[bytes], path: str) -> Sealed:
        magic = file.peek(len(MAGIC))[: len(MAGIC)]  # type: ignore[attr-defined]
        if magic == MAGIC:
            raise UsageError(
                f"{path} is a sealed checkpoint already",
                hint="sealpoint rekey changes who can open it, sealpoint open makes it plain again",
            )
        source: Source = file
        compression = "none"
        if magic.startswith(_GZIP):
            import gzip

            source, compression = gzip.GzipFile(fileobj=file), "gzip"
        elif magic.startswith(_ZSTD):
            import zstandard

            reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            source, compression = reader.stream_reader(file, read_across_frames=True), "zstd"
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
        return Sealed({"layout": "archive", "compression": compression}, tuple(sorted(tar.ignored)))

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
        if member.kind in ("character", "block"):
            attributes |= {"major": str(member.major), "minor": str(member.minor)}
        if member.xattrs:
            attributes["xattrs"] = {
                key: base64.b64encode(value).decode() for key, value in member.xattrs.items()
            }
        self.add(name, tar if member.kind == "file" else None, member.size, attributes)


def _read(source: Contents, size: int) -> bytes:
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


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FileError(
            f"the name '{text}' is not UTF-8, and a sealed file holds no others",
            hint="rename it, or leave it out",
        ) from None
    return text
