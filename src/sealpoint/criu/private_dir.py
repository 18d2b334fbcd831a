"""A directory in memory that no other path leads to and that is gone with its process, even after kill -9.

It is a tmpfs mounted nowhere (fsopen, fsmount: a detached mount): reachable only through a file descriptor, or by a
process that works in it.  CRIU is started there, and finds its streaming socket, its work directory and its log under
relative names: a path through /proc/PID would be anybody's once that process has died.  `noswap` keeps it off any swap
device (Linux 6.4; older kernels go without, and `swap_warning` says so).
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from sealpoint import process
from sealpoint.criu import mounts
from sealpoint.errors import SystemEnvironmentError


def swap_warning() -> str:
    """What swap means for directories in memory; empty where there is none, or where they are kept off it."""
    if not process.swap_in_use() or mounts.keeps_off_swap():
        return ""
    return (
        "swap is on, and this kernel (older than Linux 6.4) cannot keep directories in memory off it:"
        " what CRIU logs, and what podman writes, could reach the swap device"
    )


class PrivateDir:
    """Context manager.  `path` works for this process alone; a child gets in by `cwd=path`, or inherits `fd`."""

    def __init__(self) -> None:
        """Raises SystemEnvironmentError where the process may not mount."""
        try:
            self.fd = mounts.detached(
                "tmpfs", {"mode": "0700"}, optional_flags=("noswap",), executable=True
            )
        except OSError as error:
            raise SystemEnvironmentError(
                f"cannot make a private directory in memory: {error.strerror}",
                hint="run as root (CAP_SYS_ADMIN): CRIU needs it as well",
            ) from None
        self.path = f"/proc/self/fd/{self.fd}"

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
