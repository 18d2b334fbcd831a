"""The workload of a container that is dumped by an engine: opaque, and the same at each dump of the same container.

A workload is public in a sealed file, and names of containers say much; so it is a hash.  What engines generate as an
id is random: hashed as it is, it gives the same workload on every machine to which the container is moved with its id.
A path that people chose could be guessed from such a hash, so it is hashed with this machine's key, and is the same
workload on this machine only.  A restore needs none of this: it takes the workload from the file.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from sealpoint.state.chains import StateStore

PREFIX: Final = "container-"
_DIGITS: Final = 32
_GENERATED: Final = re.compile(r"[0-9a-f]{64}")
_IN_CGROUP: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_DOMAIN: Final = b"sealpoint/v1 container workload\0"
_MAX_CGROUPS: Final = 65536
_OF_USERS: Final = "user.slice/"  # below it, users name groups as they like


def workload_of(container: str, states: StateStore) -> str:
    """Of a container, by the id that its engine generated or the path of its root.  Raises SystemEnvironmentError."""
    data = _DOMAIN + container.encode(errors="surrogateescape")
    if _GENERATED.fullmatch(container):
        digest = hashlib.sha256(data).hexdigest()
    else:
        digest = hmac.new(states.machine_key(), data, hashlib.sha256).hexdigest()
    return PREFIX + digest[:_DIGITS]


def container_of(pid: int, root: str) -> str:
    """What tells the container apart in which a process runs, empty if it runs in none that can be told.

    root: path of its root directory as an engine names it to CRIU, empty if it names none.
    """
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            text = file.read(_MAX_CGROUPS).decode(errors="surrogateescape")
    except OSError:
        text = ""
    return identify(text, root)


def identify(cgroups: str, root: str) -> str:
    """The same from the contents of /proc/PID/cgroup.

    The id that an engine generated is the first name of 64 hexadecimal digits: Docker, podman, CRI-O and containerd put
    it there.  The first, because a process in a container can make groups below, and could name another container.
    Else the root directory.  A process with neither is in no container: whoever dumps it can name a workload.
    """
    if not root:
        return ""
    for line in cgroups.splitlines():
        path = line.split(":", 2)[-1].lstrip("/")
        found = None if path.startswith(_OF_USERS) else _IN_CGROUP.search(path)
        if found is not None:
            return found[0]
    return root
