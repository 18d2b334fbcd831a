"""A connection to another sealpoint: messages over two descriptors, and sealed files as runs of messages.

A message is u8 type, u32 LE length, payload.  Nothing here is secret or authentic: what must be, is sealed or carries a
MAC (`checkpoint.live.migration_protocol`).  Every wait has an end, so a link that was cut is noticed while a tree is
frozen for it.
"""

from __future__ import annotations

import enum
import os
import select
import socket
import stat
import struct
from typing import Final, NoReturn

from sealpoint import names
from sealpoint.errors import SystemEnvironmentError
from sealpoint.store.output import Buffer

_HEAD: Final = struct.Struct("<BI")
_MAX_DATA: Final = (
    4 << 20
)  # bytes of one DATA message that is accepted; a frame is at most a chunk and its framing
_MAX_OTHER: Final = 4096  # bytes of any other message
_MAX_PROOF: Final = 128 << 10  # bytes: certificates may be in it
_MAX_REASON: Final = 1024  # bytes of the text of a STOP
_PIECE: Final = 1 << 20


class MessageKind(enum.IntEnum):
    """What a message is."""

    HELLO = 1  # receiver: its session
    DATA = 2  # sender: a piece of a sealed file
    END = 3  # sender: the file is complete
    HAVE = 4  # receiver: the file of this round is there and verified
    READY = 5  # receiver: the tree is restored and verified, and waits
    GO = 6  # sender: the tree has ended here
    RUNNING = 7  # receiver: it runs
    STOP = 8  # either: this side gives up; the text says why
    PROOF = 9  # sender: who it is, signed over the session
    OFFER = 10  # sender: how large the next file can become
    ROOM = 11  # receiver: there is room for it


_MAX: Final = {int(MessageKind.DATA): _MAX_DATA, int(MessageKind.PROOF): _MAX_PROOF}


class LinkError(SystemEnvironmentError):
    """The connection broke, is silent, or the other side does not speak as it should."""


