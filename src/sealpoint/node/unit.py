"""The systemd drop-in that puts a directory in front of a service's PATH."""

from __future__ import annotations

from typing import Final

from sealpoint.errors import UsageError
from sealpoint.machine.real import DEFAULT_PATH

UNITS: Final = "/etc/systemd/system"
_HEADER: Final = (
    "# Written by `sealpoint node install`; `sealpoint node uninstall` removes it.\n"
    "# Counts from the next start of the service on, after `systemctl daemon-reload`.\n"
)


def file_of(unit: str) -> str:
    """Where it lies.  unit: name of a service."""
    return f"{UNITS}/{unit}.d/50-sealpoint.conf"


def text_of(bin_directory: str, path: str) -> bytes:
    """path: the PATH of the service as it runs.  Raises UsageError: systemd could not be told such a PATH."""
    rest = [d for d in (path or DEFAULT_PATH).split(":") if d != bin_directory]
    value = ":".join([bin_directory, *rest])
    if not value.isprintable():
        raise UsageError("the PATH of the service has characters that systemd takes otherwise")
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'{_HEADER}[Service]\nEnvironment="PATH={quoted}"\n'.encode()
