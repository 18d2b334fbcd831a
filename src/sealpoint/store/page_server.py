"""A sealed file on its way to another machine's page server, which stores it and acknowledges when it is durable.

Both ends are sealpoint's; docs/spec.md has the protocol.  The receiver needs no key and learns what the file shows to
an outsider.  A stock CRIU on either side is told apart by the first bytes, before anything is sent or stored.
The sender proves who it is over a nonce of the receiver before it sends anything.  The receiver proves nothing: whoever
can take its place can lose the file, but not read or change it unnoticed.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import blake3

from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.names import text
from sealpoint.store import limits
from sealpoint.store.output import Buffer, OutputFile, write_all

MAGIC: Final = b"\x89SEALPS\n"  # CRIU takes it for a command that does not exist, and hangs up
_VERSION: Final = 2
_HELLO: Final = struct.Struct(
    "<8sHxxxxxx16s32x"
)  # longer than any request of CRIU's, which it could wait for
_RECORD: Final = struct.Struct("<I")
_END: Final = struct.Struct("<Q32s")
_ANSWER: Final = struct.Struct("<8sBxH")
_MAX_RECORD: Final = 1024 * 1024
_MAX_TEXT: Final = 1024
_OK, _FAILED, _CHALLENGE = 0, 1, 2
_PROOF: Final = struct.Struct("<I")
_MAX_PROOF: Final = 128 * 1024
NONCE_SIZE: Final = 32

_CONNECT_PATIENCE: Final = 20.0  # seconds for a connection, and for the first answer
_DURABLE_PATIENCE: Final = 600.0  # seconds for the far side's disk
_IDLE_PATIENCE: Final = (
    600.0  # seconds in which a sender that has proved who it is may send nothing: its tree is slow
)
_LINK_PATIENCE: Final = 60  # seconds without a sign of life of the other machine
_GOODBYE: Final = 5.0  # seconds in which a sender takes note of our refusal

Prove = Callable[[bytes], bytes]
"""nonce -> proof of who sends."""
CheckProof = Callable[[bytes, bytes], None]
"""(proof, nonce) -> None, or raises SealpointError."""
Check = Callable[[int, bytes], None]
"""(descriptor of a complete file, checkpoint id) -> None, or raises SealpointError: it shall not be kept."""


@dataclass(frozen=True, slots=True)
class ReceivedPages:
    """A file that is durable.  size: in bytes."""

    path: str
    size: int


def to(address: str, port: int) -> PageServerOutput:
    """Connect; to the loopback address if none is given.  Raises SystemEnvironmentError, UsageError."""
    if not 0 < port < 65536:
        raise UsageError("the page server needs a port", hint="give --port, between 1 and 65535")
    name = f"the page server {address or 'localhost'} port {port}"
    try:
        connection = socket.create_connection((address or "localhost", port), _CONNECT_PATIENCE)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot connect to {name}: {_reason(error)}") from None
    return PageServerOutput(connection, name)


def over(number: int) -> PageServerOutput:
    """Through a socket that was inherited, which this takes over.  Raises UsageError."""
    try:
        connection = socket.socket(fileno=number)
    except OSError as error:
        raise UsageError(f"descriptor {number} is not a socket: {error.strerror}") from None
    connection.set_inheritable(False)
    return PageServerOutput(connection, "the page server")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class PageServerOutput:
    """A sealed file sent to a page server.  As `OutputFile`, without a name of its own."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        """Takes the connection over.  name: of the page server, for messages."""
        self._connection = connection
        self._name = name
        self.prove: Prove = lambda _: b""  # who dumps sets it
        self._state = blake3.blake3()
        self._size = 0
        self._greeted = self._ended = False
        self.committed = False

    def _greet(self, checkpoint_id: bytes) -> None:
        """Before anything is sent: see that a page server of sealpoint's is there."""
        _keep_alive(self._connection)
        self._connection.settimeout(_CONNECT_PATIENCE)
        write_all(
            self._connection.fileno(), [_HELLO.pack(MAGIC, _VERSION, checkpoint_id)], self._name
        )
        nonce = self._await_answer(_CHALLENGE)
        proof = self.prove(nonce)
        write_all(self._connection.fileno(), [_PROOF.pack(len(proof)), proof], self._name)
        self._await_answer()
        self._connection.settimeout(None)
        self._greeted = True

    def write(self, *buffers: Buffer) -> None:
        """Send; a file begins with its preamble.  Raises SystemEnvironmentError."""
        if not self._greeted:
            self._greet(Preamble.decode(bytes(buffers[0][:PREAMBLE_SIZE])).checkpoint_id)
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for at in range(0, len(view), _MAX_RECORD):
                self._send(view[at : at + _MAX_RECORD])

    def _send(self, piece: memoryview) -> None:
        self._state.update(piece)
        self._size += len(piece)
        self._put([_RECORD.pack(len(piece)), piece])

    def _put(self, buffers: list[Buffer]) -> None:
        if select.select([self._connection], [], [], 0)[0]:
            self._await_answer()  # it has a reason not to go on
            raise SystemEnvironmentError(f"{self._name} answered before it had everything")
        try:
            write_all(self._connection.fileno(), buffers, self._name)
        except SystemEnvironmentError:
            self._explain()
            raise

    def _explain(self) -> None:
        """Raise the far side's own reason for hanging up, if it gave one."""
        if select.select([self._connection], [], [], 0)[0]:
            self._await_answer()

    def sync(self) -> None:
        """End the file: the far side begins to make it durable while this side does the same."""
        if not self._ended:
            self._put([_RECORD.pack(0) + _END.pack(self._size, self._state.digest())])
            self._ended = True

    def commit(self) -> None:
        """Wait until the far side says that it is durable.  Raises SystemEnvironmentError."""
        self.sync()
        self._connection.settimeout(_DURABLE_PATIENCE)
        self._await_answer()
        self.committed = True

    def _await_answer(self, wanted: int = _OK) -> bytes:
        """What came with the answer."""
        try:
            head = _exactly(self._connection, _ANSWER.size, begins=MAGIC)
            magic, status, size = _ANSWER.unpack(head) if head else (b"", 0, 0)
            if magic != MAGIC or size > _MAX_TEXT:
                raise self._stranger()
            body = _exactly(self._connection, size)
        except TimeoutError:
            raise SystemEnvironmentError(f"{self._name} does not answer") from None
        except OSError:
            raise self._stranger() from None
        if status != wanted:
            if status == _OK:
                raise self._stranger()
            shown = text(body) or "no reason given"
            raise SystemEnvironmentError(f"{self._name} refused: {shown}")
        return body

    def _stranger(self) -> SealpointError:
        if self._greeted:
            return SystemEnvironmentError(f"{self._name} went away before the file was durable")
        return SystemEnvironmentError(
            f"{self._name} is not a sealpoint page server: nothing was sent to it",
            hint="run sealpoint's drop-in criu page-server there",
        )

    def cancel(self) -> None:
        """From another thread: end a `write` that waits."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    def mark_failed(self) -> str | None:
        """What the far side has, it keeps: without this side's file nobody restores it."""
        return None

    def close(self) -> None:
        """Without a commit the far side discards what it has."""
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Receiving:
    """How a page server takes files.

    directory: where they go; name: checkpoint id -> a file's name there; check_proof: of who sends; front: for each
    file a call that judges its pieces as they arrive; check: of the complete file.  Each may raise SealpointError.
    """

    directory: str
    name: Callable[[bytes], str]
    check_proof: CheckProof
    front: Callable[[], Callable[[memoryview], None]]
    check: Check


