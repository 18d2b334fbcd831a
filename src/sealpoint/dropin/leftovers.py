"""Ending what a CRIU that was killed amid a restore leaves behind: half-restored tasks that nobody would ever end.

The tasks are known by three signs.  CRIU names the root of the tree in its notifications; and who opens a file of the
images mount, or has a descriptor of it, is a part of CRIU or a task that it makes, because nobody else can get at that
mount.  Mounts of CRIU's own (cgroups, below its working directory) are known by their name.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Final

from sealpoint import process
from sealpoint.criu import mounts

_PATIENCE: Final = 10.0  # seconds for CRIU to undo what it did, and for what was killed to be gone
_STEP: Final = 0.01
_YARD: Final = b"/.criu.cgyard."


class Leftovers:
    """criu: pidfd of the real CRIU; mount: a descriptor of the images mount; work: of CRIU's working directory."""

    def __init__(self, criu: int, mount: int, work: int) -> None:
        self._criu = criu
        self._mount = _mount_of("self", str(mount))
        self._known: dict[int, str] = {}
        self._yard = os.readlink(f"/proc/self/fd/{work}").encode() + _YARD
        self._others = set(self._yards())

    def note(self, pid: int) -> None:
        """This is CRIU or a task of the tree: CRIU says so, or it opens an image.  May be called in any thread."""
        if pid > 0 and pid not in self._known and (started := _started(pid)):
            self._known[pid] = started

    def criu_has_ended(self) -> bool:
        """Whether CRIU ends within a while: it may still be undoing what it did."""
        poll = select.poll()
        poll.register(self._criu, select.POLLIN)
        return bool(poll.poll(_PATIENCE * 1000))

    def end(self) -> None:
        """After CRIU's end, which is waited for a while: SIGKILL to all that are left."""
        if not self.criu_has_ended():
            return  # it lives and is in charge
        deadline = time.monotonic() + _PATIENCE
        while (left := self._left()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(_STEP)
        for path in reversed(self._yards()):
            if path not in self._others:
                self._remove(path)

    def _yards(self) -> list[bytes]:
        return [path for path, _ in mounts.points() if path.startswith(self._yard)]

    @staticmethod
    def _remove(path: bytes) -> None:
        try:
            mounts.unmount(os.fsdecode(path), lazy=True)
            os.rmdir(path)  # those below were part of the mount
        except OSError:
            pass

    def _left(self) -> list[int]:
        found = [pid for pid, started in list(self._known.items()) if _started(pid) == started]
        for pid in found:
            found += [child for child in process.children(pid) if child not in found]
        found = [pid for pid in found if _started(pid)]
        for entry in os.listdir("/proc"):
            other = entry.isdigit() and int(entry) not in (os.getpid(), *found)
            if other and self._uses_mount(entry):
                found.append(int(entry))
        return found

    def _uses_mount(self, pid: str) -> bool:
        try:
            numbers = os.listdir(f"/proc/{pid}/fdinfo")
        except OSError:
            return False  # it is gone
        return any(_mount_of(pid, number) == self._mount for number in numbers)


def _mount_of(pid: str, number: str) -> str:
    # Not stat: that would ask the file system behind the descriptor, which may not answer.
    try:
        with open(f"/proc/{pid}/fdinfo/{number}") as file:
            return next((line for line in file if line.startswith("mnt_id:")), "")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process that runs; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
