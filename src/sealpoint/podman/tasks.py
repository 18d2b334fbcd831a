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

from sealpoint import process

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
_IFF_UP: Final = 1
_CLONE_NEWNET: Final = 0x40000000


class Tasks:
    """All processes below a container's first one.  Those that were stopped before stay stopped."""

    def __init__(self, root: int) -> None:
        self._root = os.pidfd_open(root)
        self._pid = root
        self._before = {pid for pid in self._all() if process.state(pid) == "T"}

    def _all(self) -> list[int]:
        found = [self._pid]
        for pid in found:
            found += process.children(pid)
        return found

    def resume(self) -> None:
        """SIGCONT to what was stopped since.  Children first: their parents shall not see them stopped."""
        for pid in reversed(self._all()):
            if pid not in self._before and process.state(pid) == "T":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the first process, which ends all in its pid namespace."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._root, signal.SIGKILL)

    def silence(self) -> None:
        """Take down the interfaces of its network namespace: peers of its connections shall not hear of its end."""
        pid = os.fork()
        if pid == 0:
            try:
                _interfaces_down(self._pid)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


def _interfaces_down(pid: int) -> None:
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            request = struct.pack("16sH14x", name.encode(), 0)
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
                (flags,) = struct.unpack_from("H", answer, 16)
                down = struct.pack("16sH14x", name.encode(), flags & ~_IFF_UP)
                fcntl.ioctl(control, _SIOCSIFFLAGS, down)
