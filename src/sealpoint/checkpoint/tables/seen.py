"""What has passed through a door: sizes of whole images, and what the small ones say.

A door (CRIU's stream, the images mount, a directory, an archive) tells a `Seen` of each image as its bytes pass.  Only
what `evidence` decides from is kept: the tree, states of tasks, and the sums of each pagemap.  Pagemaps can be large:
they are counted as they pass, and no copy of them stays.  Pages are not looked at.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sealpoint.criu import compressed, schema
from sealpoint.criu.pagemap import LAZY, PAGE, PARENT, PRESENT, is_pagemap
from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError

_INVENTORY_MAGIC: Final = 0x58313116  # in place of the two words that other images begin with
_COMMON_MAGIC: Final = 0x54564319
_PAGEMAP_MAGIC: Final = struct.pack("<II", _COMMON_MAGIC, 0x56084025)
_WORD: Final = struct.Struct("<I")
_NUMBERED: Final = re.compile(r"(core|mm|ids)-(\d+)\.img", re.ASCII)
_FRAMED: Final = re.compile(
    r"(?:fs-\d+|fdinfo-\d+|files|utsns-\d+|userns-\d+|timens-\d+|ipcns-var-\d+|mountpoints-\d+|"
    r"reg-files|seccomp)\.img",
    re.ASCII,
)
_MAX_SMALL: Final = 64 * 1024 * 1024  # bytes of an image that is read as a whole
_MAX_TASKS: Final = 1 << 22  # the kernel's own limit of pids
_MAX_RECORD: Final = 16 * 1024 * 1024
_GHOST: Final = 1  # remap_type of CRIU's images/remap-file-path.proto
# What CRIU keeps in an image beside files.img, by the type of the file: fd_types of CRIU's images/fdinfo.proto.
_BESIDE: Final = {11: "tty-info.img", 18: "memfd.img"}
# VMA_* of CRIU's include/image.h
_REGULAR, _ANON_SHARED = 1 << 0, 1 << 8
_NO_SHMEM: Final = (
    1 << 10 | 1 << 11 | 1 << 13 | 1 << 27 | 1 << 31
)  # System V, sockets, aio, plugins


class SeenTask(NamedTuple):
    """One of pstree.img.  threads: of its process, itself among them; a zombie has none."""

    pid: int
    parent: int
    threads: tuple[int, ...]


@dataclass(slots=True)
class Counted:
    """Sums of a pagemap, in pages by where they are.  stored: bytes that its pages image must have."""

    pages_id: int = 0
    present: int = 0
    parent: int = 0
    lazy: int = 0
    nowhere: int = 0
    stored: int = 0


@dataclass(slots=True)
class Seen:
    """sizes: of images that passed as a whole, by name.  holes: pages images of which parts were freed.

    tasks: of pstree.img, in its order; states: by pid, of cores of tasks.  counted: by the name of a pagemap; shared:
    ids of shared memory that mappings or descriptors refer to, by the image that does.  ids: of the kernel's objects
    that a task uses, by pid; own_ids: those of CRIU itself.  refers: other images that an image refers to, by the one
    that does.  files: ids in files.img, by their type; used: ids to which descriptors, mappings or directories refer.
    faults: what is wrong with single images; open: those that are not whole yet.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    holes: set[str] = field(default_factory=set)
    tasks: list[SeenTask] = field(default_factory=list)
    states: dict[int, int] = field(default_factory=dict)
    counted: dict[str, Counted] = field(default_factory=dict)
    shared: dict[int, str] = field(default_factory=dict)
    ids: dict[int, Any] = field(default_factory=dict)
    own_ids: Any = None
    refers: dict[str, str] = field(default_factory=dict)
    files: dict[int, set[int]] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)

    def image(self, name: str) -> Passing:
        """An image begins to pass.  Of several at once each may be in a thread of its own."""
        self.open.add(name)
        if name in self.sizes:
            self.faults.append(f"{name} passed twice")
        if is_pages(name):
            return Passing(self, name)
        return _PassingPagemap(self, name) if is_pagemap(name) else _small(self, name)


