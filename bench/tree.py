"""Process trees: whose pids they are, what CPU time they used, ending them so that their pids are free again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")


def become_subreaper() -> None:
    """Orphans become our children. We must reap a dumped tree, or its pids are not free for the restore, and a
    restored one, which its CRIU leaves behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def state(pid: int) -> str | None:
    """The state letter (Z: a zombie), None if there is no such process."""
    fields = _stat(pid)
    return fields[0] if fields else None


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of live processes so far."""
    total = 0
    for pid in pids:
        if fields := _stat(pid):
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def resident(pids: Iterable[int]) -> int:
    """Resident bytes of live processes, shared ones counted more than once."""
    total = 0
    for pid in pids:
        if fields := _stat(pid):
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def children(pid: int) -> list[int]:
    """Its direct ones."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def below(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    found = [pid]
    for child in children(pid):
        found += below(child)
    return found


def _descends_from_us(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        fields = _stat(pid)
        if fields is None:
            return False
        pid = int(fields[1])
    return False


def end(pids: Iterable[int], timeout: float = 20.0) -> None:
    """SIGKILL, and wait until nothing is left of them, not even zombies. Pids that are not below us are somebody
    else's by now, and left alone."""
    left = {pid for pid in pids if _descends_from_us(pid)}
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    while True:
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        left = {pid for pid in left if state(pid) is not None}
        if not left:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(left)} do not end")
        time.sleep(0.005)
