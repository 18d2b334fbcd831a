"""CRIU's image files: magic numbers, then records {u32 LE length, message}, some followed by raw data.

`Image` reads one record after another and holds no more than one in memory; raw data is a `Payload`, read when it is
asked for.  Every length is compared with what is left of the file.  `write` is the way back.  Layouts: CRIU's
image.c, protobuf.c, pipes.c, sk-queue.c, sk-tcp.c, ipc_ns.c, files-reg.c, bpfmap.c.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sealpoint.errors import FileError
from sealpoint.inspect import display, messages
from sealpoint.inspect.source import Images

_TYPES: Final = {  # of the images that are read by name
    "core": "CORE",
    "fdinfo": "FDINFO",
    "files": "FILES",
    "fs": "FS",
    "ids": "IDS",
    "mm": "MM",
    "mountpoints": "MNTS",
    "pagemap": "PAGEMAP",
    "pstree": "PSTREE",
    "stats": "STATS",
    "vmas": "VMAS",
}
Pread = Callable[[int, int], bytes]
Write = Callable[[bytes], object]

INVENTORY: Final = "INVENTORY"  # the one image without the first magic number
_SERVICE: Final = ("STATS", "IRMAP_CACHE")
_MAX_RECORD: Final = 64 * 1024 * 1024
_AHEAD: Final = 64 * 1024
_LINE: Final = 57  # bytes in a line of base64, as MIME has them
_STEP: Final = _LINE * 16 * 1024


@dataclass(frozen=True, slots=True)
class Payload:
    """Raw data that follows a record: `size` bytes from `offset` of the image."""

    pread: Pread
    offset: int
    size: int

    def pieces(self, step: int = _STEP) -> Iterator[bytes]:
        """The data, `step` bytes at a time."""
        for at in range(self.offset, self.offset + self.size, step):
            yield self.pread(at, min(step, self.offset + self.size - at))

    def base64(self) -> Iterator[str]:
        """The same as text, in the lines of MIME."""
        for piece in self.pieces():
            yield base64.encodebytes(piece).decode()


class Cursor:
    """Reads an image front to back in small steps."""

    def __init__(self, pread: Pread, size: int, where: str) -> None:
        self.pread = pread
        self.size = size
        self.where = where
        self.at = 0
        self._ahead = b""
        self._ahead_at = 0

    @property
    def left(self) -> int:
        """Bytes to the end."""
        return self.size - self.at

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes.  Raises FileError."""
        self._check(size, what)
        start = self.at - self._ahead_at
        if start < 0 or start + size > len(self._ahead):
            self._ahead = self.pread(self.at, max(size, min(_AHEAD, self.left)))
            self._ahead_at, start = self.at, 0
            if len(self._ahead) < size:
                raise FileError(f"{self.where}: ends before it should, at offset {self.at}")
        self.at += size
        return self._ahead[start : start + size]

    def payload(self, size: int, what: str, *, padding: int = 0) -> Payload:
        """The next `size` bytes, unread, and behind them `padding` that is skipped."""
        self._check(size + padding, what)
        found = Payload(self.pread, self.at, size)
        self.at += size + padding
        return found

    def _check(self, size: int, what: str) -> None:
        if size > self.left:
            raise FileError(
                f"{self.where}: {what} at offset {self.at} says {size} bytes, but only {self.left} are left"
            )

    def record(self, message: str) -> Any:
        """The next record.  Raises FileError."""
        start = self.at
        (size,) = struct.unpack("<I", self.take(4, "a record's length"))
        if size > min(_MAX_RECORD, self.left):
            raise FileError(
                f"{self.where}: the record at offset {start} says {size} bytes, but only {self.left} are left"
                if size > self.left
                else f"{self.where}: the record at offset {start} is absurdly long ({size} bytes)"
            )
        return messages.parse(message, self.take(size, "a record"), f"{self.where}, offset {start}")


@dataclass(frozen=True, slots=True)
class Record:
    """One record.  name: of its message; extra: the data behind it, None if this kind of record has none."""

    name: str
    message: Any
    extra: Any = None
    older: bool = False  # an entry of a pagemap from before 4.2, whose field 2 is nr_pages

    def to_json(self, *, pretty: bool = False) -> dict[str, Any]:
        """The record as `crit` shows it; data behind it stays a Payload."""
        value = display.to_json(self.message, self.name, pretty=pretty)
        if self.older:
            names = messages.table()["older"].get(self.name, {})
            renamed = {messages.fields(self.name)[n].name: name for name, n in names.items()}
            value = {renamed.get(key, key): item for key, item in value.items()}
        if self.extra is not None:
            value["extra"] = self.extra
        return value


