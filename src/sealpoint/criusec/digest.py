"""The digest over the pages of a dump, as cipher.img has it.

It notices a changed byte and pages that changed places, unless what was changed cancels out: it is a sum in which two
equal terms are nothing, and it knows neither process nor image of a page.  docs/criusec.md says what follows from that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sealpoint.criu import schema
from sealpoint.criusec.cipher import PAGE, PageDigest
from sealpoint.errors import FileError

PRESENT: Final = 4  # PE_PRESENT
_STEP: Final = 1024 * 1024
_PAGEMAP: Final = re.compile(r"pagemap-(?:shmem-)?\d+\.img", re.ASCII)
_PAGES: Final = re.compile(r"pages-\d+\.img", re.ASCII)
_SEGMENTS: Final = re.compile(r"ipcns-shm-\d+\.img", re.ASCII)


class PlainImages(Protocol):
    """Plain images by name."""

    def names(self) -> list[str]:
        """Base names."""

    def read(self, name: str) -> bytes:
        """A whole small image.  Raises FileError."""

    def where(self, name: str) -> str:
        """For messages."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pages that follow one another at `address` (in shared memory: an offset); size: bytes."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class PageImage:
    """A pages image and which pages are in it, in order; segment: whether it is shared memory of an IPC namespace."""

    name: str
    runs: tuple[Run, ...]
    segment: bool

    @property
    def size(self) -> int:
        """Bytes that there have to be."""
        return sum(run.size for run in self.runs)


def page_images(images: PlainImages, size_of: Callable[[str], int]) -> list[PageImage]:
    """All pages images.  Raises FileError where a pagemap and its pages contradict each other."""
    names = images.names()
    segments = set[str]()
    for name in filter(_SEGMENTS.fullmatch, names):
        for entry in _records(images, name, ("ipc_shm_entry",)):
            segments.add(f"pagemap-shmem-{entry.desc.id}.img")
    found: dict[str, PageImage] = {}
    for name in filter(_PAGEMAP.fullmatch, names):
        where = images.where(name)
        entries = _records(images, name, ("pagemap_head", "pagemap_entry"))
        head = next(entries, None)
        if head is None:
            raise FileError(f"{where}: has no entry")
        pages = f"pages-{head.pages_id}.img"
        if pages in found:
            raise FileError(f"{where}: {pages} belongs to another pagemap already")
        size = size_of(pages) if pages in names else 0
        runs = tuple(_runs(entries, size, where))
        found[pages] = PageImage(pages, runs, name in segments)
        if found[pages].size != size:
            raise FileError(
                f"{where}: names {found[pages].size} bytes of pages, but {pages} has {size}"
            )
        if not size and pages not in names:
            del found[pages]  # nothing was dumped
    for name in filter(_PAGES.fullmatch, names):
        if name not in found and size_of(name):
            raise FileError(f"{images.where(name)}: no pagemap says what these pages are")
    return list(found.values())


def _records(images: PlainImages, name: str, kinds: tuple[str, ...]) -> Iterator[Any]:
    return schema.records(images.read(name), kinds, images.where(name))


def _runs(entries: Iterator[Any], size: int, where: str) -> Iterator[Run]:
    total = 0
    for entry in entries:
        if not (entry.flags & PRESENT if entry.HasField("flags") else not entry.in_parent):
            continue
        run = (entry.nr_pages or entry.compat_nr_pages) * PAGE
        total += run
        if total > size or entry.vaddr + run > 1 << 64:
            raise FileError(f"{where}: names more pages than there are ({size // PAGE})")
        yield Run(entry.vaddr, run)


class DigestSums:
    """The digest over all pages, and that without shared memory of IPC namespaces.

    The reference computes the latter where it dumps an IPC namespace: a process of its own does it, and its share of
    the sum is lost.
    """

    def __init__(self, token: bytes) -> None:
        self._tasks, self._segments = PageDigest(token), PageDigest(token)

    def watch(self, image: PageImage, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        """The pieces, counted.

        They are the ciphertext of the image from its beginning on, each a whole number of pages, in all as many bytes
        as its runs have.
        """
        sums = self._segments if image.segment else self._tasks
        runs = iter(image.runs)
        address, left = 0, 0
        for piece in pieces:
            at = 0
            while at < len(piece):
                while not left:
                    run = next(runs)
                    address, left = run.address, run.size
                take = min(left, len(piece) - at)
                sums.add(piece[at : at + take], address)
                at, address, left = at + take, address + take, left - take
            yield piece

    @property
    def all(self) -> bytes:
        """What a restore by the reference expects."""
        a, b = (int.from_bytes(s.value, "little") for s in (self._tasks, self._segments))
        return (a ^ b).to_bytes(32, "little")

    @property
    def without_segments(self) -> bytes:
        """What a dump by the reference has."""
        return self._tasks.value
