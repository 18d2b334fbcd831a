"""A pid that changes hands: a process with children, and a stranger that takes the number of one at a chosen moment.

For `stolen`, which runs in a pid namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sealpoint import process

FAMILY = """
import os, signal, sys
for line in sys.stdin:
    word, _, pid = line.partition(" ")
    if word == "reap":
        os.kill(int(pid), signal.SIGKILL)
        os.waitpid(int(pid), 0)
        print("reaped", flush=True)
        continue
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    print(child, flush=True)
"""
CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


class Family:
    """A process that has children when it is told to, and reaps them."""

    def __init__(self) -> None:
        self._run = subprocess.Popen(
            [sys.executable, "-I", "-c", FAMILY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._run.pid

    def _say(self, line: str) -> str:
        self._run.stdin.write(line + "\n")
        self._run.stdin.flush()
        return self._run.stdout.readline().strip()

    def fork(self, wanted: int = 0) -> int:
        if wanted:
            choose(wanted)
        pid = int(self._say("fork"))
        assert pid == wanted or not wanted
        return pid

    def reap(self, pid: int) -> None:
        assert self._say(f"reap {pid}") == "reaped"

    @property
    def runs(self) -> bool:
        return self._run.poll() is None

    def gone(self) -> bool:
        self._run.wait(20)
        return True


def choose(pid: int) -> None:
    """For the next process, which starts in a later clock tick than whoever had that pid."""
    before = process.now()
    while process.now() == before:
        time.sleep(0.001)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))


def stranger(pid: int, words: tuple[str, ...] = ("sleep", "1000")) -> subprocess.Popen[bytes]:
    """With that pid, which is free.  A child of ours, which nothing here looks for."""
    choose(pid)
    made = subprocess.Popen(words)
    assert made.pid == pid
    return made


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while process.state(pid) != "T":
        time.sleep(0.001)


@contextlib.contextmanager
def theft(
    pid: int, act: Callable[[], None], *, after: bool, on: str = "pidfd_open"
) -> Iterator[None]:
    """`act` happens when the pid is held for the first time from now on: right before, or right after."""
    real, done = getattr(os, on), []

    def opened(number: object, *rest: object) -> int:
        ours = number == pid if on == "pidfd_open" else f"/proc/{pid}/" in str(number)
        first = ours and not done
        if first:
            done.append(True)
        if first and not after:
            act()
        fd = real(number, *rest)
        if first and after:
            act()
        return fd

    setattr(os, on, opened)
    try:
        yield
    finally:
        setattr(os, on, real)
    assert done, "nobody held it"


def unharmed(made: subprocess.Popen[bytes]) -> None:
    time.sleep(0.05)
    assert made.poll() is None, "the stranger was ended"


def both(name: str) -> Callable[[Callable[[bool], None]], None]:
    """The case before the process is held, and the one after."""

    def register(function: Callable[[bool], None]) -> None:
        for after in (False, True):
            CASES[f"{name}-{'after' if after else 'before'}"] = lambda after=after: function(after)

    return register


@contextlib.contextmanager
def raises(kind: type[BaseException], words: str = "") -> Iterator[None]:
    try:
        yield
    except kind as error:
        found = error
    else:
        raise AssertionError(f"no {kind.__name__}")
    assert words in str(getattr(found, "message", found)), found
