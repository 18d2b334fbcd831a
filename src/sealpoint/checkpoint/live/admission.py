"""What every door asks that lets a checkpoint run: what it is, and whether a newer one of its workload is known.

It also writes down which tree of a migration it lets run, so that the file that was kept runs no second time.

The door says what it restores before CRIU is released, so that somebody who got another one than was meant can see
that.  The high-water mark rises when the gate has said yes, and for what a trusted signer made only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from sealpoint import process
from sealpoint.checkpoint.live import migration_protocol
from sealpoint.checkpoint.opening.opener import OpenedCheckpoint
from sealpoint.checkpoint.tables import summary
from sealpoint.criu import schema
from sealpoint.criu.roles import SUMMARY_NAME
from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.format.constants import Role
from sealpoint.format.opened import OpenFile
from sealpoint.names import printable, quoted, text
from sealpoint.state.newest import AHEAD, Mark, Newest
from sealpoint.state.released import Released

_MAX_TIME: Final = 1 << 36
_MAX_UTS: Final = 65536
_PREFIXES: Final = ("", "checkpoint/")


class Admission:
    """One checkpoint at a door."""

    def __init__(
        self,
        checkpoint: OpenedCheckpoint,
        state: str,
        say: Callable[[str], None],
        *,
        allow_older: bool = False,
    ) -> None:
        """state: directory of the state store; say: gets warnings.  allow_older: whatever is known.

        Raises PolicyError where a newer one is known, SystemEnvironmentError.
        """
        self._checkpoint, self._say = checkpoint, say
        self._newest = Newest(state)
        self._released = Released(state)
        self._allow_older = allow_older
        if not allow_older:
            self._newest.check(checkpoint.origin, checkpoint.authentic.slot.sequence)

    def permit(self) -> None:
        """At the gate, when everything has verified.  Raises PolicyError, SystemEnvironmentError: it must not run."""
        if not self._allow_older:
            origin, sequence = self._checkpoint.origin, self._checkpoint.authentic.slot.sequence
            if remark := self._newest.admit(origin, sequence):
                self._say(f"an older checkpoint is restored: {remark}")

    def passed(self, pids: Sequence[int] | None = None) -> None:
        """The gate is about to say yes: remember it.

        pids: of the restored tasks; without, they are the descendants of this process.  Raises SystemEnvironmentError
        where the tree of a migration must not run, because its file could then run a second time.
        """
        checkpoint = self._checkpoint
        origin = checkpoint.origin
        if migration_protocol.is_last(checkpoint.own().manifests[Role.METADATA].properties):
            tasks = process.descendants(os.getpid()) if pids is None else pids
            self._released.note(origin.checkpoint_id, tasks)
        if not origin.workload or not is_trusted(checkpoint):
            return
        mark = Mark(origin.checkpoint_id, origin.captured, checkpoint.authentic.slot.sequence)
        try:
            if not self._newest.note(origin.workload, mark):
                self._say(
                    f"the checkpoint says that it was captured at {show_capture_time(origin.captured)}, more than "
                    f"{AHEAD // 60} minutes from now: older ones of its workload will not be refused for it"
                )
        except SystemEnvironmentError as error:
            self._say(error.message)


def is_trusted(checkpoint: OpenedCheckpoint) -> bool:
    """Whether a trusted signer signed the origin statement; without, whoever wrote the file chose what it says."""
    signed = set(checkpoint.origin.signers)
    return any(s.trusted and s.key_id in signed for s in checkpoint.signers)


def describe_admitted(checkpoint: OpenedCheckpoint) -> list[str]:
    """What is about to run, in lines for people: safe to print.  Raises what opening it raises."""
    origin = checkpoint.origin
    workload = f"workload {quoted(origin.workload)}" if origin.workload else "no workload"
    what = f"{workload}, checkpoint {origin.checkpoint_id.hex()}"
    lines = [
        f"{what}, captured {show_capture_time(origin.captured)}, signed by {_signers(checkpoint)}"
    ]
    if contents := _contents(checkpoint.own()):
        lines.append(contents)
    return lines


def _signers(checkpoint: OpenedCheckpoint) -> str:
    signed = set(checkpoint.origin.signers)
    names = [
        printable(s.name) if s.trusted else f"{printable(s.name)} (not trusted)"
        for s in checkpoint.signers
        if s.key_id in signed
    ]
    return ", ".join(names) or "nobody"


def _contents(opened: OpenFile) -> str:
    """Command, container and host, as far as the keys reach and the images tell."""
    found = []
    entry = opened.entries.get(SUMMARY_NAME)
    known = summary.decode(opened.read_bytes(entry)) if entry is not None else {}
    roots = [task for task in known.get("tasks", []) if task["parent"] == "0"]
    if roots:
        found.append(f"command {quoted(roots[0]['command'])}")
    if name := known.get("container", {}).get("name"):
        found.append(f"container {quoted(name)}")
    if host := _host(opened):
        found.append(f"host {quoted(host)}")
    return ", ".join(found)


def _host(opened: OpenFile) -> str:
    """The host name of the first UTS namespace in the images; of one that is the machine's there is no image."""
    for name, entry in sorted(opened.entries.items()):
        base = next((name.removeprefix(p) for p in reversed(_PREFIXES) if name.startswith(p)), name)
        if base.startswith("utsns-") and entry.size <= _MAX_UTS:
            try:
                first = next(schema.records(opened.read_bytes(entry), "utsns_entry", name), None)
            except FileError:
                continue
            if first is not None:
                return text(first.nodename)
    return ""


def show_capture_time(seconds: int) -> str:
    """UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(seconds, _MAX_TIME)))
