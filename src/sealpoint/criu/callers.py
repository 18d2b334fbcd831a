"""Who may use a mount that the kernel would let every user of the machine use.

The kernel's own check lets root's processes in and nobody else.  A tree in a user namespace needs more: before CRIU's
restored tasks read their images, they become the user that the namespace's root is outside of it, a stranger to the
kernel.  So such a mount is open to all, and every request is judged here by the process that made it.  ADR 0056 says
why that cannot be got around: the kernel holds that process until it has our answer, so its pid is its own meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from sealpoint import process
from sealpoint.names import proc, proc_lines

_ROOT: Final = frozenset("0")
_DEPTH: Final = 4096  # of a process below CRIU; more is not waited for
_MAX_KNOWN: Final = 128  # processes, each with a descriptor
_Caller = tuple[int, int, int]


class Callers:
    """Root's processes, and until `dismiss` what CRIU restores into a user namespace.  May be asked in any thread."""

    def __init__(self, *, siblings: bool = False) -> None:
        """siblings: the first task is to be no child of CRIU's but of its parent, and nobody will name it."""
        self._siblings = siblings
        self._lock = threading.Lock()
        self._tops: list[process.Held] = []
        self._known: dict[_Caller, process.Held] = {}
        self._own = os.stat("/proc/self/ns/user").st_ino

    def follow(self, top: process.Held) -> None:
        """What descends from this process belongs to the restore.  A copy of its pidfd is kept."""
        with self._lock:
            if top.exists and not any(t.pid == top.pid and t.exists for t in self._tops):
                self._tops.append(process.Held.of(top.fd))

    def dismiss(self) -> None:
        """All that was restored is complete, and may run soon: from now on root only."""
        with self._lock:
            for held in (*self._tops, *self._known.values()):
                held.close()
            self._tops.clear()
            self._known.clear()

    def admits(self, uid: int, gid: int, pid: int) -> bool:
        """Whether a request is answered.

        uid, gid: of the caller for access to files, in our user namespace; pid: of its thread in the pid namespace of
        the mount, 0 if it has none there.
        """
        if pid <= 0:
            return False
        with self._lock:
            caller = uid, gid, pid
            if (held := self._known.get(caller)) is not None:
                if held.runs:
                    return True
                self._known.pop(caller).close()
            try:
                group, admitted = self._judge(uid, gid, pid)
            except (OSError, ValueError, LookupError):
                return False
            if (
                admitted and group == pid
            ):  # a thread's number can be another's while its process lives
                self._remember(caller)
            return admitted

    def _judge(self, uid: int, gid: int, pid: int) -> tuple[int, bool]:
        """(the caller's process, whether it may)."""
        fields = dict(
            line.split(":", 1) for line in proc_lines(f"/proc/{pid}/status") if ":" in line
        )
        group = int(fields["Tgid"])
        ids = {*fields["Uid"].split(), *fields["Gid"].split()}
        if (uid, gid) == (0, 0) and ids == _ROOT:
            return group, True  # as the kernel's own check: not a program that root lends to others
        if os.stat(f"/proc/{pid}/ns/user").st_ino == self._own:
            return group, False
        return group, self._descends(group)

    def _descends(self, pid: int) -> bool:
        """Whether a process that waits for us is one of the restore's.

        Up, and then down again: whoever has the same parent at both times had it in between, so what was seen of the
        parent's number was the parent's (its own parent in its turn).
        """
        tops = {top.pid: top for top in self._tops if top.runs}
        line = [pid]
        while line[-1] not in tops and not self._is_sibling(line[-1], tops):
            parent = _parent(line[-1])
            if parent <= 0 or len(line) > _DEPTH:
                return False
            line.append(parent)
        unchanged = all(
            _parent(child) == parent for child, parent in reversed(list(pairwise(line)))
        )
        return unchanged and all(top.runs for top in tops.values())

    def _is_sibling(self, pid: int, tops: Iterable[int]) -> bool:
        """Whether CRIU has made this process beside itself: it still is the same program, only younger."""
        return self._siblings and any(
            _parent(pid) == _parent(top)
            and process.start_time(pid) >= process.start_time(top) > 0
            and os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat(f"/proc/{top}/exe"))
            for top in tops
        )

    def _remember(self, caller: _Caller) -> None:
        if len(self._known) >= _MAX_KNOWN:
            for held in self._known.values():
                held.close()
            self._known.clear()
        self._known[caller] = process.Held(caller[2])


def _parent(pid: int) -> int:
    return int(proc(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
