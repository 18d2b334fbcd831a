"""The environment that CRIU and every other program gets that sealpoint starts.  Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

# What would change which code runs, or what CRIU does, without a word in a command line or configuration.  With the
# last, CRIU would take options behind its command for something else.
_DROPPED: Final = ("CRIU_", "LD_", "PYTHON", "POSIXLY_CORRECT")
_OWN: Final = "SEALPOINT_"
_FAULT: Final = "CRIU_FAULT"


def environment(
    environ: Mapping[str, str] | None = None, *, criu_fault: bool = False, own: bool = False
) -> dict[str, str]:
    """environ: by default this process's; criu_fault: let CRIU_FAULT through (the system's configuration says so);
    own: for a program that may start sealpoint, keep what is meant for that.
    """
    return {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if (not name.startswith(_DROPPED) and (own or not name.startswith(_OWN)))
        or (criu_fault and name == _FAULT)
    }
