"""A host's file system and processes, seen from a container in which the host's root directory is mounted.

Paths are the host's.  They are walked from a descriptor of its root directory (`ownership.open_below`), so that no link
on the host leads out of it, and nothing is written where others than root could have made the way.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final, Self

from sealpoint import ownership
from sealpoint.errors import SystemEnvironmentError, UsageError

_PROC_ROOT: Final = 1  # inode of a procfs's root directory: linux/proc_ns.h
_MAX_READ: Final = 4 * 1024 * 1024


class UnsupportedError(SystemEnvironmentError):
    """The drop-in cannot work on this host.  reason: a word that stays the same, for programs."""

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class Host:
    """A context manager.  name: where the host's root directory is mounted, for messages."""

    def __init__(self, name: str) -> None:
        """Raises UnsupportedError: others than root see and change hosts; it is no host's root directory."""
        self.name = name
        if os.geteuid() != 0:
            raise UnsupportedError("not-root", "only root can do this")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self.root = os.open(name, flags)
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}", hint="name it with --host") from None
        try:
            self.proc = self._processes()
        except BaseException:
            os.close(self.root)
            raise

    def _processes(self) -> int:
        """The host's /proc, which shows the processes of the host whatever pid namespace we are in."""
        hint = "mount the host's whole root directory there, with what is mounted below it"
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            proc = os.open("proc", flags, dir_fd=self.root)
        except OSError as error:
            raise UnsupportedError(
                "no-proc", f"{self.name}/proc: {error.strerror}", hint=hint
            ) from None
        try:
            if os.fstat(proc).st_ino != _PROC_ROOT:
                raise UnsupportedError(
                    "no-proc", f"{self.name}/proc does not show the host's processes", hint=hint
                )
            try:
                first = os.stat("1/root", dir_fd=proc)
            except OSError as error:
                raise UnsupportedError(
                    "no-proc",
                    f"the host's first process cannot be examined: {error.strerror}",
                    hint="the container must be privileged",
                ) from None
            if not os.path.samestat(first, os.fstat(self.root)):
                raise UnsupportedError(
                    "not-a-host",
                    f"{self.name} is not the root directory of the host's first process",
                    hint="name it with --host",
                )
        except BaseException:
            os.close(proc)
            raise
        return proc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.proc)
        os.close(self.root)

    def directory(self, path: str, what: str, *, make: int | None = None) -> int:
        """A descriptor of a directory that root alone can change.  Raises OSError, PolicyError."""
        return ownership.open_below(self.root, path, what, make=make)

    def is_directory(self, path: str) -> bool:
        """Whether there is one."""
        info = self.status(path)
        return info is not None and stat.S_ISDIR(info.st_mode)

    def status(self, path: str) -> os.stat_result | None:
        """Of what a path leads to, None if it leads nowhere."""
        try:
            fd = ownership.look_below(self.root, path)
        except (OSError, ValueError):
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def pids(self) -> list[int]:
        """Of the host's processes."""
        return sorted(int(name) for name in os.listdir(self.proc) if name.isdigit())

    @contextlib.contextmanager
    def process(self, pid: int) -> Iterator[HostProcess | None]:
        """A process of the host's, None if it has ended."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(str(pid), flags, dir_fd=self.proc)
        except OSError:
            yield None
            return
        try:
            yield HostProcess(fd)
        finally:
            os.close(fd)

    def owns(self, process: HostProcess) -> bool:
        """Whether a process is root's and in the host's own namespaces: no container's that took a daemon's name."""
        with contextlib.suppress(OSError), self.process(1) as first:
            if first is None or os.fstat(process.fd).st_uid != 0:
                return False
            for name in ("ns/mnt", "ns/pid", "ns/user", "root"):
                mine, hosts = process.leads_to(name), first.leads_to(name)
                if mine is None or hosts is None or not os.path.samestat(mine, hosts):
                    return False
            return True
        return False


class HostProcess:
    """A process by its directory in /proc, which stays that one's when its number is used again."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, name: str) -> bytes | None:
        """A file in it, None if the process has ended or is not ours to see."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(name, flags, dir_fd=self.fd), "rb") as file:
                return file.read(_MAX_READ)
        except OSError:
            return None

    def leads_to(self, name: str) -> os.stat_result | None:
        """What a link in it leads to, None if nowhere.  Raises PermissionError."""
        try:
            return os.stat(name, dir_fd=self.fd)
        except PermissionError:
            raise
        except OSError:
            return None
