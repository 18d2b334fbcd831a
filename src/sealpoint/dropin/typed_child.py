"""CRIU as a child of the process that the user started, which then behaves as if it were CRIU itself.

So the exit status is ours, and can be worse than CRIU's.  The rest is as it was: the child has the standard streams,
the inherited descriptors, the process group and the terminal.  Signals to the one reach the other; if the user's
process is killed, so is CRIU.  A tree that CRIU leaves behind gets the parent that it would have had.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

from sealpoint import process
from sealpoint.dropin.inherited import child_environment

_FROM_TERMINAL: Final = 0x80  # SI_KERNEL: the terminal has sent it to the whole process group
_STOPS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_FORWARDED: Final = frozenset(
    (
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1),
        *(signal.SIGUSR2, signal.SIGALRM, signal.SIGTSTP, signal.SIGCONT),
    )
)
_BLOCKED: Final = frozenset((*_FORWARDED, signal.SIGCHLD))


class Child:
    """A running CRIU."""

    def __init__(self, program: str, arguments: list[str], before: Callable[[], None]) -> None:
        """before: called in the child, before it becomes `program`; an OSError ends the child."""
        process.become_subreaper()  # so that nothing that CRIU leaves behind gets lost
        chld = signal.getsignal(signal.SIGCHLD)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would reap for us
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                process.die_with(parent)
                before()
                if chld == signal.SIG_IGN:
                    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
                become(program, arguments, mask)
            finally:
                os._exit(127)
        self._criu = process.Held(self.pid)  # which nobody has waited for
        self.pidfd = self._criu.fd

    def wait(self) -> int:
        """Until CRIU has ended; its exit status, negative if a signal ended it."""
        while True:
            told = signal.sigwaitinfo(_BLOCKED)
            if told.si_signo == signal.SIGCHLD:
                code = self._look()
                if code is not None:
                    return code
            elif told.si_code != _FROM_TERMINAL:
                self._criu.send(told.si_signo)

    def _look(self) -> int | None:
        """What became of the children.  CRIU's status if it has ended."""
        while True:
            change = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WNOHANG)
            if change is None:
                return None
            if change.si_pid != self.pid:
                continue  # what CRIU has left behind
            if change.si_code == os.CLD_EXITED:
                return change.si_status
            if change.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                return -change.si_status
            if change.si_status in _STOPS and signal.SIGCONT not in signal.sigpending():
                _stop_by(change.si_status)  # whoever waits for us is to see it


def _stop_by(number: int) -> None:
    """Stand still until continued, by the signal that stopped CRIU: a shell shows it as the status."""
    os.kill(
        os.getpid(), number
    )  # before it is let through: one from the terminal may wait already, and two are one
    if number in _BLOCKED:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
        signal.pthread_sigmask(signal.SIG_BLOCK, (number,))


def become(program: str, arguments: list[str], mask: Iterable[int]) -> NoReturn:
    """As CRIU would have been started: Python changes three signals.  mask: of blocked ones.  Raises OSError."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if callable(signal.getsignal(signal.SIGINT)):  # else ignored, as by who started us
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.execve(program, ["criu", *arguments], child_environment())  # noqa: S606 - the real CRIU


def end_as(code: int) -> NoReturn:
    """End with an exit status, or by the signal that ended CRIU if it is negative."""
    if code < 0:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # CRIU has left one, if any
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (-code,))
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)
