"""An engine's archive (tar, plain or in gzip or zstd) as a source, without unpacking it anywhere.

A plain archive is read in place.  A compressed one can only be read front to back: small members are kept in memory as
it is looked through once, of large ones every read goes on where the last one ended, or starts over if it lies before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sealpoint.checkpoint import TarReader
from sealpoint.criu.roles import role_of
from sealpoint.errors import FileError, left_out
from sealpoint.format.manifest import check_name
from sealpoint.inspect import directory
from sealpoint.inspect.source import PARENT_ELSEWHERE, READ_LIMIT, inside

if TYPE_CHECKING:
    from sealpoint.format.constants import Role
    from sealpoint.inspect.source import Source
    from sealpoint.inspect.spool import Spool

_MAX_MEMBERS: Final = 1 << 19
_KEPT: Final = 256 * 1024  # bytes of a member of a compressed archive that is kept
_KEPT_IN_ALL: Final = 64 * 1024 * 1024
_MAX_WINDOW: Final = 128 * 1024 * 1024  # what a zstd decoder may allocate
_STEP: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int  # in the plain archive
    size: int
    data: bytes | None = None


class _File:
    """A file read from a position, for TarReader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self.position = 0

    def read(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self.position)
        self.position += len(data)
        return data

    def skip(self, size: int) -> int:
        """Go on behind what need not be read; returns how far, less than `size` where the file ends."""
        size = min(size, max(0, self._size - self.position))
        self.position += size
        return size


class _Decoder:
    """The plain bytes of a compressed file, front to back."""

    def __init__(self, fd: int, label: str, *, gzip: bool) -> None:
        self._file = os.fdopen(os.dup(fd), "rb", buffering=0)
        self._file.seek(0)
        self.position = 0
        self._label = label
        self._stream: Any
        if gzip:
            import gzip as module
            import zlib

            self._stream = module.GzipFile(fileobj=self._file)
            self._errors: tuple[type[Exception], ...] = (
                EOFError,
                zlib.error,
                module.BadGzipFile,
            )
        else:
            import zstandard

            decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
            self._stream = decoder.stream_reader(self._file, read_across_frames=True, closefd=False)
            self._errors = (zstandard.ZstdError,)

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except self._errors as error:
            raise FileError(f"{self._label}: damaged compressed data ({error})") from None
        self.position += len(data)
        return data

    def close(self) -> None:
        self._stream.close()
        self._file.close()


class ArchiveSource:
    """See Source."""

    def __init__(self, fd: int, label: str) -> None:
        """Takes over `fd` if it succeeds.  Raises FileError."""
        self.label = label
        self._fd = fd
        self._members: dict[str, _Member] = {}
        self._links: dict[str, str] = {}
        self._decoder: _Decoder | None = None
        self._spool: Spool | None = None
        head = os.pread(fd, 4, 0)
        self.compression = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(head[:2], "none")
        if self.compression == "none":
            self._index(_File(fd))
        else:
            decoder = self._decode()
            try:
                self._index(decoder)
            finally:
                decoder.close()

    def _decode(self) -> _Decoder:
        return _Decoder(self._fd, self.label, gzip=self.compression == "gzip")

    def _index(self, source: _File | _Decoder) -> None:
        tar = TarReader(source)
        hard: list[tuple[str, str]] = []
        kept = 0
        for count, member in enumerate(tar):
            if count >= _MAX_MEMBERS:
                raise FileError(f"{self.label}: the archive has too many members")
            name = _clean(member.name)
            if member.kind == "file":
                offset, data = source.position, None
                if self.compression != "none" and member.size <= min(_KEPT, _KEPT_IN_ALL - kept):
                    data = _take(tar, member.size)
                    kept += len(data)
                check_name(name)
                if name in self._members:
                    raise FileError(f"{self.label}: archive member {name!r} occurs twice")
                self._members[name] = _Member(offset, member.size, data)
            elif member.kind == "symlink":
                self._links[name] = member.link
            elif member.kind == "hardlink":
                hard.append((name, _clean(member.link)))
        for name, target in hard:
            if target in self._members:
                self._members.setdefault(name, self._members[target])
            else:
                left_out(f"{self.label}:{name} is a link to {target}, which is not in the archive")
        for name in self._links:
            if name.endswith(".img"):
                left_out(f"{self.label}:{name} is a symbolic link, and is not followed")

    def _member(self, name: str) -> _Member:
        try:
            return self._members[name]
        except KeyError:
            raise FileError(f"{self.label} has no {name}") from None

    def names(self) -> list[str]:
        """See Source."""
        return list(self._members)

    def exists(self, name: str) -> bool:
        """See Source."""
        return name in self._members

    def withheld(self, name: str) -> bool:  # noqa: ARG002 - see Source
        """Nothing is."""
        return False

    def size(self, name: str) -> int:
        """See Source."""
        return self._member(name).size

    def role(self, name: str) -> Role:
        """See Source."""
        return role_of(name)

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """See Source."""
        size = self._member(name).size
        if size > limit:
            raise FileError(f"{self.label}:{name} is larger than {limit} bytes")
        return self.pread(name, 0, size)

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """See Source."""
        return b"".join(bytes(piece) for piece in self.chunks(name, offset, size))

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """See Source."""
        member = self._member(name)
        rest = max(0, member.size - offset)
        rest = rest if size is None else min(size, rest)
        if member.data is not None:
            return iter([memoryview(member.data)[offset : offset + rest]] if rest else [])
        if self.compression == "none":
            return directory.chunks(self._fd, member.offset + offset, rest, self.label)
        return self._decoded(member.offset + offset, rest)

    def _decoded(self, offset: int, size: int) -> Iterator[memoryview]:
        while size > 0:
            data = self._plain(offset, min(_STEP, size))
            if not data:
                raise FileError(f"{self.label} has become shorter while it was read")
            yield memoryview(data)
            offset += len(data)
            size -= len(data)

    def _plain(self, offset: int, size: int) -> bytes:
        if self._spool is None:
            decoder = self._decoder = self._decoder or self._decode()
            while decoder.position < offset:
                if not decoder.read(min(_STEP, offset - decoder.position)):
                    break
            if decoder.position == offset:
                return decoder.read(size)
            self._spool = self._spooled()
        return self._spool.read(offset, size)

    def _spooled(self) -> Spool:
        from sealpoint.inspect.spool import Spool

        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        spool, decoder = Spool(), self._decode()
        try:
            while data := decoder.read(_STEP):
                spool.append(data)
            spool.finish()
        except BaseException:
            spool.close()
            raise
        finally:
            decoder.close()
        return spool

    def parent(self, prefix: str) -> tuple[Source, str] | None:
        """See Source."""
        link = self._links.get(prefix + "parent")
        if link is None:
            return None
        target = inside(prefix, link)
        if target is None or not any(name.startswith(target) for name in self._members):
            raise FileError(
                f"{self.label}:{prefix}parent leads to no images of this archive",
                hint=PARENT_ELSEWHERE,
            )
        return self, target

    def close(self) -> None:
        """See Source."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _clean(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name.rstrip("/")


def _take(tar: TarReader, size: int) -> bytes:
    data = memoryview(bytearray(size))
    have = 0
    while have < size:
        have += tar.readinto(data[have:])
    return bytes(data)
