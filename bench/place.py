"""Directories of a run. They are gone when it ends, however it ends: after a signal too, and when it was killed for
good, the next run takes them away, with what was left running or mounted in them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import slow_disk

MEMORY = Path("/dev/shm")
DISK = Path(__file__).resolve().parent / "work"
PREFIX = "sealpoint-bench-run-"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal that ends the run came. Not an Exception: nobody but the outermost caller shall handle it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def heed_signals() -> None:
    """The first signal raises Interrupted, so that everything is cleaned up; more of them do not disturb that."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, end)


@contextlib.contextmanager
def temporary(parent: Path = MEMORY) -> Iterator[Path]:
    """A new directory in `parent`, which is made where it is missing. Its lock says that this run lives."""
    sweep(parent)
    made = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    with _alone(parent):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        clear(path)
        os.close(lock)
        if made:
            with contextlib.suppress(OSError):  # somebody else's, who came later, is in it
                parent.rmdir()


def sweep(parent: Path) -> None:
    """Remove what runs that are dead have left in `parent`."""
    if not parent.is_dir():
        return
    with _alone(parent):
        for path in parent.glob(PREFIX + "*"):
            with contextlib.suppress(OSError):  # locked: its run lives
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    clear(path)
                finally:
                    os.close(fd)
    if parent == DISK:
        with contextlib.suppress(OSError):
            parent.rmdir()


def clear(path: Path) -> None:
    """Remove a run's directory: what runs in it is ended, what is mounted in it unmounted."""
    for pid in _living_in(path):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _living_in(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    for point in reversed(_mounts_in(path)):
        slow_disk.unlimit(point)
        subprocess.run(["umount", point], check=False)
    if not _mounts_in(path):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Nobody else makes or sweeps directories there meanwhile: a new one is not locked at once."""
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _living_in(path: Path) -> list[int]:
    """Processes whose current directory is in there, this one and zombies aside."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if Path(os.readlink(f"/proc/{entry}/cwd")).is_relative_to(path):
                    found.append(int(entry))
    return found


def _mounts_in(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if Path(point := line.split()[4]).is_relative_to(path)]
