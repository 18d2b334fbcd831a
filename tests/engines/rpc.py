"""A client of CRIU's RPC as small as it can be: what libcriu, go-criu and runc do, seen from the wire.

The client makes the socket pair, CRIU inherits one end of it by number (`criu swrk FD`); one datagram is one protobuf
message. Messages are encoded by hand from the few fields that are used, so that nothing is shared with what is tested.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

DUMP, RESTORE, CHECK, PRE_DUMP, PAGE_SERVER, NOTIFY = 1, 2, 3, 4, 5, 6
CPUINFO_DUMP, CPUINFO_CHECK, FEATURE_CHECK, VERSION = 7, 8, 9, 10
PAGE_SERVER_CHLD, SINGLE_PRE_DUMP = 12, 13

OPTIONS = {
    "images_dir_fd": 1, "pid": 2, "leave_running": 3, "ext_unix_sk": 4, "tcp_established": 5, "shell_job": 7,
    "log_level": 9, "link_remap": 18, "tcp_skip_in_flight": 46, "weak_sysctls": 47, "tcp_close": 52, "tls_key": 57,
    "log_file": 10, "ps": 11, "notify_scripts": 12, "root": 13, "parent_img": 14, "track_mem": 15, "auto_dedup": 16,
    "work_dir_fd": 17, "exec_cmd": 22, "rst_sibling": 26, "inherit_fd": 27, "ghost_limit": 35, "external": 37,
    "freeze_cgroup": 44, "lazy_pages": 48, "status_fd": 49, "orphan_pts_master": 50, "config_file": 51,
    "images_dir": 68,
}  # fmt: skip
TIMEOUT = 60.0


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(fields: Mapping[int, Any]) -> bytes:
    """int and bool as varints, str and bytes as they are, a dict as a message, a list as repeated."""
    out = b""
    for number, given in fields.items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, int):
                out += varint(number << 3) + varint(int(value))
                continue
            data = encode(value) if isinstance(value, dict) else value
            data = data.encode() if isinstance(data, str) else data
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def decode(data: bytes) -> dict[int, Any]:
    """Field -> its last value: an int, or bytes."""
    found: dict[int, Any] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            found[tag >> 3] = number()
        elif tag & 7 == 2:
            size = number()
            found[tag >> 3] = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {tag & 7}")
    return found


def request(kind: int, **options: Any) -> bytes:
    """A criu_req with those criu_opts."""
    fields: dict[int, Any] = {1: kind}
    if options:
        fields[2] = {OPTIONS[name]: value for name, value in options.items()}
    return encode(fields)


@dataclass
class Reply:
    """The answer to a request, and what was notified before."""

    kind: int
    success: bool
    message: str
    raw: bytes
    scripts: list[str] = field(default_factory=list)
    pid: int = 0
    descriptors: list[int] = field(default_factory=list)


class ClosedError(Exception):
    """CRIU, or whoever speaks for it, closed the connection without an answer."""


OnNotify = Callable[[str, int], bool]


class Client:
    """A connection to a `criu swrk` of its own; a context manager."""

    def __init__(
        self,
        criu: Path,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        inherited: Sequence[int] = (),
        words: Sequence[str] = (),
    ) -> None:
        """words: options before the command."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(TIMEOUT)
        self.process = subprocess.Popen(
            [str(criu), *words, "swrk", str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *inherited],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
        )
        theirs.close()

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def receive(self) -> tuple[bytes, list[int]]:
        data, ancillary, _, _ = self.socket.recvmsg(
            1 << 20, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload)
        if not data:
            raise ClosedError
        return data, list(fds)

    def call(self, data: bytes, on_notify: OnNotify = lambda _script, _pid: True) -> Reply:
        """Send a request, answer the notifications, return the answer."""
        self.send(data)
        return self.finish(on_notify)

    def finish(self, on_notify: OnNotify = lambda _script, _pid: True) -> Reply:
        scripts: list[str] = []
        descriptors: list[int] = []
        pid = 0
        while True:
            raw, fds = self.receive()
            descriptors += fds
            fields = decode(raw)
            if fields[1] == NOTIFY:
                notify = decode(fields[5])
                script = notify[1].decode()
                scripts.append(script)
                pid = notify.get(2, pid)
                self.send(encode({1: NOTIFY, 3: on_notify(script, notify.get(2, 0))}))
                continue
            message = fields.get(9, b"").decode()
            pid = decode(fields[4]).get(1, pid) if 4 in fields else pid
            return Reply(fields[1], bool(fields[2]), message, raw, scripts, pid, descriptors)

    def wait(self) -> int:
        """How the process ended that the client started: CRIU itself."""
        return self.process.wait(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
            return
        self.process.kill()
        self.process.wait(TIMEOUT)
        raise AssertionError("CRIU did not end when its client was gone")


@contextlib.contextmanager
def directory_descriptor(path: Path):
    """A number to name a directory by."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
