"""A sealed file as a source: authenticated before anything is read, decrypted chunk by chunk in memory.

What its pages need, parents, a pages file, the chunks of a store, is found as a restore finds it, when it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sealpoint.checkpoint import (
    DELTA_NAME,
    CheckedFile,
    OpenedCheckpoint,
    describe_stanza,
    separate_pages,
)
from sealpoint.criu.roles import SUMMARY_NAME, role_of
from sealpoint.errors import FileError, IdentityError
from sealpoint.format.constants import Role, Roots
from sealpoint.format.opened import Scratch
from sealpoint.format.raw import ByteSource
from sealpoint.inspect.source import PARENT_ELSEWHERE, READ_LIMIT, inside
from sealpoint.keys.load import in_file

if TYPE_CHECKING:
    from sealpoint.checkpoint import Runs
    from sealpoint.format.manifest import Entry, Stream
    from sealpoint.format.opened import OpenFile
    from sealpoint.inspect.source import Access, Source

_CACHE: Final = 32 * 1024 * 1024  # bytes of decrypted chunks that are kept for small reads
_PIECE: Final = 1024 * 1024  # bytes of an increment's pages that are put together at a time


class SealedSource:
    """See Source.  One file of a checkpoint: the newest, or by way of `parent` one before.

    opened: the file, with its pages file, and the images of sealed files inside it; checkpoint: what is public of it
    and who signed it.
    """

    def __init__(self, checkpoint: OpenedCheckpoint, number: int = 0) -> None:
        """Takes over `checkpoint` where it is of its newest file.  Raises FileError, PolicyError, IdentityError."""
        self._whose, self._number = checkpoint, number
        link = checkpoint.links[number]
        self.label = "standard input" if link.path == "-" else link.path
        self.checkpoint: CheckedFile = link.checkpoint
        self._parent: SealedSource | None = None
        self._chunks: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._scratch = Scratch()
        self.opened: OpenFile = checkpoint.inside(number)
        self._entries: dict[str, Entry] = {}
        self._links: dict[str, str] = {}
        hard: dict[str, str] = {}
        for name, entry in self.opened.entries.items():
            attributes = entry.attributes or {}
            kind = attributes.get("type", "file")
            if kind == "file":
                self._entries[name] = entry
            elif kind == "symlink":
                self._links[name] = attributes["link"]
            elif kind == "hardlink":
                hard[name] = attributes["link"]
        for name, target in hard.items():
            if target in self._entries:
                self._entries[name] = self._entries[target]
        self._whole: dict[str, Runs] = {}
        self._is_delta = self._entries.pop(DELTA_NAME, None) is not None
        if self._is_delta:  # its pages are put together from all files of its chain
            flat = checkpoint.flat_from(number)
            self._reader = flat.chunk_reader()
            self._whole = {n: i.runs for n, i in flat.images.items() if i.runs is not None}

    @classmethod
    def open(cls, path: str, access: Access) -> SealedSource:
        """Raises FileError, PolicyError, IdentityError, UsageError, SystemEnvironmentError."""
        return cls._of(access.opening().open(path))

    @classmethod
    def take(cls, source: ByteSource, path: str, access: Access) -> SealedSource:
        """As `open`, from a descriptor, which it takes over, and closes if it fails."""
        return cls._of(access.opening().take(source, path))

    @classmethod
    def _of(cls, checkpoint: OpenedCheckpoint) -> SealedSource:
        try:
            return cls(checkpoint)
        except BaseException:
            checkpoint.close()
            raise

    def names(self) -> list[str]:
        """See Source; in the order in which they were sealed, without the sealer's summary."""
        found = sorted(self._entries.items(), key=lambda item: item[1].number)
        return [name for name, _ in found if name != SUMMARY_NAME]

    def summary(self) -> bytes | None:
        """The sealer's summary object, which metadata identities read in place of memory images."""
        entry = self._entries.get(SUMMARY_NAME)
        return None if entry is None else self.opened.read_bytes(entry)

    def exists(self, name: str) -> bool:
        """See Source."""
        return name in self._entries

    def withheld(self, name: str) -> bool:
        """See Source."""
        return not self.opened.has_memory and role_of(name) is Role.MEMORY

    def withheld_objects(self) -> tuple[int, int]:
        """How many objects are withheld from this identity, and how many bytes they have."""
        if self.opened.has_memory:
            return 0, 0
        sizes = self.opened.manifests[Role.METADATA].memory.values()
        return len(sizes), sum(sizes)

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        if self.withheld(name):
            raise IdentityError(
                f"{self.label}:{name} is of the memory role, and the identity given opens metadata only",
                hint=f"use the identity of: {', '.join(self.memory_recipients())}",
            )
        pages = separate_pages.reference(self.opened)
        if (
            pages is not None
            and separate_pages.lacks_pages(self.opened)
            and separate_pages.belongs(name)
        ):
            raise in_file(separate_pages.missing(pages), self.label)
        raise FileError(f"{self.label} has no {name}")

    def memory_recipients(self) -> list[str]:
        """Who could open the memory, as messages name them."""
        stanzas = self.checkpoint.authentic.slot.stanzas
        return [describe_stanza(s) for s in stanzas if s.roots is Roots.BOTH]

    def size(self, name: str) -> int:
        """See Source."""
        entry = self._entry(name)
        return self._whole[name].size if name in self._whole else entry.size

    def role(self, name: str) -> Role:
        """See Source."""
        return self._entry(name).role

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """See Source."""
        if self.size(name) > limit:
            raise FileError(f"{self.label}:{name} is larger than {limit} bytes")
        return self.pread(name, 0, self.size(name))

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """See Source."""
        if name in self._whole:
            return b"".join(map(bytes, self.chunks(name, offset, size)))
        entry = self._entry(name)
        stream = entry.stream
        begin = entry.offset + min(offset, entry.size)
        end = min(begin + size, entry.offset + entry.size)
        out = bytearray()
        while begin < end:
            counter, skip = divmod(begin, stream.chunk_size)
            piece = self._chunk(stream, counter)[skip : skip + end - begin]
            out += piece
            begin += len(piece)
        return bytes(out)

    def _chunk(self, stream: Stream, counter: int) -> memoryview:
        key = (stream.number, counter)
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
            return chunk
        while self._chunks and sum(map(len, self._chunks.values())) > _CACHE - stream.chunk_size:
            self._chunks.popitem(last=False)
        chunk = memoryview(bytearray(stream.plain_size(counter)))
        self.opened.read_chunk_into(stream, counter, chunk, self._scratch)
        self._chunks[key] = chunk
        return chunk

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """See Source.  Decrypted into a buffer of this call's own, without another copy."""
        if name in self._whole:
            return self._assembled(self._whole[name], offset, size)
        return self.opened.read(self._entry(name), Scratch(), start=offset, size=size)

    def _assembled(self, runs: Runs, offset: int, size: int | None) -> Iterator[memoryview]:
        end = runs.size if size is None else min(runs.size, offset + size)
        buffer = memoryview(bytearray(max(0, min(_PIECE, end - offset))))
        while offset < end:
            have = runs.fill(buffer[: end - offset], offset, self._reader)
            yield buffer[:have]
            offset += have

    def parent(self, prefix: str) -> tuple[Source, str] | None:
        """See Source: a link in a sealed archive, or the sealed file that an increment names."""
        name = prefix + "parent"
        if name in self._links:
            target = inside(prefix, self._links[name])
            if target is None or not any(n.startswith(target) for n in self._entries):
                raise FileError(
                    f"{self.label}:{name} leads to no images of this file", hint=PARENT_ELSEWHERE
                )
            return self, target
        if self._is_delta or self.checkpoint.authentic.origin.parent is None:
            return None
        if self._parent is None:
            below = self._number + 1
            if below == len(self._whose.links):
                self._whose.extend()
            self._parent = SealedSource(self._whose, below)
        return self._parent, prefix

    def close(self) -> None:
        """See Source."""
        self._whose.close()
