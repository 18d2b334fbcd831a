"""An interactive shell at a terminal of its own, and someone who types."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping
from typing import Self

PATIENCE = float(os.environ.get("SEALPOINT_TEST_TIMEOUT", "60"))
CTRL_C, CTRL_D, CTRL_Z = b"\x03", b"\x04", b"\x1a"


class Terminal:
    """A context manager.  What is typed is echoed: look for words that stand only in answers."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.fd, theirs = pty.openpty()
        self.shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "PS1": "$ ", "TERM": "dumb", "HISTFILE": ""},
            start_new_session=True,
            preexec_fn=_usual,  # noqa: PLW1509 - a controlling terminal cannot be had otherwise
        )
        os.close(theirs)
        self.said = ""
        self._looked = 0

    def send(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def type(self, line: str) -> None:
        self.send(line.encode() + b"\n")

    def expect(self, words: str, timeout: float = PATIENCE) -> str:
        """Wait for `words` after what was found before; returns the rest of their line."""
        deadline = time.monotonic() + timeout
        while (at := self.said.find(words, self._looked)) < 0 or "\n" not in self.said[at:]:
            if not self._read(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"waited in vain for {words!r}: {self.said[self._looked :]!r}")
        end = self.said.index("\n", at)
        self._looked = end
        return self.said[at + len(words) : end].strip()

    def status(self) -> int:
        """Of the last command, when the shell has the terminal again and reads from it."""
        deadline = time.monotonic() + PATIENCE
        while os.tcgetpgrp(self.fd) != self.shell.pid or not self.said.endswith("$ "):
            if not self._read(0.05) and time.monotonic() >= deadline:
                raise TimeoutError(f"the shell does not come back: {self.said!r}")
        self.type('echo "status"=$?')
        return int(self.expect("status="))

    def _read(self, timeout: float) -> bool:
        if not select.select([self.fd], [], [], timeout)[0]:
            return False
        try:
            self.said += os.read(self.fd, 65536).decode(errors="replace").replace("\r", "")
        except OSError:  # nobody has it open any more
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)  # which hangs up
        self.shell.kill()
        self.shell.wait()


def _usual() -> None:
    for number in (*range(1, signal.SIGKILL), *range(signal.SIGKILL + 1, signal.SIGSTOP)):
        signal.signal(number, signal.SIG_DFL)
    for name in ("SIGTSTP", "SIGTTIN", "SIGTTOU"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
