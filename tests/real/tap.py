"""Somebody on the link of a migration."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.real.far_side import FarSide

PORT = 7777


class Tap:
    """Somebody on the link who sees every message: `moment(direction, kind)` decides what becomes of it.

    "pass", "cut" (both ends are closed), "freeze" (nothing goes on, nobody is told) or "spoil" (its last byte changes).
    seen: the messages that reached it, in both directions.
    """

    HELLO, DATA, END, HAVE, READY, GO, RUNNING, STOP, PROOF, OFFER, ROOM = range(1, 12)

    def __init__(self, far: FarSide, moment: Callable[[str, int], str]) -> None:
        self.far = far
        self._moment = moment
        self._closed = threading.Event()
        self.seen: list[tuple[str, int, bytes]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection((self.far.address, PORT))
        pairs = [("to far", near, far), ("to near", far, near)]
        pumps = [threading.Thread(target=self._pump, args=pair, daemon=True) for pair in pairs]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        near.close()
        far.close()

    def _pump(self, direction: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = _exactly(source, 5)
                kind, size = head[0], int.from_bytes(head[1:], "little")
                body = _exactly(source, size)
                self.seen.append((direction, kind, body))
                what = self._moment(direction, kind)
                if what == "freeze":
                    self._closed.wait()
                    return
                if what == "cut":
                    break
                if what == "spoil":
                    body = body[:-1] + bytes([body[-1] ^ 1])
                target.sendall(head + body)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        self._server.close()

    def wire(self) -> bytes:
        return b"".join(body for _, _, body in self.seen)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
