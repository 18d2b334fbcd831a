"""Which pages of an increment are its own, and which are those of its parent (docs/spec.md, Deltas).

One object of an increment says so for all its pages images.  Pages are named by their place in the parent's whole
images, wherever that has them from; addresses play no part.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, compress, islice
from operator import add, mul, not_, sub
from typing import Final

from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError

DELTA_NAME: Final = "sealpoint-delta"
_MAGIC: Final = b"SPDELTA\x01"
_COUNT: Final = struct.Struct("<I")
_NAME: Final = struct.Struct("<H")
_NUMBER: Final = struct.Struct("<Q")
_OWN: Final = (1 << 64) - 1  # in place of a page of the parent: the next pages of the file itself
_MAX_IMAGES: Final = 1 << 18
MAX_PAGES: Final = 1 << 28  # of an image, 1 TiB: bounds the tables that are made of it
# A small table could claim any number of pages.  Forked processes have the same pages, but not so often.
_REPEATED: Final = 64
_FEW_PAGES: Final = 1 << 20


@dataclass(slots=True)
class PageRuns:
    """Where the pages of one image come from.

    Run k: pages from `starts[k]` of the image to the start of the next.  firsts: the first of them in the file's own
    image if `own[k]`, else counted through all images of the parent.
    """

    starts: array[int] = field(default_factory=lambda: array("Q"))
    firsts: array[int] = field(default_factory=lambda: array("Q"))
    own: bytearray = field(default_factory=bytearray)
    pages: int = 0
    own_pages: int = 0

    def add(self, first: int | None, count: int) -> None:
        """Append `count` pages from `first` of the parent, or if None of the file itself."""
        own = first is None
        place = self.own_pages if first is None else first
        last = len(self.starts) - 1
        if not (
            self.starts
            and bool(self.own[last]) == own
            and self.firsts[last] + self.pages - self.starts[last] == place
        ):
            self.starts.append(self.pages)
            self.firsts.append(place)
            self.own.append(own)
        self.pages += count
        if own:
            self.own_pages += count

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """(own, first, count) of each; own: 1 or 0."""
        ends = self.starts[1:]
        ends.append(self.pages)
        return zip(self.own, self.firsts, map(sub, ends, self.starts), strict=True)

    @classmethod
    def of(cls, firsts: array[int], counts: array[int], total: int) -> PageRuns:
        """From a stored table; `total`: pages of the parent.  Raises FileError."""
        # Without a step of Python's for each run: a page in ten that changed makes very many.
        own = bytearray(map(_OWN.__eq__, firsts))
        theirs = bytearray(map(not_, own))
        pages = sum(counts)
        own_counts = list(map(mul, counts, own))
        ends = map(add, compress(firsts, theirs), compress(counts, theirs))
        if (counts and min(counts) == 0) or pages > MAX_PAGES or max(ends, default=0) > total:
            raise FileError("the table of pages contradicts itself")
        places = accumulate(own_counts, initial=0)
        firsts = array("Q", map(add, map(mul, places, own), map(mul, firsts, theirs)))
        starts = array("Q", islice(accumulate(counts, initial=0), len(counts)))
        return cls(starts, firsts, own, pages, sum(own_counts))


@dataclass(slots=True)
class Delta:
    """parent: names of the parent's pages images and their pages, in the order in which they are counted through."""

    parent: dict[str, int] = field(default_factory=dict)
    images: dict[str, PageRuns] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The object's bytes."""
        parts = [_MAGIC, _COUNT.pack(len(self.parent))]
        for name, pages in self.parent.items():
            parts += [_encode_name(name), _NUMBER.pack(pages)]
        parts += encode_images(self.images)
        return b"".join(parts)


def check_claim(images: dict[str, PageRuns], others: int) -> None:
    """Raises FileError where a table makes too many pages of `others` and the file's own."""
    known = others + sum(table.own_pages for table in images.values())
    if sum(table.pages for table in images.values()) > max(_FEW_PAGES, known * _REPEATED):
        raise FileError("the table of pages repeats too often what it refers to")


def encode_images(images: dict[str, PageRuns]) -> list[bytes]:
    """Their number, then of each its name, the number of its runs, and those."""
    parts = [_COUNT.pack(len(images))]
    for name, table in images.items():
        parts += [_encode_name(name), _NUMBER.pack(len(table.starts))]
        numbers = array("Q")
        for own, first, count in table.runs():
            numbers.extend((_OWN if own else first, count))
        parts.append(numbers.tobytes())
    return parts


def _encode_name(name: str) -> bytes:
    raw = name.encode()
    return _NAME.pack(len(raw)) + raw


class TableReader:
    """Takes a table of pages apart.  Every method raises FileError."""

    def __init__(self, data: bytes, magic: bytes, known: Callable[[str], bool] = is_pages) -> None:
        """known: whether a name is that of a pages image."""
        self._data = data
        self._known = known
        self._at = len(magic)
        if data[: self._at] != magic:
            raise FileError("the table of pages is of an unknown version")

    def take(self, size: int) -> bytes:
        """The next bytes, all of them."""
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise FileError("the table of pages is cut short")
        self._at += size
        return data

    def number(self, kind: struct.Struct = _COUNT) -> int:
        """One integer, by default u32."""
        return int(kind.unpack(self.take(kind.size))[0])

    def name(self) -> str:
        """Of a pages image."""
        name = self.take(self.number(_NAME)).decode("ascii", errors="replace")
        if not self._known(name):
            raise FileError(f"the table of pages names {name[:80]!r}, which is no pages image")
        return name

    def left(self) -> int:
        """Bytes that were not taken yet."""
        return len(self._data) - self._at

    def images(self, total: int) -> dict[str, PageRuns]:
        """What `encode_images` made, at the end of the table.  total: pages that runs can refer to."""
        images: dict[str, PageRuns] = {}
        count = self.number()
        for _ in range(min(count, _MAX_IMAGES)):
            name, runs = self.name(), self.number(_NUMBER)
            if runs * 16 > self.left():
                raise FileError("the table of pages is cut short")
            numbers = array("Q", self.take(runs * 16))
            images[name] = PageRuns.of(numbers[::2], numbers[1::2], total)
        if self.left() or len(images) != count:
            raise FileError("the table of pages contradicts itself")
        return images


def decode(data: bytes) -> Delta:
    """Raises FileError."""
    reader, delta = TableReader(data, _MAGIC), Delta()
    count = reader.number()
    for _ in range(min(count, _MAX_IMAGES)):
        name = reader.name()
        delta.parent[name] = reader.number(_NUMBER)
    total = sum(delta.parent.values())
    if len(delta.parent) != count or total > MAX_PAGES:
        raise FileError("the table of pages contradicts itself")
    delta.images = reader.images(total)
    return delta
