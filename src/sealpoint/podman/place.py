"""Names in /run by which podman and what it starts find what lies in memory.

    /run/sealpoint-podman-XXXXXXXX/bin      a tmpfs: `criu`, the socket, the archive
    /run/sealpoint-podman-XXXXXXXX/view     the verified checkpoint, for a restore
    /run/sealpoint-podman-XXXXXXXX/memory   where a tmpfs is mounted in a namespace of podman's own, for a checkpoint

Podman and what it starts inherit no descriptor, so they need paths.  Engines keep such names for the life of a
container, in PATH for instance.  So the names are in a directory that only root can enter, and nothing in them is named
by a pid, which could be somebody else's later.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import TracebackType
from typing import Final, Self

import sealpoint
from sealpoint.criu import mounts
from sealpoint.criu.private_dir import PrivateDir
from sealpoint.criu.run_dir import RunDirectory
from sealpoint.environment import environment
from sealpoint.errors import SystemEnvironmentError

PREFIX: Final = "sealpoint-podman-"


class ArchivePlace:
    """Context manager; `remove` may be called by another process as well."""

    def __init__(self) -> None:
        """Raises SystemEnvironmentError."""
        self._private = PrivateDir()
        try:
            self._directory = RunDirectory(PREFIX, _remove)
        except SystemEnvironmentError:
            os.close(self._private.fd)
            raise
        self.path = self._directory.path
        try:
            for path in (self.bin, self.view, self.memory):
                os.mkdir(path, 0o700)
            mounts.attach(self._private.fd, self.bin)
        except OSError as error:
            os.close(self._private.fd)
            self._directory.remove()
            raise SystemEnvironmentError(f"{self.path}: {error.strerror}") from None

    @property
    def bin(self) -> str:
        """What stands first in podman's PATH."""
        return f"{self.path}/bin"

    @property
    def view(self) -> str:
        """Where the members of the archive are read."""
        return f"{self.path}/view"

    @property
    def memory(self) -> str:
        """A mount point."""
        return f"{self.path}/memory"

    @property
    def socket(self) -> str:
        """Where the relay finds the broker."""
        return f"{self.bin}/socket"

    @property
    def archive(self) -> str:
        """What podman writes or reads."""
        return f"{self.bin}/archive"

    def environment(self, temporary: str) -> dict[str, str]:
        """For podman: temporary files go to `temporary`, and our `criu` is found first."""
        variables = environment(own=True)
        variables["PATH"] = f"{self.bin}:{variables.get('PATH', os.defpath)}"
        variables["TMPDIR"] = temporary
        return variables

    def install_relay(self, real: str) -> None:
        """The `criu` that goes between podman's runtime and the real one, at `real`."""
        package = os.path.dirname(os.path.dirname(os.path.realpath(sealpoint.__file__)))
        text = (
            f"#!{sys.executable} -I\nimport sys\n\nsys.path.insert(0, {package!r})\n"
            f"from sealpoint.dropin.relay import main\n\nmain({real!r}, {self.socket!r})\n"
        )
        fd = os.open(f"{self.bin}/criu", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
        with open(fd, "w") as file:
            file.write(text)

    def remove(self) -> None:
        """The names, and what is mounted there."""
        self._directory.remove()

    def close_view(self) -> None:
        """What is mounted there: a mount that can be seen does not end by itself."""
        with contextlib.suppress(OSError):
            mounts.unmount(self.view, lazy=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
        os.close(self._private.fd)
        self._directory.__exit__(kind, value, trace)


def _remove(path: str) -> None:
    for name in ("view", "bin", "memory"):
        with contextlib.suppress(OSError):
            mounts.unmount(f"{path}/{name}", lazy=True)
        with contextlib.suppress(OSError):
            os.rmdir(f"{path}/{name}")
    with contextlib.suppress(OSError):
        os.rmdir(path)
