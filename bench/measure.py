"""Running one command and measuring what it cost."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import tree

_POLL_MS = 10  # between two looks at the memory of the command; the same for every variant
_TIMEOUT = 900.0


class BenchError(Exception):
    """The benchmark cannot go on; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Cost:
    """wall, cpu: seconds; the latter user and system, of the command and of all descendants that were waited for.
    peak: the most resident bytes that the command's own process had, its descendants not counted, or that its helper
    had. Pages of a memfd that it only reads and writes are not resident in it."""

    wall: float
    cpu: float
    peak: int
    output: str


def touch(size: int) -> None:
    """Allocate and free memory. A virtual machine gives free pages back to its host, and the first use of one that it
    has to ask for again costs several times as much: whoever comes first must not pay for those after it."""
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    scratch: Path,
    feed: Path | None = None,
    helper: str = "",
) -> Cost:
    """Run `argv` to its end. Its output goes to a file in `scratch`, never a pipe: a restored process could hold that
    open. feed: a file that `cat` pipes into it, part of the cost. helper: in the command line of an orphan that the
    command leaves beside itself, whose CPU time and memory are part of the cost. Raises BenchError when it fails."""
    output = scratch / "output"
    problems = scratch / "problems"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, str(problems), flags, 0o600),
    ]
    started = time.perf_counter()
    feeder = None
    if feed is None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    else:
        feeder = subprocess.Popen(["cat", str(feed)], stdout=subprocess.PIPE)
        assert feeder.stdout is not None
        actions.append((os.POSIX_SPAWN_DUP2, feeder.stdout.fileno(), 0))
    pid = os.posix_spawnp(argv[0], list(argv), dict(environment), file_actions=actions)
    if feeder is not None and feeder.stdout is not None:
        feeder.stdout.close()
    watched = _Helper(helper) if helper else None
    peak = _wait(pid, argv, watched)
    wall = time.perf_counter() - started
    _, status, usage = os.wait4(pid, 0)
    cpu = usage.ru_utime + usage.ru_stime
    if watched is not None:
        peak = watched.peak
        cpu += watched.end()
    if feeder is not None:
        _, _, usage = os.wait4(feeder.pid, 0)
        feeder.returncode = 0  # waited for here, not by subprocess
        cpu += usage.ru_utime + usage.ru_stime
    if code := os.waitstatus_to_exitcode(status):
        tail = (output.read_text(errors="replace") + problems.read_text(errors="replace"))[-2000:]
        raise BenchError(f"{' '.join(argv)}: ended with {code}\n{tail}")
    return Cost(wall, cpu, peak, output.read_text(errors="replace"))


class _Helper:
    """What the drop-in leaves to work beside CRIU: an orphan, and so, because this process adopts orphans, a child.

    As typed it is the orphan itself; by RPC it is the child of an orphan, its guard.
    """

    def __init__(self, word: str) -> None:
        self._word = os.fsencode(word)
        self._pid = self._orphan = 0
        self.peak = 0

    def look(self, command: int) -> None:
        """Find them, or see how much memory the helper has."""
        # Looked for each time: while the drop-in starts, others look like these two for a moment.
        ours = tree.children(os.getpid())
        for orphan in (*ours, *tree.below(command)[1:]):
            if orphan != command and self._is_it(orphan):
                guarded = [pid for pid in tree.children(orphan) if self._is_it(pid)]
                if guarded:
                    self._pid, self._orphan = guarded[0], orphan
                elif orphan in ours:
                    self._pid = self._orphan = orphan
        if self._pid:
            with contextlib.suppress(OSError):
                self.peak = max(self.peak, _peak_resident(self._pid))

    def _is_it(self, pid: int) -> bool:
        """What has not become CRIU yet looks like it, for a moment; a zombie has no command line, and is still it."""
        if not pid:
            return False
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return self._word in line.split(b"\0") or (not line and pid == self._pid)

    def end(self) -> float:
        """Wait for its end, which the command does not; its CPU seconds. Raises BenchError."""
        if not self._pid:
            raise BenchError("the helper was not seen: is the command too quick to be measured?")
        _, _, usage = os.wait4(self._orphan, 0)  # with what it has waited for
        return usage.ru_utime + usage.ru_stime


def _wait(pid: int, argv: Sequence[str], helper: _Helper | None = None) -> int:
    """Until it has ended (it is not reaped); returns the largest peak of resident memory that was seen."""
    pidfd = os.pidfd_open(pid)
    peak = 0
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + _TIMEOUT
        while not poll.poll(_POLL_MS):
            peak = max(peak, _peak_resident(pid))
            if helper is not None:
                helper.look(pid)
            if time.monotonic() > deadline:
                raise BenchError(f"{' '.join(argv)}: does not end")
    except BaseException:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not poll.poll(30_000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise
    finally:
        os.close(pidfd)
    return peak


def _peak_resident(pid: int) -> int:
    # Not wait4's ru_maxrss: that is the largest of the process, of its descendants (CRIU), and of whoever spawned it.
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
