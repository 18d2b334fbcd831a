"""What a process that holds plaintext does to itself first: no core dumps, no ptrace, no swap if possible."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def protect() -> list[str]:
    """Harden this process; returns warnings for what could not be done.

    The hard limit of core dumps stays as it is: a restored process inherits it and could not raise it again.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    libc = _libc()
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if not _swap_in_use():
        return []
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        return []
    return ["swap is on and memory cannot be locked: plaintext or keys could reach the swap device"]


def _swap_in_use() -> bool:
    try:
        with open("/proc/swaps") as file:
            return len(file.readlines()) > 1
    except OSError:
        return False


def become_subreaper() -> None:
    """Orphaned descendants become children of this process, so that they can be found and ended."""
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants(keep: set[int]) -> None:
    """SIGKILL every descendant except the pids in `keep` (and what is below them), and reap the children."""
    for _ in range(100):
        victims = [pid for pid in children(os.getpid()) if pid not in keep]
        if not victims:
            return
        for pid in victims:
            for descendant in [*_below(pid), pid]:
                try:
                    os.kill(descendant, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass


def children(pid: int) -> list[int]:
    """Pids of the direct children."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(x) for x in file.read().split()]
    except OSError:
        pass  # gone meanwhile
    return found


def _below(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        found += [*_below(child), child]
    return found
