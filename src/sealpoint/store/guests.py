"""Connections from whoever: each is served by itself, and none that has proved nothing can keep out another.

Until a guest is admitted it has one deadline, however busily it drips, and the longest waiting has to go when too many
wait.  Out of scope: what a guest has to prove, which `serve` asks for.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from sealpoint.errors import SealpointError, SystemEnvironmentError

_MAX_WAITING: Final = 64  # guests that have proved nothing
_MAX_SAID: Final = 32  # refusals that are told: a stranger must not fill a log
_BACKLOG: Final = 128
_BREATH: Final = 0.05  # seconds


class Guest:
    """One connection.  name: for messages."""

    def __init__(self, connection: socket.socket, name: str, deadline: float) -> None:
        self.connection, self.name, self.deadline = connection, name, deadline
        self.admitted = self.ended = False
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None

    def cut(self) -> None:
        """Ends every wait of its thread."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already


Serve = Callable[[Guest, Callable[[], bool]], None]
"""Serves one guest in a thread: calls the second when the guest has proved who it is, and goes on only if told True.

The connection is the guest's to close: whoever takes it over (`detach`) closes it.
"""


class Guests:
    """Whoever connects to a listening socket.  `run` may be called once."""

    def __init__(
        self,
        listener: socket.socket,
        serve: Serve,
        *,
        patience: float,
        say: Callable[[str], None],
        single: bool,
    ) -> None:
        """patience: seconds in which a guest proves who it is; single: only one is admitted, the first."""
        self._listener, self._serve = listener, serve
        self._patience, self._say, self._single = patience, say, single
        self._guests: list[Guest] = []
        self._lock = threading.Lock()
        self._admitted: list[Guest] = []
        self._said = 0
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def run(self, wait: float | None = None) -> list[Guest]:
        """Serve until one was admitted and nobody who was is served any more; returns who was, in that order.

        wait: seconds for the first.  Raises SystemEnvironmentError if nobody came.
        """
        end = None if wait is None else time.monotonic() + wait
        self._listener.setblocking(False)
        try:
            while not self._finished():
                if end is not None and not self._admitted and time.monotonic() >= end:
                    raise SystemEnvironmentError(f"no trusted sender connected within {wait:.0f} s")
                self._step(end)
        finally:
            with self._lock:
                self._closing = True
            for guest in self._guests:
                if not guest.admitted or not guest.ended:
                    guest.cut()
            for guest in self._guests:
                if guest.thread is not None:
                    guest.thread.join()
                self._drop(guest)
            os.close(self._wake)
        return self._admitted

    def _finished(self) -> bool:
        with self._lock:
            return bool(self._admitted) and all(g.ended for g in self._admitted)

    def _step(self, end: float | None) -> None:
        now = time.monotonic()
        waiting = [g for g in self._guests if not g.admitted and not g.ended]
        times = [g.deadline for g in waiting] + ([end] if end is not None else [])
        left = max(0.0, min(times) - now) if times else None
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.poll(None if left is None else left * 1000 + 1)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        for guest in waiting:
            if guest.deadline <= time.monotonic():
                guest.cut()
                guest.deadline = float("inf")
        self._collect()
        self._accept()

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except BlockingIOError:
            return  # nobody is there, or gone again
        except OSError:
            time.sleep(_BREATH)  # no descriptor is left, for instance: guests that go make room
            return
        waiting = [g for g in self._guests if not g.admitted]
        if len(waiting) >= _MAX_WAITING:
            waiting[0].cut()
        connection.settimeout(None)
        name = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "the peer"
        guest = Guest(connection, name, time.monotonic() + self._patience)
        guest.thread = threading.Thread(target=self._run, args=(guest,), name="guest", daemon=True)
        self._guests.append(guest)
        guest.thread.start()

    def _run(self, guest: Guest) -> None:
        try:
            self._serve(guest, lambda: self._admit(guest))
        except BaseException as error:  # noqa: BLE001 - whoever looks at the guest raises it
            guest.error = error
        guest.ended = True
        os.eventfd_write(self._wake, 1)

    def _admit(self, guest: Guest) -> bool:
        with self._lock:
            if self._closing or (self._single and self._admitted):
                return False
            guest.admitted = True
            self._admitted.append(guest)
            return True

    def _collect(self) -> None:
        for guest in [g for g in self._guests if g.ended]:
            self._guests.remove(guest)
            if guest.thread is not None:
                guest.thread.join()
            self._drop(guest)
            if not guest.admitted and guest.error is not None:
                self._tell(guest)

    def _tell(self, guest: Guest) -> None:
        self._said += 1
        error = guest.error
        why = error.message if isinstance(error, SealpointError) else type(error).__name__
        if self._said < _MAX_SAID:
            self._say(f"{guest.name} was turned away: {why}")
        elif self._said == _MAX_SAID:
            self._say("more were turned away; from now on this is not reported")

    @staticmethod
    def _drop(guest: Guest) -> None:
        if guest.connection.fileno() >= 0:
            guest.connection.close()


def listen(host: str, port: int) -> socket.socket:
    """At one address; loopback if none is named.  Raises SystemEnvironmentError."""
    where = host or "127.0.0.1"
    try:
        found = socket.getaddrinfo(where, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SystemEnvironmentError(f"cannot listen at {where} port {port}: {reason}") from None
