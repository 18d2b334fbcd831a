"""Finds out in what a checkpoint lies, and opens it as a `Source`: by its first bytes, and by signer where they come
through a pipe.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Final

from sealpoint.errors import FileError, PolicyError, SealpointError, UsageError
from sealpoint.format.constants import MAGIC
from sealpoint.format.raw import ByteSource, Descriptor, read_exactly
from sealpoint.inspect.source import Access, Source
from sealpoint.keys.load import in_file

HEAD: Final = 512  # enough to recognise any of them, tar included
_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")


class _Opened:
    """A source as a context manager."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> Source:
        return self.source

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.source.close()


def open_source(path: str, access: Access) -> _Opened:
    """A context manager that gives the Source at `path`: a sealed file, an archive, or a directory of plain or sealed
    images; "-" is a sealed file or an archive from standard input.

    Raises FileError, PolicyError, IdentityError, UsageError, SystemEnvironmentError.
    """
    return _Opened(find_source(path, access))


def find_source(path: str, access: Access) -> Source:
    """As open_source; the caller closes it."""
    if path != "-" and os.path.isdir(path):
        return _open_directory(path, access)
    from sealpoint.store.source import open_input

    label = "standard input" if path == "-" else path
    try:
        file = open_input(path, limit=access.limit, admit=_Admission(label, access).feed)
    except (FileError, PolicyError) as error:
        raise in_file(error, label) from None
    archive: Source | None = None
    owned: ByteSource | None = file
    try:
        head = read_exactly(file, min(file.size, HEAD), 0)
        if head.startswith(MAGIC):
            from sealpoint.inspect.sealed import SealedSource

            owned = None  # it closes it
            return SealedSource.take(file, path, access)
        if is_container(head) and isinstance(file, Descriptor):
            from sealpoint.inspect.archive import ArchiveSource

            archive = ArchiveSource(file.fd, label)
    except BaseException as error:
        if owned is not None:
            owned.close()
        if isinstance(error, SealpointError) and not error.message.startswith(label):
            raise in_file(error, label) from None
        raise
    if archive is not None:
        return _decrypted(archive, access)
    file.close()
    raise _neither(label)


class _Admission:
    """Judges what comes from a pipe before it is held: a sealed file by its signer, anything else by its kind."""

    def __init__(self, label: str, access: Access) -> None:
        self._label, self._access = label, access
        self._head = bytearray()
        self._front: Callable[[memoryview], None] | None = None

    def feed(self, piece: memoryview) -> None:
        """Raises FileError, PolicyError, UsageError."""
        if self._front is not None:
            self._front(piece)
            return
        if len(self._head) >= HEAD:
            return
        self._head += piece
        head = bytes(self._head[:HEAD])
        if head.startswith(MAGIC):
            from sealpoint.checkpoint import Front

            self._front = Front(self._access.policy()).feed
            self._front(memoryview(self._head))
        elif len(head) == HEAD and not is_container(head):
            raise _neither(self._label)


def _neither(label: str) -> UsageError:
    return UsageError(
        f"{label} is neither a sealed file nor an archive (tar, tar.gz, tar.zst)",
        hint="read one image with sealpoint crit; name a dump by its directory",
    )


def is_container(head: bytes) -> bool:
    """Whether a file that begins so is a sealed file or an archive."""
    return head.startswith((MAGIC, *_COMPRESSED)) or head[257:262] == b"ustar"


def _open_directory(path: str, access: Access) -> Source:
    """Of plain images; or of sealed files, then the newest of their chain."""
    from sealpoint.checkpoint import newest_in
    from sealpoint.inspect.directory import DirectorySource

    sealed = newest_in(path)
    if sealed is None:
        return _decrypted(DirectorySource(path, access, find_source), access)
    from sealpoint.inspect.sealed import SealedSource

    return SealedSource.open(sealed, access)


def _decrypted(files: Source, access: Access) -> Source:
    from sealpoint.inspect.encrypted import decrypted

    return decrypted(files, access)
