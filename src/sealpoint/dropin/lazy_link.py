"""The socket by which `criu restore --lazy-pages` finds the daemon, and who is let through it.

CRIU sends over it, from each task, the task's pid in its namespace and then its userfaultfd; in the end a word from
itself (CRIU's uffd.c).  A restore through the drop-in first asks whether this daemon serves its very checkpoint.
"""

from __future__ import annotations

import array
import contextlib
import hmac
import os
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from sealpoint import process
from sealpoint.errors import PolicyError, SystemEnvironmentError
from sealpoint.format.statement import ParentRef
from sealpoint.process import Held

NAME: Final = "lazy-pages.socket"  # CRIU's
_MAGIC: Final = b"\x89SEALLP\n"  # no pid, and no word of CRIU's
_YES: Final = b"1"
_ASK_SIZE: Final = len(_MAGIC) + 16 + 32
_PATIENCE: Final = 20.0  # seconds for an answer
_SO_PASSPIDFD, _SCM_PIDFD = 76, 4  # linux/socket.h; since Linux 6.5
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(slots=True)
class Message:
    """What one process sent at once.  sender: that process, as the kernel says; descriptors: now ours."""

    data: bytes
    sender: Held
    descriptors: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.data)


def _question(reference: ParentRef) -> bytes:
    return _MAGIC + reference.checkpoint_id + reference.origin_digest


class Listener:
    """Listens in a work directory; a context manager.  reference: of the checkpoint that is served."""

    def __init__(self, directory: int, reference: ParentRef) -> None:
        """directory: descriptor.  As CRIU's, it takes the place of a socket that is there.

        Raises SystemEnvironmentError.
        """
        self._path = f"/proc/self/fd/{directory}/{NAME}"
        self._question = _question(reference)
        self._asked: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if os.path.lexists(self._path):
                os.unlink(self._path)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)
            self._socket.bind(self._path)
            self._socket.listen(10)
        except OSError as error:
            self._socket.close()
            raise SystemEnvironmentError(f"cannot listen on {NAME}: {error.strerror}") from None

    def accept(self) -> socket.socket:
        """The connection of a CRIU whose restore asked before.  Raises OSError."""
        while True:
            connection, _ = self._socket.accept()
            if connection.recv(1, socket.MSG_PEEK) == _MAGIC[:1]:
                self._answer(connection)
            elif self._asked:
                return connection
            else:
                connection.close()  # not through the drop-in: nothing of it was verified

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE)
        try:
            asked = connection.recv(_ASK_SIZE, socket.MSG_WAITALL)
            if hmac.compare_digest(asked, self._question):
                connection.sendall(_YES)
                self._asked.append(connection)  # stays open while we live
                return
        except OSError:
            pass
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._asked:
            connection.close()
        self._socket.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass  # a later daemon's, or gone


class LazyLink:
    """A restore's question to the daemon, and whether that lives."""

    def __init__(self, directory: int, reference: ParentRef) -> None:
        """Raises PolicyError: no daemon of ours serves this checkpoint there."""
        try:
            self._socket = connect(directory)
            self._socket.settimeout(_PATIENCE)
            self._socket.sendall(_question(reference))
            answer = self._socket.recv(1)
        except OSError:
            answer = b""
        if answer != _YES:
            raise PolicyError(
                f"no sealpoint daemon serves the pages of this checkpoint on {NAME}",
                hint="start the drop-in's criu lazy-pages with the same directories first",
            )

    def check(self) -> None:
        """Raises SystemEnvironmentError: the daemon is gone."""
        self._socket.setblocking(False)
        try:
            gone = self._socket.recv(1) == b""
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            raise SystemEnvironmentError("the lazy-pages daemon has ended")

    def close(self) -> None:
        """Let go."""
        self._socket.close()


def connect(directory: int) -> socket.socket:
    """To the socket in a directory, by its descriptor.  Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{NAME}")
    except OSError:
        connection.close()
        raise
    return connection


def receive(connection: socket.socket) -> Message:
    """What one process sent; empty at the end.  Raises OSError."""
    space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4) + socket.CMSG_SPACE(4 * 4)
    data, ancillary, _, _ = connection.recvmsg(4096, space, socket.MSG_CMSG_CLOEXEC)
    arrived, pid, pidfd = process.now(), 0, -1
    message = Message(data, Held(0))
    for level, kind, payload in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0]
        elif kind in (socket.SCM_RIGHTS, _SCM_PIDFD):
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            if kind == socket.SCM_RIGHTS:
                message.descriptors += numbers
            elif numbers and numbers[0] >= 0:
                pidfd = numbers[0]
    message.sender = _sender(pid, pidfd, arrived)
    return message


def _sender(pid: int, pidfd: int, arrived: int) -> Held:
    """By the pidfd, which is closed, or -1: then it is the pid's process, unless that has started since it arrived."""
    if pidfd < 0:
        return process.not_after(Held(pid), arrived)
    try:
        return Held.of(pidfd)
    finally:
        os.close(pidfd)


def forward(connection: socket.socket, message: Message) -> None:
    """Send it on, and let go of its descriptors and its sender.  Raises OSError.

    The descriptor came with the last byte: bytes before it, which the kernel may have joined with it, go alone, because
    CRIU reads them without looking for a descriptor, which would then be lost.
    """
    try:
        if not message.descriptors:
            connection.sendall(message.data)
            return
        if message.data[:-1]:
            connection.sendall(message.data[:-1])
        socket.send_fds(connection, [message.data[-1:]], message.descriptors)
    finally:
        message.sender.close()
        for fd in message.descriptors:
            os.close(fd)
