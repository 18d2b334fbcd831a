"""/metrics, /healthz and /readyz over HTTP, for whoever can reach the address.  Few connections, and none for long."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import threading
import time
from typing import Any, Final, Self

from sealpoint.agent.figures import CONTENT_TYPE, Figures
from sealpoint.errors import SystemEnvironmentError

_AT_A_TIME: Final = 16
_LONGEST: Final = 10.0  # seconds of a connection
_TEXT: Final = "text/plain; charset=utf-8"


class StatusServer:
    """A context manager.  port: as it was given by the kernel where 0 was asked for."""

    def __init__(self, address: tuple[str, int], figures: Figures) -> None:
        """Raises SystemEnvironmentError."""
        try:
            self._server = _Server(address, figures)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot listen at {address[0]} port {address[1]}: {error.strerror}",
                hint="--listen ADDRESS:PORT names another, --listen none lets it be",
            ) from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.5,), name="status", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], figures: Figures) -> None:
        self.figures = figures
        self._free = threading.BoundedSemaphore(_AT_A_TIME)
        self._began: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Without asking a name server who we are, as HTTPServer does.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._began[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._end(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end(request)

    def _end(self, request: socket.socket) -> None:
        with self._lock:
            self._began.pop(request, None)
        self._free.release()

    def service_actions(self) -> None:
        """Twice a second: whoever sends a byte now and then is not waited for."""
        with self._lock:
            late = [r for r, began in self._began.items() if time.monotonic() - began > _LONGEST]
        for request in late:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "sealpoint"
    sys_version = ""
    timeout = _LONGEST

    def do_GET(self) -> None:
        figures = self.server.figures
        if self.path == "/metrics":
            self._answer(200, figures.text(), CONTENT_TYPE)
        elif self.path == "/healthz":
            alive = figures.is_alive()
            self._answer(200 if alive else 503, "ok\n" if alive else "no sign of life\n", _TEXT)
        elif self.path == "/readyz":
            problems = figures.problems()
            self._answer(503 if problems else 200, "\n".join(problems or ["ok"]) + "\n", _TEXT)
        else:
            self._answer(404, "there are /metrics, /healthz and /readyz\n", _TEXT)

    def _answer(self, status: int, text: str, kind: str) -> None:
        data = text.encode(errors="backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged of those who ask."""
