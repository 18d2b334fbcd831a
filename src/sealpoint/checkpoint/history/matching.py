"""Finding the pages that have changed since the parent was dumped, by keyed digests of what streams through.

A digest is keyed BLAKE3 of a page, 128 bits, under a random key of the chain that is in the state store alone.  So the
sealer knows equality of pages and nobody else does.  A page is looked for where the parent had it, counted from the
last page that was found; if that fails, among every sixteenth page of the parent, which finds a shift again soon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import blake3

from sealpoint.checkpoint.tables.delta import PageRuns
from sealpoint.checkpoint.tables.pages_thread import PagesTarget, PagesThread
from sealpoint.criu.pagemap import PAGE

DIGEST: Final = 16  # bytes
KEY: Final = 32
_SAMPLE: Final = 16  # of the parent's pages one in so many can be found anywhere


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


class TrackedPages(PagesThread):
    """One pages image on its way: what changed goes on into `target`, the rest is only noted in `runs`."""

    def __init__(
        self,
        target: PagesTarget,
        key: bytes,
        matcher: Matcher | None,
        done: Callable[[bytes, PageRuns], None],
    ) -> None:
        """matcher: None stores every page.  done: gets all digests and the runs, when the image has ended."""
        self._key = key
        self._matcher = matcher
        self._done = done
        self._digests: list[bytes] = []
        self._runs = PageRuns()
        super().__init__(target, "match")

    def ended(self) -> None:
        """See PagesBeside."""
        self.target.finish()
        self._done(b"".join(self._digests), self._runs)

    def take(self, data: memoryview) -> None:
        """See PagesBeside."""
        digests = digests_of(data, self._key)
        self._digests.append(b"".join(digests))
        places = self._matcher.match(digests) if self._matcher else [-1] * len(digests)
        begin = 0
        while begin < len(places):
            first, end = places[begin], begin + 1
            if first < 0:
                while end < len(places) and places[end] < 0:
                    end += 1
                self.target.write(data[begin * PAGE : end * PAGE])
                self._runs.add(None, end - begin)
            else:
                while end < len(places) and places[end] == first + end - begin:
                    end += 1
                self._runs.add(first, end - begin)
            begin = end
