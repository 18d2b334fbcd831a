"""Letting a process tree run again that a killed CRIU or engine left frozen: its freezer cgroup, then SIGCONT.

And its network lock, if it has a network namespace of its own.  A parasite that a killed CRIU may have left in the
process is out of scope.
"""

from __future__ import annotations

import os
import signal

from sealpoint.criu.network_lock import NetworkLock
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.names import proc, proc_lines, unmangle

_ROOT = "/"


def thaw(target: str) -> list[str]:
    """`target`: a PID or the directory of a cgroup.  Returns what was done.  Raises SealpointError."""
    if target.isascii() and target.isdigit():
        pid = int(target)
        groups = _groups_of(pid)
        pids = {pid}
    elif os.path.isfile(os.path.join(target, "cgroup.procs")):
        groups, pids = [os.path.abspath(target)], set()
    else:
        raise UsageError(f"{target} is neither a PID nor the directory of a cgroup")
    done = [f"thawed {group}" for group in groups if _thaw(group)]
    for group in groups:
        with open(os.path.join(group, "cgroup.procs")) as file:
            pids |= {int(line) for line in file}
    done += [f"continued process {pid}" for pid in sorted(pids) if _continue(pid)]
    with NetworkLock(min(pids, default=0)) as network:
        if network.remove():
            done.append("took CRIU's network lock away")
    return done


def _groups_of(pid: int) -> list[str]:
    """Directories of the process's freezer cgroups, v1 and v2, but for the roots, which cannot be frozen."""
    try:
        lines = proc_lines(f"/proc/{pid}/cgroup")
    except OSError:
        raise UsageError(f"there is no process {pid}") from None
    mounts = _mounts()
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        kind = "cgroup2" if not controllers else "cgroup"
        if kind == "cgroup" and "freezer" not in controllers.split(","):
            continue
        if path != _ROOT and kind in mounts:
            group = mounts[kind] + path
            if os.path.isfile(os.path.join(group, "cgroup.procs")):
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


def _continue(pid: int) -> bool:
    """SIGCONT to a stopped process; not to one that a debugger holds."""
    try:
        state = proc(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[0]
        if state != "T":
            return False
        os.kill(pid, signal.SIGCONT)
    except (OSError, IndexError):
        return False
    return True
