"""Work on a pages image in a thread of its own, beside the one that reads it from CRIU."""

from __future__ import annotations

import abc
import mmap
import queue
import threading
from typing import Final, Protocol

from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import SealpointError
from sealpoint.format.constants import CHUNK_SIZE

_BUFFERS: Final = 3


class PagesTarget(Protocol):
    """What takes a pages image: a LargeObject, or what stands before one."""

    def space(self) -> memoryview:
        """The free rest of the current buffer, never empty.  Raises what went wrong."""

    def wrote(self, size: int) -> None:
        """`size` bytes of `space()` are data."""

    def write(self, data: bytes | memoryview) -> None:
        """Append a copy of `data`."""

    def finish(self) -> None:
        """No more data.  Raises what went wrong."""

    def abandon(self) -> None:
        """After an error."""


class PagesThread(abc.ABC):
    """A PagesTarget whose data a thread of its own gives to `take`, whole pages, and that to `target`."""

    def __init__(self, target: PagesTarget, name: str) -> None:
        """name: of the thread, which starts here."""
        self.target = target
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(mmap.mmap(-1, CHUNK_SIZE)))
        self._full: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._buffer: memoryview | None = None
        self._filled = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @abc.abstractmethod
    def take(self, data: memoryview) -> None:
        """Some pages, in order; the buffer is overwritten afterwards."""

    @abc.abstractmethod
    def ended(self) -> None:
        """All pages were taken: finish the target."""

    def space(self) -> memoryview:
        """See PagesTarget."""
        if self._buffer is None:
            self._buffer = self._free.get()
            self._filled = 0
        self._raise()
        return self._buffer[self._filled :]

    def wrote(self, size: int) -> None:
        """See PagesTarget."""
        self._filled += size
        if self._filled == CHUNK_SIZE:
            self._hand_on()

    def write(self, data: bytes | memoryview) -> None:
        """See PagesTarget."""
        view = memoryview(data)
        while view:
            space = self.space()
            take = min(len(space), len(view))
            space[:take] = view[:take]
            self.wrote(take)
            view = view[take:]

    def finish(self) -> None:
        """See PagesTarget."""
        if self._buffer is not None and self._filled:
            self._hand_on()
        self._full.put(None)
        self._thread.join()
        self._raise()
        self.ended()

    def abandon(self) -> None:
        """See PagesTarget."""
        self._full.put(None)
        self._thread.join()
        self.target.abandon()

    def _hand_on(self) -> None:
        assert self._buffer is not None
        buffer, self._buffer = self._buffer, None
        self._full.put(buffer[: self._filled])

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (data := self._full.get()) is not None:
            try:
                if self._error is None:
                    if len(data) % PAGE:
                        raise SealpointError("a pages image does not consist of whole pages")
                    self.take(data)
            except BaseException as error:  # noqa: BLE001 - raised by the reading thread
                self._error = error
            self._free.put(memoryview(data.obj))
