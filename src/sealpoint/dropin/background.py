"""What CRIU's servers do at their start: log, pid file, status descriptor, and the way into the background."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sealpoint.dropin.arguments import CommandLine
from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError
from sealpoint.names import printable
from sealpoint.process import Held

Ready = Callable[[], None]


class Launch:
    """A context manager around a server's life.  With `--daemon` its body runs in a child of its own session.

    The parent ends when the child is `ready`, with 0, or has ended before, with 1.  Forks: no other thread may run.
    """

    def __init__(self, line: CommandLine, work: str) -> None:
        """work: directory of the pid file."""
        self._line = line
        self._pidfile = os.path.join(work, line.values.get("pidfile", ""))
        self._report = -1

    def __enter__(self) -> Self:
        if self._line.has("daemon") or self._line.has("restore-detached"):
            reader, writer = os.pipe()
            child = os.fork()
            if child:
                os.close(writer)
                ready = os.read(reader, 1)
                os._exit(0 if ready and self._wrote_pidfile(child) else 1)
            os.close(reader)
            os.setsid()
            self._report = writer
        return self

    def ready(self) -> None:
        """Connections are taken from now on.  Raises UsageError."""
        if self._line.has("status-fd"):
            number = self._line.number("status-fd")
            try:
                os.write(number, b"\0")
                os.close(number)
            except OSError as error:
                raise UsageError(
                    f"cannot write to status descriptor {number}: {error.strerror}"
                ) from None
        if self._report < 0:
            return
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1) if self._line.has("log-file") else (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.write(self._report, b"1")
        os.close(self._report)
        self._report = -1

    def _wrote_pidfile(self, child: int) -> bool:
        if not self._line.has("pidfile"):
            return True
        try:
            fd = os.open(self._pidfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as file:
                file.write(f"{child}")
        except OSError as error:
            with Held(child) as held:  # which nobody has waited for
                held.send(signal.SIGKILL)
            say(f"Error (sealpoint): cannot write {self._pidfile}: {error.strerror}")
            return False
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing: the process ends."""


def log_to(path: str) -> None:
    """Standard error goes there, as with CRIU.  Raises SystemEnvironmentError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise SystemEnvironmentError(f"cannot write {path}: {error.strerror}") from None
    os.dup2(fd, 2)
    os.close(fd)


def say(text: str) -> None:
    """A line for whoever reads the log or the terminal."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def say_error(error: SealpointError) -> None:
    """As CRIU writes errors."""
    say(f"Error (sealpoint): {error.message}" + (f" ({error.hint})" if error.hint else ""))
