"""What migrations have left in the directory of `receive`, in words."""

from __future__ import annotations

import os
from typing import Any

from sealpoint.checkpoint import claimed_id
from sealpoint.cli import notice
from sealpoint.state.released import Released, ReleaseRecord
from sealpoint.store import received
from sealpoint.store.received import Left, Stage


def described(keep: str, state: str) -> list[str]:
    """A line for each migration that was left: where its tree is, and what to do."""
    lines = []
    for each in received.left(keep):
        size = notice.show_size(each.size)
        lines.append(f"{each.path} ({size}): {_sentence(each, _record(each, state))}")
    return lines


def values(keep: str, state: str) -> list[dict[str, Any]]:
    """The same for programs."""
    found = []
    for each in received.left(keep):
        record = _record(each, state)
        found.append(
            {
                "name": os.path.basename(each.path),
                "file": each.file,
                "size": each.size,
                "under_way": each.busy,
                "stage": str(each.stage),
                "let_run_here": record is not None,
                "runs_here": bool(record and record.alive()),
                "message": _sentence(each, record),
            }
        )
    return found


def remove(keep: str, state: str, name: str) -> None:
    """Remove what one migration has left.  Raises UsageError, SystemEnvironmentError."""
    released = Released(state)
    ids = [
        claimed_id(each.file)
        for each in received.left(keep)
        if os.path.basename(each.path) == name and each.file is not None
    ]
    received.remove(keep, name)
    for identifier in ids:
        if identifier is not None:
            released.forget(identifier)


def _record(each: Left, state: str) -> ReleaseRecord | None:
    identifier = claimed_id(each.file) if each.file else None
    return None if identifier is None else Released(state).of(identifier)


def _sentence(each: Left, record: ReleaseRecord | None) -> str:
    if each.busy:
        return "a migration that is under way"
    away = f"sealpoint receive --remove {os.path.basename(each.path)}"
    if record is not None:
        alive = record.alive()
        if alive:
            return f"its tree runs here, process {alive[0]}; {away}"
        return (
            "its tree was started here, but none of its first processes is left; to run it again, restore "
            f"{each.file} with --allow-older; if not, {away}"
        )
    if each.stage is Stage.GONE:
        return f"its tree has ended at the sender and does not run here; restore {each.file}"
    if each.stage is Stage.READY:
        return (
            "its tree does not run here, and whether it runs at the sender is unknown: look there; if it ended, "
            f"restore {each.file}; if it runs, {away}"
        )
    return f"a migration that ended before the tree was here: it stayed at the sender; {away}"
