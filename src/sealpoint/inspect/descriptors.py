"""Open files, sockets and mounts of a dump: all of it from metadata images, so a metadata identity suffices.

Working and root directory of a task are in its fs image, which is of the memory role: left out where that is withheld.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sealpoint import names
from sealpoint.inspect import display, file_table, messages
from sealpoint.inspect.image import first_record, read_records
from sealpoint.inspect.source import Images

_SOCKETS: Final = {"INETSK": "isk", "UNIXSK": "usk", "PACKETSK": "psk", "NETLINKSK": "nlsk"}
_NETLINK: Final = {
    0: "ROUTE",
    4: "SOCK_DIAG",
    9: "AUDIT",
    12: "NETFILTER",
    15: "KOBJECT_UEVENT",
    16: "GENERIC",
}


@dataclass(frozen=True, slots=True)
class OpenDescriptor:
    """fd: its number, "cwd" or "root".  kind: CRIU's name of it.  path: of files; else what is known of it."""

    kind: str
    fd: str
    path: str
    entry: Any = None


class Descriptors:
    """Reads the table of files once, those of tasks as they are asked for.  Raises FileError, IdentityError."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._entries = file_table.read(images)
        self.withheld: list[str] = []

    def of(self, pid: int, state: str = "") -> Iterator[OpenDescriptor]:
        """A task's open files, in the order of its table; then its working and root directory.

        state: of the task, as tasks.Task has it.
        """
        for fd in file_table.descriptors(self._images, pid, state):
            kind = str(display.shown(fd, "fdinfo_entry", "type"))
            yield self._open(kind, str(fd.fd), fd.id)
        if not self._images.exists(f"ids-{pid}.img") and state in ("zombie", "dead"):
            return  # it has no directories either
        if self._images.withheld(f"fs-{pid}.img"):
            self.withheld.append(f"fs-{pid}.img")
        elif self._images.exists(f"fs-{pid}.img"):
            place = first_record(self._images, f"fs-{pid}.img")
            yield OpenDescriptor("", "cwd", self._path(place.cwd_id))
            yield OpenDescriptor("", "root", self._path(place.root_id))

    def _path(self, number: int) -> str:
        entry = self._entries.get(number)
        return names.text(entry.reg.name) if entry is not None else ""

    def _open(self, kind: str, fd: str, number: int) -> OpenDescriptor:
        entry = self._entries.get(number)
        if entry is None:
            return OpenDescriptor(kind, fd, "")
        return OpenDescriptor(kind, fd, _description(kind, entry), entry)

    def sockets_of(self, pid: int, state: str = "") -> Iterator[dict[str, Any]]:
        """Of each socket of a task {"protocol", "fd", "data": {...}}."""
        for file in self.of(pid, state):
            if file.kind in _SOCKETS and file.entry is not None:
                yield _socket(file)


def _description(kind: str, entry: Any) -> str:
    if kind == "REG":
        return names.text(entry.reg.name)
    if kind == "PIPE":
        return f"pipe[{entry.pipe.pipe_id}]"
    if kind == "FIFO":
        return f"fifo[{entry.fifo.pipe_id}]"
    if kind == "EXT":
        return names.text(entry.ext.name) if hasattr(entry.ext, "name") else ""
    if kind == "UNIXSK":
        return _unix_name(entry.usk)
    if kind == "INETSK":
        data = _inet(entry.isk)
        return f"{data['src']}:{data['src_port']} -> {data['dst']}:{data['dst_port']}"
    return kind.lower()


def _unix_name(usk: Any) -> str:
    """The address; "@" in front of one in the abstract namespace, as ss has it."""
    name: bytes = usk.name
    if name.startswith(b"\0"):
        name = b"@" + name[1:]
    return names.text(name.rstrip(b"\0"))


def _word(field: str, number: int) -> str:
    known = messages.words("sk", field)
    return next((word for word, value in known.items() if value == number), str(number))


def _address(family: int, words: Any) -> str:
    """As text; "" where the family is none of the two, or the words are too few."""
    packed = struct.pack(f"={len(words)}I", *words)
    size = {2: 4, 10: 16}.get(family, 0)  # AF_INET, AF_INET6
    if len(packed) < size or not size:
        return ""
    return socket.inet_ntop(family, packed[:size])


def _inet(isk: Any) -> dict[str, Any]:
    return {
        "type": _word("proto", isk.proto),
        "family": _word("family", isk.family),
        "state": _word("state", isk.state),
        "src": _address(isk.family, isk.src_addr[:4]),
        "src_port": isk.src_port,
        "dst": _address(isk.family, isk.dst_addr[:4]),
        "dst_port": isk.dst_port,
        "send_buf": isk.opts.so_sndbuf,
        "recv_buf": isk.opts.so_rcvbuf,
    }


def _socket(file: OpenDescriptor) -> dict[str, Any]:
    entry = getattr(file.entry, _SOCKETS[file.kind])
    if file.kind == "INETSK":
        data = _inet(entry)
        return {"protocol": data["type"], "fd": file.fd, "data": data}
    sizes = {"send_buf": entry.opts.so_sndbuf, "recv_buf": entry.opts.so_rcvbuf}
    if file.kind == "UNIXSK":
        data = {
            "type": _word("type", entry.type),
            "address": _unix_name(entry),
            "state": _word("state", entry.state),
        }
        return {"protocol": "UNIX", "fd": file.fd, "data": data | sizes}
    if file.kind == "NETLINKSK":
        protocol = _NETLINK.get(entry.protocol, str(entry.protocol))
        return {"protocol": "NETLINK", "fd": file.fd, "data": {"type": protocol} | sizes}
    return {
        "protocol": "PACKET",
        "fd": file.fd,
        "data": {"type": _word("type", entry.type)} | sizes,
    }


def mounts(images: Images) -> list[dict[str, str]]:
    """Mounts of all mount namespaces, as CRIU recorded them, in the order in which they lie on each other."""
    types = {
        number: name.lower() for name, number in messages.table()["enums"].get("fstype", {}).items()
    }
    found: list[dict[str, str]] = []
    names = sorted(n for n in images.names() if n.startswith("mountpoints-") and n.endswith(".img"))
    for name in names:
        records = list(read_records(images, name))
        for entry in reversed(records):  # CRIU writes the topmost first
            kind = entry.fsname or types.get(entry.fstype, str(entry.fstype)).encode()
            found.append(
                {
                    "destination": _text(entry.mountpoint).removeprefix("."),
                    "type": _text(kind),
                    "source": _text(entry.source),
                }
            )
    return found


def _text(value: bytes) -> str:
    return names.text(value)
