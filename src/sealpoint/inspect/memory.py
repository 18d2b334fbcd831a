"""The address space of one task of a checkpoint: its mappings, which of their pages are stored, and where.

Sources: CRIU's mm.proto, vma.proto, pagemap.proto, memfd.proto, regfile.proto; include/image.h for the status bits;
pagemap.c for what entries of older versions mean.  An increment's pages that lie in a parent are looked up there.

What the images claim is checked before it is used: order, alignment, bounds of the pages image.  Memory is bounded by
the number of page runs, never by the size of the task.

Out of scope: what the memory means (`search`, `secrets`), and who reads it (`coredump`, `report`).
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from sealpoint import names
from sealpoint.criu import schema
from sealpoint.criu.compressed import ALIGNED, sizes_of
from sealpoint.errors import FileError, UsageError
from sealpoint.inspect.compressed_pages import PlainPages

if TYPE_CHECKING:
    from sealpoint.inspect.source import Images

PAGE: Final = (
    4096  # bytes; x86-64, and what CRIU's images of other architectures use unless built otherwise
)
_END: Final = 1 << 64
_MAX_RUNS: Final = 1 << 22  # of pages of one task: 32 GiB of which every second page is stored
_MAX_MAPPINGS: Final = 1 << 20  # sixteen times the kernel's default limit

_PARENT, _PRESENT = 1, 4  # PE_PARENT, PE_PRESENT

# VMA_AREA_* and VMA_*, include/image.h
REGULAR, STACK, VSYSCALL, VDSO, HEAP = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
FILE_PRIVATE, FILE_SHARED, ANON_SHARED, ANON_PRIVATE = 1 << 6, 1 << 7, 1 << 8, 1 << 9
SYSV_IPC, SOCKET, VVAR, AIO_RING, MEMFD, GUARD = (1 << n for n in (10, 11, 12, 13, 14, 16))

_MAP_GROWSDOWN: Final = 0x100
_KINDS: Final = (  # the first that applies: bits, kind, name of mappings without a file
    (STACK, "stack", "[stack]"),
    (HEAP, "heap", "[heap]"),
    (VDSO, "vdso", "[vdso]"),
    (VVAR, "vvar", "[vvar]"),
    (VSYSCALL, "vsyscall", "[vsyscall]"),
    (AIO_RING, "aio", "[aio]"),
    (SOCKET, "socket", "[socket]"),
    (GUARD, "guard", "[guard]"),
    (MEMFD, "memfd", "memfd"),
    (SYSV_IPC, "sysv", "SYSV"),
    (FILE_PRIVATE | FILE_SHARED, "file", "file"),
    (ANON_SHARED, "shared", "[shared]"),
)
_MM_IMAGE: Final = re.compile(r"mm-(\d{1,10})\.img", re.ASCII)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping (vma): addresses [start, end).

    prot: PROT_* bits (1 read, 2 write, 4 execute); flags: MAP_* bits; status: the VMA_* bits above; offset: bytes into
    the mapped object; name: path, or what /proc/PID/maps would show; shared: id of the shared memory that it shows, or
    None; file: path of the mapped file, or "".
    """

    start: int
    end: int
    prot: int
    flags: int
    status: int
    offset: int
    kind: str
    name: str
    shared: int | None = None
    file: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def access(self) -> str:
        """As in /proc/PID/maps: rwxp."""
        letters = "".join(c if self.prot & 1 << n else "-" for n, c in enumerate("rwx"))
        shared = self.shared is not None or self.status & (FILE_SHARED | ANON_SHARED)
        return letters + ("s" if shared else "p")


@dataclass(frozen=True, slots=True)
class Layer:
    """A pages image: 0 is the checkpoint's own, 1 that of its parent, and so on."""

    images: Images | PlainPages
    name: str


@dataclass(frozen=True, slots=True)
class Extent:
    """Stored bytes that follow each other in memory and in a pages image.

    start: address (in shared memory: offset); size: bytes; layer: index into PageMap.layers; offset: in that image.
    """

    start: int
    size: int
    layer: int
    offset: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.start + self.size


@dataclass(slots=True)
class Block:
    """Stored bytes as they are read: `data` (reused: gone with the next block), and what each part of it is.

    spans: (position in data, size, address), in order, covering `data` exactly.
    """

    data: memoryview
    spans: list[tuple[int, int, int]]


