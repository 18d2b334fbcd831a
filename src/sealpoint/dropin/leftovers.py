"""Ending what must not be left of a restore: tasks of a CRIU that was killed amid it, or that never asked its gate.

The tasks are known by three signs.  CRIU names the root of the tree in its notifications and its answer; and who opens
a file of the images mount, or has a descriptor of it, is a part of CRIU or a task that it makes, because nobody else
can get at that mount.  Whatever CRIU says, a process that is older than this object is none of them.  Mounts of CRIU's
own (cgroups, below its working directory) are known by their name.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Final

from sealpoint import process
from sealpoint.criu import mounts
from sealpoint.criu.callers import Callers
from sealpoint.names import proc, proc_lines

_PATIENCE: Final = 10.0  # seconds for CRIU to undo what it did, and for what was killed to be gone
_STEP: Final = 0.01
_YARD: Final = b"/.criu.cgyard."


class Leftovers:
    """criu: pidfd of the real CRIU; mount: a descriptor of the images mount; work: of CRIU's working directory.

    callers: who may use that mount, if that is not the kernel's to say: learns of CRIU and of the first task.
    """

    def __init__(self, criu: int, mount: int, work: int, callers: Callers | None = None) -> None:
        self._criu = criu
        self._callers = callers
        if callers is not None and (pid := self._criu_pid()) > 0:
            callers.follow(pid)
        self._since = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        self._mount = _mount_of("self", str(mount))
        self._known: dict[int, int] = {}
        self._yard = os.fsencode(os.readlink(f"/proc/self/fd/{work}")) + _YARD
        self._others = set(self._yards())

    def note(self, pid: int) -> None:
        """This is CRIU or a task of the tree: CRIU says so, or it opens an image.  May be called in any thread."""
        if pid > 0 and pid not in self._known and (started := self._started(pid)):
            self._known[pid] = started

    def named(self, pid: int) -> None:
        """CRIU says that this is the first task of the tree, and waits for an answer; 0 if it does not say."""
        self.note(pid)
        if self._callers is not None and pid > 0:
            self._callers.follow(pid)

    def tasks(self) -> list[int]:
        """Pids of the restored tasks, as far as they are known: each opens its own images."""
        criu = self._criu_pid()
        return [pid for pid in list(self._known) if pid != criu]

    def criu_has_ended(self) -> bool:
        """Whether CRIU ends within a while: it may still be undoing what it did."""
        poll = select.poll()
        poll.register(self._criu, select.POLLIN)
        return bool(poll.poll(_PATIENCE * 1000))

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
        for pid in process.children(self._criu_pid()):
            self.note(pid)
        self._kill()
        # What CRIU still does, or somebody in its place, it does no more.
        if not self.criu_has_ended():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._criu, signal.SIGKILL)
        return self._kill()

    def _criu_pid(self) -> int:
        """-1 once it has been waited for."""
        lines = proc_lines(f"/proc/self/fdinfo/{self._criu}")
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))

    def _kill(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while (left := self._left()) and time.monotonic() < deadline:
            for pid in left:
                self._kill_one(pid)
            time.sleep(_STEP)
        self._remove_yards()
        return not left

    def _kill_one(self, pid: int) -> None:
        """By a descriptor, and only if it is as young after that was opened: a pid can get a new meaning."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            started = self._started(pid)
            if started and started == self._known.get(pid, started):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            pass  # it has ended
        finally:
            os.close(pidfd)

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

    def _left(self) -> list[int]:
        found = [p for p, started in list(self._known.items()) if self._started(p) == started]
        for pid in found:
            found += [child for child in process.children(pid) if child not in found]
        found = [pid for pid in found if self._started(pid)]
        for entry in os.listdir("/proc"):
            other = entry.isdigit() and int(entry) not in (os.getpid(), *found)
            if other and self._uses_mount(entry) and self._started(int(entry)):
                found.append(int(entry))
        return found

    def _started(self, pid: int) -> int:
        """Start time of a process that runs, in ticks; 0 if it has ended, or was there before us."""
        try:
            fields = proc(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            return 0
        started = int(fields[19])
        return 0 if fields[0] in "ZX" or started < self._since else started

    def _uses_mount(self, pid: str) -> bool:
        try:
            numbers = os.listdir(f"/proc/{pid}/fdinfo")
        except OSError:
            return False  # it is gone
        return any(_mount_of(pid, number) == self._mount for number in numbers)


def _mount_of(pid: str, number: str) -> str:
    # Not stat: that would ask the file system behind the descriptor, which may not answer.
    try:
        lines = proc_lines(f"/proc/{pid}/fdinfo/{number}")
        return next((line for line in lines if line.startswith("mnt_id:")), "")
    except OSError:
        return ""