def receive(
    connection: socket.socket, how: Receiving, admit: Callable[[], bool] = lambda: True
) -> ReceivedPages:
    """Store one file.  admit: called when the sender has proved who it is.

    Raises SealpointError, which the sender is told; nothing is kept then.
    """
    _keep_alive(connection)
    try:
        head = _exactly(connection, _HELLO.size, begins=MAGIC)
    except OSError as error:
        raise SystemEnvironmentError(f"the sender is gone: {error.strerror}") from None
    magic, version, checkpoint_id = _HELLO.unpack(head) if head else (b"", 0, b"")
    if magic != MAGIC:
        raise SystemEnvironmentError(
            "the sender is not sealpoint's drop-in; memory in the clear is not accepted",
            hint="use sealpoint's drop-in criu dump there",
        )
    try:
        if version != _VERSION:
            raise SystemEnvironmentError(
                f"the sender speaks version {version} of the page server's protocol, this is {_VERSION}",
                hint="install the same sealpoint on both machines",
            )
        _check_sender(connection, how.check_proof)
        if not admit():
            raise SystemEnvironmentError("the page server has ended")
        connection.settimeout(_IDLE_PATIENCE)
        with OutputFile(os.path.join(how.directory, how.name(checkpoint_id))) as out:
            _answer(connection, _OK, b"")
            size = _store(connection, out, how.front())
            how.check(out.fd, checkpoint_id)
            out.commit()
        _answer(connection, _OK, b"")
    except SealpointError as error:
        _refuse(connection, error.message)
        raise
    return ReceivedPages(out.path, size)


