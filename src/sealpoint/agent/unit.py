"""systemd's unit for the agent."""

from __future__ import annotations

import os
import sys
from typing import Final

from sealpoint.agent.settings import Settings
from sealpoint.store.location import is_url

NAME: Final = "sealpoint-agent.service"
_TEMPLATE: Final = """\
# {name}, printed by `sealpoint agent --unit`.
[Unit]
Description=Seal checkpoint archives and put them into a store
Documentation=man:sealpoint-agent(1)
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart={program} agent
Restart=on-failure
RestartSec=10
StateDirectory=sealpoint
StateDirectoryMode=0700
UMask=0077
LimitMEMLOCK=infinity
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_LEASE CAP_IPC_LOCK

[Install]
WantedBy=multi-user.target
"""


def unit_file(settings: Settings) -> str:
    """The text of it.  Directories that do not exist yet are no error (the "-" before them)."""
    paths = [*settings.watch, settings.state]
    if settings.store and not is_url(settings.store):
        paths.append(os.path.abspath(settings.store))
    if settings.spool is not None:
        paths.append(os.path.abspath(settings.spool))
    writable = " ".join(_escaped(f"-{path}") for path in dict.fromkeys(paths))
    return _TEMPLATE.format(name=NAME, program=_escaped(_program()), writable=writable)


def _program() -> str:
    """This program, by the path that stays the same at an update."""
    return os.path.abspath(sys.argv[0])


def _escaped(text: str) -> str:
    quoted = text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"' if any(c.isspace() or c in "\\\"'" for c in quoted) else quoted
