"""What a process of the drop-in's has from whoever started it: what of that CRIU gets, and letting go of the rest."""

from __future__ import annotations

import os


def child_environment() -> dict[str, str]:
    """The environment for the real CRIU.  A configuration with mistakes lets nothing through."""
    from sealpoint.environment import environment

    fault = False
    if "CRIU_FAULT" in os.environ:
        from sealpoint import config
        from sealpoint.errors import SealpointError

        try:
            fault = config.load_system().criu_fault
        except SealpointError:
            fault = False
    return environment(criu_fault=fault)


def release_descriptors(keep: list[int]) -> None:
    """Let go of the engine's pipes and of everything else that was inherited."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in keep:
            os.dup2(null, fd)
    low = 3
    for fd in keep:
        if fd > low:  # the kernel takes closerange(3, 0) for all from 3 on
            os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, os.sysconf("SC_OPEN_MAX") if low < 1 << 16 else low)
