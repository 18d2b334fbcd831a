"""Receives the images of one `criu dump --stream` and feeds them to the builder.

One thread serves CRIU's connections and the pipes of small images (about twenty are open at once); an image that turns
out large gets a reading thread of its own, which reads straight into the sealing pipeline's buffers.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from sealpoint.checkpoint.sealing.builder import PACK_LIMIT, CheckpointBuilder
from sealpoint.checkpoint.tables import evidence
from sealpoint.checkpoint.tables.evidence import Kind
from sealpoint.checkpoint.tables.pages_thread import PagesTarget
from sealpoint.checkpoint.tables.seen import Passing, Seen
from sealpoint.criu import stream
from sealpoint.criu.roles import is_pages, role_of
from sealpoint.errors import CriuError, SealpointError

_READ = 64 * 1024


@dataclass(slots=True)
class _Small:
    name: str
    fd: int
    passing: Passing
    data: bytearray = field(default_factory=bytearray)


class Capture:
    """Runs from construction until `close`.  An error closes CRIU's pipes, upon which CRIU undoes the dump."""

    def __init__(
        self,
        directory: str,
        builder: CheckpointBuilder,
        pages: Callable[[str], PagesTarget] | None = None,
        *,
        root: int | None = None,
    ) -> None:
        """pages: makes what takes a pages image; the builder's own objects if None.

        root: of the tree, as it knows its own pid.
        """
        self._root = root
        self._builder = builder
        self._pages = pages or builder.large
        self._listener = stream.listen(directory, stream.CAPTURE_SOCKET)
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._changed = threading.Condition()
        self._open = 0  # images whose end has not come yet
        self._error: BaseException | None = None
        self._stopped = False
        self._seen = Seen()
        self.kind: Kind | None = None  # once the images are complete
        self._readers: list[threading.Thread] = []
        self._selector.register(self._listener, selectors.EVENT_READ, "listener")
        self._selector.register(self._wake, selectors.EVENT_READ, "wake")
        self._thread = threading.Thread(target=self._loop, name="capture", daemon=True)
        self._thread.start()

    @property
    def error(self) -> BaseException | None:
        """What went wrong, if anything did."""
        return self._error

    def wait_complete(self) -> None:
        """Until the end of every image that CRIU opened was seen, and they are a whole dump.

        Raises the error if there was one, NoEvidenceError if they are not.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0 or self._error is not None)
        if self._error is not None:
            raise self._error
        self.kind = evidence.require(self._seen, evidence.WHOLE, root=self._root)

    def fail(self, error: BaseException) -> None:
        """Stop receiving: CRIU sees closed pipes."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the threads.  If images are still open, this is a failure for CRIU."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for reader in self._readers:
            reader.join()
        self._selector.close()
        os.close(self._wake)

    def _loop(self) -> None:
        try:
            while not self._stopped and self._error is None:
                for key, _ in self._selector.select():
                    self._handle(key.fileobj, key.data)
        except BaseException as error:  # noqa: BLE001 - must reach whoever waits
            self.fail(error)
        finally:
            for key in list(self._selector.get_map().values()):
                if key.data != "wake":
                    self._drop(key.fileobj)

    def _handle(self, source: object, data: object) -> None:
        if isinstance(data, _Small):
            self._read_small(data)
        elif data == "listener":
            connection, _ = self._listener.accept()
            self._selector.register(connection, selectors.EVENT_READ, "connection")
        elif data == "connection" and isinstance(source, socket.socket):
            self._serve(source)

    def _serve(self, connection: socket.socket) -> None:
        name = stream.read_request(connection)
        if name is None:
            self._drop(connection)
            return
        fd = stream.receive_pipe(connection)
        with self._changed:
            self._open += 1
        image = _Small(name, fd, self._seen.image(name))
        if is_pages(name):
            self._start_reader(image)
        else:
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, image)

    def _read_small(self, image: _Small) -> None:
        data = os.read(image.fd, _READ)
        image.data += data
        image.passing.add(data)
        if not data:
            self._drop(image.fd)
            self._builder.add(image.name, bytes(image.data))
            self._ended(image)
        elif len(image.data) > PACK_LIMIT[role_of(image.name)]:
            self._selector.unregister(image.fd)
            os.set_blocking(image.fd, True)
            self._builder.summary.observe(image.name, bytes(image.data))
            self._start_reader(image)

    def _start_reader(self, image: _Small) -> None:
        stream.enlarge_pipe(image.fd)
        self._readers = [r for r in self._readers if r.is_alive()]
        reader = threading.Thread(
            target=self._read_large, args=(image,), name=image.name, daemon=True
        )
        self._readers.append(reader)
        reader.start()

    def _read_large(self, image: _Small) -> None:
        target: PagesTarget | None = None
        try:
            make = self._pages if is_pages(image.name) else self._builder.large
            target = make(image.name)
            target.write(bytes(image.data))
            pages = is_pages(image.name)
            while size := os.readv(image.fd, [space := target.space()]):
                if self._error is not None:
                    raise CriuError("the dump was given up")
                if pages:
                    image.passing.count(size)
                else:
                    image.passing.add(space[:size])
                target.wrote(size)
            target.finish()
            self._ended(image)
        except BaseException as error:  # noqa: BLE001 - must reach whoever waits
            if target is not None:
                target.abandon()
            self.fail(error)
        finally:
            os.close(image.fd)

    def _ended(self, image: _Small) -> None:
        image.passing.end()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def _drop(self, source: object) -> None:
        if isinstance(source, int):
            self._selector.unregister(source)
            os.close(source)
        elif isinstance(source, socket.socket):
            self._selector.unregister(source)
            source.close()


def as_sealpoint_error(error: BaseException) -> SealpointError:
    """What happened, for the user."""
    if isinstance(error, SealpointError):
        return error
    return SealpointError(f"capturing the dump failed: {error!r}")
