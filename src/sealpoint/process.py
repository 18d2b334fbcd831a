"""What a process that holds plaintext does to itself first: no core dumps, no ptrace, no swap if possible."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from sealpoint.names import proc, proc_lines

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
_PF_EXITING = 0x4  # in field 9 of /proc/PID/stat (linux/sched.h)
Handler = Callable[[int, FrameType | None], object]
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def protect() -> list[str]:
    """Harden this process; returns warnings for what could not be done.

    The hard limit of core dumps stays as it is: a restored process inherits it and could not raise it again.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    libc = _libc()
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if not swap_in_use():
        return []
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        return []
    return ["swap is on and memory cannot be locked: plaintext or keys could reach the swap device"]


def swap_in_use() -> bool:
    """Whether there is a swap device or file."""
    try:
        return len(proc_lines("/proc/swaps")) > 1
    except OSError:
        return False


class DeferredSignals:
    """Context manager in which SIGINT, SIGTERM and SIGHUP wait until `check` is called.

    Their handlers raise, and that must not happen between starting a process and knowing of it, or amid the cleaning
    up.  fd: becomes readable when one came.  One that came too late for a `check` is dropped, unless what goes on asks
    for it (`deliver_dropped`).  Only where the main thread has handlers for them; elsewhere it changes nothing.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._handlers: dict[int, Handler] = {}
        self._came: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):  # neither ignored nor left to the kernel
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._came is None:
            self._came = (number, frame)
            os.eventfd_write(self.fd, 1)

    def check(self) -> None:
        """Call the handler of what came, which raises."""
        if self._came is not None:
            number, frame = self._came
            self._handlers[number](number, frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            # The handler itself may have set another one meanwhile, for what follows.
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        if self._came is not None and kind is None:
            number, frame = self._came
            _dropped.append((self._handlers[number], number, frame))
        os.close(self.fd)


_dropped: list[tuple[Handler, int, FrameType | None]] = []


def deliver_dropped() -> None:
    """Call the handler of a signal that came too late for the last `DeferredSignals`; it raises."""
    while _dropped:
        handler, number, frame = _dropped.pop()
        handler(number, frame)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process, so that they can be found and ended."""
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """In a new child of `parent`: SIGKILL when that process ends, across an exec.  Ends at once if it has ended."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_descendants(keep: set[int]) -> None:
    """SIGKILL every descendant except the pids in `keep` (and what is below them), and reap the children."""
    for _ in range(100):
        victims = [pid for pid in children(os.getpid()) if pid not in keep]
        if not victims:
            return
        for pid in victims:
            for descendant in [*descendants(pid), pid]:
                try:
                    os.kill(descendant, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass


def children(pid: int) -> list[int]:
    """Pids of the direct children."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(x) for x in proc(f"/proc/{pid}/task/{task}/children").split()]
    except OSError:
        pass  # gone meanwhile
    return found


def state(pid: int) -> str:
    """The letter of ps(1), as Z for a zombie; empty if there is no such process."""
    try:
        return proc(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def pid_inside(pid: int) -> int | None:
    """A process's pid as it sees it itself, in the innermost of its pid namespaces; None if there is no process."""
    try:
        line = next(x for x in proc_lines(f"/proc/{pid}/status") if x.startswith("NSpid:"))
        return int(line.split()[-1])
    except (OSError, StopIteration):
        return None


class Held:
    """A process known by a descriptor, so that its pid cannot come to mean another.  Need not be there any more."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid) if 0 < pid < 2**31 else -1
        except OSError:
            self._fd = -1

    @property
    def runs(self) -> bool:
        """Whether it has not ended; a zombie has."""
        if self._fd < 0:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    @property
    def fate(self) -> str:
        """What became of it, for a message."""
        if self._fd < 0:
            return "its processes were not looked at"
        if not self.runs:
            return f"process {self.pid} has ended"
        stopped = state(self.pid) in ("T", "t")
        return f"process {self.pid} is stopped" if stopped else f"process {self.pid} runs on"

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if it has ended, even if its parent has not noticed.

    One that SIGKILL has been sent to counts as ended: on a busy machine it is still there for a while.
    """
    try:
        fields = proc(f"/proc/{pid}/stat").rpartition(")")[2].split()
        lines = proc_lines(f"/proc/{pid}/status")
    except OSError:
        return 0
    pending = [int(x.split()[1], 16) for x in lines if x.startswith(("SigPnd:", "ShdPnd:"))]
    killed = any(each >> (signal.SIGKILL - 1) & 1 for each in pending)
    ending = killed or fields[0] in "ZX" or int(fields[6]) & _PF_EXITING
    return 0 if ending else int(fields[19])


def descendants(pid: int) -> list[int]:
    """Pids of the children, their children and so on, the youngest first."""
    found = []
    for child in children(pid):
        found += [*descendants(child), child]
    return found
