"""Writing a sealed file into a store: its ciphertext goes to a spool, and from there, meanwhile, to the store.

The spool holds all of it until the store has acknowledged it, so that every part can be sent again.  It is memory,
or an unlinked file in a directory.  Nothing is visible under the final name before the last part was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.format.raw import Descriptor, read_exactly
from sealpoint.store import limits, properties
from sealpoint.store.location import open_store
from sealpoint.store.output import Buffer, write_all
from sealpoint.store.remote import Store, Upload
from sealpoint.store.source import memory, unlinked

_MOST_THREADS: Final = 16
_TICK: Final = 0.5  # seconds between looks at the clock


class Writing(NamedTuple):
    """How to write into a store.

    force: replace what has the name; unconditional: also where the store cannot create-only.  spool: a directory, None
    for memory; limit: bytes of it.  timeout: seconds that `sync` and `commit` wait for the store together, None for
    ever.  later: `commit` does not wait for the store; `settle` does.  source: a descriptor, which stays the caller's,
    of a file that has already what will be written, so that nothing needs to be held.
    """

    force: bool = False
    unconditional: bool = False
    spool: str | None = None
    limit: int | None = None
    timeout: float | None = None
    later: bool = False
    source: int | None = None


class StoreDestination:
    """A `Destination` (store.output) in a store.  streams: see there."""

    streams = False
    discards = False

    def __init__(self, url: str) -> None:
        self.label = url

    def open(self, how: Writing) -> RemoteOutput:
        """Raises UsageError (the name is taken), SystemEnvironmentError."""
        store = open_store(self.label)
        try:
            return RemoteOutput(store, how)
        except BaseException:
            store.close()
            raise


class UploadSpool:
    """The file as far as it was written.  As `Spooled`: `read` counts from where the body begins."""

    def __init__(self, directory: str | None, limit: int | None) -> None:
        """Raises SystemEnvironmentError."""
        self._where = "memory" if directory is None else directory
        self._allowance = limits.Allowance(limit, self._where, directory)
        try:
            self.fd = memory() if directory is None else unlinked(directory)
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot hold the checkpoint in {self._where}: {error.strerror}",
                hint="name another directory: --spool DIR",
            ) from None
        self.size = 0
        self.head_size: int | None = None  # bytes, once the preamble is there

    def append(self, buffers: tuple[Buffer, ...]) -> None:
        """Raises SystemEnvironmentError."""
        size = sum(len(b) for b in buffers)
        try:
            self._allowance.take(size)
        except SystemEnvironmentError as error:
            error.hint = "name a directory with more room: --spool DIR"
            raise
        write_all(self.fd, list(buffers), self._where)
        self._advance(size)

    def _advance(self, size: int) -> None:
        self.size += size
        if self.head_size is None and self.size >= PREAMBLE_SIZE:
            head = read_exactly(Descriptor(self.fd), PREAMBLE_SIZE, 0)
            self.head_size = Preamble.decode(head).frames_offset

    def check(self) -> None:
        """Before the commit: what is read is what was written.  Nobody else has it."""

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(OSError):
            os.close(self.fd)

    @property
    def body(self) -> int:
        """Bytes of the body that are there."""
        return max(self.size - self.head_size, 0) if self.head_size is not None else 0

    def read(self, offset: int, size: int) -> memoryview:
        """See Spooled."""
        assert self.head_size is not None
        data = memoryview(bytearray(size))
        Descriptor(self.fd).read_into(data, self.head_size + offset)
        return data


class SourceSpool(UploadSpool):
    """A file that is being copied, as its own spool: what is written only says how far it may be sent."""

    def __init__(self, fd: int) -> None:  # it holds nothing
        self.fd = fd
        self.size = 0
        self.head_size = None
        self._before = _state(fd)

    def append(self, buffers: tuple[Buffer, ...]) -> None:
        """See UploadSpool."""
        self._advance(sum(len(b) for b in buffers))

    def check(self) -> None:
        """Raises FileError: someone has changed the file since."""
        if _state(self.fd) != self._before or os.fstat(self.fd).st_size != self.size:
            raise FileError("the file was changed while it was copied", hint="try again")

    def close(self) -> None:
        """The descriptor is the caller's."""


