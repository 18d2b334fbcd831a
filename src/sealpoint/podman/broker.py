"""The end of the relay's socket (`sealpoint.dropin.relay`) in the process that seals or opens."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
from types import TracebackType
from typing import Any, Final, Protocol, Self

from sealpoint.errors import SealpointError

_MAX: Final = 65536


class Handler(Protocol):
    """What is asked.  Each method raises what speaks against going on."""

    def begin(self, request: str) -> int:
        """CRIU is to `dump` or `restore`: descriptor of the images directory that it shall get, -1 for podman's own."""

    def notified(self, script: str) -> None:
        """CRIU has come to this point and waits."""

    def ended(self, *, success: bool) -> None:
        """CRIU has answered."""

    @property
    def error(self) -> BaseException | None:
        """What CRIU knows as an I/O error only."""


class Broker:
    """Context manager: answers until it is left, one connection after the other."""

    def __init__(self, path: str, handler: Handler) -> None:
        self._handler = handler
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(path)  # in a directory that only root can enter
            self._socket.listen(4)
        except OSError:
            self._socket.close()
            raise
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._readable(self._socket):
            connection, _ = self._socket.accept()
            with connection:
                if _is_root(connection):
                    self._serve(connection)

    def _readable(self, source: socket.socket) -> bool:
        poll = select.poll()
        poll.register(source, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        return all(fd != self._stop for fd, _ in poll.poll())

    def _serve(self, connection: socket.socket) -> None:
        while self._readable(connection):
            try:
                data = connection.recv(_MAX)
                if not data:
                    return
                answer, fd = self._answer(json.loads(data))
                fds = [fd] if fd >= 0 else []
                socket.send_fds(connection, [json.dumps(answer).encode()], fds)
            except (OSError, ValueError):
                return

    def _answer(self, message: dict[str, Any]) -> tuple[dict[str, str], int]:
        try:
            if "begin" in message:
                return {}, self._handler.begin(str(message["begin"]))
            if "notified" in message:
                self._handler.notified(str(message["notified"]))
            if "ended" in message:
                self._handler.ended(success=message["ended"] is True)
            if "why" in message and self._handler.error is not None:
                return {"error": _reason(self._handler.error)}, -1
        except BaseException as error:  # noqa: BLE001 - podman says it, and whoever waits for podman
            return {"error": _reason(error)}, -1
        return {}, -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._socket.close()
        os.unlink(self._path)
        os.close(self._stop)


def _is_root(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", raw)
    return bool(uid == 0)


def _reason(error: BaseException) -> str:
    if isinstance(error, SealpointError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"internal error ({type(error).__name__})"