class Passing:
    """An image of which only the size counts.  Bytes come in order: `add`, or only their number: `count`."""

    def __init__(self, seen: Seen, name: str) -> None:
        self._seen = seen
        self.name = name
        self.size = 0

    def count(self, size: int) -> None:
        """So many bytes of pages."""
        self.size += size

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self.size += len(data)

    def end(self) -> None:
        """The whole image has passed."""
        self._seen.sizes[self.name] = self.size
        self._seen.open.discard(self.name)

    def fault(self, problem: str) -> None:
        """It is not what CRIU writes under that name."""
        self._seen.faults.append(problem)


class _PassingSmall(Passing):
    """An image that is read as a whole when it has passed."""

    def __init__(self, seen: Seen, name: str, read: Callable[[Seen, str, bytes], None]) -> None:
        super().__init__(seen, name)
        self._read = read
        self._data = bytearray()

    def add(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        if self.size <= _MAX_SMALL:
            self._data += data

    def end(self) -> None:
        data, self._data = bytes(self._data), bytearray()
        try:
            if self.size != len(data):
                raise FileError(f"{self.name} is absurdly large")
            self._read(self._seen, self.name, data)
        except FileError as error:
            self.fault(error.message)
        super().end()


class _PassingRecords(Passing):
    """An image that is taken apart as it passes.  Here only whether its records are whole counts."""

    def __init__(self, seen: Seen, name: str) -> None:
        super().__init__(seen, name)
        self._rest = bytearray()  # of a record whose end has not passed yet
        self._wanted = len(_PAGEMAP_MAGIC)  # bytes without which `_rest` is not a whole record
        self._begun = self._broken = self._may_be_empty = False
        self.records = 0

    def add(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        if self._broken:
            return
        self._rest += data
        if len(self._rest) < self._wanted:
            return
        try:
            self._take(bytes(self._rest))
        except FileError as error:
            self._broken = True
            self._rest.clear()
            self.fault(error.message)

    def _take(self, data: bytes) -> None:
        at = 0
        if not self._begun:
            at = len(_PAGEMAP_MAGIC)
            self.magic(data[:at])
            self._begun = True
        length, end = _WORD, len(data)
        self._wanted = length.size
        while end - at >= length.size:
            (size,) = length.unpack_from(data, at)
            if size > _MAX_RECORD:
                raise FileError(f"{self.name}: record of impossible length")
            if end - at - length.size < size:
                self._wanted = length.size + size
                break
            at += length.size + size
            self.record(data[at - size : at])
            self.records += 1
        self._rest = bytearray(data[at:])

    def magic(self, data: bytes) -> None:
        """What the image begins with.  Raises FileError."""
        if _WORD.unpack_from(data)[0] != _COMMON_MAGIC:
            raise FileError(f"{self.name} is not a CRIU image")

    def record(self, data: bytes) -> None:
        """One of them, without its length.  Raises FileError."""

    def end(self) -> None:
        if not self._broken:
            if self._rest or not (self.records or (self._begun and self._may_be_empty)):
                self.fault(f"{self.name} is cut short")
            else:
                self.whole()
        super().end()

    def whole(self) -> None:
        """All records have passed."""


class _PassingParsed(_PassingRecords):
    """An image of which each record is looked at."""

    def __init__(
        self, seen: Seen, name: str, message: str, take: Callable[[Seen, str, Any], None]
    ) -> None:
        super().__init__(seen, name)
        self._parse = schema.message(message).FromString
        self._note = take
        self._may_be_empty = message == "fdinfo_entry"  # of a task without descriptors

    def record(self, data: bytes) -> None:
        from google.protobuf.message import DecodeError

        try:
            self._note(self._seen, self.name, self._parse(data))
        except DecodeError:
            raise FileError(f"{self.name}: malformed record") from None


class _PassingQueues(Passing):
    """Notes descriptors that wait in packets: records, each with its packet behind it, which is passed over."""

    def __init__(self, seen: Seen, name: str) -> None:
        super().__init__(seen, name)
        self._rest = bytearray()  # of a record whose end has not passed yet
        self._skip = len(_PAGEMAP_MAGIC)
        self._broken = False

    def add(self, data: bytes | memoryview) -> None:
        from google.protobuf.message import DecodeError

        self.size += len(data)
        if self._broken:
            return
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._rest += data[skipped:]
        try:
            while not self._skip and len(self._rest) >= _WORD.size:
                end = _WORD.size + _WORD.unpack_from(self._rest)[0]
                if end > _MAX_RECORD:
                    raise FileError(f"{self.name}: record of impossible length")
                if len(self._rest) < end:
                    return
                entry = schema.message("sk_packet_entry").FromString(bytes(self._rest[4:end]))
                for passed in entry.scm:
                    self._seen.used.update(passed.rights)
                self._skip = max(0, end + entry.length - len(self._rest))
                del self._rest[: end + entry.length]
        except (DecodeError, FileError) as error:
            self._broken = True
            self._rest.clear()
            said = (
                error.message if isinstance(error, FileError) else f"{self.name}: malformed record"
            )
            self.fault(said)

    def end(self) -> None:
        if not self._broken and (self._rest or self._skip):
            self.fault(f"{self.name} is cut short")
        super().end()


class _PassingPagemap(_PassingRecords):
    """Counts the entries of a pagemap as they pass."""

    def __init__(self, seen: Seen, name: str) -> None:
        super().__init__(seen, name)
        self._sums = Counted()
        self._plain = 0  # pages of usual runs that are not in the sums yet
        self._parse: Callable[[bytes], Any] = bytes  # known when the first record has passed

    def magic(self, data: bytes) -> None:
        if data != _PAGEMAP_MAGIC:
            raise FileError(f"{self.name} is not a pagemap")

    def record(self, data: bytes) -> None:
        from google.protobuf.message import DecodeError

        try:
            if self.records:
                self._count(data)
            else:
                self._sums.pages_id = schema.message("pagemap_head").FromString(data).pages_id
                self._parse = schema.message("pagemap_entry").FromString
        except DecodeError:
            raise FileError(f"{self.name}: malformed record") from None

    def _count(self, data: bytes) -> None:
        # One for each run, of which there may be very many: the usual one first, with few steps.
        entry = self._parse(data)
        pages = entry.nr_pages or entry.compat_nr_pages
        flags = entry.flags
        entry.DiscardUnknownFields()
        if flags & PRESENT and not flags & compressed.ALIGNED and entry.ByteSize() == len(data):
            self._plain += pages
            return
        self._settle()
        if not entry.HasField("flags"):
            flags = PARENT if entry.in_parent else PRESENT
        sums = self._sums
        if not flags & PRESENT:
            if flags & PARENT:
                sums.parent += pages
            elif flags & LAZY:
                sums.lazy += pages
            else:
                sums.nowhere += pages
            return
        sums.present += pages
        if flags & compressed.ALIGNED:
            sums.stored += -sums.stored % PAGE
        stored = None
        if entry.ByteSize() != len(data):  # it has more than the table of fields knows
            stored = compressed.sizes_of(self._parse(data), pages, self.name)
        sums.stored += pages * PAGE if stored is None else sum(stored[0])

    def _settle(self) -> None:
        """Add what was counted apart."""
        self._sums.present += self._plain
        self._sums.stored += self._plain * PAGE
        self._plain = 0

    def whole(self) -> None:
        self._settle()
        self._seen.counted[self.name] = self._sums


def _small(seen: Seen, name: str) -> Passing:
    if name in _READERS:
        return _PassingSmall(seen, name, _READERS[name])
    if name == "sk-queues.img":
        return _PassingQueues(seen, name)
    match = _NUMBERED.fullmatch(name)
    if match is not None:
        return _PassingSmall(seen, name, _OF_TASKS[match[1]])
    kind = name.removesuffix(".img").partition("-")[0]
    if kind in _PARSED and _FRAMED.fullmatch(name):
        return _PassingParsed(seen, name, *_PARSED[kind])
    return (_PassingRecords if _FRAMED.fullmatch(name) else Passing)(seen, name)


def _read_inventory(seen: Seen, name: str, data: bytes) -> None:
    from google.protobuf.message import DecodeError

    if len(data) < 8 or _WORD.unpack_from(data)[0] != _INVENTORY_MAGIC:
        raise FileError(f"{name} is not an inventory")
    if _WORD.unpack_from(data, 4)[0] != len(data) - 8:
        raise FileError(f"{name} is cut short")
    try:
        entry = schema.message("inventory_entry").FromString(data[8:])
    except DecodeError:
        raise FileError(f"{name}: malformed record") from None
    # A CRIU of before that wrote descriptors by pid is too old for any system of today.
    if entry.fdinfo_per_id and entry.HasField("root_ids"):
        seen.own_ids = entry.root_ids


def _read_pstree(seen: Seen, name: str, data: bytes) -> None:
    for entry in schema.records(data, "pstree_entry", name):
        seen.tasks.append(SeenTask(entry.pid, entry.ppid, tuple(entry.threads)))
        if len(seen.tasks) > _MAX_TASKS:
            raise FileError(f"{name} is absurdly large")


def _one(name: str, data: bytes, message: str) -> Any:
    entries = list(schema.records(data, message, name))
    if len(entries) != 1:
        raise FileError(f"{name} holds {len(entries)} records instead of one")
    return entries[0]


def _number(name: str) -> int:
    """The pid in the name of an image."""
    return int(name.removesuffix(".img").partition("-")[2])


def _read_core(seen: Seen, name: str, data: bytes) -> None:
    entry = _one(name, data, "core_entry")
    if entry.HasField("tc"):  # else it is that of a thread
        seen.states[_number(name)] = entry.tc.task_state
    if entry.tc.HasField("old_seccomp_filter") or entry.thread_core.HasField("seccomp_filter"):
        seen.refers.setdefault("seccomp.img", name)


def _read_mm(seen: Seen, name: str, data: bytes) -> None:
    entry = _one(name, data, "mm_entry")
    seen.used.add(entry.exe_file_id)
    for area in entry.vmas:
        seen.used.add(area.shmid)  # the id of a file, where it maps one
        status = area.status
        if status & _REGULAR and status & _ANON_SHARED and not status & _NO_SHMEM:
            seen.shared.setdefault(area.shmid, name)


def _read_ids(seen: Seen, name: str, data: bytes) -> None:
    seen.ids[_number(name)] = _one(name, data, "task_kobj_ids_entry")


def _note_file(seen: Seen, name: str, entry: Any) -> None:
    seen.files.setdefault(entry.type, set()).add(entry.id)
    if entry.type in _BESIDE:
        seen.refers.setdefault(_BESIDE[entry.type], name)


def _note_descriptor(seen: Seen, _: str, entry: Any) -> None:
    seen.used.add(entry.id)


def _note_directories(seen: Seen, _: str, entry: Any) -> None:
    seen.used |= {entry.cwd_id, entry.root_id}


def _read_remaps(seen: Seen, name: str, data: bytes) -> None:
    for entry in schema.records(data, "remap_file_path_entry", name):
        if entry.remap_type == _GHOST:
            seen.refers.setdefault(f"ghost-file-{entry.remap_id}.img", name)


def _read_memfd(seen: Seen, name: str, data: bytes) -> None:
    for entry in schema.records(data, "memfd_inode_entry", name):
        if entry.size:
            seen.shared.setdefault(entry.shmid, name)


_READERS: Final = {
    "inventory.img": _read_inventory,
    "pstree.img": _read_pstree,
    "memfd.img": _read_memfd,
    "remap-fpath.img": _read_remaps,
}
_PARSED: Final = {
    "files": ("file_head", _note_file),
    "fdinfo": ("fdinfo_entry", _note_descriptor),
    "fs": ("fs_entry", _note_directories),
}
_OF_TASKS: Final = {"core": _read_core, "mm": _read_mm, "ids": _read_ids}
