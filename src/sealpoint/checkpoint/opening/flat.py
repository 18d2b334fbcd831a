"""A chain as one full checkpoint: every image whole, pages put together from whichever file of the chain has them.

CRIU is always given a flat set of images: when it streams it cannot read parents at all, and readers need not know of
chains.  Each page is taken from one place; what a later file replaced is never read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import sub
from typing import Final, Protocol

from sealpoint.checkpoint.tables import delta
from sealpoint.checkpoint.tables.delta import DELTA_NAME, OWN, Delta, PageRuns
from sealpoint.checkpoint.tables.seen import Seen
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

    def into(self, out: memoryview, file: int, stream: Stream, counter: int) -> bool:
        """Put the plaintext of a chunk into `out`, if that saves a copy.  Raises FileError."""


@dataclass(slots=True)
class Runs:
    """Where the pages of an assembled image are stored.

    Run k: pages from `starts[k]` of the image to the start of the next, in their object one after another from
    `places[k]` on: the number of a page in `objects[n]`, with n above it.
    """

    objects: list[tuple[int, Entry]] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("Q"))
    places: array[int] = field(default_factory=lambda: array("Q"))
    pages: int = 0
    _numbers: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.pages * PAGE

    def add(self, file: int, entry: Entry, first: int, count: int) -> None:
        """Append `count` pages from `first` of an object of the chain's file `file`."""
        source = self._numbers.setdefault((file, entry.name), len(self.objects))
        if source == len(self.objects):
            self.objects.append((file, entry))
        place = (source << _SOURCE_SHIFT) + first
        if not self.places or self.places[-1] + self.pages - self.starts[-1] != place:
            self.starts.append(self.pages)
            self.places.append(place)
        self.pages += count

    @classmethod
    def of(cls, objects: list[tuple[int, Entry]], places: array[int]) -> Runs:
        """From the place of each page."""
        runs = cls(objects, pages=len(places))
        expected = None
        for page, place in enumerate(places):
            if place != expected:
                runs.starts.append(page)
                runs.places.append(place)
            expected = place + 1
        return runs

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """(number of the object, first page, count) of each run."""
        ends = [*self.starts[1:], self.pages]
        for place, start, end in zip(self.places, self.starts, ends, strict=True):
            yield place >> _SOURCE_SHIFT, place & _PAGE_MASK, end - start

    def fill(self, out: memoryview, begin: int, reader: Reader) -> int:
        """Put the bytes from `begin` on into `out`; returns how many.  Raises FileError."""
        starts, places = self.starts, self.places
        end = min(begin + len(out), self.size)
        at, done = bisect_right(starts, begin // PAGE) - 1, 0
        there = self._begin(out[: end - begin], begin, at, reader)
        # A page in ten that changed makes very many short runs, in turn from a few chunks: those are kept at hand.
        held: dict[int, tuple[int, int, memoryview]] = {}
        loads = reader.loads
        while begin < end:
            stop = (starts[at + 1] if at + 1 < len(starts) else self.pages) * PAGE
            if places[at] - starts[at] == there:
                take = min(stop, end) - begin
                done, begin, at = done + take, begin + take, at + 1
                continue
            source = places[at] >> _SOURCE_SHIFT
            place = ((places[at] & _PAGE_MASK) - starts[at]) * PAGE + begin
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

    def _begin(self, out: memoryview, begin: int, at: int, reader: Reader) -> int | None:
        """Decrypt the chunk that most of `out` comes from straight into it, if it lies there as it lies in `out`.

        Returns the distance of place and page by which its runs are known.
        """
        first, odd = divmod(begin, PAGE)
        if odd or not out:
            return None
        # Who reads less than a chunk at a time, a page here and there, shall not pay for the rest.
        _, entry = self.objects[self.places[at] >> _SOURCE_SHIFT]
        if len(out) != entry.stream.chunk_size:
            return None
        last = bisect_left(self.starts, first + len(out) // PAGE, at)
        distances = Counter(map(sub, self.places[at:last], self.starts[at:last]))
        ((distance, _),) = distances.most_common(1)
        # Where the object would have to begin before its first page, this is far behind the last one of another.
        source, page = (first + distance) >> _SOURCE_SHIFT, (first + distance) & _PAGE_MASK
        file, entry = self.objects[source]
        stream = entry.stream
        counter, skip = divmod(entry.offset + page * PAGE, stream.chunk_size)
        if skip or counter >= stream.chunks or stream.plain_size(counter) != len(out):
            return None
        return distance if reader.into(out, file, stream, counter) else None

    def chunks(self) -> Iterator[tuple[int, Stream, int]]:
        """Every chunk that some byte comes from, once each, file by file."""
        seen: dict[int, set[int]] = {}
        for source, first, count in self.parts():
            entry = self.objects[source][1]
            begin = entry.offset + first * PAGE
            size = entry.stream.chunk_size
            wanted = range(begin // size, (begin + count * PAGE - 1) // size + 1)
            seen.setdefault(source, set()).update(wanted)
        for source, counters in seen.items():
            file, entry = self.objects[source]
            yield from ((file, entry.stream, counter) for counter in sorted(counters))


@dataclass(slots=True)
class FlatImage:
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
        self.images = {e.name: FlatImage(e.name, e.size, e) for e in self.top.entries.values()}
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

    def read(self, image: FlatImage, scratch: Scratch | None = None) -> Iterator[memoryview]:
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

    def observe(self, prefix: str = "") -> Seen:
        """What the images say, for `evidence`; all that are not pages are read, and so verified, on the way.

        prefix: where CRIU's images are among others; without it all are CRIU's.  Raises FileError.
        """
        scratch, seen = Scratch(), Seen()
        for image in self.images.values():
            ours = image.name.startswith(prefix)
            passing = seen.image(image.name.removeprefix(prefix)) if ours else None
            if is_pages(image.name.removeprefix(prefix)):
                if passing is not None:
                    passing.count(image.size)
            else:
                for piece in self.read(image, scratch):
                    if passing is not None:
                        passing.add(piece)
            if passing is not None:
                passing.end()
        return seen

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
                runs.add(file, pages, offset, count)
        data = pagemap.encode(whole)
        self.images[name] = FlatImage(name, len(data), self.top.entries[name], data)
        own = self.top.entries.get(whole.pages_name)
        self.images[whole.pages_name] = FlatImage(whole.pages_name, runs.size, own, runs=runs)

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

    def located(self, *, stop: int = 0) -> dict[str, Runs]:
        """Where each pages image of the newest file has its pages.

        stop: number of a file whose whole images, and those behind it, count as stored; 0: none.  Raises FileError.
        """
        # Page by page from the oldest file up: most pages are where the parent has them, so each file is a copy of the
        # one below it and what differs.  Many short runs, each a few levels deep, would cost more one by one.
        base = stop or len(self._deltas)
        objects: list[tuple[int, Entry]] = []
        placed: dict[str, array[int]] = {}
        for name, pages in self.whole_images(base).items():
            placed[name] = _places(len(objects), pages)
            objects.append((base, self.files[base].entry(name)))
        for file in range(base - 1, -1, -1):
            table = self._deltas[file]
            below, begins = array("Q"), {}
            for name in table.parent:
                begins[name] = len(below)
                below.extend(placed[name])
            placed = {}
            for name, runs in table.images.items():
                placed[name] = _laid(runs, len(objects), below, begins.get(name, 0))
                objects.append((file, self.files[file].entry(name)))
        return {name: Runs.of(objects, places) for name, places in placed.items()}

    def _assemble(self) -> None:
        for name, runs in self.located().items():
            self.images[name] = FlatImage(name, runs.size, self.top.entries.get(name), runs=runs)


def _places(source: int, pages: int) -> array[int]:
    """The place of each page of a stored image: its source above the number of the page."""
    if pages > _PAGE_MASK:
        raise FileError("a pages image is too large")
    return array("Q", range(source << _SOURCE_SHIFT, (source << _SOURCE_SHIFT) + pages))


def _laid(runs: PageRuns, source: int, below: array[int], begin: int) -> array[int]:
    """The place of each page of an image; `below`: those of all images of the parent, from `begin` on of this one."""
    places = below[begin : begin + runs.pages]
    places.frombytes(bytes(places.itemsize * (runs.pages - len(places))))
    at, mine = 0, source << _SOURCE_SHIFT
    for first, count in runs.runs():
        if first == OWN:
            if count == 1:
                places[at] = mine
            else:
                places[at : at + count] = array("Q", range(mine, mine + count))
            mine += count
        elif first != begin + at:
            places[at : at + count] = below[first : first + count]
        at += count
    return places


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

    def into(self, out: memoryview, file: int, stream: Stream, counter: int) -> bool:
        """See Reader."""
        if (file, stream.number, counter) in self._chunks:
            return False
        self._files[file].read_chunk_into(stream, counter, out, self._scratch)
        return True

    def _take(self, size: int) -> memoryview:
        if self._bytes + size > _CACHE_BYTES and self._chunks:
            _, oldest = self._chunks.popitem(last=False)
            buffer = memoryview(oldest.obj)
            if len(buffer) >= size:
                return buffer
            self._bytes -= len(buffer)
        self._bytes += size
        return memoryview(bytearray(size))
