"""A chain as one full checkpoint: every image whole, pages put together from whichever file of the chain has them.

CRIU is always given a flat set of images: when it streams it cannot read parents at all, and readers need not know of
chains.  Each page is taken from one place; what a later file replaced is never read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from sealpoint.checkpoint import delta
from sealpoint.checkpoint.delta import DELTA_NAME, Delta, PageRuns
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import PAGE, PRESENT, Pagemap
from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError
from sealpoint.format.constants import CHUNK_SIZE
from sealpoint.format.manifest import Entry, Stream
from sealpoint.format.opened import OpenFile, Scratch

_PIECE: Final = CHUNK_SIZE  # bytes that `Flat.read` yields at a time
_CACHE_BYTES: Final = 64 * 1024 * 1024  # decrypted chunks that one sequential reader keeps
_MAX_TABLE: Final = 1 << 30  # bytes of a pagemap or delta

# The place of a page is one number.
_SOURCE_SHIFT: Final = 32
_PAGE_MASK: Final = (1 << _SOURCE_SHIFT) - 1

_NOTHING: Final = (0, 0, memoryview(b""))


class Reader(Protocol):
    """Gives decrypted chunks.  loads: changes when chunks that were given out before may have become invalid."""

    loads: int

    def chunk(self, file: int, stream: Stream, counter: int) -> memoryview:
        """Plaintext of a chunk of the chain's file number `file`.  Raises FileError."""


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

    def fill(self, out: memoryview, begin: int, reader: Reader) -> int:
        """Put the bytes from `begin` on into `out`; returns how many.  Raises FileError."""
        starts, sources, offsets = self.starts, self.sources, self.offsets
        end = min(begin + len(out), self.size)
        at, done = bisect_right(starts, begin) - 1, 0
        # A page in ten that changed makes very many short runs, in turn from a few chunks: those are kept at hand.
        held: dict[int, tuple[int, int, memoryview]] = {}
        loads = reader.loads
        while begin < end:
            stop = starts[at + 1] if at + 1 < len(starts) else self.size
            source, place = sources[at], offsets[at] + begin - starts[at]
            low, high, plain = held.get(source, _NOTHING)
            if not low <= place < high:
                file, entry = self.objects[source]
                size = entry.stream.chunk_size
                counter, skip = divmod(entry.offset + place, size)
                plain = reader.chunk(file, entry.stream, counter)
                if reader.loads != loads:
                    held, loads = {}, reader.loads
                low, high = place - skip, place - skip + len(plain)
                if place >= high:
                    raise FileError(f"object {entry.name!r} is shorter than its pagemap says")
                held[source] = (low, high, plain)
            take = min(stop, end, begin + high - place) - begin
            out[done : done + take] = plain[place - low : place - low + take]
            done += take
            begin += take
            if begin == stop:
                at += 1
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
        self._deltas: list[Delta] = []
        if DELTA_NAME in self.images:
            del self.images[DELTA_NAME]
            self._read_deltas()
            self._assemble()
        elif len(files) > 1 and self.top.has_memory:
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
                size = image.runs.fill(buffer, done, reader)
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
            table = pagemap.decode(self.files[file].read_bytes(entry, _MAX_TABLE), name)
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

    def _read_deltas(self) -> None:
        """What each file says of its pages, down to the one that has all of them itself.  Raises FileError."""
        for number, file in enumerate(self.files):
            entry = file.entries.get(DELTA_NAME)
            if entry is None:
                break
            self._deltas.append(delta.decode(file.read_bytes(entry, _MAX_TABLE)))
            if number + 1 == len(self.files):
                raise FileError("a delta names a parent, but the chain has no further file")
        for number, table in enumerate(self._deltas):
            entries = self.files[number].entries
            for name, runs in table.images.items():
                entry = entries.get(name)
                if entry is None or entry.size != runs.own_pages * PAGE:
                    raise FileError(f"{name}: does not fit the delta of its file")
            delta.check_claim(table.images, sum(table.parent.values()))
            for name, pages in table.parent.items():
                if pages * PAGE != self._whole_size(number + 1, name):
                    raise FileError(f"{name}: is not in the parent as a later file refers to it")

    def _whole_size(self, file: int, name: str) -> int:
        if file < len(self._deltas):
            table = self._deltas[file].images.get(name)
            return -1 if table is None else table.pages * PAGE
        entry = self.files[file].entries.get(name)
        return -1 if entry is None else entry.size

    @property
    def deltas(self) -> list[Delta]:
        """What each file says of its pages, newest first, without the one that has all of them itself."""
        return self._deltas

    def whole_images(self, file: int) -> dict[str, int]:
        """The pages images of a file of a chain of deltas, put together, and their pages."""
        if file < len(self._deltas):
            return {name: table.pages for name, table in self._deltas[file].images.items()}
        entries = self.files[file].entries.values()
        return {e.name: e.size // PAGE for e in entries if is_pages(e.name)}

    def located(self, *, stop: int = 0) -> Iterator[tuple[str, list[tuple[int, str, int, int]]]]:
        """Of each pages image of the newest file: (file, image, page, count) of where its pages are stored, in order.

        stop: number of a file whose whole images, and those behind it, count as stored; 0: none.  Raises FileError.
        """
        # Page by page from the oldest file up: most pages are where the parent has them, so each file is a copy of the
        # one below it and what differs.  Many short runs, each a few levels deep, would cost more one by one.
        base = stop or len(self._deltas)
        sources: list[tuple[int, str]] = []
        placed: dict[str, array[int]] = {}
        for name, pages in self.whole_images(base).items():
            placed[name] = _places(len(sources), pages)
            sources.append((base, name))
        for file in range(base - 1, -1, -1):
            table = self._deltas[file]
            below, begins = array("Q"), {}
            for name in table.parent:
                begins[name] = len(below)
                below.extend(placed[name])
            placed = {}
            for name, runs in table.images.items():
                placed[name] = _laid(runs, len(sources), below, begins.get(name, 0))
                sources.append((file, name))
        for name, places in placed.items():
            yield name, [(*sources[n], page, count) for n, page, count in _grouped(places)]

    def _assemble(self) -> None:
        for name, parts in self.located():
            runs = Runs()
            for file, image, start, count in parts:
                entry = self.files[file].entries.get(image)
                if entry is None or (start + count) * PAGE > entry.size:
                    raise FileError(f"{image}: has not the pages that a later file refers to")
                runs.add(file, entry, start * PAGE, count * PAGE)
            self.images[name] = Image(name, runs.size, self.top.entries.get(name), runs=runs)


def _places(source: int, pages: int) -> array[int]:
    """The place of each page of a stored image: its source above the number of the page."""
    if pages > _PAGE_MASK:
        raise FileError("a pages image is too large")
    return array("Q", range(source << _SOURCE_SHIFT, (source << _SOURCE_SHIFT) + pages))


def _laid(runs: PageRuns, source: int, below: array[int], begin: int) -> array[int]:
    """The place of each page of an image; `below`: those of all images of the parent, from `begin` on of this one."""
    mine = _places(source, runs.own_pages)
    places = below[begin : begin + runs.pages]
    places.frombytes(bytes(places.itemsize * (runs.pages - len(places))))
    for start, (own, first, count) in zip(runs.starts, runs.runs(), strict=True):
        if own and count == 1:
            places[start] = mine[first]
        elif own:
            places[start : start + count] = mine[first : first + count]
        elif first != begin + start:
            places[start : start + count] = below[first : first + count]
    return places


def _grouped(places: array[int]) -> Iterator[tuple[int, int, int]]:
    """(source, first page, count) of pages that follow one another in their source."""
    begin = expected = 0
    for place in places:
        if place != expected:
            if expected > begin:
                yield begin >> _SOURCE_SHIFT, begin & _PAGE_MASK, expected - begin
            begin = place
        expected = place + 1
    if expected > begin:
        yield begin >> _SOURCE_SHIFT, begin & _PAGE_MASK, expected - begin


class ChunkReader:
    """Decrypted chunks of a chain for one thread that reads more or less in order."""

    def __init__(self, files: Sequence[OpenFile]) -> None:
        self._files = files
        self._scratch = Scratch()
        self._chunks: OrderedDict[tuple[int, int, int], memoryview] = OrderedDict()
        self._bytes = 0
        self.loads = 0

    def chunk(self, file: int, stream: Stream, counter: int) -> memoryview:
        """Plaintext of a chunk.  Raises FileError."""
        key = (file, stream.number, counter)
        data = self._chunks.get(key)
        if data is None:
            self.loads += 1
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
