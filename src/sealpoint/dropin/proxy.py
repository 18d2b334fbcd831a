"""The helper's loop: datagrams between the engine and the real CRIU, with their descriptors.

Everything passes untouched but dumps and restores (`session`).  Requests that would lead memory past the seal are
answered with a failure that says why.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sealpoint.dropin.session import Session

_MAX: Final = 1024 * 1024  # of one datagram; requests with many external mounts can be large
_DUMP, _RESTORE, _NOTIFY = 1, 2, 6
_REFUSED: Final = {
    4: "pre-dump is not sealed by this version of sealpoint",
    5: "the page server is not sealed by this version of sealpoint",
    12: "the page server is not sealed by this version of sealpoint",
    13: "pre-dump is not sealed by this version of sealpoint",
}


class Proxy:
    """engine: the engine's end of its socket; criu: our end of CRIU's; parent: pid of the engine's process."""

    def __init__(self, engine: socket.socket, criu: socket.socket, parent: int) -> None:
        self._engine = engine
        self._criu = criu
        self._parent = _peer(engine) or parent
        self._session: Session | None = None
        self._home = _cgroups(self._parent)

    def run(self) -> None:
        """Until either side is gone."""
        poll = select.poll()
        poll.register(self._engine, select.POLLIN)
        poll.register(self._criu, select.POLLIN)
        try:
            while True:
                for fd, _ in poll.poll():
                    from_engine = fd == self._engine.fileno()
                    source = self._engine if from_engine else self._criu
                    data, fds = _receive(source)
                    try:
                        if not data or not (
                            self._to_criu(data, fds) if from_engine else self._to_engine(data, fds)
                        ):
                            return
                    finally:
                        for received in fds:
                            os.close(received)
        finally:
            if self._session is not None:
                self._session.close()

    def _to_criu(self, data: bytes, fds: list[int]) -> bool:
        kind = request_type(data)
        if kind in _REFUSED:
            self._refuse(kind, _REFUSED[kind])
            return False
        if kind in (_DUMP, _RESTORE) and self._session is None:
            _go_home(self._home)
            from sealpoint.dropin.session import start
            from sealpoint.errors import SealpointError

            try:
                self._session, data = start(data, self._parent, self._criu)
            except SealpointError as error:
                hint = f" ({error.hint})" if error.hint else ""
                self._refuse(kind, f"sealpoint: {error.message}{hint}")
                return False
        _send(self._criu, data, fds)
        return True

    def _to_engine(self, data: bytes, fds: list[int]) -> bool:
        if self._session is not None:
            data = self._session.from_criu(data)
            if not data:
                return True  # answered by us
        _send(self._engine, data, fds)
        return True

    def _refuse(self, kind: int, reason: str) -> None:
        # criu_resp {type 1, success 2, cr_errno 7, cr_errmsg 9}
        text = reason.encode()[:4000]
        body = b"\x08" + bytes([kind]) + b"\x10\x00" + b"\x38\x16"
        body += b"\x4a" + _varint(len(text)) + text
        _send(self._engine, body, [])


def request_type(data: bytes) -> int:
    """Field 1 of criu_req, which every client writes first; -1 if it does not."""
    return data[1] if len(data) > 1 and data[0] == 0x08 and data[1] < 0x80 else -1


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _receive(source: socket.socket) -> tuple[bytes, list[int]]:
    try:
        data, ancillary, _, _ = source.recvmsg(
            _MAX, socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC
        )
    except OSError:
        return b"", []
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def _send(target: socket.socket, data: bytes, fds: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    target.sendmsg([data], ancillary)


def _peer(connection: socket.socket) -> int:
    """Pid of the process that made the engine's socket pair: there CRIU would look up descriptors."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", raw)[0]
    return pid


def _cgroups(pid: int) -> list[str]:
    """Files by which a process enters the cgroups of `pid`."""
    found = []
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        base = "/sys/fs/cgroup"
        if number != "0":
            base += "/" + controllers.removeprefix("name=")
        elif os.path.isdir(base + "/unified"):
            base += "/unified"
        found.append(f"{base}{path.rstrip('/')}/cgroup.procs")
    return found


def _go_home(procs: list[str]) -> None:
    """Leave the container's cgroups, into which the engine may have moved CRIU and what it forked.

    There /dev/fuse may be forbidden, and the container's memory limit and its kill would reach this process.
    """
    for path in procs:
        try:
            with open(path, "w") as file:
                file.write("0")
        except OSError:
            continue
