"""A sealed file whose memory pages lie in a chunk store, as if they lay in it.

Each pages image that the chunk table names becomes a stream of its own, put together chunk by chunk from stored chunks
and from what the file itself has, so whoever reads an OpenFile need not know of stores.  Every stored chunk is compared
with its hash in the signed index each time that it is read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from operator import mul
from typing import Final

from sealpoint.checkpoint.tables import chunk_table
from sealpoint.checkpoint.tables.chunk_table import TABLE_NAME, ChunkTable
from sealpoint.checkpoint.tables.delta import OWN, PageRuns
from sealpoint.chunks.directory import ChunkFinder
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import FileError
from sealpoint.format import stored
from sealpoint.format.constants import CHUNK_SIZE, MAX_STORED, MAX_STORED_FILE
from sealpoint.format.manifest import Entry, Stream
from sealpoint.format.opened import OpenFile, Scratch
from sealpoint.format.reader import AuthenticFile
from sealpoint.format.stored import StoredChunk

_SHIFT: Final = 1 << 33  # streams of images that are put together are numbered from here on
_MAX_TABLE: Final = 1 << 30
_STEP: Final = CHUNK_SIZE // PAGE


def refers(opened: OpenFile) -> bool:
    """Whether memory within reach lies in stored chunks.  Raises FileError where the file contradicts itself."""
    has_table = TABLE_NAME in opened.entries
    if opened.has_memory and has_table != (opened.authentic.index.references > 0):
        raise FileError("references to stored chunks and a table of chunks go together")
    return opened.has_memory and has_table


class WithChunks(OpenFile):
    """See the module.  own: the file without its stored chunks; finder: where those are looked for."""

    def __init__(self, own: OpenFile, finder: ChunkFinder) -> None:
        """Reads the chunk table, no chunk.  Raises FileError."""
        self.authentic: AuthenticFile = own.authentic
        self.roots = own.roots
        self.manifests = own.manifests
        self.own, self.finder = own, finder
        self._table: ChunkTable = chunk_table.decode(
            own.read_bytes(own.entry(TABLE_NAME), _MAX_TABLE)
        )
        if len(self._table.pages) != self.authentic.index.references:
            raise FileError("the table of chunks does not fit the index")
        self._starts = array("Q", accumulate(self._table.pages, initial=0))
        self.entries = {n: e for n, e in own.entries.items() if n != TABLE_NAME}
        self._images: dict[int, tuple[Stream, Entry, _StoredImage]] = {}
        for number, (name, runs) in enumerate(self._table.images.items(), _SHIFT):
            entry = self.entries.get(name)
            if entry is None or entry.size != runs.own_pages * PAGE:
                raise FileError(f"{name}: does not fit the table of chunks")
            size = runs.pages * PAGE
            stream = Stream(number, CHUNK_SIZE, size, bytes(size // CHUNK_SIZE + 1))
            self._images[number] = (stream, entry, _StoredImage(runs))
            self.entries[name] = entry._replace(size=size, stream=stream, offset=0)

    def streams(self) -> Iterator[Stream]:
        """Those of the file itself, and those that are put together."""
        yield from self.own.streams()
        yield from (stream for stream, _, _ in self._images.values())

    def is_freed(self, stream: Stream, counter: int) -> bool:
        """See OpenFile."""
        return stream.number not in self._images and self.own.is_freed(stream, counter)

    def read_chunk_into(
        self, stream: Stream, counter: int, out: memoryview, scratch: Scratch
    ) -> int:
        """See OpenFile.  Raises FileError, SystemEnvironmentError."""
        if stream.number not in self._images:
            return self.own.read_chunk_into(stream, counter, out, scratch)
        _, entry, image = self._images[stream.number]
        size = stream.plain_size(counter)
        page, end = counter * _STEP, counter * _STEP + size // PAGE
        done = 0
        for own, first, count in image.find(page, end):
            target = out[done : done + count * PAGE]
            if own:
                self._read_own(entry, first * PAGE, target, scratch.inner())
            else:
                self._read_stored(first, target, scratch)
            done += count * PAGE
        return size

    def _read_own(self, entry: Entry, start: int, out: memoryview, scratch: Scratch) -> None:
        done = 0
        for piece in self.own.read(entry, scratch, start=start, size=len(out)):
            out[done : done + len(piece)] = piece
            done += len(piece)

    def _read_stored(self, first: int, out: memoryview, scratch: Scratch) -> None:
        """Pages from `first` on, counted through all chunks."""
        number = bisect_right(self._starts, first) - 1
        while out:
            skip = (first - self._starts[number]) * PAGE
            size = self._table.pages[number] * PAGE
            take = min(size - skip, len(out))
            if take == size:
                self._read_chunk(number, out[:take], scratch)
            else:
                plain = scratch.other("stored", MAX_STORED)[:size]
                self._read_chunk(number, plain, scratch)
                out[:take] = plain[skip : skip + take]
            out, first, number = out[take:], first + take // PAGE, number + 1

    def _read_chunk(self, number: int, out: memoryview, scratch: Scratch) -> None:
        reference = self.authentic.index.reference(number)
        chunk = StoredChunk(reference, self._table.key(number), len(out))
        data = self.finder.read_into(reference, scratch.other("file", MAX_STORED_FILE))
        try:
            stored.open_into(chunk, self._table.tenant, data, out)
        except FileError as error:
            raise FileError(f"chunk {reference.identifier.hex()}: {error.message}") from None


class _StoredImage:
    """The table of one image, to be looked up."""

    def __init__(self, runs: PageRuns) -> None:
        self._starts = array("Q", accumulate(runs.counts, initial=0))  # and the end
        self._own = bytes(map(OWN.__eq__, runs.firsts))
        # Those of the file itself follow one another.
        places = accumulate(map(mul, runs.counts, self._own), initial=0)
        pairs = zip(self._own, places, runs.firsts, strict=False)
        self._firsts = array("Q", (place if own else first for own, place, first in pairs))

    def find(self, page: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(own, first, count) of the pages from `page` to `end`; own: 1 or 0."""
        at = bisect_right(self._starts, page) - 1
        while page < end:
            stop = min(self._starts[at + 1], end)
            yield self._own[at], self._firsts[at] + page - self._starts[at], stop - page
            page, at = stop, at + 1


def require_chunks(files: Iterable[OpenFile]) -> None:
    """See that every chunk is there, before anything is done that a missing one would spoil.

    Raises FileError, SystemEnvironmentError.
    """
    for file in files:
        if isinstance(file, WithChunks):
            index = file.authentic.index
            for number in range(index.references):
                file.finder.require(index.reference(number))


def check_references(
    authentic: AuthenticFile, finder: ChunkFinder, progress: Callable[[int], None]
) -> None:
    """Compare every chunk that a file refers to with its signed hash; takes no key.

    progress: gets bytes read.  Raises FileError, SystemEnvironmentError.
    """
    buffer = memoryview(bytearray(MAX_STORED_FILE))
    for number in range(authentic.index.references):
        reference = authentic.index.reference(number)
        data = finder.read_into(reference, buffer)
        try:
            stored.check(reference, data)
        except FileError as error:
            raise FileError(f"chunk {reference.identifier.hex()}: {error.message}") from None
        progress(len(data))
