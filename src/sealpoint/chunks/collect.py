"""What a chunk store holds, and which of it nobody refers to any more.  Takes no key.

Who refers to a chunk, the public index of each sealed file says.  Nothing of that is authenticated here: whoever can
change those files can make them worthless anyhow, and a false reference only keeps a chunk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sealpoint.chunks.directory import CHUNKS, ChunkDirectory
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import MAGIC
from sealpoint.format.index import Index
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.store.naming import PARTIAL

_SUFFIX = ".sealed"


@dataclass(frozen=True, slots=True)
class Referring:
    """One sealed file.  size: of the file itself; chunks: that it refers to; referred: bytes of those."""

    path: str
    size: int
    chunks: int
    referred: int


@dataclass(slots=True)
class Statistics:
    """Of one store; sizes in bytes, as files are long.

    files: sealed files that refer to chunks; stored: bytes of all chunks; unused: of those that no file refers to;
    missing: chunks that are referred to and not there.
    """

    files: list[Referring] = field(default_factory=list)
    chunks: int = 0
    stored: int = 0
    unused_chunks: int = 0
    unused: int = 0
    missing: int = 0

    @property
    def together(self) -> int:
        """Bytes that the files take with the chunks."""
        return sum(f.size for f in self.files) + self.stored

    @property
    def alone(self) -> int:
        """Bytes that the files would take if each had its chunks itself."""
        return sum(f.size + f.referred for f in self.files)


@dataclass(slots=True)
class Collected:
    """What a collection removed.  freed: bytes; kept, removed: chunks; files: that were looked at; elsewhere:
    directories beside the chunks that were not.
    """

    files: int = 0
    kept: int = 0
    removed: int = 0
    freed: int = 0
    elsewhere: list[str] = field(default_factory=list)


def statistics(directory: ChunkDirectory, others: Sequence[str] = ()) -> Statistics:
    """others: directories that also hold sealed files which refer to this store.

    Raises FileError, SystemEnvironmentError.
    """
    found, wanted = Statistics(), set[bytes]()
    for path, size, index in _indexes([directory.path, *others]):
        if index.references:
            references = [index.reference(n) for n in range(index.references)]
            referred = sum(r.length for r in references)
            wanted.update(r.identifier for r in references)
            found.files.append(Referring(path, size, len(references), referred))
    for identifier, size in directory.entries():
        found.chunks, found.stored = found.chunks + 1, found.stored + size
        if identifier in wanted:
            wanted.remove(identifier)
        else:
            found.unused_chunks, found.unused = found.unused_chunks + 1, found.unused + size
    found.missing = len(wanted)
    return found


def collect(
    directory: ChunkDirectory, others: Sequence[str] = (), *, dry_run: bool = False
) -> Collected:
    """Remove chunks that no sealed file in the store's directory, or in `others`, refers to.  Needs the lock alone.

    Raises FileError, and nothing is removed, where a sealed file cannot be read; SystemEnvironmentError.
    """
    done, wanted = Collected(), set[bytes]()
    for _, _, index in _indexes([directory.path, *others]):
        done.files += 1
        wanted.update(index.reference(n).identifier for n in range(index.references))
    done.elsewhere = _directories(directory.path)
    for identifier, size in directory.entries():
        if identifier in wanted:
            done.kept += 1
        else:
            done.removed, done.freed = done.removed + 1, done.freed + size
            if not dry_run:
                directory.remove(identifier)
    if not dry_run:
        directory.remove_leftovers()
    return done


def _indexes(directories: Sequence[str]) -> Iterator[tuple[str, int, Index]]:
    """(path, bytes, index) of every sealed file.  Raises FileError where one cannot be read, SystemEnvironmentError."""
    for directory in dict.fromkeys(map(os.path.realpath, directories)):
        if not os.path.isdir(directory):
            raise UsageError(f"{directory} is not a directory")
        seen = set[str]()
        # A file that gets another name meanwhile can be missing in a listing: look until there is nothing new.
        while paths := sorted(set(_files(directory)) - seen):
            seen.update(paths)
            for path in paths:
                read = _index(path)
                if read is not None:
                    yield path, *read


def _files(directory: str) -> list[str]:
    """Raises FileError, SystemEnvironmentError."""
    try:
        with os.scandir(directory) as found:
            return [e.path for e in found if _may_refer(e)]
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read {directory}: {error.strerror}") from None


def _may_refer(entry: os.DirEntry[str]) -> bool:
    """Raises FileError for a link that leads nowhere: what it names may be there again tomorrow."""
    if entry.is_symlink() and entry.name.endswith(_SUFFIX) and not os.path.exists(entry.path):
        raise FileError(
            f"{entry.path} is a link that leads nowhere",
            hint="what it refers to is not known: repair or remove it",
        )
    return entry.is_file()


def _index(path: str) -> tuple[int, Index] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.endswith(PARTIAL):
            return None  # it has its name by now, which the next listing shows
        raise SystemEnvironmentError(f"cannot read {path}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        if not path.endswith(_SUFFIX) and os.pread(fd, len(MAGIC), 0) != MAGIC:
            return None
        return status.st_size, SealedFile(Descriptor(fd)).claimed_index()
    except FileError as error:
        if path.endswith(PARTIAL):
            # What was not finished refers to nothing: nobody is adding while the store is locked.  What was, has such
            # a name for a moment, or for good where an exchange of names was cut off, or because a user chose it.
            return None
        raise FileError(
            f"{path}: {error.message}", hint="what it refers to is not known: repair or remove it"
        ) from None
    except OSError as error:
        raise SystemEnvironmentError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(fd)


def _directories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as found:
            return sorted(e.path for e in found if e.is_dir() and e.name != CHUNKS)
    except OSError:
        return []
