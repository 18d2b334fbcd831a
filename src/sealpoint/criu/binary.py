"""Finding a CRIU that can be used, and saying clearly why one cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from sealpoint.errors import SystemEnvironmentError

OLDEST = (3, 17)  # the first release whose --stream restores what it dumped on current kernels
_HOW_TO_GET = "install criu 4.0 or newer (Debian 13 and later have it), or name one with --criu or SEALPOINT_CRIU"


@dataclass(frozen=True, slots=True)
class CriuBinary:
    """An executable CRIU and its version, e.g. (4, 1, 1)."""

    path: str
    version: tuple[int, ...]


def find(path: str | None = None) -> CriuBinary:
    """The CRIU at `path`, else at $SEALPOINT_CRIU, else in PATH.  Raises SystemEnvironmentError."""
    wanted = path or os.environ.get("SEALPOINT_CRIU")
    found = shutil.which(wanted or "criu", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        if wanted is None:
            problem = "CRIU is not installed"
        elif os.path.exists(wanted):
            problem = f"{wanted} is not executable"
        else:
            problem = f"there is no CRIU at {wanted}"
        raise SystemEnvironmentError(problem, hint=_HOW_TO_GET)
    try:
        result = subprocess.run(
            [found, "--version"], capture_output=True, timeout=20, check=False, env=environment()
        )
    except (OSError, subprocess.TimeoutExpired):
        raise SystemEnvironmentError(f"{found} cannot be run", hint=_HOW_TO_GET) from None
    match = re.search(rb"Version:\s*(\d+(?:\.\d+)*)", result.stdout)
    if result.returncode or match is None:
        raise SystemEnvironmentError(f"{found} does not answer as CRIU does", hint=_HOW_TO_GET)
    version = tuple(int(x) for x in match[1].split(b"."))
    if version < OLDEST:
        raise SystemEnvironmentError(
            f"{found} is CRIU {'.'.join(map(str, version))}, too old", hint=_HOW_TO_GET
        )
    return CriuBinary(found, version)


def environment() -> dict[str, str]:
    """Environment for CRIU and what it starts: nothing that configures CRIU, nothing of sealpoint's."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "CRIU_CONFIG_FILE" and not name.startswith("SEALPOINT_")
    }
