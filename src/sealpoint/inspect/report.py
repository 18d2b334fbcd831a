"""What a report on a checkpoint says, collected from its metadata, its memory images and its header.

Pages themselves are not read: a report of a large checkpoint takes as long as one of a small one.  What an identity
cannot open, and what is damaged, is left out and said (`Report.notes`).
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sealpoint.checkpoint import describe_stanza, summary
from sealpoint.errors import FileError, IdentityError, OmissionWarning, UsageError
from sealpoint.format.constants import Codec, Role, Roots
from sealpoint.inspect import display, file_table, memory_map, messages, tasks
from sealpoint.inspect.compressed_pages import PlainPages
from sealpoint.inspect.memory import AddressSpace, Layer, MappedFiles
from sealpoint.inspect.sealed import SealedSource
from sealpoint.names import text

if TYPE_CHECKING:
    from sealpoint.inspect.source import Images
    from sealpoint.inspect.tasks import TreeTask

_MAX_CHAIN: Final = 64  # increments that are drawn
_CODECS: Final = {c.value: c.name.lower() for c in Codec}


@dataclass(frozen=True, slots=True)
class ReportedFile:
    """One checkpoint of a chain of increments: id, seconds since 1970, bytes of the file, whether it is this one."""

    checkpoint: str
    captured: int
    size: int
    label: str
    this: bool = False


@dataclass(frozen=True, slots=True)
class Seal:
    """The header of a sealed file.  signers: (name, key id, trusted); recipients: (who, opens memory)."""

    checkpoint: str
    kind: str
    suite: str
    captured: int
    tool: str
    workload: str
    size: int
    sequence: int
    signers: tuple[tuple[str, str, bool], ...]
    recipients: tuple[tuple[str, bool], ...]
    chain: tuple[ReportedFile, ...]


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file descriptor: number, kind in CRIU's words, what it leads to, more about it."""

    fd: int
    kind: str
    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: bytes, and how many of the sealed file they take (the same in what is not sealed)."""

    name: str
    role: str
    size: int
    stored: int


@dataclass(slots=True)
class Process:
    """A task.  memory: bytes of its pages that are stored here or in parents; space: None where it is withheld."""

    task: TreeTask
    depth: int
    memory: int = 0
    space: AddressSpace | None = None
    band: memory_map.Band | None = None
    files: list[OpenedFile] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """Everything.  hidden: (objects, bytes) that this identity cannot open; notes: what could not be said."""

    label: str
    seal: Seal | None
    processes: list[Process] = field(default_factory=list)
    container: dict[str, str] = field(default_factory=dict)
    objects: list[Stored] = field(default_factory=list)
    hidden: tuple[int, int] = (0, 0)
    notes: list[str] = field(default_factory=list)


def collect(images: Images) -> Report:
    """Raises FileError, IdentityError only where there is no process tree to speak of."""
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always", OmissionWarning)
        report = _collect(images)
    said = [f"{w.message}." for w in left_out if issubclass(w.category, OmissionWarning)]
    report.notes = list(dict.fromkeys(report.notes + said))
    return report


def _collect(images: Images) -> Report:
    source = images.source
    report = Report(source.label.rpartition("/")[2] or source.label, None)
    if isinstance(source, SealedSource):
        report.seal = _seal(source, report)
        report.hidden = source.withheld_objects()
        report.container, sizes = _summary(source)
    else:
        sizes = {}
    report.objects = list(_objects(images))
    tree = tasks.read_tree(images)
    files = _Files(images, report)
    for task, depth in tasks.walk(tree):
        process = Process(task, depth, sizes.get(task.pid, 0))
        _memory(images, process, report)
        process.files = files.of(task)
        report.processes.append(process)
    if report.hidden[0]:
        assert isinstance(source, SealedSource)
        whose = ", ".join(source.memory_recipients())
        report.notes.append(f"Memory maps take the identity of: {whose}.")
    return report


def _summary(source: SealedSource) -> tuple[dict[str, str], dict[int, int]]:
    data = source.summary()
    if data is None:
        return {}, {}
    decoded = summary.decode(data)
    return decoded["container"], {int(t["pid"]): int(t["memory"]) for t in decoded["tasks"]}


def _memory(images: Images, process: Process, report: Report) -> None:
    pid = process.task.pid
    if images.withheld(f"mm-{pid}.img") or not images.exists(f"mm-{pid}.img"):
        return
    try:
        space = AddressSpace.load(images, pid)
        process.band = memory_map.band(space, _codecs)
    except (FileError, UsageError) as error:
        report.notes.append(f"The memory of process {pid} cannot be shown: {error.message}.")
        return
    process.space = space
    process.memory = process.band.stored + process.band.parent


def _codecs(layer: Layer, offset: int, size: int) -> Iterator[tuple[int, str]]:
    """(bytes, codec) of `size` bytes from `offset` of a pages image."""
    source = layer.images.source
    if not isinstance(source, SealedSource) or isinstance(layer.images, PlainPages):
        yield size, ""
        return
    entry = source.opened.entry(layer.images.prefix + layer.name)
    at, end = entry.offset + offset, entry.offset + offset + size
    while at < end:
        counter = at // entry.stream.chunk_size
        take = min(end, (counter + 1) * entry.stream.chunk_size) - at
        yield take, _CODECS[entry.stream.codecs[counter]]
        at += take


def _seal(source: SealedSource, report: Report) -> Seal:
    authentic = source.checkpoint.authentic
    origin = authentic.origin
    if authentic.interrupted:
        report.notes.append("A rekey of the file was interrupted: sealpoint rekey FILE --repair.")
    return Seal(
        origin.checkpoint_id.hex(),
        origin.kind,
        origin.suite.label,
        origin.captured,
        origin.tool,
        origin.workload,
        authentic.file.size,
        authentic.slot.sequence,
        tuple((s.name, s.key_id, s.trusted) for s in source.checkpoint.signers),
        tuple((describe_stanza(s), s.roots is Roots.BOTH) for s in authentic.slot.stanzas),
        tuple(_chain(source, report)),
    )


def _chain(source: SealedSource, report: Report) -> list[ReportedFile]:
    """From the oldest that is there to this one."""
    links: list[ReportedFile] = []
    at: Any = source
    while at is not None:
        if len(links) >= _MAX_CHAIN:
            report.notes.append(f"Only the newest {_MAX_CHAIN} files of the chain are shown.")
            break
        authentic = at.checkpoint.authentic
        links.append(
            ReportedFile(
                authentic.origin.checkpoint_id.hex(),
                authentic.origin.captured,
                authentic.file.size,
                at.label.rpartition("/")[2],
                this=at is source,
            )
        )
        if authentic.origin.parent is None:
            break
        try:
            found = at.parent("")
        except (FileError, IdentityError) as error:
            report.notes.append(f"The chain of increments is not complete here: {error.message}.")
            break
        at = found[0] if found is not None and isinstance(found[0], SealedSource) else None
    return links[::-1]


def _objects(images: Images) -> Iterator[Stored]:
    source = images.source
    for name in source.names():
        role = "metadata" if source.role(name) is Role.METADATA else "memory"
        size = stored = source.size(name)
        if isinstance(source, SealedSource):
            entry = source.opened.entry(name)
            if entry.stream.codecs.strip(b"\0"):  # nothing in it is compressed otherwise
                stored = source.opened.stored_size(entry.stream)
        yield Stored(name, role, size, stored)


class _Files:
    """Descriptors of each task."""

    def __init__(self, images: Images, report: Report) -> None:
        self._images = images
        self._report = report
        self._entries: dict[int, Any] = {}
        self._memfds: dict[int, tuple[str, int]] = {}
        try:
            self._entries = file_table.read(images)
            self._memfds = MappedFiles(images).memfds
        except FileError as error:
            report.notes.append(f"Open files cannot be named: {error.message}.")

    def of(self, task: TreeTask) -> list[OpenedFile]:
        """In the order of the image."""
        try:
            entries = list(file_table.descriptors(self._images, task.pid, task.state))
        except FileError as error:
            self._report.notes.append(
                f"The files of process {task.pid} are not known: {error.message}."
            )
            return []
        return [self._describe(e) for e in sorted(entries, key=lambda e: int(e.fd))]

    def _describe(self, info: Any) -> OpenedFile:
        kind = str(display.shown(info, "fdinfo_entry", "type"))
        entry = self._entries.get(info.id)
        if entry is None:
            return OpenedFile(info.fd, kind, f"{kind.lower()} {info.id}")
        if kind == "REG":
            return OpenedFile(info.fd, kind, _text(entry.reg.name), f"at {entry.reg.pos}")
        if kind == "INETSK":
            return OpenedFile(info.fd, kind, *_inet(entry.isk))
        if kind == "UNIXSK":
            name = _socket_name(bytes(entry.usk.name))
            peer = f"peer {entry.usk.peer}" if entry.usk.peer else ""
            return OpenedFile(info.fd, kind, name or f"socket {entry.usk.ino}", peer)
        if kind == "MEMFD":
            return OpenedFile(info.fd, kind, self._memfds.get(info.id, (f"memfd {info.id}", 0))[0])
        if kind == "PIPE":
            return OpenedFile(info.fd, kind, f"pipe {entry.pipe.pipe_id}", _end(entry.pipe.flags))
        if kind == "FIFO":
            return OpenedFile(info.fd, kind, f"fifo {entry.fifo.pipe_id}")
        return OpenedFile(info.fd, kind, f"{kind.lower()} {info.id}")


def _end(flags: int) -> str:
    return "writes" if flags & 1 else "reads"


def _socket_name(name: bytes) -> str:
    """As ss(8) shows it: an abstract name begins with @ in place of its zero."""
    return text(name.rstrip(b"\0").replace(b"\0", b"@"))


def _text(name: Any) -> str:
    return text(name) if isinstance(name, bytes) else str(name)


def _inet(sk: Any) -> tuple[str, str]:
    kind, state = _word("proto", sk.proto), _word("state", sk.state)
    here, there = (
        _address(sk.family, sk.src_addr, sk.src_port),
        _address(sk.family, sk.dst_addr, sk.dst_port),
    )
    return (f"{here} → {there}" if sk.dst_port else here), f"{kind} {state}".strip()


def _word(field: str, value: int) -> str:
    """What `crit show` calls it."""
    known = {number: word for word, number in messages.words("sk", field).items()}
    return known.get(value, str(value))


def _address(family: int, words: Any, port: int) -> str:
    """IPv4 and IPv6 addresses as CRIU keeps them: words in network order, read as little-endian numbers."""
    raw = b"".join(int(w).to_bytes(4, "little") for w in words)
    try:
        if family == socket.AF_INET6:
            return f"[{socket.inet_ntop(socket.AF_INET6, raw)}]:{port}"
        return f"{socket.inet_ntop(socket.AF_INET, raw)}:{port}"
    except (ValueError, OSError):
        return f"?:{port}"