class PageMap:
    """Where the stored pages of one task, or of one shared memory object, lie.

    missing: bytes that are neither here nor in a parent because a lazy dump left them behind.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.missing = 0
        # four numbers per extent instead of an object: a fragmented task has millions
        self._start, self._size, self._layer, self._offset = (array("Q") for _ in range(4))

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> Extent:
        return Extent(
            self._start[index], self._size[index], self._layer[index], self._offset[index]
        )

    def stored(self) -> int:
        """Bytes in all."""
        return sum(self._size)

    def stored_in(self, own: bool) -> int:
        """Bytes of them that lie in the checkpoint's own images, or in its parents'."""
        return sum(
            s for s, layer in zip(self._size, self._layer, strict=True) if (layer == 0) == own
        )

    def add(self, start: int, size: int, layer: int, offset: int) -> None:
        """Append; joined to the last extent where it continues it."""
        if self._start:
            at = len(self._start) - 1
            if (
                self._start[at] + self._size[at] == start
                and self._layer[at] == layer
                and self._offset[at] + self._size[at] == offset
            ):
                self._size[at] += size
                return
        if len(self._start) >= _MAX_RUNS:
            raise FileError(f"{self.layers[0].name}: more than {_MAX_RUNS} runs of pages")
        for column, value in zip(
            (self._start, self._size, self._layer, self._offset),
            (start, size, layer, offset),
            strict=True,
        ):
            column.append(value)

    def within(self, start: int, end: int) -> Iterator[Extent]:
        """What is stored of [start, end), in order."""
        at = max(0, bisect_right(self._start, start) - 1)
        while at < len(self._start) and self._start[at] < end:
            low = max(start, self._start[at])
            high = min(end, self._start[at] + self._size[at])
            if low < high:
                skip = low - self._start[at]
                yield Extent(low, high - low, self._layer[at], self._offset[at] + skip)
            at += 1

    def __iter__(self) -> Iterator[Extent]:
        return map(self.__getitem__, range(len(self)))

    def blocks(self, extents: Iterable[Extent]) -> Iterator[Block]:
        """The contents of `extents`, read in as large pieces as they lie together in the image.  Raises FileError."""
        for group in _groups(extents):
            layer = self.layers[group[0].layer]
            size = group[-1].offset + group[-1].size - group[0].offset
            at, done = 0, 0  # extent, bytes of it that were handed out
            got = 0
            for data in layer.images.chunks(layer.name, group[0].offset, size):
                got += len(data)
                spans, position = [], 0
                while position < len(data) and at < len(group):
                    take = min(group[at].size - done, len(data) - position)
                    spans.append((position, take, group[at].start + done))
                    position, done = position + take, done + take
                    if done == group[at].size:
                        at, done = at + 1, 0
                yield Block(data, spans)
            if got != size:
                raise FileError(f"{layer.images.where(layer.name)}: ends before its pages do")


def _groups(extents: Iterable[Extent], most: int = 4096) -> Iterator[list[Extent]]:
    """Extents that follow each other in the same image; not too many at once."""
    group: list[Extent] = []
    for extent in extents:
        last = group[-1] if group else None
        if (
            last is not None
            and last.layer == extent.layer
            and last.offset + last.size == extent.offset
            and len(group) < most
        ):
            group.append(extent)
            continue
        if group:
            yield group
        group = [extent]
    if group:
        yield group


def load_pages(images: Images, stem: str) -> PageMap:
    """The page map of a task (`stem` is its PID) or of shared memory ("shmem-ID").

    Raises FileError, and IdentityError where the identity opens no memory.
    """
    name = f"pagemap-{stem}.img"
    chain: list[tuple[Images, Layer, list[tuple[int, int, int]]]] = []
    at: Images | None = images
    while at is not None:
        layer, entries = _read_pagemap(at, name)
        chain.append((at, layer, entries))
        if not any(flags & _PARENT for _, _, flags in entries):
            break
        at = at.parent()
        if at is not None and not at.exists(name):
            at = None  # what is missing there is named below
    below: PageMap | None = None
    for depth in range(len(chain) - 1, -1, -1):  # the oldest first: each needs the one below it
        below = _resolve(chain[depth], below, name)
    assert below is not None
    return below


def _resolve(
    entry: tuple[Images, Layer, list[tuple[int, int, int]]], below: PageMap | None, name: str
) -> PageMap:
    images, layer, entries = entry
    pages = PageMap()
    pages.layers = [layer, *(below.layers if below is not None else ())]
    size = layer.images.size(layer.name) if any(f & _PRESENT for _, _, f in entries) else 0
    offset = 0
    for start, length, flags in entries:
        if flags & _PRESENT:
            if length > size - offset:
                raise FileError(
                    f"{images.where(layer.name)}: has no page for address {start:#x} of {name}"
                )
            pages.add(start, length, 0, offset)
            offset += length
        elif flags & _PARENT:
            at = start
            for extent in below.within(start, start + length) if below is not None else ():
                if extent.start != at:
                    break
                pages.add(extent.start, extent.size, extent.layer + 1, extent.offset)
                at = extent.end
            if at != start + length:
                raise FileError(
                    f"{images.where(name)}: the page at {at:#x} should be in the parent, which has none"
                )
        else:
            pages.missing += length
    return pages


def _read_pagemap(images: Images, name: str) -> tuple[Layer, list[tuple[int, int, int]]]:
    """The pages image, and (start, bytes, flags) of each entry in ascending order."""
    where = images.where(name)
    records = schema.records(images.read(name), ("pagemap_head", "pagemap_entry"), where)
    head = next(records, None)
    if head is None:
        raise FileError(f"{where}: has no head")
    entries: list[tuple[int, int, int]] = []
    pages = f"pages-{head.pages_id}.img"
    plain, compressed = PlainPages(images, pages), False
    last = 0
    for record in records:
        start, count = record.vaddr, record.nr_pages or record.compat_nr_pages
        end = start + count * PAGE
        if start % PAGE or start < last or end > _END:
            raise FileError(f"{where}: impossible run of {count} pages at {start:#x}")
        flags = _flags(record)
        if flags & _PRESENT and count:
            sizes, per_block = sizes_of(record, count, where) or (None, 1)
            aligned = bool(record.flags & ALIGNED)
            compressed = compressed or aligned or sizes is not None
            plain.add(count, sizes, per_block, aligned=aligned)
        if entries and last == start and entries[-1][2] == flags:
            entries[-1] = (entries[-1][0], end - entries[-1][0], flags)
        elif count:
            entries.append((start, end - start, flags))
        if len(entries) > _MAX_RUNS:
            raise FileError(f"{where}: more than {_MAX_RUNS} runs of pages")
        last = end
    return Layer(plain if compressed else images, pages), entries


def _flags(record: Any) -> int:
    """PARENT, PRESENT or neither; versions before 3.0 have no flags."""
    if record.in_parent:
        return _PARENT
    flags: int = record.flags if record.HasField("flags") else _PRESENT
    return flags & _PRESENT or flags & _PARENT


@dataclass(slots=True)
class AddressSpace:
    """A task's memory.  `mm` is CRIU's mm_entry; mappings are in ascending order."""

    images: Images
    pid: int
    mm: Any
    mappings: list[Mapping]
    private: PageMap
    _shared: dict[int, PageMap] = field(default_factory=dict)

    @classmethod
    def load(cls, images: Images, pid: int) -> AddressSpace:
        """Raises FileError, UsageError (no such task), IdentityError."""
        name = f"mm-{pid}.img"
        if not images.exists(name) and not images.withheld(name):
            raise UsageError(
                f"{images.label} has no memory of a process {pid}",
                hint="it has that of: " + (", ".join(map(str, pids(images)[:20])) or "none"),
            )
        where = images.where(name)
        mm = next(iter(schema.records(images.read(name), "mm_entry", where)), None)
        if mm is None:
            raise FileError(f"{where}: is empty")
        if not mm.vmas:  # early versions of CRIU kept them in an image by themselves
            mm.vmas.extend(_optional(images, f"vmas-{pid}.img", "vma_entry"))
        if len(mm.vmas) > _MAX_MAPPINGS:
            raise FileError(f"{where}: more than {_MAX_MAPPINGS} mappings")
        mappings = _mappings(mm, MappedFiles(images), where)
        return cls(images, pid, mm, mappings, load_pages(images, str(pid)))

    def at(self, address: int) -> Mapping | None:
        """The mapping that holds an address."""
        at = bisect_right(self.mappings, address, key=lambda m: m.start) - 1
        found = self.mappings[at] if at >= 0 else None
        return found if found is not None and address < found.end else None

    def pages_of(self, mapping: Mapping) -> PageMap | None:
        """Where its pages are stored: the task's own page map, or that of shared memory; None if nowhere."""
        if mapping.shared is None:
            return self.private
        if mapping.shared not in self._shared:
            stem = f"shmem-{mapping.shared}"
            known = self.images.exists(f"pagemap-{stem}.img")
            self._shared[mapping.shared] = load_pages(self.images, stem) if known else PageMap()
        return self._shared[mapping.shared]

    def stored(self, mapping: Mapping) -> Iterator[Extent]:
        """What is stored of a mapping: extents with addresses of this task."""
        if mapping.shared is None:
            yield from self.private.within(mapping.start, mapping.end)
            return
        pages = self.pages_of(mapping)
        assert pages is not None
        shift = mapping.start - mapping.offset
        for e in pages.within(mapping.offset, mapping.offset + mapping.size):
            yield Extent(e.start + shift, e.size, e.layer, e.offset)

    def blocks(self, mapping: Mapping) -> Iterator[Block]:
        """The stored contents of a mapping.  Raises FileError."""
        pages = self.pages_of(mapping)
        assert pages is not None
        return pages.blocks(self.stored(mapping))

    def peek(self, address: int, size: int) -> bytes:
        """Up to `size` bytes from `address`: what is stored there without a gap.  Raises FileError."""
        data = bytearray()
        while len(data) < size and (mapping := self.at(address + len(data))) is not None:
            pages = self.pages_of(mapping)
            assert pages is not None
            had = len(data)
            for extent in self._around(mapping, address + had, address + size):
                if extent.start != address + len(data):
                    break
                layer = pages.layers[extent.layer]
                data += layer.images.pread(layer.name, extent.offset, extent.size)
            if len(data) == had or address + len(data) != min(mapping.end, address + size):
                break
        return bytes(data)

    def _around(self, mapping: Mapping, start: int, end: int) -> Iterator[Extent]:
        part = replace(
            mapping,
            start=start,
            end=min(end, mapping.end),
            offset=mapping.offset + start - mapping.start,
        )
        return self.stored(part)


