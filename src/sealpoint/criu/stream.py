"""The protocol of `criu --stream`, server side (CRIU's img-streamer.c).

CRIU connects to a UNIX socket in its images directory and asks for one image at a time: u32 LE length + protobuf
{1: file name}; on restore we answer u32 LE length + {1: exists}; then one byte with a pipe end as SCM_RIGHTS follows.
There is no end message: CRIU closes the connection when all its processes are done.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct

from sealpoint.errors import CriuError
from sealpoint.names import text

CAPTURE_SOCKET = "streamer-capture.sock"
SERVE_SOCKET = "streamer-serve.sock"
# Bytes.  The second is the usual limit of /proc/sys/fs/pipe-max-size, the first takes CAP_SYS_RESOURCE: one side can
# then refill the pipe while the other still reads a megabyte, as CRIU does.
PIPE_SIZES = (2 * 1024 * 1024, 1024 * 1024)

_LENGTH = struct.Struct("<I")
_MAX_REQUEST = 4096  # a file name and its framing
_EXISTS = b"\x02\x00\x00\x00\x08\x01"
_ABSENT = b"\x02\x00\x00\x00\x08\x00"
_NAME_TAG = 0x0A  # field 1, length-delimited


def listen(directory: str, name: str) -> socket.socket:
    """A listening socket that CRIU finds by its images directory."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(f"{directory}/{name}")
    server.listen(16)
    return server


def read_request(connection: socket.socket) -> str | None:
    """The name of the next image, or None at the end.  Raises CriuError for what CRIU would never send."""
    head = _receive(connection, _LENGTH.size)
    if not head:
        return None
    (size,) = _LENGTH.unpack(head)
    if not 2 <= size <= _MAX_REQUEST:
        raise CriuError("CRIU sent a malformed streaming request")
    return _parse_name(_receive(connection, size))


def _parse_name(data: bytes) -> str:
    # One field, always: a full protobuf parser would be more code than this.
    length, at = data[1], 2
    if length & 0x80 and len(data) > at:
        length, at = (length & 0x7F) | data[2] << 7, 3
    name = text(data[at:])
    if data[0] != _NAME_TAG or length != len(data) - at or not name or "/" in name or "\0" in name:
        raise CriuError("CRIU sent a malformed streaming request")
    return name


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            if data:
                raise CriuError("the streaming connection to CRIU broke")
            return b""
        data += piece
    return data


def receive_pipe(connection: socket.socket) -> int:
    """The pipe end that belongs to the request just read (or answered): exactly one byte is taken."""
    data, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if len(data) != 1 or len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise CriuError("the streaming connection to CRIU broke")
    os.set_inheritable(fds[0], False)
    return fds[0]


def answer(connection: socket.socket, *, exists: bool) -> None:
    """Restore only: whether the image exists.  If it does, a pipe follows."""
    connection.sendall(_EXISTS if exists else _ABSENT)


def enlarge_pipe(fd: int) -> int:
    """Make a pipe as large as is allowed; returns its capacity in bytes."""
    for size in PIPE_SIZES:
        try:
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
        except OSError:
            continue
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
