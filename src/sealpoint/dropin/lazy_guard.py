"""A hold on the tasks of a lazy restore, and a process that ends them if the one that serves their pages dies.

Standard library only: the guard is forked before anything else runs, and waits.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from typing import Final, NoReturn

from sealpoint.process import Held

_PATIENCE: Final = 10.0  # seconds for what was killed to be gone
_TASK, _DAEMON, _DONE = b"t", b"d", b"q"


class Tree:
    """Tasks, each held by a pidfd.

    Not by a copy of its userfaultfd, although the task would then wait, instead of running on with zeros, when CRIU's
    daemon is killed: the daemon would go on getting events of what it has closed and freed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: list[Held] = []

    def add(self, pidfd: int) -> None:
        """A copy of it is kept.  Raises OSError: there is no such process."""
        with self._lock:
            task = Held.of(pidfd)
            there = task.exists
            if there and not any(t.pid == task.pid and t.exists for t in self._tasks):
                self._tasks.append(task)
            else:
                task.close()
        if not there:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def kill(self) -> None:
        """SIGKILL to every task and to what it has started since; returns when they are gone."""
        with self._lock:
            for task in self._tasks:
                task.send(signal.SIGSTOP)  # so that none forks while we look
            for task in self._tasks:
                for victim in task.tree(signal.SIGSTOP):
                    victim.send(signal.SIGKILL)
            deadline = time.monotonic() + _PATIENCE
            for task in self._tasks:
                task.ended(max(0.0, deadline - time.monotonic()))

    def release(self) -> None:
        """Nothing waits for us any more."""
        with self._lock:
            for task in self._tasks:
                task.close()
            self._tasks.clear()


class LazyGuard:
    """This process's end of the link to the guard."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    @classmethod
    def start(cls) -> LazyGuard:
        """Fork it.  No other thread may run."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                ours.close()
                _guard(theirs)
            os._exit(0)
        os.waitpid(child, 0)
        theirs.close()
        return cls(ours)

    def watch(self, daemon: Held, device: int) -> None:
        """The real daemon, which shall not outlive us, and the device of the mount that it reads.

        As long as that is open somewhere, a read of the daemon waits, and the daemon brings and closes nothing.
        """
        self._send(_DAEMON, [daemon.fd, device])

    def add(self, task: Held) -> None:
        """A task."""
        self._send(_TASK, [task.fd])

    def done(self) -> None:
        """All pages are where they belong, or the tree is gone."""
        self._send(_DONE, [])

    def _send(self, data: bytes, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._link, [data], descriptors)
        except OSError:
            pass  # it was killed; we are still there

    def close(self) -> None:
        """Without `done` before, the guard ends the tree."""
        self._link.close()


def _guard(link: socket.socket) -> NoReturn:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tree, daemon = Tree(), Held(0)
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(link, 64, 16)
        except OSError:
            data, descriptors = b"", []
        if data[:1] == _TASK and descriptors:
            try:
                tree.add(descriptors[0])
            except OSError:
                pass  # it has ended
            os.close(descriptors[0])
        elif data[:1] == _DAEMON and descriptors:
            daemon = Held.of(descriptors[0])
        elif data[:1] == _DONE:
            os._exit(0)
        else:
            break
    daemon.send(signal.SIGSTOP)
    tree.kill()
    daemon.send(signal.SIGKILL)
    os._exit(0)