class Image:
    """One image.  name: its type, by its magic number; `records()` are its contents."""

    def __init__(self, pread: Pread, size: int, where: str) -> None:
        """Raises FileError where it is none that is known."""
        self._cursor = Cursor(pread, size, where)
        self.where = where
        table = messages.table()
        first = self._magic()
        if first in (table["magics"]["IMG_COMMON"], table["magics"]["IMG_SERVICE"]):
            first = self._magic()
        found = messages.image_name(first)
        if found is None or found not in table["images"]:
            known = f" ({found})" if found else ""
            raise FileError(
                f"{where}: unknown magic {first:#x}{known}: not an image of messages",
                hint="raw data (pages, tar archives, network dumps) and images of newer CRIU versions are not shown",
            )
        self.name = found
        self.message, self._handler = table["images"][found]

    def _magic(self) -> int:
        if self._cursor.left < 4:
            raise FileError(f"{self.where}: too short to be an image of CRIU")
        (value,) = struct.unpack("<I", self._cursor.take(4, "the magic number"))
        return int(value)

    def records(self) -> Iterator[Record]:
        """Every record in order.  Raises FileError where the image is damaged, after what was sound."""
        if self._handler == "pagemap_handler":
            return self._pagemap()
        if self._handler == "ghost_file_handler":
            return self._ghost()
        return self._entries()

    def count(self) -> int:
        """Number of records: as `crit info` counts, which leaves the head of a pagemap out."""
        found = sum(1 for _ in self.records())
        return found - 1 if self._handler == "pagemap_handler" else found

    def _entries(self) -> Iterator[Record]:
        extra = _EXTRAS[self._handler]
        while self._cursor.left:
            message = self._cursor.record(self.message)
            yield Record(self.message, message, extra(self._cursor, message))

    def _pagemap(self) -> Iterator[Record]:
        name = "pagemap_head"
        while self._cursor.left:
            message = self._cursor.record(name)
            older = name == "pagemap_entry" and not message.HasField("nr_pages")
            yield Record(name, message, older=older)
            name = "pagemap_entry"

    def _ghost(self) -> Iterator[Record]:
        cursor = self._cursor
        head = cursor.record("ghost_file_entry")
        if not head.chunks:
            yield Record(self.message, head, cursor.payload(cursor.left, "the file's contents"))
            return
        yield Record(self.message, head)
        while cursor.left:
            chunk = cursor.record("ghost_chunk_entry")
            data = cursor.payload(chunk.len, "a piece of the file's contents")
            yield Record("ghost_chunk_entry", chunk, data)


def _tcp(cursor: Cursor, message: Any) -> dict[str, Any]:
    return {
        "inq": cursor.payload(message.inq_len, "the receive queue"),
        "outq": cursor.payload(message.outq_len, "the send queue"),
    }


def _semaphores(cursor: Cursor, message: Any) -> list[int]:
    size = 2 * message.nsems
    data = cursor.payload(size, "the semaphores", padding=-size % 8)
    if size > _MAX_RECORD:
        raise FileError(f"{cursor.where}: absurdly many semaphores at offset {data.offset}")
    return list(struct.unpack(f"<{message.nsems}H", b"".join(data.pieces())))


def _queue(cursor: Cursor, message: Any) -> list[Any]:
    found: list[Any] = []
    for _ in range(message.qnum):
        if not cursor.left:
            break
        entry = cursor.record("ipc_msg")
        found.append(entry)
        found.append(cursor.payload(entry.msize, "a message", padding=-entry.msize % 8))
    return [
        item if isinstance(item, Payload) else display.to_json(item, "ipc_msg") for item in found
    ]


def _segment(cursor: Cursor, message: Any) -> Payload:
    # Since CRIU 3.x contents lie in a pagemap like other shared memory; then nothing follows.
    size = 0 if message.in_pagemaps else message.size
    return cursor.payload(size, "the segment", padding=-size % 4)


_EXTRAS: Final[dict[str, Callable[[Cursor, Any], Any]]] = {
    "": lambda _cursor, _message: None,
    "pipes_data_extra_handler": lambda c, m: c.payload(m.bytes, "the pipe's data"),
    "sk_queues_extra_handler": lambda c, m: c.payload(m.length, "the packet"),
    "tcp_stream_extra_handler": _tcp,
    "bpfmap_data_extra_handler": lambda c, m: c.payload(m.keys_bytes + m.values_bytes, "the map"),
    "ipc_sem_set_handler": _semaphores,
    "ipc_msg_queue_handler": _queue,
    "ipc_shm_handler": _segment,
}


def open_image(images: Images, name: str) -> Image:
    """An image of a dump.  Raises FileError, IdentityError."""
    size = images.size(name)
    return Image(
        lambda offset, length: images.pread(name, offset, length), size, images.where(name)
    )


def read_records(images: Images, name: str) -> Iterator[Any]:
    """The messages of an image, one after another.

    Raises FileError, also where the image is of another type than its name says, and IdentityError.
    """
    image = open_image(images, name)
    stem = re.split(r"[-.]", name, maxsplit=1)[0]
    if image.name != _TYPES[stem]:
        raise FileError(f"{image.where}: is an image of type {image.name}, not {_TYPES[stem]}")
    return (record.message for record in image.records())


