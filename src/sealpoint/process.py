"""What a process that holds plaintext does to itself first: no core dumps, no ptrace, no swap if possible.

And other processes: whoever signals, enters or believes one holds it (`Held`), because a pid can come to mean another
process between a look and what follows from it.  `tests/test_held.py` sees that nothing is signalled by its number.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from sealpoint.errors import SystemEnvironmentError
from sealpoint.names import proc, proc_lines

if TYPE_CHECKING:
    import socket

_T = TypeVar("_T")
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
Handler = Callable[[int, FrameType | None], object]
_SOL_SOCKET, _SO_PEERCRED = 1, 17  # asm-generic/socket.h
_SO_PEERPIDFD: Final = 77  # since Linux 6.5
_PF_EXITING: Final = 0x4  # in field 9 of /proc/PID/stat (linux/sched.h)
_STATE, _PARENT, _FLAGS, _START_TIME = 0, 1, 6, 19  # fields of /proc/PID/stat behind the name
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


def kill_descendants(keep: Children | None = None) -> None:
    """SIGKILL every descendant except the children in `keep` (and what is below them), and reap the children."""
    with Held(os.getpid()) as this:
        for _ in range(100):
            found = False
            for child in this.children():
                if keep is not None and child in keep:
                    continue
                found = True
                for victim in child.tree():
                    victim.send(signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)
            if not found:
                return


def children(pid: int) -> list[int]:
    """Pids of the direct children."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(x) for x in proc(f"/proc/{pid}/task/{task}/children").split()]
    except OSError:
        pass  # gone meanwhile
    return found


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, behind the name.  Raises OSError."""
    return proc(f"/proc/{pid}/stat").rpartition(")")[2].split()


def state(pid: int) -> str:
    """The letter of ps(1), as Z for a zombie; empty if there is no such process."""
    try:
        return _fields(pid)[_STATE]
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
    """A process known by a descriptor (pidfd), so that its pid cannot come to mean another.  A context manager.

    Need not be there: then nothing is held, and nothing is done to anybody.  What is read under a pid is of the process
    that is held if that has not been reaped by then: so long the pid is its own.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid) if 0 < pid < 2**31 else -1
        except OSError:
            self._fd = -1

    @classmethod
    def of(cls, pidfd: int) -> Self:
        """The process of a pidfd, which is copied.  pid: -1 if it is gone.  Raises OSError."""
        lines = proc_lines(f"/proc/self/fdinfo/{pidfd}")
        held = cls(0)
        held.pid = next((int(x.split()[1]) for x in lines if x.startswith("Pid:")), -1)
        held._fd = os.dup(pidfd)
        return held

    @property
    def fd(self) -> int:
        """The pidfd, for as long as this is not closed.  Raises ProcessLookupError: there was no process."""
        if self._fd < 0:
            raise _gone()
        return self._fd

    @property
    def exists(self) -> bool:
        """Whether the pid is its own: it runs, or has ended and its parent has not noticed yet."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    @property
    def runs(self) -> bool:
        """Whether it has not ended; a zombie has."""
        return not self.ended()

    def ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, or does so within that time."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def require(self) -> None:
        """Whatever else was told its number means this process.  Raises SystemEnvironmentError if it is gone."""
        if not self.exists:
            raise SystemEnvironmentError(
                f"process {self.pid} has ended meanwhile: what CRIU has dumped may be another with its number"
            )

    def look(self, read: Callable[[int], _T]) -> _T:
        """What `read` finds under its pid.  Raises ProcessLookupError: that may be another's; what `read` raises."""
        found = read(self.pid)
        if not self.exists:
            raise _gone()
        return found

    def _field(self, number: int) -> str:
        """Of /proc/PID/stat; empty if it is gone."""
        try:
            return self.look(_fields)[number]
        except OSError:
            return ""

    @property
    def state(self) -> str:
        """The letter of ps(1); empty if it is gone."""
        return self._field(_STATE)

    @property
    def started(self) -> int:
        """When it started, in clock ticks since the boot; 0 if it has ended."""
        started = self._field(_START_TIME)
        return int(started) if started and self.runs else 0

    @property
    def parent(self) -> int:
        """Pid of its parent; 0 if that is in another namespace, or it is gone itself."""
        return int(self._field(_PARENT) or 0)

    @property
    def is_ending(self) -> bool:
        """Whether it is gone, or on its way: with much memory, or on a busy machine, that takes a while."""
        try:
            return not self.runs or self.look(lambda pid: _is_ending(pid, _fields(pid)))
        except OSError:
            return True

    @property
    def fate(self) -> str:
        """What became of it, for a message."""
        if self._fd < 0:
            return "its processes were not looked at"
        if not self.runs:
            return f"process {self.pid} has ended"
        stopped = self.state in ("T", "t")
        return f"process {self.pid} is stopped" if stopped else f"process {self.pid} runs on"

    def send(self, number: int) -> bool:
        """A signal; whether it was sent."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except OSError:
            return False
        return True

    def namespace(self, kind: str) -> int:
        """A descriptor of its namespace, for setns(2); kind: as below /proc/PID/ns.  Raises OSError: it is gone."""
        fd = os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        if not self.exists:
            os.close(fd)
            raise _gone()
        return fd

    def children(self) -> Iterator[Held]:
        """Each child, held until the next one is asked for."""
        for pid in children(self.pid):
            with Held(pid) as child:
                # It is surely a child if the parent is still there: in this order.
                if child.parent == self.pid and self.exists:
                    yield child

    def tree(self, first: int = 0) -> Iterator[Held]:
        """Itself and its descendants, children before their parents; each is held until the next one is asked for.

        first: a signal for each before its children are looked for, as SIGSTOP, so that there will be no others.
        """
        names = [(self.pid, self.started)]
        for pid, started in names:  # no recursion: the depth is theirs to choose
            with Held(pid) as held:
                if started and held.started == started:
                    if first:
                        held.send(first)
                    names += [(child.pid, child.started) for child in held.children()]
        for pid, started in reversed(names):
            with Held(pid) as held:
                if started and held.started == started:
                    yield held

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _gone() -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


class Children:
    """The children that this process has now.  A context manager; `in` tells whether a process is one of them."""

    def __init__(self) -> None:
        with Held(os.getpid()) as this:
            self._held = [Held.of(child.fd) for child in this.children()]

    def __contains__(self, process: object) -> bool:
        if not isinstance(process, Held):
            return False
        # In this order: one that still exists has had its pid ever since, and no other process with it.
        return any(held.pid == process.pid and held.exists for held in self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for held in self._held:
            held.close()


def peer(connection: socket.socket, latest: int) -> Held:
    """The process that made the other end of a socket pair, or has connected; nobody if it is gone.

    latest: the start time of a process that is surely younger.  Kernels before 6.5 tell a number only, and by its start
    time one sees that it has not become another's since.
    """
    try:
        pidfd = connection.getsockopt(_SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            return Held(0)
    else:
        try:
            return Held.of(pidfd)
        finally:
            os.close(pidfd)
    raw = connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, 12)
    return not_after(Held(int.from_bytes(raw[:4], sys.byteorder, signed=True)), latest)


def not_after(held: Held, latest: int) -> Held:
    """The same process, or nobody if it has started later than `latest` (clock ticks since the boot)."""
    if held.started <= latest:
        return held
    held.close()
    return Held(0)


def now() -> int:
    """Clock ticks since the boot, as of start times."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if it has ended, even if its parent has not noticed.

    One that is on its way counts as ended, see `Held.is_ending`.
    """
    try:
        fields = _fields(pid)
        return 0 if _is_ending(pid, fields) else int(fields[_START_TIME])
    except OSError:
        return 0


def _is_ending(pid: int, fields: list[str]) -> bool:
    """fields: see `_fields`.  One that SIGKILL has been sent to is ending, though nothing else shows it yet.

    Raises OSError.
    """
    if fields[_STATE] in "ZX" or int(fields[_FLAGS]) & _PF_EXITING:
        return True
    lines = proc_lines(f"/proc/{pid}/status")
    pending = [int(x.split()[1], 16) for x in lines if x.startswith(("SigPnd:", "ShdPnd:"))]
    return any(each >> (signal.SIGKILL - 1) & 1 for each in pending)


def descendants(pid: int) -> list[int]:
    """Pids of the children, their children and so on, the youngest first."""
    found = []
    for child in children(pid):
        found += [*descendants(child), child]
    return found
