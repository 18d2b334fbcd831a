"""Two sides of a page server for tests: the far machine, the wire between, and what is said on it."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import sealed
from tests.real.typed import DropIn


class Far:
    """The other machine: a directory, and `criu page-server` on a port."""

    def __init__(self, dropin: DropIn, directory: Path) -> None:
        self.dropin = dropin
        self.images = directory / "far"
        self.images.mkdir()
        self.log = directory / "far.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: object) -> None:
        self.process = self.dropin.start(
            "page-server", "-D", self.images, "--port", self.port, *options, log=self.log
        )
        sealed.wait_until(lambda: b"Listening" in self.log.read_bytes(), "the page server listens")

    def status(self) -> int:
        assert self.process is not None
        return self.process.wait(60)

    def said(self) -> str:
        return self.log.read_text()

    def files(self) -> list[Path]:
        return sorted(self.images.glob("pages-*"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def far(dropin: DropIn, tmp_path: Path) -> Iterator[Far]:
    made = Far(dropin, tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def near(tmp_path: Path) -> Path:
    images = tmp_path / "near"
    images.mkdir()
    return images


class Wire:
    """Between both: hands bytes on, keeps them, and can cut the link after some."""

    def __init__(self, port: int, cut_after: int = 1 << 62) -> None:
        self.seen = bytearray()
        self._left = cut_after
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._to = port
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection(("127.0.0.1", self._to))
        back = threading.Thread(target=self._back, args=(far, near), daemon=True)
        back.start()
        try:
            while self._left > 0 and (data := near.recv(65536)):
                self.seen += data
                self._left -= len(data)
                far.sendall(data)
            if self._left <= 0:
                for end in (near, far):  # both ends must see it
                    end.shutdown(socket.SHUT_RDWR)
            else:
                far.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        back.join()
        near.close()
        far.close()
        self._server.close()

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        try:
            while data := far.recv(65536):
                self.seen += data
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._thread.join(30)


def dump(dropin: DropIn, pid: int, near: Path, port: int, *options: object) -> tuple[int, str]:
    return dropin.run(
        "dump", "-t", pid, "-D", near, "-o", "dump.log",
        "--page-server", "--address", "127.0.0.1", "--port", port, *options,
    )  # fmt: skip


def bring_together(near: Path, far: Far) -> None:
    (far.images / "inventory.img").write_bytes((near / "inventory.img").read_bytes())


def hello(version: int) -> bytes:
    return (b"\x89SEALPS\n" + version.to_bytes(2, "little")).ljust(64, b"\0")


def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data
