"""The processes that are dumped and restored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import tree
from bench.measure import BenchError

VICTIM = Path(__file__).with_name("victim.py")
MIB = 1 << 20

KINDS = {
    "random": "random memory in one private mapping",
    "stress-ng": "stress-ng --vm (patterns, compressible)",
    "heap": "a Python process with a heap of small records",
}
# Not among the kinds whose dumps are compared: random memory to which it goes on writing; for the chunk store a heap of
# which a part is made anew, and data that is the same in every process.
BUSY, SESSIONS, MODEL = "busy", "sessions", "model"
_SHARE = {
    "random": 1.0,
    BUSY: 1.0,
    "stress-ng": 0.5,
    "heap": 0.3,
    SESSIONS: 0.3,
    MODEL: 0.3,
}  # of --size


def size_of(kind: str, size: int) -> int:
    """How many bytes of memory the workload of that kind gets, when the random one gets `size`."""
    return max(int(size * _SHARE[kind]) // MIB, 1) * MIB


def why_not(kind: str) -> str:
    """Why there is no such workload on this machine; empty if there is."""
    if kind == "stress-ng" and shutil.which("stress-ng") is None:
        return "stress-ng is not installed (apt-get install stress-ng)"
    return ""


class Workload:
    """A running process tree, complete when the constructor returns. A context manager: ends it.

    It lives in `directory`, its current directory, and holds no terminal and no file outside of it.
    """

    def __init__(self, kind: str, size: int, directory: Path) -> None:
        self.kind = kind
        self._size = size_of(kind, size)
        self._dir = directory
        directory.mkdir()
        self.pid = self._spawn(self._command())
        self.pids = [self.pid]
        try:
            self._wait_ready()
        except BaseException:
            self.end()
            raise

    def _command(self) -> list[str]:
        if self.kind == "stress-ng":
            # It writes its patterns once and then sleeps, holding on to the memory.
            mib = f"{self._size // MIB}M"
            return ["stress-ng", "--vm", "1", "--vm-bytes", mib, "--vm-keep", "--vm-hang", "0"]
        python = os.path.realpath(sys.executable)
        what = [str(VICTIM), self.kind, str(self._size), str(self._dir)]
        return [python, "-I", "-S", "-B", *what]

    def _spawn(self, command: Sequence[str]) -> int:
        # A session of its own, or CRIU would want the terminal's. posix_spawn and not subprocess, which remembers pids:
        # the restored process has the pid of the dumped one.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        script = 'cd "$0" && exec "$@"'
        return os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", script, str(self._dir), *command],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
        )

    def _wait_ready(self, timeout: float = 180.0) -> None:
        deadline = time.monotonic() + timeout
        calm = 0
        while calm < 5:
            if tree.state(self.pid) in (None, "Z") or time.monotonic() > deadline:
                raise BenchError(f"the workload {self.kind} did not become ready")
            calm = calm + 1 if self._is_ready() else 0
            time.sleep(0.05)
        self.pids = tree.below(self.pid)

    def _is_ready(self) -> bool:
        if self.kind != "stress-ng":
            return (self._dir / "ready").exists()
        pids = tree.below(self.pid)
        asleep = all(tree.state(pid) == "S" for pid in pids)
        return asleep and tree.resident(pids) >= self._size

    @property
    def memory(self) -> int:
        """Resident bytes of all its processes."""
        return tree.resident(self.pids)

    def check(self, timeout: float = 60.0) -> None:
        """Every process is there, and where the workload can tell, its memory is as it was. Raises BenchError."""
        if any(tree.state(pid) in (None, "Z", "T") for pid in self.pids):
            raise BenchError(f"the workload {self.kind} does not run any more")
        if self.kind == "stress-ng":
            return
        if self._ask(signal.SIGUSR1, timeout) != "ok":
            raise BenchError(f"the memory of the workload {self.kind} is damaged")

    def change(self, percent: int, timeout: float = 120.0) -> int:
        """Have it change that share of its pages or records; returns how many. Raises BenchError."""
        (self._dir / "percent").write_text(str(percent))
        return int(self._ask(signal.SIGUSR2, timeout))

    def stood_still(self, timeout: float = 60.0) -> list[tuple[float, bool]]:
        """How many seconds the busy one did not run, each time since it was last asked, and whether it was somewhere
        else then. Raises BenchError."""
        answer: list[tuple[float, bool]] = json.loads(self._ask(signal.SIGUSR2, timeout))
        return answer

    def _ask(self, number: int, timeout: float) -> str:
        answer = self._dir / "answer"
        answer.unlink(missing_ok=True)
        os.kill(self.pid, number)
        deadline = time.monotonic() + timeout
        while not answer.exists():
            if time.monotonic() > deadline:
                raise BenchError(f"the workload {self.kind} does not answer")
            time.sleep(0.01)
        return answer.read_text()

    def moved(self, pid: int) -> None:
        """What remains here of a process without children, a zombie, is reaped; its pid is `pid` now."""
        tree.end(self.pids)
        self.pid = pid
        self.pids = [pid]

    def end(self) -> None:
        """Kill and reap all its processes: their pids are free then."""
        tree.end({*self.pids, *tree.below(self.pid)} if tree.state(self.pid) else self.pids)
