"""A directory in memory that no other path leads to and that is gone with its process, even after kill -9.

It is a tmpfs mounted nowhere (fsopen, fsmount: a detached mount): reachable only through a file descriptor, as
/proc/PID/fd/N, by root.  CRIU gets such paths for its streaming socket, its work directory and its log.  `noswap` keeps
it off any swap device (Linux 6.4; older kernels go without, and `swap_warning` says what that means).
"""

from __future__ import annotations

import ctypes
import os
from types import TracebackType
from typing import Self

from sealpoint.errors import SystemEnvironmentError

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture since Linux 5.2
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6


def _syscall(number: int, *args: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _detached_tmpfs() -> int:
    context = _syscall(_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
    try:
        _syscall(_FSCONFIG, context, _SET_STRING, b"mode", b"0700", 0)
        try:
            _syscall(_FSCONFIG, context, _SET_FLAG, b"noswap", None, 0)
        except OSError:
            pass  # before Linux 6.4
        _syscall(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return _syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


class PrivateDir:
    """Context manager.  `path` works for this process and, for root, in others as long as this process lives."""

    def __init__(self) -> None:
        """Raises SystemEnvironmentError where the process may not mount."""
        try:
            self.fd = _detached_tmpfs()
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot make a private directory in memory: {error.strerror}",
                hint="run as root (CAP_SYS_ADMIN): CRIU needs it, too",
            ) from None
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    def read_text(self, name: str, limit: int = 16 * 1024 * 1024) -> str:
        """Up to `limit` bytes of a file in it; empty if there is none."""
        try:
            with open(f"{self.path}/{name}", "rb") as file:
                return file.read(limit).decode(errors="replace")
        except OSError:
            return ""