class Link:
    """One connection.  read, write: descriptors (may be the same), taken over; peer: its name for messages.

    patience: seconds without any progress after which the connection counts as cut.
    """

    def __init__(self, read: int, write: int, *, peer: str, patience: float) -> None:
        self._read, self._write = read, write
        self.peer = peer
        self.patience = patience
        self.sent = 0  # bytes
        self._broken = False  # amid a message: nothing that follows could be understood
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for fd in {read, write}:
            _prepare(fd, patience)

    @classmethod
    def of_socket(cls, connection: socket.socket, *, peer: str, patience: float) -> Link:
        """Takes the socket over."""
        fd = connection.detach()
        return cls(fd, fd, peer=peer, patience=patience)

    def send(self, kind: MessageKind, *payload: Buffer) -> None:
        """Raises LinkError."""
        size = sum(len(p) for p in payload)
        self._send([_HEAD.pack(kind, size), *payload])

    def stop(self, why: bytes) -> None:
        """Tell the other side that this one gives up.  If that cannot be told, it hears nothing, which is the same."""
        try:
            self.send(MessageKind.STOP, why[:_MAX_REASON])
        except LinkError:
            pass

    def receive(self, *, patience: float | None = None) -> tuple[MessageKind, bytes]:
        """The next message, which must be a short one.

        `patience`: seconds for its first byte, instead of the usual.  Raises LinkError.
        """
        kind, size = self.receive_head(patience=patience)
        if kind is MessageKind.DATA:
            self.refuse(kind, 0)
        return kind, self._read_exactly(size, self.patience)

    def expect(self, kind: MessageKind, *, patience: float | None = None) -> bytes:
        """The payload of the next message, which must be of that kind.  Raises LinkError."""
        got, size = self.receive_head(patience=patience)
        if got is not kind:
            self.refuse(got, size)
        return self._read_exactly(size, self.patience)

    def receive_head(self, *, patience: float | None = None) -> tuple[MessageKind, int]:
        """Kind of the next message and size of its payload, which is still to be read.  Raises LinkError."""
        head = self._read_exactly(_HEAD.size, patience or self.patience)
        number, size = _HEAD.unpack(head)
        known = number in MessageKind.__members__.values()
        if not known or size > _MAX.get(number, _MAX_OTHER):
            raise LinkError(f"{self.peer} does not speak sealpoint's protocol")
        return MessageKind(number), size

    def refuse(self, kind: MessageKind, size: int) -> NoReturn:
        """For a message that has no place here, whose payload was not read.  Raises LinkError."""
        if kind is MessageKind.STOP:
            text = names.text(self._read_exactly(size, self.patience))
            raise LinkError(f"{self.peer} gave up: {text}")
        raise LinkError(f"{self.peer} does not speak sealpoint's protocol")

    def read_some(self, out: memoryview, *, patience: float | None = None) -> int:
        """At least one byte of what comes next.  Raises LinkError."""
        while True:
            self._wait(self._read, select.POLLIN, patience or self.patience)
            try:
                got = os.readv(self._read, [out])
            except BlockingIOError:
                continue
            except OSError as error:
                raise LinkError(f"the link to {self.peer} was cut ({error.strerror})") from None
            if not got:
                raise LinkError(f"the link to {self.peer} was cut")
            return got

    def cancel(self) -> None:
        """From another thread: end a wait, the present one or the next."""
        os.eventfd_write(self._wake, 1)

    def resume(self) -> None:
        """What was cancelled has ended: from now on waits are waits again."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close both descriptors."""
        for fd in {self._read, self._write, self._wake}:
            os.close(fd)

    def _send(self, buffers: list[Buffer]) -> None:
        views = [memoryview(b) for b in buffers if len(b)]
        if self._broken:
            raise LinkError(f"the link to {self.peer} was given up in the middle of a message")
        self._broken = True
        while views:
            self._wait(self._write, select.POLLOUT, self.patience)
            try:
                done = os.writev(self._write, views)
            except BlockingIOError:
                continue
            except OSError as error:
                raise LinkError(f"the link to {self.peer} was cut ({error.strerror})") from None
            self.sent += done
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if views and done:
                views[0] = views[0][done:]
        self._broken = False

    def _read_exactly(self, size: int, patience: float) -> bytes:
        data = bytearray(size)
        have = 0
        while have < size:
            have += self.read_some(memoryview(data)[have:], patience=patience)
            patience = self.patience
        return bytes(data)

    def _wait(self, fd: int, event: int, patience: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._wake, select.POLLIN)
        ready = {f for f, _ in poll.poll(patience * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
            raise LinkError(f"the link to {self.peer} was given up")
        if not ready:
            raise LinkError(
                f"the link to {self.peer} has been silent for {patience:.0f} s and counts as cut"
            )


class LinkOutput:
    """A sealed file sent over a link, for whoever writes to a Target (`store.output`).  The link stays the caller's."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.committed = False

    def write(self, *buffers: Buffer) -> None:
        """Send.  Raises LinkError."""
        for buffer in buffers:
            view = memoryview(buffer)
            for at in range(0, len(view), _PIECE):
                self._link.send(MessageKind.DATA, view[at : at + _PIECE])

    def sync(self) -> None:
        """There is no way to tell; the receiver answers when it has verified."""

    def commit(self) -> None:
        """Everything was handed over."""
        self._link.send(MessageKind.END)
        self.committed = True

    def cancel(self) -> None:
        """From another thread: end a `write` that waits."""
        self._link.cancel()

    def mark_failed(self) -> str | None:
        """What was sent cannot be called back."""
        return None

    def close(self) -> None:
        """Nothing is held."""


class LinkInput:
    """A sealed file that comes over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left = 0  # bytes of the current message

    def read_into(self, out: memoryview) -> int:
        """The next bytes, as many as are there; 0 at the end of the file.  Raises LinkError."""
        while not self._left:
            kind, self._left = self._link.receive_head()
            if kind is MessageKind.END and not self._left:
                return 0
            if kind is not MessageKind.DATA:
                self._link.refuse(kind, self._left)
        got = self._link.read_some(out[: self._left])
        self._left -= got
        return got


def connect(host: str, port: int, *, patience: float) -> Link:
    """A TCP connection.  Raises SystemEnvironmentError."""
    try:
        connection = socket.create_connection((host, port), timeout=patience)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SystemEnvironmentError(f"cannot connect to {host}:{port}: {reason}") from None
    return Link.of_socket(connection, peer=f"{host}:{port}", patience=patience)


def _prepare(fd: int, patience: float) -> None:
    os.set_blocking(fd, False)
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return
    with socket.socket(fileno=os.dup(fd)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            limit = int(patience * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
