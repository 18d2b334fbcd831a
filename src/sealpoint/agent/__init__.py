"""Seals the archives that engines write into directories of this machine, and puts them into a store.

Whatever is outside enters it here: `Agent` runs it, `Settings` say how, `unit_file` is systemd's file for it.  What it
does in which order, and what a crash at each point leaves, is in docs/adr/0068.  No key that opens anything is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sealpoint.agent.agent import Agent as Agent, StopAgent as StopAgent
    from sealpoint.agent.sealings import NodeSealing as NodeSealing
    from sealpoint.agent.settings import (
        LISTEN as LISTEN,
        WATCHED as WATCHED,
        Retention as Retention,
        Settings as Settings,
    )
    from sealpoint.agent.status_server import StatusServer as StatusServer
    from sealpoint.agent.unit import unit_file as unit_file

_PLACES: Final = {
    "Agent": "agent",
    "LISTEN": "settings",
    "NodeSealing": "sealings",
    "Retention": "settings",
    "Settings": "settings",
    "StatusServer": "status_server",
    "StopAgent": "agent",
    "WATCHED": "settings",
    "unit_file": "unit",
}
__all__ = sorted(_PLACES)  # noqa: PLE0605 - said once, above


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
