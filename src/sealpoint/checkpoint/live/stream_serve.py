"""Serves the images of a checkpoint to one `criu restore --stream`.

Before CRIU starts, `prepare` has verified every object that is not memory pages.  Pages are verified as they are
served.  The gate opens only on positive evidence (`approve`): no error, CRIU has asked here for every image that this
tree needs, and every listed page object verified to its end, asked for or not; CRIU alone would ignore read errors of
shared memory.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable

from sealpoint.checkpoint.opening.flat import Flat, FlatImage, Runs
from sealpoint.checkpoint.tables import evidence, whole
from sealpoint.checkpoint.tables.seen import Seen
from sealpoint.criu import stream
from sealpoint.criu.roles import is_pages
from sealpoint.criu.splice import PageRing
from sealpoint.errors import CriuError, FileError
from sealpoint.format.constants import CHUNK_SIZE
from sealpoint.format.manifest import Entry
from sealpoint.format.opened import Scratch

_SMALL = 64 * 1024  # fits any pipe: written at once, without a thread
_RING = 4  # buffers of a chunk each per object being sent
_CACHE = 32 * 1024 * 1024  # bytes of small verified objects kept for serving


class Serve:
    """Runs from construction until `close`."""

    def __init__(self, directory: str, flat: Flat) -> None:
        self._flat = flat
        self._listener = stream.listen(directory, stream.SERVE_SOCKET)
        self._small: dict[str, bytes] = {}
        self._seen = Seen()
        self._opened: set[str] = set()
        self._lock = threading.Lock()
        self._unverified = {name for name in flat.images if is_pages(name)}
        self._error: BaseException | None = None
        self._connections: list[socket.socket] = []
        self._senders: list[threading.Thread] = []
        self.served = 0
        self._thread = threading.Thread(target=self._accept, name="serve", daemon=True)

    @property
    def error(self) -> BaseException | None:
        """What went wrong, if anything did."""
        return self._error

    def prepare(self) -> None:
        """Verify every object but memory pages, then start to serve.  Raises FileError."""
        scratch, kept = Scratch(), 0
        images = [i for i in self._flat.images.values() if not is_pages(i.name)]
        for image in sorted(images, key=_place):
            keep = image.size <= _SMALL and kept + image.size <= _CACHE
            parts, passing = [], self._seen.image(image.name)
            for piece in self._flat.read(image, scratch):
                passing.add(piece)
                if keep:
                    parts.append(bytes(piece))
            passing.end()
            if keep:
                self._small[image.name] = b"".join(parts)
                kept += image.size
        for name in self._unverified:
            passing = self._seen.image(name)
            passing.count(self._flat.images[name].size)
            passing.end()
        whole.require_pages(self._seen)
        self._thread.start()

    def approve(self) -> None:
        """At post-restore, when CRIU has read all that it wants.  Raises what speaks against running the tree."""
        for sender in list(self._senders):
            sender.join()
        self._raise()
        scratch = Scratch()
        for name in sorted(self._unverified):
            for piece in self._flat.read(self._flat.images[name], scratch):
                self._raise()
                self.served += len(piece)
        self._unverified.clear()
        # After that: damage is the graver news, whatever CRIU has read.
        evidence.require_opened(self._seen, self._opened)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """Remember the first error and cut CRIU off."""
        with self._lock:
            self._error = self._error or error
            connections, self._connections = self._connections, []
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """End the threads; CRIU has ended or no longer reads."""
        if self._thread.ident is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.append(connection)
            threading.Thread(
                target=self._guard, args=(self._converse, connection), daemon=True
            ).start()

    def _guard(self, target: Callable[..., None], *args: object) -> None:
        try:
            target(*args)
        except ConnectionError:
            self.fail(CriuError("CRIU went away"))
        except BaseException as error:  # noqa: BLE001 - must reach the gate
            self.fail(error)

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            while (name := stream.read_request(connection)) is not None:
                image = self._flat.images.get(name)
                stream.answer(connection, exists=image is not None)
                if image is None:
                    continue
                pipe = stream.receive_pipe(connection)
                self._opened.add(name)
                self._send(image, pipe)

    def _send(self, image: FlatImage, fd: int) -> None:
        data = self._small.get(image.name)
        if data is not None:
            try:
                os.write(fd, data)  # at most a pipe's worth: complete
            except BrokenPipeError:
                pass  # CRIU wanted no more; the object was verified
            finally:
                os.close(fd)
            return
        sender = threading.Thread(
            target=self._send_then_close, args=(image, fd), name=image.name, daemon=True
        )
        self._senders.append(sender)
        sender.start()

    def _send_then_close(self, image: FlatImage, fd: int) -> None:
        # Closed after an error was noted: what CRIU says of the end of its pipe must not come first.
        try:
            self._guard(self._send_large, image, fd)
        finally:
            os.close(fd)

    def _send_large(self, image: FlatImage, fd: int) -> None:
        entry = image.entry
        try:
            if image.runs is not None:
                count = -(-image.size // CHUNK_SIZE)
                ring = PageRing(fd, CHUNK_SIZE, _RING)
                self._send_stream(image, ring, count, self._assembler(image.runs))
            elif entry is None or entry.offset or entry.stream.chunk_size < CHUNK_SIZE:
                self._send_packed(image, fd)
            else:
                ring = PageRing(fd, entry.stream.chunk_size, _RING)
                self._send_stream(image, ring, entry.stream.chunks, self._reader(entry))
        except BrokenPipeError:
            return  # CRIU closed early; what it did not take stays unverified and is verified at the gate
        with self._lock:
            self._unverified.discard(image.name)

    def _reader(self, entry: Entry) -> Callable[[memoryview, int], int]:
        scratch = Scratch()
        return lambda out, n: self._flat.top.read_chunk_into(entry.stream, n, out, scratch)

    def _assembler(self, runs: Runs) -> Callable[[memoryview, int], int]:
        reader = self._flat.chunk_reader()
        return lambda out, n: runs.fill(out[:CHUNK_SIZE], n * CHUNK_SIZE, reader)

    def _send_stream(
        self,
        image: FlatImage,
        ring: PageRing,
        count: int,
        produce: Callable[[memoryview, int], int],
    ) -> None:
        # Reading, hashing and decrypting run ahead in a second thread while this one waits for CRIU to read.
        left = image.size
        filled: queue.SimpleQueue[memoryview | BaseException] = queue.SimpleQueue()
        free = threading.Semaphore(ring.ahead)
        stopped = threading.Event()

        def fill() -> None:
            try:
                for number in range(count):
                    free.acquire()
                    if stopped.is_set():
                        return
                    buffer = ring.buffer()
                    filled.put(buffer[: produce(buffer, number)])
            except BaseException as error:  # noqa: BLE001 - raised again by the sending thread
                filled.put(error)

        filler = threading.Thread(target=fill, name=f"{image.name} ahead", daemon=True)
        filler.start()
        try:
            for _ in range(count):
                data = filled.get()
                self._raise()  # no use in serving a restore that will be refused
                if isinstance(data, BaseException):
                    raise data
                ring.send(data[:left])
                free.release()
                left -= min(len(data), left)
                self.served += len(data)
        finally:
            stopped.set()
            free.release()
            filler.join()
            ring.drain()
        if left:
            raise FileError(f"object {image.name!r} is shorter than its manifest says")

    def _send_packed(self, image: FlatImage, fd: int) -> None:
        for piece in self._flat.read(image):
            view = piece
            while view:
                view = view[os.write(fd, view) :]
            self.served += len(piece)


def _place(image: FlatImage) -> tuple[int, int]:
    """Where an image lies in the newest file: neighbours in a pack share chunks."""
    return (image.entry.stream.number, image.entry.offset) if image.entry else (0, 0)
