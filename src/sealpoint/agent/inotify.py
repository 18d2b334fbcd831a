"""Waiting until something happens in a directory: Linux's inotify, by its three calls."""

from __future__ import annotations

import ctypes
import os
import select
from typing import Final

from sealpoint.errors import SystemEnvironmentError

_CLOSE_WRITE, _MOVED_TO, _DELETE_SELF, _MOVE_SELF = 0x8, 0x80, 0x400, 0x800
_WANTED: Final = _CLOSE_WRITE | _MOVED_TO | _DELETE_SELF | _MOVE_SELF
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_READ: Final = 64 * 1024


class Inotify:
    """Tells that there is something to look at, not what: whoever waits looks at all of it.

    So nothing is lost where the kernel's queue overflows.
    """

    def __init__(self) -> None:
        """Raises SystemEnvironmentError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_FLAGS)
        if self._fd < 0:
            raise SystemEnvironmentError(
                f"inotify cannot be used: {os.strerror(ctypes.get_errno())}",
                hint="fs.inotify.max_user_instances may be used up",
            )
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def watch(self, directory: int) -> None:
        """A directory by its descriptor; again and again does no harm.  Raises SystemEnvironmentError."""
        path = f"/proc/self/fd/{directory}".encode()
        if self._libc.inotify_add_watch(self._fd, path, _WANTED) < 0:
            raise SystemEnvironmentError(
                f"a directory cannot be watched: {os.strerror(ctypes.get_errno())}",
                hint="fs.inotify.max_user_watches may be used up",
            )

    def wake(self) -> None:
        """From another thread, or a handler of a signal: end `wait`."""
        os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float) -> None:
        """Until something has happened, `wake` was called, or the time is over."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        for ready, _ in poll.poll(int(seconds * 1000)):
            try:
                os.read(ready, 8 if ready == self._wake else _READ)
            except BlockingIOError:
                pass

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)
        os.close(self._wake)
