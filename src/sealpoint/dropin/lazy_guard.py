"""A hold on the tasks of a lazy restore, and a process that ends them if the one that serves their pages dies.

Standard library only: the guard is forked before anything else runs, and waits.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from typing import Final, NoReturn

from sealpoint import process

_PATIENCE: Final = 10.0  # seconds for what was killed to be gone
_TASK, _DAEMON, _DONE = b"t", b"d", b"q"


class Tree:
    """Tasks, each held by a pidfd.

    Not by a copy of its userfaultfd, although the task would then wait, instead of running on with zeros, when CRIU's
    daemon is killed: the daemon would go on getting events of what it has closed and freed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[int, int] = {}  # pid: pidfd

    def add(self, pid: int) -> None:
        """Raises OSError: there is no such process."""
        with self._lock:
            if pid not in self._tasks:
                self._tasks[pid] = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL to every task and to what it has started since; returns when they are gone."""
        with self._lock:
            for pidfd in self._tasks.values():
                _signal(pidfd, signal.SIGSTOP)  # so that none forks while we look
            victims = {pid for pid, pidfd in self._tasks.items() if not _gone(pidfd, 0)}
            queue = list(victims)
            while queue:
                for child in process.children(queue.pop()):
                    if child not in victims:
                        victims.add(child)
                        queue.append(child)
                        _kill(child, signal.SIGSTOP)
            for pid in victims - self._tasks.keys():
                _kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + _PATIENCE
            for pidfd in self._tasks.values():
                _signal(pidfd, signal.SIGKILL)
            for pidfd in self._tasks.values():
                _gone(pidfd, max(0.0, deadline - time.monotonic()))

    def release(self) -> None:
        """Nothing waits for us any more."""
        with self._lock:
            for pidfd in self._tasks.values():
                os.close(pidfd)
            self._tasks.clear()


def _signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass  # it has ended


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass


def _gone(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Guard:
    """This process's end of the link to the guard."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    @classmethod
    def start(cls) -> Guard:
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

    def watch(self, daemon: int, device: int) -> None:
        """The real daemon, a child of ours, which shall not outlive us, and the device of the mount that it reads.

        As long as that is open somewhere, a read of the daemon waits, and the daemon brings and closes nothing.
        """
        pidfd = os.pidfd_open(daemon)
        self._send(_DAEMON, [pidfd, device])
        os.close(pidfd)

    def add(self, pid: int) -> None:
        """A task."""
        self._send(_TASK + str(pid).encode(), [])

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
    tree, daemon = Tree(), -1
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(link, 64, 16)
        except OSError:
            data, descriptors = b"", []
        if data[:1] == _TASK:
            try:
                tree.add(int(data[1:]))
            except OSError:
                continue  # it has ended
        elif data[:1] == _DAEMON and descriptors:
            daemon = descriptors[0]
        elif data[:1] == _DONE:
            os._exit(0)
        else:
            break
    if daemon >= 0:
        _signal(daemon, signal.SIGSTOP)
    tree.kill()
    if daemon >= 0:
        _signal(daemon, signal.SIGKILL)
    os._exit(0)
