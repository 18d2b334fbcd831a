"""A chain as one full checkpoint: every image whole, pages put together from whichever file of the chain has them.

CRIU is always given a flat set of images: when it streams it cannot read parents at all, and readers need not know of
chains.  Each page is taken from one place; what a later file replaced is never read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import PAGE, PRESENT, Pagemap
from sealpoint.errors import FileError
from sealpoint.format.constants import CHUNK_SIZE
from sealpoint.format.manifest import Entry, Stream
from sealpoint.format.reader import OpenFile, Scratch

_PIECE: Final = CHUNK_SIZE  # bytes that `Flat.read` yields at a time
_CACHE_BYTES: Final = 64 * 1024 * 1024  # decrypted chunks that one sequential reader keeps
_MAX_PAGEMAP: Final = 1 << 30

Chunk = Callable[[int, Stream, int], memoryview]
"""(number of the file in the chain, stream, counter) -> plaintext, valid until the next call."""


@dataclass(slots=True)
class Runs:
    """Where the bytes of an assembled image lie.

    Run k: from byte `starts[k]` of the image to the start of the next, in `objects[sources[k]]` from byte `offsets[k]`.
    """

    objects: list[tuple[int, Entry]] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("Q"))
    sources: array[int] = field(default_factory=lambda: array("I"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0
    _numbers: dict[tuple[int, str], int] = field(default_factory=dict)

    def add(self, file: int, entry: Entry, offset: int, size: int) -> None:
        """Append `size` bytes of an object of the chain's file `file`."""
        source = self._numbers.setdefault((file, entry.name), len(self.objects))
        if source == len(self.objects):
            self.objects.append((file, entry))
        joined = (
            self.sources
            and self.sources[-1] == source
            and self.offsets[-1] + self.size - self.starts[-1] == offset
        )
        if not joined:
            self.starts.append(self.size)
            self.sources.append(source)
            self.offsets.append(offset)
        self.size += size

    def parts(self, begin: int, end: int) -> Iterator[tuple[int, Entry, int, int]]:
        """(file, object, offset in the object, size) of the pieces of bytes `begin` to `end`."""
        at = bisect_right(self.starts, begin) - 1
        while begin < end:
            stop = self.starts[at + 1] if at + 1 < len(self.starts) else self.size
            take = min(end, stop) - begin
            file, entry = self.objects[self.sources[at]]
            yield file, entry, self.offsets[at] + begin - self.starts[at], take
            begin += take
            at += 1

    def fill(self, out: memoryview, begin: int, chunk: Chunk) -> int:
        """Put the bytes from `begin` on into `out`; returns how many.  Raises FileError."""
        end = min(begin + len(out), self.size)
        done = 0
        for file, entry, offset, size in self.parts(begin, end):
            position, left = entry.offset + offset, size
            while left:
                counter, skip = divmod(position, entry.stream.chunk_size)
                plain = chunk(file, entry.stream, counter)
                take = min(left, len(plain) - skip)
                if take <= 0:
                    raise FileError(f"object {entry.name!r} is shorter than its pagemap says")
                out[done : done + take] = plain[skip : skip + take]
                done += take
                position += take
                left -= take
        return done

    def chunks(self) -> Iterator[tuple[int, Stream, int]]:
        """Every chunk that some byte comes from, once each, file by file."""
        seen: dict[int, set[int]] = {}
        for source, offset, start, stop in zip(
            self.sources, self.offsets, self.starts, [*self.starts[1:], self.size], strict=True
        ):
            entry = self.objects[source][1]
            begin = entry.offset + offset
            size = entry.stream.chunk_size
            wanted = range(begin // size, (begin + stop - start - 1) // size + 1)
            seen.setdefault(source, set()).update(wanted)
        for source, counters in seen.items():
            file, entry = self.objects[source]
            yield from ((file, entry.stream, counter) for counter in sorted(counters))


@dataclass(slots=True)
class Image:
    """One image of the flat set: an object as it is, or `data`, or pages put together from `runs`.

    entry: the object of that name in the newest file; None only for pages of which the newest file has none itself.
    """

    name: str
    size: int
    entry: Entry | None = None
    data: bytes | None = None
    runs: Runs | None = None


class Flat:
    """The images of a chain, by name.  files: newest first."""

    def __init__(self, files: Sequence[OpenFile]) -> None:
        """Reads the pagemaps that name parents, nothing else.  Raises FileError, IdentityError."""
        self.files = list(files)
        self.top = files[0]
        self.images = {e.name: Image(e.name, e.size, e) for e in self.top.entries.values()}
        self._tables: dict[tuple[int, str], tuple[Pagemap, Entry | None]] = {}
        if len(files) > 1 and self.top.has_memory:
            for name in [n for n in self.images if pagemap.is_pagemap(n)]:
                self._flatten(name)

    def chunk_reader(self) -> ChunkReader:
        """For one sequential reader."""
        return ChunkReader(self.files)

    def read(self, image: Image, scratch: Scratch | None = None) -> Iterator[memoryview]:
        """The bytes of an image, piece by piece; each is overwritten by the next.  Raises FileError."""
        if image.data is not None:
            yield memoryview(image.data)
        elif image.runs is not None:
            reader, buffer, done = self.chunk_reader(), memoryview(bytearray(_PIECE)), 0
            while done < image.size:
                size = image.runs.fill(buffer, done, reader.chunk)
                yield buffer[:size]
                done += size
        elif image.entry is not None:
            yield from self.top.read(image.entry, scratch)

    def chunks(self) -> Iterator[tuple[int, Stream, int]]:
        """Every chunk that the flat set needs: of the newest file all that are not freed, of others what is used."""
        for stream in self.top.streams():
            for counter in range(stream.chunks):
                if not self.top.is_freed(stream, counter):
                    yield 0, stream, counter
        for image in self.images.values():
            if image.runs is not None:
                yield from (c for c in image.runs.chunks() if c[0])

    def _table(self, file: int, name: str) -> tuple[Pagemap, Entry | None]:
        """A pagemap of one file, and its pages."""
        if (file, name) not in self._tables:
            if file >= len(self.files):
                raise FileError(f"{name}: names a parent, but the chain has no further file")
            entry = self.files[file].entries.get(name)
            if entry is None:
                raise FileError(f"{name}: is not in the parent that a later file refers to")
            table = pagemap.decode(self.files[file].read_bytes(entry, _MAX_PAGEMAP), name)
            pages = self.files[file].entries.get(table.pages_name)
            if (pages.size if pages else 0) != table.pages * PAGE:
                raise FileError(f"{name}: does not fit {table.pages_name}")
            self._tables[file, name] = (table, pages)
        return self._tables[file, name]

    def _flatten(self, name: str) -> None:
        table, _ = self._table(0, name)
        if not table.needs_parent:
            return
        whole = Pagemap(table.pages_id, table.wide)
        runs = Runs()
        resolved = pagemap.resolve(lambda file: self._table(file, name)[0])
        for file, start, count, flags, offset in resolved:
            whole.add(start, count, flags)
            if flags & PRESENT:
                pages = self._table(file, name)[1]
                assert pages is not None
                runs.add(file, pages, offset * PAGE, count * PAGE)
        data = pagemap.encode(whole)
        self.images[name] = Image(name, len(data), self.top.entries[name], data)
        own = self.top.entries.get(whole.pages_name)
        self.images[whole.pages_name] = Image(whole.pages_name, runs.size, own, runs=runs)


class ChunkReader:
    """Decrypted chunks of a chain for one thread that reads more or less in order."""

    def __init__(self, files: Sequence[OpenFile]) -> None:
        self._files = files
        self._scratch = Scratch()
        self._chunks: OrderedDict[tuple[int, int, int], memoryview] = OrderedDict()
        self._bytes = 0

    def chunk(self, file: int, stream: Stream, counter: int) -> memoryview:
        """Plaintext of a chunk.  Raises FileError."""
        key = (file, stream.number, counter)
        data = self._chunks.get(key)
        if data is None:
            buffer = self._take(stream.chunk_size)
            size = self._files[file].read_chunk_into(stream, counter, buffer, self._scratch)
            data = self._chunks[key] = buffer[:size]
        self._chunks.move_to_end(key)
        return data

    def _take(self, size: int) -> memoryview:
        if self._bytes + size > _CACHE_BYTES and self._chunks:
            _, oldest = self._chunks.popitem(last=False)
            buffer = memoryview(oldest.obj)
            if len(buffer) >= size:
                return buffer
            self._bytes -= len(buffer)
        self._bytes += size
        return memoryview(bytearray(size))
