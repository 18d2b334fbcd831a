"""Letting a process tree run again that a killed CRIU or engine left frozen: its freezer cgroup, then SIGCONT.

And its network lock, if it has a network namespace of its own.  A parasite that a killed CRIU may have left in the
process is out of scope.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Final

from sealpoint.criu.network_lock import NetworkLock
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.names import proc_lines, unmangle
from sealpoint.process import Held

_ROOT = "/"
_MEMBERS: Final = "cgroup.procs"
_DIGITS: Final = 20  # no pid has so many


def thaw(target: str) -> list[str]:
    """`target`: a PID or the directory of a cgroup.  Returns what was done.  Raises SealpointError."""
    is_pid = target.isascii() and target.isdigit() and len(target) < _DIGITS
    with Held(int(target) if is_pid else 0) as given, contextlib.ExitStack() as stack:
        if is_pid:
            groups = _groups_of(given)
        elif os.path.isfile(os.path.join(target, _MEMBERS)):
            groups = [os.path.abspath(target)]
        else:
            raise UsageError(f"{target} is neither a PID nor the directory of a cgroup")
        done = [f"thawed {group}" for group in groups if _thaw(group)]
        network: NetworkLock | None = None
        for task in _tasks(given, groups):
            if network is None:
                network = stack.enter_context(NetworkLock(task))
            if task.state == "T" and task.send(signal.SIGCONT):  # not to one that a debugger holds
                done.append(f"continued process {task.pid}")
        if network is not None and network.remove():
            done.append("removed CRIU's network lock")
    return done


def _tasks(given: Held, groups: list[str]) -> Iterator[Held]:
    """The process and those of the cgroups, by their pids; each is held until the next one is asked for."""
    pids = {pid for group in groups for pid in _members(group)}
    for pid in sorted(pids | {given.pid}):
        with Held(pid) as task:
            # Once more, now that its pid cannot become another's.
            if (pid == given.pid and given.exists) or (
                any(pid in _members(group) for group in groups) and task.exists
            ):
                yield task


def _members(group: str) -> set[int]:
    with open(os.path.join(group, _MEMBERS)) as file:
        return {int(line) for line in file}


def _groups_of(held: Held) -> list[str]:
    """Directories of the process's freezer cgroups, v1 and v2, but for the roots, which cannot be frozen."""
    try:
        lines = held.look(lambda pid: proc_lines(f"/proc/{pid}/cgroup"))
    except OSError:
        raise UsageError(f"there is no process {held.pid}") from None
    mounts = _mounts()
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        kind = "cgroup2" if not controllers else "cgroup"
        if kind == "cgroup" and "freezer" not in controllers.split(","):
            continue
        if path != _ROOT and kind in mounts:
            group = mounts[kind] + path
            if os.path.isfile(os.path.join(group, _MEMBERS)):
                groups.append(group)
    return groups


def _mounts() -> dict[str, str]:
    """{cgroup2: its mount point, cgroup: that of the v1 freezer}."""
    found: dict[str, str] = {}
    for line in proc_lines("/proc/self/mountinfo"):
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        freezer = "freezer" in options.replace(" ", ",").split(",")
        if kind == "cgroup2" or (kind == "cgroup" and freezer):
            found.setdefault(kind, unmangle(head.split(" ")[4]))
    return found


def _thaw(group: str) -> bool:
    """Whether it was frozen."""
    for name, frozen, thawed in (("cgroup.freeze", "1", "0"), ("freezer.state", "", "THAWED")):
        path = os.path.join(group, name)
        if not os.path.isfile(path):
            continue
        with open(path) as file:
            state = file.read().strip()
        if state == thawed or (frozen and state != frozen):
            continue
        try:
            with open(path, "w") as file:
                file.write(thawed)
        except OSError as error:
            raise SystemEnvironmentError(f"cannot thaw {group}: {error.strerror}") from None
        return True
    return False