def _state(fd: int) -> tuple[int, int]:
    """Of a file: another one when someone has written into it."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


class RemoteOutput:
    """A Target (store.output).  A context manager, which at its end waits for the store, if `commit` did not.

    url: names exactly this file, once the store has acknowledged it.
    """

    def __init__(self, store: Store, how: Writing) -> None:
        """Raises UsageError (the name is taken), SystemEnvironmentError."""
        self._name, self._how, self._store = store.name, how, store
        self.committed = False
        self.url: str | None = None
        store.check_free(force=how.force, unconditional=how.unconditional)
        self._spool = (
            UploadSpool(how.spool, how.limit) if how.source is None else SourceSpool(how.source)
        )
        try:
            self._upload: Upload = store.begin(
                self._spool, force=how.force, unconditional=how.unconditional
            )
        except BaseException:
            self._spool.close()
            raise
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._offset = self._number = self._sending = 0
        self._deadline: float | None = None
        self._aborting: threading.Thread | None = None
        count = max(1, min(self._upload.parallel, _MOST_THREADS))
        self._threads = [
            threading.Thread(target=self._send, name="upload", daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def write(self, *buffers: Buffer) -> None:
        """Append to the spool.  Raises what went wrong with what was written before."""
        self._raise()
        self._spool.append(buffers)
        with self._changed:
            self._changed.notify_all()

    def sync(self) -> None:
        """Wait until every full part was sent, so that `commit` has little to wait for."""
        if not self._how.later:
            self._wait(lambda: not self._sending and not self._is_ready())

    def commit(self) -> None:
        """It is complete: give it its name, once the store has acknowledged all of it.  With `later`, see `settle`."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._raise()
        if self._how.later:
            self.committed = True
        else:
            self._acknowledged()

    def settle(self) -> None:
        """After `commit`: wait until the store has acknowledged it.  Raises what went wrong."""
        if self.url is None:
            self._acknowledged()

    def _acknowledged(self) -> None:
        thread = threading.Thread(target=self._commit, name="commit", daemon=True)
        thread.start()
        try:
            self._wait(lambda: self.url is not None)
        except BaseException:
            # What was given up may still have come to its good end: then it counts.
            self.cancel()
            thread.join()
            if self.url is None:
                raise
        thread.join()
        self.committed = True

    def _commit(self) -> None:
        for thread in self._threads:
            thread.join()
        try:
            self._raise()
            head_size = self._spool.head_size
            if head_size is None:
                raise SystemEnvironmentError(f"{self._name}: nothing was written")
            file = Descriptor(self._spool.fd)
            head, told = read_exactly(file, head_size, 0), properties.describe(file)
            self._spool.check()
            url = self._upload.commit(head, told)
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self._fail(error)
        else:
            with self._changed:
                self.url = url
                self._changed.notify_all()

    def _wait(self, done: Callable[[], bool]) -> None:
        """Raises what went wrong; SystemEnvironmentError when the time is over."""
        if self._deadline is None and self._how.timeout is not None:
            self._deadline = time.monotonic() + self._how.timeout
        with self._changed:
            while not done() and self._error is None:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    raise SystemEnvironmentError(
                        f"{self._name}: the store did not acknowledge the checkpoint in time",
                        hint="to allow more time, give --commit-timeout SECONDS",
                    )
                self._changed.wait(_TICK)
            if self._error is not None:
                raise self._error

    def _send(self) -> None:
        while (part := self._next()) is not None:
            try:
                self._upload.send(*part)
            except BaseException as error:  # noqa: BLE001 - raised by whoever writes or waits
                self._fail(error)
            finally:
                with self._changed:
                    self._sending -= 1
                    self._changed.notify_all()

    def _next(self) -> tuple[int, int, int] | None:
        """Number, offset and size of the part to be sent now; None at the end, or if it is given up."""
        with self._changed:
            while self._error is None:
                if self._is_ready():
                    size = min(
                        self._upload.part_size(self._number), self._spool.body - self._offset
                    )
                    part = (self._number, self._offset, size)
                    self._number += 1
                    self._offset += size
                    self._sending += 1
                    return part
                if self._ended:
                    return None
                self._changed.wait()
            return None

    def _is_ready(self) -> bool:
        """Whether there is a part to be sent."""
        left = self._spool.body - self._offset
        return left > 0 and (self._ended or left >= self._upload.part_size(self._number))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """From another thread: end all waits, and leave no parts in the store."""
        self._fail(SystemEnvironmentError(f"{self._name}: the upload was given up"))
        with self._changed:
            if self._aborting is not None:
                return
            self._aborting = threading.Thread(target=self._upload.abort, name="abort", daemon=True)
            self._aborting.start()

    def mark_failed(self) -> str | None:
        """After a commit that turned out wrong: where the file is, which stays there."""
        return self.url

    def close(self) -> None:
        """What the store has not acknowledged is given up."""
        if self._closed:
            return
        self._closed = True
        if self.url is None:
            self.cancel()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._aborting is not None:
            self._aborting.join()
        self._spool.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.committed:
                self.settle()
        finally:
            self.close()
