"""Ending what must not be left of a restore: tasks of a CRIU that was killed amid it, or that never asked its gate.

The tasks are known by three signs.  CRIU names the root of the tree in its notifications and its answer; and who opens
a file of the images mount, or has a descriptor of it, is a part of CRIU or a task that it makes, because nobody else
can get at that mount.  Whatever CRIU says, a process that is older than this object is none of them.  A pid can be
another's by the time of the kill: each sign is looked for, or start time and parent are compared, when the process is
held.  Mounts of CRIU's own (cgroups, below its working directory) are known by their name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Final

from sealpoint import process
from sealpoint.criu import mounts
from sealpoint.criu.callers import Callers
from sealpoint.names import proc_lines
from sealpoint.process import Held

_PATIENCE: Final = 10.0  # seconds for CRIU to undo what it did, and for what was killed to be gone
_STEP: Final = 0.01
_YARD: Final = b"/.criu.cgyard."


class Leftovers:
    """criu: pidfd of the real CRIU; mount: a descriptor of the images mount; work: of CRIU's working directory.

    callers: who may use that mount, if that is not the kernel's to say: learns of CRIU and of the first task.
    """

    def __init__(self, criu: int, mount: int, work: int, callers: Callers | None = None) -> None:
        self._criu = Held.of(criu)
        self._callers = callers
        if callers is not None and self._criu.exists:
            callers.follow(self._criu)
        self._since = process.now()
        self._mount = _mount_of("self", str(mount))
        self._known: dict[int, int] = {}  # pid: start time
        self._yard = os.fsencode(os.readlink(f"/proc/self/fd/{work}")) + _YARD
        self._others = set(self._yards())

    def note(self, pid: int) -> None:
        """This is CRIU or a task of the tree: CRIU says so, or it opens an image.  May be called in any thread.

        It waits meanwhile: the pid is its own.
        """
        with Held(pid) as task:
            self._note(task)

    def _note(self, task: Held) -> None:
        if started := self._started(task):
            self._known[task.pid] = started

    def named(self, pid: int) -> None:
        """CRIU says that this is the first task of the tree, and waits for an answer; 0 if it does not say."""
        with Held(pid) as task:
            self._note(task)
            if self._callers is not None and task.exists:
                self._callers.follow(task)

    def tasks(self) -> list[int]:
        """Pids of the restored tasks, as far as they are known: each opens its own images."""
        criu = self._criu.pid if self._criu.exists else -1
        known = list(self._known.items())
        return [p for p, started in known if p != criu and process.start_time(p) == started]

    def criu_has_ended(self) -> bool:
        """Whether CRIU ends within a while: it may still be undoing what it did."""
        return self._criu.ended(_PATIENCE)

    def end(self) -> None:
        """After CRIU's end, which is waited for a while: SIGKILL to all that are left."""
        if not self.criu_has_ended():
            return  # it lives and is in charge
        self._kill()

    def end_restored(self, root: int) -> bool:
        """CRIU says that it has restored a tree, but nobody has allowed it to run: SIGKILL to all of it.

        root: its first task as CRIU names it, 0 if it does not.  Returns whether nothing is left.
        """
        self.note(root)
        for child in self._criu.children():
            self._note(child)
        self._kill()
        # What CRIU still does, or somebody in its place, it does no more.
        if not self.criu_has_ended():
            self._criu.send(signal.SIGKILL)
        return self._kill()

    def _kill(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while (left := self._signal_all()) and time.monotonic() < deadline:
            time.sleep(_STEP)
        self._remove_yards()
        return not left

    def _signal_all(self) -> bool:
        """Whether anything was left."""
        found = False
        for victim in self._left():
            found = True
            victim.send(signal.SIGKILL)
        return found

    def _remove_yards(self) -> None:
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

    def _left(self) -> Iterator[Held]:
        """What is left, each held until the next one is asked for."""
        for pid, started in list(self._known.items()):
            with Held(pid) as task:
                if self._started(task) == started:
                    yield from (held for held in task.tree() if self._started(held))
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with Held(int(entry)) as other:
                    if self._started(other) and self._uses_mount(other):
                        yield other

    def _started(self, held: Held) -> int:
        """Start time of a process that runs, in ticks; 0 if it has ended, or was there before us."""
        started = held.started
        return 0 if started < self._since else started

    def _uses_mount(self, held: Held) -> bool:
        try:
            return held.look(self._has_it_open)
        except OSError:
            return False  # it is gone

    def _has_it_open(self, pid: int) -> bool:
        numbers = os.listdir(f"/proc/{pid}/fdinfo")
        return any(_mount_of(str(pid), number) == self._mount for number in numbers)


def _mount_of(pid: str, number: str) -> str:
    # Not stat: that would ask the file system behind the descriptor, which may not answer.
    try:
        lines = proc_lines(f"/proc/{pid}/fdinfo/{number}")
        return next((line for line in lines if line.startswith("mnt_id:")), "")
    except OSError:
        return ""
