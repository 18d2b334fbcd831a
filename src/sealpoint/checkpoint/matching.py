"""Finding the pages that have changed since the parent was dumped, by keyed digests of what streams through.

A digest is keyed BLAKE3 of a page, 128 bits, under a random key of the chain that is in the state store alone.  So the
sealer knows equality of pages and nobody else does.  A page is looked for where the parent had it, counted from the
last page that was found; if that fails, among every sixteenth page of the parent, which finds a shift again soon.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Final

import blake3

from sealpoint.checkpoint.builder import LargeObject
from sealpoint.checkpoint.delta import PageRuns
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import SealpointError
from sealpoint.format.constants import CHUNK_SIZE

DIGEST: Final = 16  # bytes
KEY: Final = 32
_SAMPLE: Final = 16  # of the parent's pages one in so many can be found anywhere
_BUFFERS: Final = 3


def digests_of(data: memoryview, key: bytes) -> list[bytes]:
    """The digest of every page of `data`, whose last page may be shorter."""
    hash_ = blake3.blake3
    return [hash_(data[at : at + PAGE], key=key).digest(DIGEST) for at in range(0, len(data), PAGE)]


class ParentPages:
    """The parent's pages by digest.  pages: of each image, by name, in the order in which they are counted."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self.pages = {name: len(data) // DIGEST for name, data in digests.items()}
        self.digests = b"".join(digests.values())
        self.count = len(self.digests) // DIGEST
        step = DIGEST * _SAMPLE
        self._samples = {
            self.digests[at : at + DIGEST]: at // DIGEST for at in range(0, len(self.digests), step)
        }

    def start_of(self, name: str) -> int:
        """Where the pages of an image begin."""
        base = 0
        for known, pages in self.pages.items():
            if known == name:
                return base
            base += pages
        return 0

    def find(self, digest: bytes) -> int | None:
        """Some page with that content, if it is among those that can be found."""
        return self._samples.get(digest)

    def at(self, page: int) -> bytes:
        """The digest of a page; empty beyond the last."""
        return self.digests[page * DIGEST : (page + 1) * DIGEST]


class Matcher:
    """Matches the pages of one image, chunk by chunk, in order."""

    def __init__(self, parent: ParentPages, name: str) -> None:
        self._parent = parent
        self._next = parent.start_of(name)

    def match(self, digests: list[bytes]) -> list[int]:
        """For each page its place in the parent, or -1."""
        parent, expected = self._parent, self._next
        joined = b"".join(digests)
        begin = expected * DIGEST
        if parent.digests[begin : begin + len(joined)] == joined:
            self._next += len(digests)
            return list(range(expected, expected + len(digests)))
        places = [-1] * len(digests)
        for n, digest in enumerate(digests):
            if parent.at(expected) != digest:
                found = parent.find(digest)
                if found is None:
                    expected += 1  # changed where it is
                    continue
                expected = found
                self._look_back(digests, places, n, found)
            places[n] = expected
            expected += 1
        self._next = expected
        return places

    def _look_back(self, digests: list[bytes], places: list[int], n: int, found: int) -> None:
        """What stands before a page that was found elsewhere has probably moved with it."""
        while n and found and places[n - 1] < 0 and self._parent.at(found - 1) == digests[n - 1]:
            n, found = n - 1, found - 1
            places[n] = found


class TrackedPages:
    """One pages image on its way: what changed goes on into `target`, the rest is only noted in `runs`.

    Has the methods of a LargeObject.  Digesting and matching run in a thread of their own, beside the reading.
    """

    def __init__(
        self,
        target: LargeObject,
        key: bytes,
        matcher: Matcher | None,
        done: Callable[[bytes, PageRuns], None],
    ) -> None:
        """matcher: None stores every page.  done: gets all digests and the runs, when the image has ended."""
        self._target = target
        self._key = key
        self._matcher = matcher
        self._done = done
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(mmap.mmap(-1, CHUNK_SIZE)))
        self._full: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._buffer: memoryview | None = None
        self._filled = 0
        self._error: BaseException | None = None
        self._digests: list[bytes] = []
        self._runs = PageRuns()
        self._thread = threading.Thread(target=self._work, name="match", daemon=True)
        self._thread.start()

    def space(self) -> memoryview:
        """The free rest of the current buffer, never empty.  Raises what went wrong."""
        if self._buffer is None:
            self._buffer = self._free.get()
            self._filled = 0
        self._raise()
        return self._buffer[self._filled :]

    def wrote(self, size: int) -> None:
        """`size` bytes of `space()` are data."""
        self._filled += size
        if self._filled == CHUNK_SIZE:
            self._hand_on()

    def write(self, data: bytes | memoryview) -> None:
        """Append a copy of `data`."""
        view = memoryview(data)
        while view:
            space = self.space()
            take = min(len(space), len(view))
            space[:take] = view[:take]
            self.wrote(take)
            view = view[take:]

    def finish(self) -> None:
        """No more data.  Raises what went wrong."""
        if self._buffer is not None and self._filled:
            self._hand_on()
        self._full.put(None)
        self._thread.join()
        self._raise()
        self._target.finish()
        self._done(b"".join(self._digests), self._runs)

    def abandon(self) -> None:
        """After an error."""
        self._full.put(None)
        self._thread.join()
        self._target.abandon()

    def _hand_on(self) -> None:
        assert self._buffer is not None
        buffer, self._buffer = self._buffer, None
        self._full.put(buffer[: self._filled])

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (data := self._full.get()) is not None:
            try:
                if self._error is None:
                    self._take(data)
            except BaseException as error:  # noqa: BLE001 - raised by the reading thread
                self._error = error
            self._free.put(memoryview(data.obj))

    def _take(self, data: memoryview) -> None:
        if len(data) % PAGE:
            raise SealpointError("a pages image does not consist of whole pages")
        digests = digests_of(data, self._key)
        self._digests.append(b"".join(digests))
        places = self._matcher.match(digests) if self._matcher else [-1] * len(digests)
        begin = 0
        while begin < len(places):
            first, end = places[begin], begin + 1
            if first < 0:
                while end < len(places) and places[end] < 0:
                    end += 1
                self._target.write(data[begin * PAGE : end * PAGE])
                self._runs.add(None, end - begin)
            else:
                while end < len(places) and places[end] == first + end - begin:
                    end += 1
                self._runs.add(first, end - begin)
            begin = end
