"""Which pages of an increment are its own, and which are those of its parent (docs/spec.md, Deltas).

One object of an increment says so for all its pages images.  Pages are named by their place in the parent's whole
images, wherever that has them from; addresses play no part.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from operator import add
from typing import Final

from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError

DELTA_NAME: Final = "sealpoint-delta"
_MAGIC: Final = b"SPDELTA\x01"
_COUNT: Final = struct.Struct("<I")
_NAME: Final = struct.Struct("<H")
_NUMBER: Final = struct.Struct("<Q")
OWN: Final = (1 << 64) - 1  # in place of a page of the parent: the next pages of the file itself
_NOT_OWN: Final = bytes([1] * 255 + [0])  # by the upper byte
_MAX_IMAGES: Final = 1 << 18
MAX_PAGES: Final = 1 << 28  # of an image, 1 TiB: bounds the tables that are made of it
# A small table could claim any number of pages.  Forked processes have the same pages, but not so often.
_REPEATED: Final = 64
_FEW_PAGES: Final = 1 << 20


@dataclass(slots=True)
class PageRuns:
    """Where the pages of one image come from, run by run.

    firsts: the first page of a run, counted through all images of the parent, or OWN: the next pages of the file's own
    image.  counts: pages of each run.  pages: their sum; own_pages: of those that are the file's own.
    """

    firsts: array[int] = field(default_factory=lambda: array("Q"))
    counts: array[int] = field(default_factory=lambda: array("Q"))
    pages: int = 0
    own_pages: int = 0

    def add(self, first: int | None, count: int) -> None:
        """Append `count` pages from `first` of the parent, or if None of the file itself."""
        place = OWN if first is None else first
        follows = bool(self.firsts) and (
            self.firsts[-1] == OWN if first is None else self.firsts[-1] + self.counts[-1] == first
        )
        if follows:
            self.counts[-1] += count
        else:
            self.firsts.append(place)
            self.counts.append(count)
        self.pages += count
        if first is None:
            self.own_pages += count

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, count) of each; first: or OWN."""
        return zip(self.firsts, self.counts, strict=True)

    def encode(self) -> bytes:
        """The stored table."""
        numbers = array("Q", bytes(16 * len(self.firsts)))
        numbers[::2], numbers[1::2] = self.firsts, self.counts
        return numbers.tobytes()

    @classmethod
    def decode(cls, table: bytes, total: int) -> PageRuns:
        """From a stored table; `total`: pages of the parent.  Raises FileError."""
        # Without a step of Python's for each run: a page in ten that changed makes very many.
        numbers = array("Q", table)
        firsts, counts = numbers[::2], numbers[1::2]
        own = table[7::16]  # the upper bytes of the firsts: 0 of all pages that a parent can have
        theirs = own.translate(_NOT_OWN)
        ends = map(add, compress(firsts, theirs), compress(counts, theirs))
        pages, others = sum(counts), sum(compress(counts, theirs))
        if (
            (counts and min(counts) == 0)
            or pages > MAX_PAGES
            or max(ends, default=0) > total
            or sum(compress(firsts, own)) != OWN * own.count(OWN & 0xFF)
        ):
            raise FileError("the table of pages contradicts itself")
        return cls(firsts, counts, pages, pages - others)


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
        parts += [_encode_name(name), _NUMBER.pack(len(table.counts))]
        parts.append(table.encode())
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
            raise FileError(f"the table of pages names {name[:80]!r}, which is not a pages image")
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
            images[name] = PageRuns.decode(self.take(runs * 16), total)
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
