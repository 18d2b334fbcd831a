"""Which container runtimes run on a host, and which `criu` each of them finds.

runc and crun look for `criu` in the PATH that their daemon was started with; a shim of containerd's keeps the PATH of
the daemon that started it.  Only processes in the host's own namespaces count: a container can name a process as it
likes.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final, NamedTuple

from sealpoint.node.host import Host, HostProcess

_DAEMONS: Final = (b"containerd", b"crio")
_SHIM: Final = b"containerd-shim"  # as the kernel cuts it
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.service")
_SYSTEMD: Final = ("0::", "name=systemd:")


class Runtime(NamedTuple):
    """A running daemon.

    unit: its systemd service, "" if it is in none; path: its PATH; criu: the first one in it, "" for none; ours:
    whether that is the drop-in; shims: how many processes that it started before keep a PATH in which it is not.
    """

    program: str
    pid: int
    unit: str
    path: str
    criu: str
    ours: bool
    shims: int


def running(host: Host, bin_directory: str) -> list[Runtime]:
    """bin_directory: where the drop-in is, or will be."""
    found: list[Runtime] = []
    stale = 0
    for pid in host.pids():
        with host.process(pid) as process:
            if process is None:
                continue
            name = (process.read("comm") or b"").removesuffix(b"\n")
            if name not in (*_DAEMONS, _SHIM) or not host.owns(process):
                continue
            path = _path(process)
            unit = unit_of(os.fsdecode(process.read("cgroup") or b""))
        if path is None:
            continue
        criu, ours = first_criu(host, path, bin_directory)
        if name == _SHIM:
            stale += not ours
        else:
            found.append(Runtime(name.decode(), pid, unit, path, criu, ours, 0))
    return [r._replace(shims=stale if r.program == "containerd" else 0) for r in found]


def _path(process: HostProcess) -> str | None:
    """PATH in the environment that a process was started with."""
    data = process.read("environ")
    if data is None:
        return None
    variables = data.split(b"\0")
    return next((os.fsdecode(v[5:]) for v in variables if v.startswith(b"PATH=")), "")


def first_criu(host: Host, path: str, bin_directory: str) -> tuple[str, bool]:
    """The `criu` that a process of the host with this PATH runs, and whether it is the one in `bin_directory`.

    That one counts as there even before it is.
    """
    place = host.status(bin_directory)
    ours = host.status(os.path.join(bin_directory, "criu"))
    for directory in path.split(":"):
        if not directory.startswith("/"):
            continue
        candidate = os.path.join(directory, "criu")
        here = host.status(directory)
        same = here is not None and place is not None and os.path.samestat(here, place)
        if same or os.path.normpath(directory) == bin_directory:
            return candidate, True
        info = host.status(candidate)
        if info is not None and stat.S_ISREG(info.st_mode) and info.st_mode & 0o111:
            return candidate, ours is not None and os.path.samestat(info, ours)
    return "", False


def unit_of(cgroups: str) -> str:
    """The systemd service in whose control group a process is, from /proc/PID/cgroup; "" for none."""
    for line in cgroups.splitlines():
        _, _, rest = line.partition(":")
        if not line.startswith(_SYSTEMD[0]) and not rest.startswith(_SYSTEMD[1]):
            continue
        parts = line.split(":", 2)[-1].split("/")
        units = [part for part in parts if _UNIT.fullmatch(part)]
        if units:
            return units[-1]
    return ""
