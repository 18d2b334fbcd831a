"""The processes of a container that stand still between its dump and the moment at which the sealed file is durable."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from typing import Final

from sealpoint.process import Held

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
_IFF_UP: Final = 1
_CLONE_NEWNET: Final = 0x40000000


class Tasks:
    """All processes below a container's first one, which is held.  Those that were stopped before stay stopped."""

    def __init__(self, root: Held) -> None:
        self._root = root
        self._before = [Held.of(task.fd) for task in root.tree() if task.state == "T"]

    def resume(self) -> None:
        """SIGCONT to what was stopped since.  Children first: their parents shall not see them stopped."""
        for task in self._root.tree():
            before = any(held.pid == task.pid and held.exists for held in self._before)
            if task.state == "T" and not before:
                task.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the first process, which ends all in its pid namespace."""
        self._root.send(signal.SIGKILL)

    def silence(self) -> None:
        """Take down the interfaces of its network namespace: peers of its connections shall not hear of its end."""
        pid = os.fork()
        if pid == 0:
            try:
                _interfaces_down(self._root)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    def close(self) -> None:
        """Let go of them."""
        for held in (self._root, *self._before):
            held.close()


def _interfaces_down(root: Held) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(root.namespace("net"), _CLONE_NEWNET) != 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            request = struct.pack("16sH14x", name.encode(), 0)
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
                (flags,) = struct.unpack_from("H", answer, 16)
                down = struct.pack("16sH14x", name.encode(), flags & ~_IFF_UP)
                fcntl.ioctl(control, _SIOCSIFFLAGS, down)