def first_record(images: Images, name: str) -> Any:
    """The message of an image that has one.  Raises FileError, IdentityError."""
    for message in read_records(images, name):
        return message
    raise FileError(f"{images.where(name)}: has no entry")


def write_json(value: Any, write: Write, where: str) -> None:
    """An image from what `crit` makes of it: {"magic": name, "entries": [...]}.  Raises FileError."""
    if not isinstance(value, dict) or not isinstance(value.get("entries"), list):
        raise FileError(f'{where}: not the JSON of an image: {{"magic": ..., "entries": [...]}}')
    name = str(value.get("magic"))
    if name not in messages.table()["images"]:
        raise FileError(f"{where}: there is no image type {name[:80]!r}")
    writer = Writer(name, write)
    for n, entry in enumerate(value["entries"]):
        writer.add(entry, f"{where}: entry {n}")


class Writer:
    """Writes one image record by record."""

    def __init__(self, name: str, write: Write) -> None:
        self._write = write
        table = messages.table()
        self._message, self._handler = table["images"][name]
        if name != INVENTORY:
            first = "IMG_SERVICE" if name in _SERVICE else "IMG_COMMON"
            write(struct.pack("<I", table["magics"][first]))
        write(struct.pack("<I", table["magics"][name]))

    def add(self, entry: Any, where: str) -> None:
        """One record, as Record.to_json gives it or as JSON with base64 in place of payloads.  Raises FileError."""
        name, older = self._message, False
        if name == "pagemap_entry":
            older = isinstance(entry, dict) and "compat_nr_pages" not in entry
        if older:
            names = messages.table()["older"].get(name, {})
            newer = {old: messages.fields(name)[number].name for old, number in names.items()}
            entry = {newer.get(key, key): item for key, item in entry.items()}
        message = display.from_json(entry, name, where, ignore=("extra",))
        _write_record(message, self._write)
        extra = entry.get("extra")
        try:
            self._extra(message, extra, where)
        except (ValueError, TypeError, KeyError, struct.error, AttributeError):
            raise FileError(f"{where}: extra does not fit its entry") from None

    def _extra(self, message: Any, extra: Any, where: str) -> None:
        write, handler = self._write, self._handler
        if handler == "pagemap_handler":
            self._message = "pagemap_entry"
        elif handler == "ghost_file_handler":
            if self._message == "ghost_chunk_entry":
                _write_data(extra, write, message.len, where)
            elif message.chunks:
                self._message = "ghost_chunk_entry"
            else:
                _write_data(extra, write, None, where)
        elif handler == "tcp_stream_extra_handler":
            _write_data(extra["inq"], write, message.inq_len, where)
            _write_data(extra["outq"], write, message.outq_len, where)
        elif handler == "ipc_sem_set_handler":
            if len(extra) != message.nsems:
                raise FileError(f"{where}: {len(extra)} semaphores, but nsems is {message.nsems}")
            write(struct.pack(f"<{len(extra)}H", *extra))
            write(bytes(-2 * len(extra) % 8))
        elif handler == "ipc_msg_queue_handler":
            for info, data in zip(extra[::2], extra[1::2], strict=True):
                part = display.from_json(info, "ipc_msg", where)
                _write_record(part, write)
                _write_data(data, write, part.msize, where)
                write(bytes(-part.msize % 8))
        elif handler:
            size = _SIZES[handler](message)
            _write_data(extra, write, size, where)
            write(bytes(-size % 4 if handler == "ipc_shm_handler" else 0))
        elif extra is not None:
            raise FileError(f"{where}: {self._message} has no extra")


_SIZES: Final[dict[str, Callable[[Any], int]]] = {
    "pipes_data_extra_handler": lambda m: m.bytes,
    "sk_queues_extra_handler": lambda m: m.length,
    "bpfmap_data_extra_handler": lambda m: m.keys_bytes + m.values_bytes,
    "ipc_shm_handler": lambda m: 0 if m.in_pagemaps else m.size,
}


def _write_record(message: Any, write: Write) -> None:
    data = message.SerializePartialToString()
    write(struct.pack("<I", len(data)))
    write(data)


def _write_data(data: Any, write: Write, size: int | None, where: str) -> None:
    """Payload or base64; `size` is what the record says, None where it does not say it."""
    if isinstance(data, Payload):
        if size is not None and data.size != size:
            raise FileError(f"{where}: {data.size} bytes follow, but its entry says {size}")
        for piece in data.pieces():
            write(piece)
        return
    try:
        plain = display.from_base64(data)
    except binascii.Error:
        raise FileError(f"{where}: extra is not base64") from None
    if size is not None and len(plain) != size:
        raise FileError(f"{where}: extra has {len(plain)} bytes, but its entry says {size}")
    write(plain)