def _check_sender(connection: socket.socket, check: CheckProof) -> None:
    nonce = os.urandom(NONCE_SIZE)
    _answer(connection, _CHALLENGE, nonce)
    (length,) = _PROOF.unpack(_need(connection, _PROOF.size))
    if length > _MAX_PROOF:
        raise SystemEnvironmentError("the sender's proof is too long")
    check(_need(connection, length), nonce)


def _store(connection: socket.socket, out: OutputFile, front: Callable[[memoryview], None]) -> int:
    buffer = memoryview(bytearray(_MAX_RECORD))
    state, size = blake3.blake3(), 0
    where = os.path.dirname(out.path)
    allowance = limits.Allowance(None, where, where)
    while True:
        (length,) = _RECORD.unpack(_need(connection, _RECORD.size))
        if length == 0:
            break
        if length > _MAX_RECORD:
            raise SystemEnvironmentError("the sender's stream is damaged")
        piece = buffer[:length]
        _fill(connection, piece)
        front(piece)
        allowance.take(length)
        state.update(piece)
        out.write(piece)
        size += length
    if _END.unpack(_need(connection, _END.size)) != (size, state.digest()):
        raise SystemEnvironmentError("what arrived is not what was sent")
    return size


def _need(connection: socket.socket, size: int) -> bytes:
    data = memoryview(bytearray(size))
    _fill(connection, data)
    return bytes(data)


def _fill(connection: socket.socket, out: memoryview) -> None:
    try:
        while out:
            size = connection.recv_into(out)
            if not size:
                raise SystemEnvironmentError("the sender went away before the file was complete")
            out = out[size:]
    except TimeoutError:
        raise SystemEnvironmentError("the sender is silent") from None
    except OSError as error:
        raise SystemEnvironmentError(f"the sender is gone: {error.strerror}") from None


def _exactly(connection: socket.socket, size: int, *, begins: bytes = b"") -> bytes:
    """`size` bytes; none if the peer ends before, or begins otherwise than it should.  Raises OSError."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        data += piece
        if not piece or data[: len(begins)] != begins[: len(data)]:
            return b""  # at once: a stock CRIU may not send more
    return bytes(data)


def _answer(connection: socket.socket, status: int, raw: bytes) -> None:
    try:
        connection.sendall(_ANSWER.pack(MAGIC, status, len(raw)) + raw)
    except OSError as error:
        raise SystemEnvironmentError(f"the sender is gone: {error.strerror}") from None


def _refuse(connection: socket.socket, reason: str) -> None:
    """Say why, and let the sender take note: to hang up on unread data would take the answer back."""
    try:
        raw = reason.encode()[:_MAX_TEXT].decode(errors="ignore").encode()
        _answer(connection, _FAILED, raw)
        connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _GOODBYE
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                return
    except (OSError, SystemEnvironmentError):
        pass  # it is gone


def _keep_alive(connection: socket.socket) -> None:
    """A link that was cut ends with an error: a frozen tree must not wait for it for ever."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _LINK_PATIENCE // 4),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _LINK_PATIENCE // 4),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LINK_PATIENCE * 1000),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        connection.setsockopt(level, option, value)
