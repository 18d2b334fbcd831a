"""A sealed file sent over a link by a thread of its own, so that whoever writes it need not wait for the link.

A copy of a tree's memory freezes the tree for as long as it is written.  What the link has not taken yet waits in
memory, as ciphertext, up to a limit; then the link is waited for after all.
"""

from __future__ import annotations

import threading
from collections import deque

from sealpoint.store import limits
from sealpoint.store.link import LinkError
from sealpoint.store.output import Buffer, Target


class HeldOutput:
    """Has the methods of the output that it sends to, which stays the caller's.  `drain` waits for the end."""

    def __init__(self, out: Target, limit: int | None = None) -> None:
        """limit: bytes that may wait; by default half of the memory that is available."""
        self._out = out
        self._limit = limits.memory_share() if limit is None else limit
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes of what waits or is being sent
        self._changed = threading.Condition()
        self._sending = False
        self._ended = False
        self._error: BaseException | None = None
        self.committed = False
        self._thread = threading.Thread(target=self._send, name="send", daemon=True)
        self._thread.start()

    def write(self, *buffers: Buffer) -> None:
        """Append a copy.  Raises what went wrong with what was written before."""
        for buffer in buffers:
            data = bytes(buffer)
            with self._changed:
                # Something always fits: nothing waits for ever where there is no memory at all.
                while self._size and self._size + len(data) > self._limit and not self._error:
                    self._changed.wait()
                self._raise()
                self._waiting.append(data)
                self._size += len(data)
                self._changed.notify_all()

    def sync(self) -> None:
        """There is no way to tell."""

    def commit(self) -> None:
        """It is complete, but not sent.  Raises what went wrong before."""
        with self._changed:
            self._raise()
            self._ended = self.committed = True
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until all was sent, its end included.  Raises what went wrong."""
        self._thread.join()
        self._raise()

    def cancel(self) -> None:
        """From another thread: end all waits."""
        with self._changed:
            self._error = self._error or LinkError("the link was given up")
            if self._sending:
                self._out.cancel()
            self._changed.notify_all()

    def mark_failed(self) -> str | None:
        """What was sent cannot be called back."""
        return None

    def close(self) -> None:
        """End the thread; what was not sent is dropped."""
        if self._thread.is_alive():
            self.cancel()
            self._thread.join()
        self._waiting.clear()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _send(self) -> None:
        try:
            while (data := self._next()) is not None:
                self._out.write(data)
                with self._changed:
                    self._sending = False
                    self._size -= len(data)
                    self._changed.notify_all()
                del data  # or it would be held until there is more
            if self._error is None:
                self._out.commit()
        except BaseException as error:  # noqa: BLE001 - raised by whoever writes or waits
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        """What is to be sent now; None at the end, or if it is given up."""
        with self._changed:
            while not (self._waiting or self._ended or self._error):
                self._changed.wait()
            if self._error is not None or not self._waiting:
                self._sending = self._error is None  # the end
                return None
            self._sending = True
            return self._waiting.popleft()