class MappedFiles:
    """Paths of files and names of memfds by the ids that mappings and descriptors use."""

    def __init__(self, images: Images) -> None:
        """Missing images leave names out; damaged ones raise FileError."""
        self.paths: dict[int, str] = {}
        self.memfds: dict[int, tuple[str, int]] = {}  # file id: name, shared memory id
        inodes: dict[int, tuple[str, int]] = {}
        for entry in _optional(images, "memfd.img", "memfd_inode_entry"):
            inodes[entry.inode_id] = (names.text(entry.name), entry.shmid)
        for entry in _optional(images, "reg-files.img", "reg_file_entry"):  # CRIU before 3.0
            self.paths[entry.id] = names.text(entry.name)
        for entry in _optional(images, "files.img", "file_entry"):
            if entry.HasField("reg"):
                self.paths[entry.id] = names.text(entry.reg.name)
            elif entry.HasField("memfd") and entry.memfd.inode_id in inodes:
                self.memfds[entry.id] = inodes[entry.memfd.inode_id]


def _optional(images: Images, name: str, message: str) -> Iterator[Any]:
    if images.exists(name):
        yield from schema.records(images.read(name), message, images.where(name))


def _mappings(mm: Any, files: MappedFiles, where: str) -> list[Mapping]:
    found: list[Mapping] = []
    last = 0
    for vma in mm.vmas:
        # GUARD marks a range inside of a mapping; it comes after all others and is none itself.
        if vma.status & GUARD:
            continue
        if vma.start % PAGE or vma.end % PAGE or not last <= vma.start < vma.end:
            raise FileError(f"{where}: impossible mapping {vma.start:#x}-{vma.end:#x}")
        last = vma.end
        path, shared = "", None
        kind, name = _kind(vma, mm)
        if kind == "file":
            name = path = files.paths.get(vma.shmid, "?")
        elif kind == "memfd":
            name, shared = files.memfds.get(vma.shmid, ("?", None))
            name = f"memfd:{name}"
            if vma.status & FILE_PRIVATE:
                shared = None  # a private view: what was written to lies in the task's own pages
        elif kind in ("sysv", "shared"):
            shared = vma.shmid
            name = f"{name} {shared}"
        found.append(
            Mapping(
                vma.start,
                vma.end,
                vma.prot,
                vma.flags,
                vma.status,
                vma.pgoff,
                kind,
                name,
                shared,
                path,
            )
        )
    return found


def _kind(vma: Any, mm: Any) -> tuple[str, str]:
    for bits, kind, name in _KINDS:
        if vma.status & bits:
            return kind, name
    # CRIU knows these two bits and rarely sets them.
    if vma.flags & _MAP_GROWSDOWN:
        return "stack", "[stack]"
    if mm.mm_start_brk < vma.end and vma.start < mm.mm_brk:
        return "heap", "[heap]"
    return "anonymous", ""


def pids(images: Images) -> list[int]:
    """Of the tasks whose memory is there, ascending."""
    return sorted(int(m[1]) for m in map(_MM_IMAGE.fullmatch, images.names()) if m)
