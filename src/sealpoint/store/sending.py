"""The threads that send an upload's parts, which another thread can make give up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sealpoint.errors import SystemEnvironmentError
from sealpoint.store.remote import UncertainCommitError

_SETTLE_SECONDS: Final = 40.0  # until what was cut has ended


class Sending:
    """Of one upload.

    cancelled: no further attempt once it is set.  visible: the file may have its name, so that nothing of it may be
    removed.
    """

    def __init__(self, name: str, interrupt: Callable[[set[int]], None]) -> None:
        """name: for messages; interrupt: cuts what these threads are sending."""
        self.cancelled = threading.Event()
        self.visible = False
        self._name = name
        self._interrupt = interrupt
        self._idle = threading.Condition()
        self._threads: list[int] = []  # identities

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around all that a thread sends.  Raises SystemEnvironmentError once it was given up."""
        me = threading.get_ident()
        with self._idle:
            if self.cancelled.is_set():
                raise self._given_up()
            self._threads.append(me)
        try:
            yield
        except SystemEnvironmentError:
            if self.cancelled.is_set():
                raise self._given_up() from None
            raise
        finally:
            with self._idle:
                self._threads.remove(me)
                self._idle.notify_all()

    def finish(self, commit: Callable[[], str]) -> str:
        """Give the file its name, and return what `commit` returns; raises what it raises."""
        try:
            url = commit()
        except UncertainCommitError:
            self.visible = True
            raise
        self.visible = True
        return url

    def give_up(self) -> None:
        """From any thread.  Waits for what is being sent: a part that arrives later would stay for ever."""
        with self._idle:
            self.cancelled.set()
            self._interrupt(set(self._threads))
            self._idle.wait_for(lambda: not self._threads, timeout=_SETTLE_SECONDS)

    def _given_up(self) -> SystemEnvironmentError:
        return SystemEnvironmentError(f"{self._name}: the upload was given up")
