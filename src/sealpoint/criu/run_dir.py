"""A directory with a path, which only root can enter, for programs that inherit neither descriptor nor directory.

CRIU closes every descriptor before it runs an action script, and podman passes none on.  The name is random and made by
us in a directory where nobody else can rename or remove it.  It is removed at the end; where its holders were killed,
the next one that is made removes it: who lives holds a lock on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from sealpoint.errors import SystemEnvironmentError

RUN: Final = "/run"
# Debian mounts /run without the right to execute, others do so with /dev/shm.  Nothing secret is ever in it.
PLACES: Final = (RUN, "/dev/shm", "/var/lib")  # noqa: S108 - checked: nobody else can rename there


class RunDirectory:
    """Context manager.  A process that is forked while it exists holds it, too; `remove` may be called in any."""

    def __init__(
        self, prefix: str, remove: Callable[[str], None], *, executable: bool = False
    ) -> None:
        """prefix: of the name, one per kind; remove: empties and removes one; executable: programs can be run in it.

        Raises SystemEnvironmentError.
        """
        self._remove = remove
        problem = f"programs may be run in none of {', '.join(PLACES)}"
        for place in filter(_runs_programs, PLACES) if executable else (RUN,):
            try:
                self.path, self._lock = self._make(prefix, place)
            except OSError as error:
                problem = f"{place}: {error.strerror}"
            else:
                return
        raise SystemEnvironmentError(f"cannot make a directory that only root can enter: {problem}")

    def _make(self, prefix: str, place: str) -> tuple[str, int]:
        check_place(place)
        remove_stale(prefix, place, self._remove)
        while True:
            path = tempfile.mkdtemp(prefix=prefix, dir=place)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:  # else another took it for a stale one just now
                return path, lock
            os.close(lock)

    def remove(self) -> None:
        """With what is in it."""
        self._remove(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
        os.close(self._lock)


def check_place(place: str) -> None:
    """Raises OSError where somebody else than root could exchange what root makes there."""
    status = os.stat(place)
    others = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    if status.st_uid != 0 or others:
        raise PermissionError(1, "users other than root can rename what is in it", place)


def _runs_programs(place: str) -> bool:
    try:
        return not os.statvfs(place).f_flag & os.ST_NOEXEC
    except OSError:
        return False


def remove_stale(prefix: str, place: str, remove: Callable[[str], None]) -> None:
    """What processes have left that were killed."""
    with os.scandir(place) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(prefix)]
    for path in found:
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where it is in use
                    remove(path)
            finally:
                os.close(lock)
