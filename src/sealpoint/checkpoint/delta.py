"""Which pages of an increment are its own, and which are those of its parent (docs/spec.md, Deltas).

One object of an increment says so for all its pages images.  Pages are named by their place in the parent's whole
images, wherever that has them from; addresses play no part.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice
from operator import mul, sub
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
_MAX_PAGES: Final = 1 << 28  # of an image, 1 TiB: bounds the tables that are made of it


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
        own = bytearray(map(_OWN.__eq__, firsts))
        pages = sum(counts)
        own_counts = list(map(mul, counts, own))
        if (
            (counts and min(counts) == 0)
            or pages > _MAX_PAGES
            or any(
                f > total or c > total - f
                for o, f, c in zip(own, firsts, counts, strict=True)
                if not o
            )
        ):
            raise FileError("the delta contradicts itself")
        places = accumulate(own_counts, initial=0)
        firsts = array("Q", (p if o else f for o, f, p in zip(own, firsts, places, strict=False)))
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
        parts.append(_COUNT.pack(len(self.images)))
        for name, table in self.images.items():
            parts += [_encode_name(name), _NUMBER.pack(len(table.starts))]
            numbers = array("Q")
            for own, first, count in table.runs():
                numbers.extend((_OWN if own else first, count))
            parts.append(numbers.tobytes())
        return b"".join(parts)


def _encode_name(name: str) -> bytes:
    raw = name.encode()
    return _NAME.pack(len(raw)) + raw


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = len(_MAGIC)
        if data[: self._at] != _MAGIC:
            raise FileError("the delta is of an unknown version")

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise FileError("the delta is cut short")
        self._at += size
        return data

    def number(self, kind: struct.Struct) -> int:
        return int(kind.unpack(self.take(kind.size))[0])

    def name(self) -> str:
        name = self.take(self.number(_NAME)).decode("ascii", errors="replace")
        if not is_pages(name):
            raise FileError(f"the delta names {name[:80]!r}, which is no pages image")
        return name

    def left(self) -> int:
        return len(self._data) - self._at


def decode(data: bytes) -> Delta:
    """Raises FileError."""
    reader, delta = _Reader(data), Delta()
    count = reader.number(_COUNT)
    for _ in range(min(count, _MAX_IMAGES)):
        name = reader.name()
        delta.parent[name] = reader.number(_NUMBER)
    total = sum(delta.parent.values())
    count += reader.number(_COUNT)
    for _ in range(min(count - len(delta.parent), _MAX_IMAGES)):
        name, runs = reader.name(), reader.number(_NUMBER)
        if runs * 16 > reader.left():
            raise FileError("the delta is cut short")
        numbers = array("Q", reader.take(runs * 16))
        delta.images[name] = PageRuns.of(numbers[::2], numbers[1::2], total)
    if reader.left() or len(delta.parent) + len(delta.images) != count or total > _MAX_PAGES:
        raise FileError("the delta contradicts itself")
    return delta
