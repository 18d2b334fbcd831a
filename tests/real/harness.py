"""The workloads: what the tests with a real CRIU dump and restore.

`Workload` starts a program of `tests/workloads` and asks it to verify itself, before the dump and
after the restore. `make_needles` makes the secrets that it holds; `leaks` finds them again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.workloads.workload_ask import NoAnswerError, ask, get_link

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = ROOT / "tests" / "workloads"

__all__ = [
    "NEEDLE_NAMES",
    "PLANTED",
    "PROCESSES",
    "NoAnswerError",
    "Verdict",
    "Workload",
    "become_subreaper",
    "make_needles",
]

PROCESSES: dict[str, tuple[str, ...]] = {
    "memory": ("main",),
    "ipc": ("main",),
    "tree": ("main", "child", "grandchild"),
    "secret": ("main",),
    "kinds": ("main",),
    "states": ("main",),
    "dirty": ("main",),
    "names": ("main",),
}
"""The processes of each workload; a process is known by its name, the first is the root."""

PLANTED: dict[str, dict[str, str]] = {
    "memory": {"env": "pages-*", "heap": "pages-*"},
    "dirty": {"env": "pages-*", "heap": "pages-*"},
    "ipc": {
        "env": "pages-*",
        "pipe": "pipes-data.img",
        "queue": "sk-queues.img",
        "stream": "sk-queues.img",
        "unlinked": "ghost-file-*",
        "unlinked_small": "ghost-file-*",
        "shm": "pages-*",
        "memfd": "pages-*",
    },
    "tree": {
        "env": "pages-*",
        "heap": "pages-*",
        "child": "pages-*",
        "grandchild": "pages-*",
        "shm": "pages-*",
        "pipe": "pipes-data.img",
    },
    "secret": {"env": "pages-*", "password": "pages-*"},
    "kinds": {"env": "pages-*"},
    "states": {"env": "pages-*"},
    "names": {"env": "pages-*"},
}
"""Which secrets a workload holds, and in which of CRIU's images each is found in the clear."""

NEEDLE_NAMES = tuple(sorted({name for planted in PLANTED.values() for name in planted}))


def make_needles() -> dict[str, bytes]:
    """A secret for every place one is planted; all begin with the same random word, so that one
    pass over a file looks for all of them.

    They are text, to be readable in a hex dump. Where they lie among random bytes they survive
    the usual compressors too, which store what they cannot shrink.
    """
    word = secrets.token_hex(6)
    return {name: f"{word}-{name}-{secrets.token_hex(12)}".encode() for name in NEEDLE_NAMES}


_libc = ctypes.CDLL(None, use_errno=True)
_PF_EXITING = 0x4  # of the ninth field of /proc/PID/stat (Linux, include/linux/sched.h)


def become_subreaper() -> None:
    """Make this process the parent of orphans: it must reap a dumped tree, or the pids are not
    free for the restore, and it gets the processes that a restore leaves behind."""
    pr_set_child_subreaper = 36
    if _libc.prctl(pr_set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True)
class Verdict:
    """What one process says about itself."""

    name: str
    ok: bool
    counter: int
    session: str
    pid: int
    bad: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str, text: str) -> Verdict:
        verdict, counter, session, pid, *bad = text.split()
        return cls(name, verdict == "ok", int(counter), session, int(pid), tuple(bad))


def words(pid: int, name: str) -> list[bytes]:
    """Of /proc/PID/cmdline or environ (`name`); of a process that has ended none.

    Amid an exec the kernel shows both empty for a moment, which must not be taken for the process's.
    """
    for _ in range(200):
        try:
            if text := Path(f"/proc/{pid}/{name}").read_bytes():
                return text.split(b"\0")
            os.readlink(f"/proc/{pid}/exe")  # a thread of the kernel has none
        except OSError:
            return []
        if process_state(pid) in (None, "Z", "X"):
            return []
        time.sleep(0.001)
    return []


def processes_with(word: str | bytes, name: str = "environ") -> list[int]:
    """Live processes with that word in their environment (NAME=VALUE) or, by "cmdline", in their command line.

    None are found only if two looks find none: a child may be born behind the first look, and its parent die before it.
    """
    for _ in range(2):
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        if found := [pid for pid in pids if os.fsencode(word) in words(pid, name)]:
            return sorted(found)
    return []


