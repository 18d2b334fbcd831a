"""CRIU's pagemap images: which pages of an address space (or shared memory segment) are where (CRIU's pagemap.proto).

Data lies in `pages-ID.img`, one run after another in the order of the records, for runs that are present only.
"""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from sealpoint.criu import schema
from sealpoint.errors import FileError

PAGE: Final = 4096
PARENT: Final = 1  # the parent has the pages, in its file of the same name
LAZY: Final = 2  # may be fetched after the restore
PRESENT: Final = 4  # pages-ID.img has them
_NAME: Final = re.compile(r"pagemap-(?:shmem-)?\d+\.img", re.ASCII)
_MAGIC: Final = struct.pack("<II", 0x54564319, 0x56084025)
_SIZE: Final = struct.Struct("<I")
MAX_PAGE: Final = 1 << 52  # a 64-bit address space has no more


def is_pagemap(name: str) -> bool:
    """Whether an image is a pagemap."""
    return _NAME.fullmatch(name) is not None


@dataclass(slots=True)
class Pagemap:
    """pages_id: number of the pages image; wide: counts are in the 64-bit field of CRIU 4.2 and newer.

    Runs, in the order of the image: `starts` in pages from address 0, `counts` in pages, `flags`.  offsets: where the
    data of a run begins in the pages image, in pages; meaningless for runs that are not present.
    """

    pages_id: int
    wide: bool = False
    starts: array[int] = field(default_factory=lambda: array("Q"))
    counts: array[int] = field(default_factory=lambda: array("Q"))
    flags: array[int] = field(default_factory=lambda: array("I"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    pages: int = 0

    @property
    def pages_name(self) -> str:
        """The image that holds the data."""
        return f"pages-{self.pages_id}.img"

    @property
    def needs_parent(self) -> bool:
        """Whether some pages are in the parent."""
        return any(f & PARENT for f in self.flags)

    def add(self, start: int, count: int, flags: int) -> None:
        """Append a run; one that continues the last in all respects is joined to it."""
        if self.starts and (self.starts[-1] + self.counts[-1] == start and self.flags[-1] == flags):
            self.counts[-1] += count
        else:
            self.starts.append(start)
            self.counts.append(count)
            self.flags.append(flags)
            self.offsets.append(self.pages)
        if flags & PRESENT:
            self.pages += count

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """(start, count, flags, offset) of each."""
        return zip(self.starts, self.counts, self.flags, self.offsets, strict=True)

    def find(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """(start, count, flags, offset) of the parts that cover `count` pages from `start`, in order.

        Raises FileError where a page is in no run.  Runs must rise, as CRIU writes them.
        """
        at = bisect_right(self.starts, start) - 1
        end = start + count
        while start < end:
            skip = start - self.starts[at] if 0 <= at < len(self.starts) else -1
            if skip < 0 or skip >= self.counts[at]:
                raise FileError(f"page {start * PAGE:#x} is in no image of the chain")
            take = min(end - start, self.counts[at] - skip)
            yield start, take, self.flags[at], self.offsets[at] + skip
            start += take
            at += 1


def resolve(table: Callable[[int], Pagemap]) -> Iterator[tuple[int, int, int, int, int]]:
    """The pages of a pagemap, with those that are in parents looked up there.

    `table(n)` is the pagemap of that name n files back.  Yields (n, start, count, flags, offset) in the order of the
    newest.  Raises FileError where a page is nowhere, and what `table` raises.
    """
    for run in table(0).runs():
        # A stack rather than recursion: a chain can be longer than Python's recursion limit.
        parts = [(0, *run)]
        while parts:
            file, start, count, flags, offset = parts.pop()
            if flags & PARENT:
                below = table(file + 1).find(start, count)
                parts += reversed([(file + 1, *part) for part in below])
            else:
                yield file, start, count, flags, offset


def decode(data: bytes, what: str) -> Pagemap:
    """Raises FileError: malformed, or runs that overlap or do not rise."""
    records = schema.records(data, "pagemap_head", what)
    head = next(records, None)
    if head is None:
        raise FileError(f"{what}: is empty")
    size = _SIZE.unpack_from(data, 8)[0]
    pagemap = Pagemap(head.pages_id)
    end = 0
    for record in schema.records(data[:8] + data[12 + size :], "pagemap_entry", what):
        start, odd = divmod(record.vaddr, PAGE)
        count = record.compat_nr_pages
        if record.HasField("nr_pages"):
            pagemap.wide, count = True, record.nr_pages
        flags = (
            record.flags if record.HasField("flags") else (PARENT if record.in_parent else PRESENT)
        )
        if odd or start < end or not 0 < count <= MAX_PAGE - start:
            raise FileError(f"{what}: its runs contradict each other")
        end = start + count
        pagemap.starts.append(start)
        pagemap.counts.append(count)
        pagemap.flags.append(flags)
        pagemap.offsets.append(pagemap.pages)
        if flags & PRESENT:
            pagemap.pages += count
    return pagemap


def encode(pagemap: Pagemap) -> bytes:
    """The image, as CRIU reads it."""
    parts = [_MAGIC]

    def record(message: bytes) -> None:
        parts.append(_SIZE.pack(len(message)))
        parts.append(message)

    record(schema.message("pagemap_head")(pages_id=pagemap.pages_id).SerializeToString())
    entry = schema.message("pagemap_entry")
    for start, count, flags, _ in pagemap.runs():
        counts = {"compat_nr_pages": 0 if pagemap.wide else count}
        if pagemap.wide:
            counts["nr_pages"] = count
        record(entry(vaddr=start * PAGE, flags=flags, **counts).SerializeToString())
    return b"".join(parts)
