"""Seal what exists in the clear: a directory of images, or an engine's archive (tar, plain or in gzip or zstd).

An archive is recognised by its content.  Out of scope: opening again (`extract`).
"""

from __future__ import annotations

import base64
import gzip
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, Final, cast

from sealpoint.checkpoint.builder import PACK_LIMIT, CheckpointBuilder
from sealpoint.checkpoint.progress import Progress, Report
from sealpoint.criu.roles import role_of
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.manifest import check_name

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_TAR_HEADER: Final = (
    1024 * 1024
)  # of one pax or long-name record: tarfile reads it in one piece
_MAX_WINDOW: Final = 128 * 1024 * 1024  # of a zstd archive: what its decoder may allocate
_EXTENDED: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_XATTR: Final = "SCHILY.xattr."
_TYPES: Final = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "character",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


def seal_path(path: str, builder: CheckpointBuilder, report: Report) -> dict[str, str]:
    """Add everything in `path` to the builder; returns the manifest's properties.

    Raises UsageError (not something that can be sealed), FileError (damaged archive), SystemEnvironmentError.
    """
    adder = _Adder(builder, report)
    try:
        if os.path.isdir(path):
            adder.directory(path, "")
            return {"layout": "directory"}
        with open(path, "rb") as file:
            compression = adder.archive(file, path)
            return {"layout": "archive", "compression": compression}
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename or path} does not exist") from None
    except OSError as error:
        raise SystemEnvironmentError(
            f"cannot read {error.filename or path}: {error.strerror}"
        ) from None


class _Adder:
    def __init__(self, builder: CheckpointBuilder, report: Report) -> None:
        self._builder = builder
        self._report = report
        self._names: set[str] = set()

    def _add(
        self, name: str, source: IO[bytes] | None, size: int, attributes: dict[str, Any]
    ) -> None:
        if source is None:
            self._builder.add(name, b"", attributes)
            return
        if size <= PACK_LIMIT[role_of(name)]:
            data = source.read(size + 1)
            if len(data) <= size:
                self._builder.add(name, data, attributes)
                return
        else:
            data = b""
        large = self._builder.large(name, attributes)
        try:
            large.write(data)
            while got := cast("BinaryIO", source).readinto(large.space()):  # type: ignore[attr-defined]
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
                self._member(
                    entry.path, prefix + _utf8(entry.name), entry.stat(follow_symlinks=False)
                )

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
            with os.fdopen(fd, "rb", buffering=0) as file:
                self._add(name, cast("IO[bytes]", file), status.st_size, attributes)
        elif stat.S_ISDIR(status.st_mode):
            self._add(name, None, 0, attributes | {"type": "directory"})
            self.directory(path, name + "/")
        elif stat.S_ISLNK(status.st_mode):
            link = _utf8(os.readlink(path))
            self._add(name, None, 0, attributes | {"type": "symlink", "link": link})
        else:
            raise UsageError(
                f"{path} is neither file, directory nor link", hint="only those can be sealed"
            )

    def archive(self, file: BinaryIO, path: str) -> str:
        magic = file.read(4)
        file.seek(0)
        source: IO[bytes]
        if magic[:2] == _GZIP:
            source, compression = cast("IO[bytes]", gzip.GzipFile(fileobj=file)), "gzip"
        elif magic == _ZSTD:
            import zstandard

            reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            source, compression = reader.stream_reader(file, read_across_frames=True), "zstd"
        else:
            source, compression = file, "none"
        try:
            with tarfile.open(fileobj=source, mode="r|", bufsize=1 << 20, tarinfo=_Member) as tar:
                for member in tar:
                    self._tar_member(tar, member)
                    tar.members = []  # tarfile would remember every member
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, *_decoder_errors()) as error:
            if isinstance(error, tarfile.ReadError) and magic[:2] != _GZIP and magic != _ZSTD:
                raise UsageError(
                    f"{path} is neither a directory nor a tar archive",
                    hint="seal takes an image directory or an engine's archive (tar, tar.gz, tar.zst)",
                ) from None
            raise FileError(f"{path}: damaged archive ({error})") from None
        return compression

    def _tar_member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = _utf8(member.name)
        while name.startswith("./"):
            name = name[2:]
        name = name.rstrip("/")
        if name in ("", "."):
            return  # the archive's own root
        kind = _TYPES.get(member.type)
        if kind is None or member.sparse is not None:
            raise FileError(f"archive member {name!r} is of a kind that cannot be sealed")
        xattrs: dict[str, str] = {}
        attributes: dict[str, Any] = {
            "type": kind,
            "mode": str(member.mode & 0o7777),
            "uid": str(max(0, member.uid)),
            "gid": str(max(0, member.gid)),
            "user": _utf8(member.uname),
            "group": _utf8(member.gname),
            "mtime": str(max(0, int(member.mtime * 1_000_000_000))),
        }
        if kind in ("symlink", "hardlink"):
            attributes["link"] = _utf8(member.linkname)
        if kind in ("character", "block"):
            attributes |= {"major": str(member.devmajor), "minor": str(member.devminor)}
        for key, value in sorted(member.pax_headers.items()):
            if key.startswith(_XATTR):
                raw = value.encode("utf-8", "surrogateescape")
                xattrs[_utf8(key[len(_XATTR) :])] = base64.b64encode(raw).decode()
        if xattrs:
            attributes["xattrs"] = xattrs
        source = tar.extractfile(member) if kind == "file" else None
        if name in self._names:
            raise FileError(f"archive member {name!r} occurs twice")
        self._names.add(name)
        self._add(check_name(name), source, member.size if source else 0, attributes)


class _Member(tarfile.TarInfo):
    """Refuses extended headers of absurd size, which tarfile would read into memory in one piece."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _MAX_TAR_HEADER:
            raise FileError("the archive has a header of absurd size")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member


def _decoder_errors() -> Iterator[type[Exception]]:
    import zlib

    import zstandard

    yield zlib.error
    yield zstandard.ZstdError


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FileError(f"the name {text!r} is not UTF-8") from None
    return text