def process_state(pid: int) -> str | None:
    """The state letter of a process (Z: a zombie), None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[0]


def waits_for_helper(criu: int) -> bool:
    """In a request to the file system or for the answer to a notification; or it is done."""
    try:
        stack = Path(f"/proc/{criu}/stack").read_bytes()
    except OSError:
        return True
    return b"fuse_" in stack or b"unix_" in stack


def is_ending(pid: int) -> bool:
    """Whether a process that is still there has been killed, or has begun to end: under load that lasts a while."""
    try:
        flags = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[6])
        status = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return False  # it has ended
    pending = [line.split()[1] for line in status if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    kill = 1 << (signal.SIGKILL - 1)
    return bool(flags & _PF_EXITING) or any(int(word, 16) & kill for word in pending)


class Workload:
    """A running program of `tests/workloads`, ready when the constructor returns.

    It lives in `dir`, which belongs to it alone. `pids` and `start` are what the processes said
    when they became ready.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        needles: Mapping[str, bytes],
        *arguments: str,
        timeout: float = 60.0,
    ) -> None:
        become_subreaper()
        self.kind = kind
        self.names = PROCESSES[kind]
        self.needles = {name: needles[name] for name in PLANTED[kind] if name in needles}
        self.dir = directory
        directory.mkdir(parents=True)
        self._script = str(WORKLOADS / f"{kind}.py")
        self.pid = self._spawn(arguments)
        self.pids: dict[str, int] = {"main": self.pid}
        self.start: dict[str, Verdict] = {}
        try:
            self._wait_ready(timeout)
        except BaseException:
            self.close()
            raise

    def _spawn(self, arguments: Sequence[str]) -> int:
        # posix_spawn and not subprocess.Popen: that one reaps processes on its own account, by
        # their pid, and the restored process has the same pid as the dumped one.
        reader, writer = os.pipe()
        planted = {name: value for name, value in self.needles.items() if name != "env"}
        os.write(writer, b"".join(b"%s %s\n" % (n.encode(), v) for n, v in planted.items()))
        os.close(writer)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        if "env" in self.needles:
            environment["SEALPOINT_WORKLOAD_ENV"] = self.needles["env"].decode()
        python = os.path.realpath(sys.executable)
        command = [python, "-I", "-S", "-B", self._script, "--dir", str(self.dir), *arguments]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            return os.posix_spawn(
                python,
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reader, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, str(self.dir / "stderr"), flags, 0o600),
                ],
                setsid=True,
            )
        finally:
            os.close(reader)

    def _wait_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while len(self.start) < len(self.names):
            for name in self.names:
                text = get_link(str(self.dir / f"status-{name}"))
                if text is not None:
                    self.start[name] = Verdict.parse(name, text.removeprefix("ready "))
                    self.pids[name] = self.start[name].pid
            if process_state(self.pid) in (None, "Z") or time.monotonic() > deadline:
                error = (self.dir / "stderr").read_text()
                raise RuntimeError(f"workload {self.kind} did not become ready: {error}")
            time.sleep(0.005)

    # What it says

    def check(self, timeout: float = 30.0) -> dict[str, Verdict]:
        """Each process verifies all it holds and answers. Raises NoAnswerError when one is not
        there (or not any more, or stopped)."""
        try:
            answers = ask(self.dir, self.names, timeout)
        except NoAnswerError as error:
            states = {name: process_state(pid) for name, pid in self.pids.items()}
            raise NoAnswerError(f"{self.kind}: {error}; states: {states}") from None
        return {name: Verdict.parse(name, text) for name, text in answers.items()}

    def assert_intact(self, timeout: float = 30.0) -> dict[str, Verdict]:
        """check(), and all must be well; returns the verdicts for assert_continues()."""
        verdicts = self.check(timeout)
        bad = [verdict for verdict in verdicts.values() if not verdict.ok]
        assert not bad, f"{self.kind} is damaged: {bad}"
        return verdicts

    def assert_continues(self, before: Mapping[str, Verdict], timeout: float = 30.0) -> None:
        """Every process is intact, the same one that answered `before`, and counts on.

        It may have counted between its answer and the dump, so the counter need not be equal;
        one that was started afresh has another session.
        """
        first = self.assert_intact(timeout)
        second = self.assert_intact(timeout)
        for name, old in before.items():
            for new in (first[name], second[name]):
                assert (new.session, new.pid) == (old.session, old.pid), (old, new)
            assert old.counter <= first[name].counter < second[name].counter, (old, first, second)

    # Its life

    def processes(self) -> list[int]:
        """All live processes that are this workload, whatever their pid (zombies excluded)."""
        wanted = [os.fsencode(self._script), b"--dir", os.fsencode(self.dir)]
        result = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(words[i : i + 3] == wanted for i in range(len(words) - 2)):
                result.append(int(entry))
        return sorted(result)

    def remains(self) -> list[int]:
        """What is left of it after it should have gone: its processes and, as a half-restored
        task may still look like CRIU, any of its pids that is our child; zombies are reaped."""
        self.reap()
        ours = [pid for pid in self.pids.values() if _parent(pid) == os.getpid()]
        return sorted({*self.processes(), *ours})

    def reap(self) -> None:
        """Take the exit status of those that ended, so that their pids are free."""
        for pid in self.pids.values():
            with contextlib.suppress(ChildProcessError):  # not ours, or reaped before
                os.waitpid(pid, os.WNOHANG)

    def wait_gone(self, timeout: float = 30.0) -> None:
        """Wait until no process is left, after a dump that killed them. Needed before restore."""
        deadline = time.monotonic() + timeout
        while True:
            self.reap()
            left = {n: s for n, p in self.pids.items() if (s := process_state(p)) is not None}
            if not left:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.kind}: still there: {left}")
            time.sleep(0.005)

    def kill(self) -> None:
        """End all its processes, and wait for it. Only those that are surely ours."""
        deadline = time.monotonic() + 30
        while left := self.remains():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.kind}: cannot be killed: {left}")
            time.sleep(0.005)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


def _parent(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])
