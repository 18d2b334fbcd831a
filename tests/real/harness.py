"""What the tests with a real CRIU stand on.

`Workload` starts a program of `tests/workloads` and asks it to verify itself, before the dump and
after the restore. `FileWatcher` finds planted secrets in whatever was written anywhere meanwhile.
`find_criu` looks for a CRIU that really works here, by dumping and restoring something small.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import secrets
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = ROOT / "tests" / "workloads"

sys.path.insert(0, str(WORKLOADS))
from workload_ask import NoAnswerError, ask, get_link

__all__ = [
    "NEEDLE_NAMES",
    "PLANTED",
    "PROCESSES",
    "FileWatcher",
    "Leak",
    "NoAnswerError",
    "Verdict",
    "Workload",
    "become_subreaper",
    "criu_problem",
    "find_criu",
    "make_needles",
    "plain_dump",
    "plain_restore",
    "ram_directory",
    "scan_directory",
]

PROCESSES: dict[str, tuple[str, ...]] = {
    "memory": ("main",),
    "ipc": ("main",),
    "tree": ("main", "child", "grandchild"),
    "secret": ("main",),
    "kinds": ("main",),
    "dirty": ("main",),
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
}
"""Which secrets a workload holds, and in which of CRIU's images each is found in the clear."""

NEEDLE_NAMES = tuple(sorted({name for planted in PLANTED.values() for name in planted}))

# --- secrets ------------------------------------------------------------------------------


def make_needles() -> dict[str, bytes]:
    """A secret for every place one is planted; all begin with the same random word, so that one
    pass over a file looks for all of them.

    They are text, to be readable in a hex dump. Where they lie among random bytes they survive
    the usual compressors too, which store what they cannot shrink.
    """
    word = secrets.token_hex(6)
    return {name: f"{word}-{name}-{secrets.token_hex(12)}".encode() for name in NEEDLE_NAMES}


class _Finder:
    """Looks for secrets in files of any size with bounded memory."""

    BLOCK = 4 << 20

    def __init__(self, needles: Mapping[str, bytes]) -> None:
        if not needles:
            raise ValueError("nothing to look for")
        self._needles = dict(needles)
        first, last = min(needles.values()), max(needles.values())
        same = [a == b for a, b in zip(first, last, strict=False)]
        self._common = first[: same.index(False) if False in same else len(same)]
        self._longest = max(map(len, needles.values()))

    def in_bytes(self, data: bytes | bytearray) -> set[str]:
        found: set[str] = set()
        if len(self._common) < 8:
            return {name for name, needle in self._needles.items() if needle in data}
        at = data.find(self._common)
        while at >= 0:
            for name, needle in self._needles.items():
                if data[at : at + len(needle)] == needle:
                    found.add(name)
            at = data.find(self._common, at + 1)
        return found

    def in_descriptor(self, fd: int) -> set[str]:
        # Not mmap: a file that somebody truncates while it is searched would be a SIGBUS.
        found: set[str] = set()
        keep = b""
        offset = 0
        while block := os.pread(fd, self.BLOCK, offset):
            offset += len(block)
            found |= self.in_bytes(keep + block if keep else block)
            keep = block[-self._longest :]
        return found

    def in_file(self, path: str) -> set[str]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return set()
        try:
            return self.in_descriptor(fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTCONN, errno.ENODEV):
                return (
                    set()
                )  # no file in this sense: of the kernel, or of a file system that has gone
            raise
        finally:
            os.close(fd)


def scan_directory(directory: Path, needles: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Secret name -> names of the files (relative to `directory`) that contain it."""
    finder = _Finder(needles)
    result: dict[str, list[str]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            for name in finder.in_file(str(path)):
                result.setdefault(name, []).append(str(path.relative_to(directory)))
    return result


# --- watching what is written ----------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Leak:
    """A secret in the clear: `how` is `file`, `name` (the file's own name) or `closed` (it was in
    the file at some moment a writer closed it; the file may be gone since)."""

    path: str
    needle: str
    how: str = "file"


_FAN_CLOSE_WRITE = 0x8
_FAN_Q_OVERFLOW = 0x4000
_FAN_CLOEXEC = 0x1
_FAN_NONBLOCK = 0x2
_FAN_UNLIMITED_QUEUE = 0x10
_FAN_MARK_ADD = 0x1
_FAN_MARK_FILESYSTEM = 0x100
_FAN_EVENT = struct.Struct("<IBBHQii")

_libc = ctypes.CDLL(None, use_errno=True)


class _CloseTrace:
    """Searches every file on some file systems when a writer closes it (fanotify, so root only).

    This also sees what a snapshot cannot: temporary files that are removed again and files that
    never had a name.
    """

    def __init__(self, finder: _Finder, directories: Iterable[str], ignore: tuple[str, ...]):
        self._finder = finder
        self._ignore = ignore
        self.leaks: set[Leak] = set()
        self.seen = 0
        self.problem: str | None = None
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_UNLIMITED_QUEUE
        self._fd = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "fanotify_init")
        devices: set[int] = set()
        for directory in directories:
            device = os.stat(directory).st_dev
            if device in devices:
                continue
            devices.add(device)
            if _libc.fanotify_mark(
                self._fd,
                ctypes.c_uint(_FAN_MARK_ADD | _FAN_MARK_FILESYSTEM),
                ctypes.c_uint64(_FAN_CLOSE_WRITE),
                ctypes.c_int(-100),
                ctypes.c_char_p(os.fsencode(directory)),
            ):
                error = OSError(ctypes.get_errno(), "fanotify_mark", directory)
                os.close(self._fd)
                raise error
        self._wake_reader, self._wake_writer = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take in what happened until now, then end."""
        os.close(self._wake_writer)
        self._thread.join()
        os.close(self._wake_reader)
        os.close(self._fd)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN | select.POLLHUP)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._fd in ready:
                    self._read_events()
                elif self._wake_reader in ready:
                    return
        except Exception as error:  # reported by the watcher: a dead trace must not look clean
            self.problem = f"{type(error).__name__}: {error}"

    def _read_events(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            length, _, _, _, mask, fd, _ = _FAN_EVENT.unpack_from(data, at)
            at += length
            if mask & _FAN_Q_OVERFLOW:
                self.problem = "events were lost"
            if fd < 0:
                continue
            try:
                self._look_at(fd)
            finally:
                os.close(fd)

    def _look_at(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.startswith(self._ignore) or not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        self.seen += 1
        for needle in self._finder.in_descriptor(fd):
            self.leaks.add(Leak(path, needle, "closed"))


class FileWatcher:
    """Finds secrets in all files that were written while it was active.

        with FileWatcher(needles, [tmp_path], ignore=[workload.dir]) as watcher:
            ...
        assert watcher.leaks() == []

    Two means. A snapshot of the directories before and after: every new or changed file is
    searched, and its name. And, if the kernel lets us (`watcher.traced`), every file on the same
    file systems at the moment a writer closes it, even if it is removed later. Memory is not
    looked at: memfds and file systems mounted meanwhile are not files that stay.

    `ignore`: directories whose *closed* files are not searched, for the workload's own ones: CRIU
    must make a file that the process held without a name again, for a moment and in the clear, as
    it was before. What remains in them in the end is searched all the same.
    """

    DIRECTORIES = ("/tmp", "/var/tmp", "/run", "/dev/shm", "/var/log", "/var/lib/systemd/coredump")
    NEVER = ("/proc", "/sys", "/dev")

    def __init__(
        self,
        needles: Mapping[str, bytes],
        directories: Iterable[str | Path] = (),
        *,
        ignore: Iterable[str | Path] = (),
        trace: bool = True,
    ) -> None:
        self._finder = _Finder(needles)
        everywhere = [*map(str, directories), os.getcwd(), *self.DIRECTORIES]
        self.directories = _without_nested(
            os.path.realpath(path) for path in everywhere if os.path.isdir(path)
        )
        self._ignore = tuple(os.path.realpath(path) + "/" for path in ignore)
        self._want_trace = trace
        self._trace: _CloseTrace | None = None
        self._before: dict[str, tuple[int, int, int, int]] = {}
        self._skip_devices = {os.stat(path).st_dev for path in ("/proc", "/sys")}
        self.traced = False

    def __enter__(self) -> Self:
        self._before = dict(self._snapshot())
        if self._want_trace:
            try:
                self._trace = _CloseTrace(self._finder, self.directories, self._ignore)
                self.traced = True
            except (OSError, AttributeError):
                self._trace = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._trace is not None:
            self._trace.stop()

    def changed(self) -> list[str]:
        """New and changed files, as of now."""
        return [path for path, mark in self._snapshot() if self._before.get(path) != mark]

    def leaks(self) -> list[Leak]:
        """All leaks, sorted; call it after the `with` block (or in it: then without the trace)."""
        result: set[Leak] = set()
        for path in self.changed():
            result.update(Leak(path, name) for name in self._finder.in_file(path))
            if path not in self._before:
                names = self._finder.in_bytes(os.fsencode(path))
                result.update(Leak(path, name, "name") for name in names)
        if self._trace is not None:
            if self._trace.problem:
                raise RuntimeError(f"the trace of written files failed: {self._trace.problem}")
            result |= self._trace.leaks
        return sorted(result)

    def _snapshot(self) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
        todo = list(self.directories)
        while todo:
            try:
                with os.scandir(todo.pop()) as entries:
                    for entry in entries:
                        try:
                            if entry.is_dir(follow_symlinks=False):
                                if self._enters(entry):
                                    todo.append(entry.path)
                            elif entry.is_file(follow_symlinks=False):
                                s = entry.stat(follow_symlinks=False)
                                mark = (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
                                yield entry.path, mark
                        except OSError:
                            continue  # it has just gone
            except OSError:
                continue

    def _enters(self, entry: os.DirEntry[str]) -> bool:
        if entry.path in self.NEVER:
            return False
        return not os.path.ismount(entry.path) or (
            entry.stat(follow_symlinks=False).st_dev not in self._skip_devices
        )


def _without_nested(paths: Iterable[str]) -> list[str]:
    result: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(outer.rstrip("/") + "/") for outer in result):
            result.append(path)
    return result


# --- processes -------------------------------------------------------------------------------


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


def process_state(pid: int) -> str | None:
    """The state letter of a process (Z: a zombie), None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[0]


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

    def wait_gone(self, timeout: float = 10.0) -> None:
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
        deadline = time.monotonic() + 10
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
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])


# --- CRIU ------------------------------------------------------------------------------------


def ram_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory in memory, for plain images: not even a test puts them on a disk."""
    return tempfile.TemporaryDirectory(prefix="sealpoint-test-", dir="/dev/shm")


def _run_criu(command: list[str], log: Path) -> None:
    """Run CRIU, with the end of its log in the error. Its output goes into a file and not a pipe:
    a restored process that kept the pipe's end would keep us waiting."""
    with open(log.with_suffix(".out"), "wb") as out:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=120, check=False
        )
    if result.returncode:
        tail = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
        raise RuntimeError(f"{command[1]} failed ({result.returncode}): " + "\n".join(tail[-8:]))


def plain_dump(criu: Path, workload: Workload, images: Path, *options: str) -> None:
    """A stock dump into the directory `images` (use one in memory). The tree is killed and its
    pids are free again, unless `--leave-running` is among the options."""
    images.mkdir(parents=True, exist_ok=True)
    command = [str(criu), "dump", "-t", str(workload.pid), "-D", str(images)]
    _run_criu([*command, "-o", "dump.log", "-v2", *options], images / "dump.log")
    if not {"--leave-running", "-R"} & set(options):
        workload.wait_gone()


def plain_restore(criu: Path, images: Path, *options: str) -> None:
    """A stock restore; the tree runs on as children of this process."""
    command = [str(criu), "restore", "-d", "-D", str(images)]
    _run_criu([*command, "-o", "restore.log", "-v2", *options], images / "restore.log")


@functools.cache
def _probe() -> tuple[Path | None, str]:
    if os.geteuid() != 0:
        return None, "CRIU needs root"
    wanted = os.environ.get("SEALPOINT_CRIU")
    found = shutil.which("criu")
    candidates = [Path(wanted)] if wanted else [ROOT / ".criu" / "bin" / "criu"]
    if found and not wanted:
        candidates.append(Path(found))
    problems = []
    for path in candidates:
        if not os.access(path, os.X_OK):
            problems.append(f"{path}: not there")
            continue
        try:
            _try_out(path)
        except Exception as error:
            problems.append(f"{path}: {error}")
            continue
        return path, ""
    return None, "no CRIU that works here (" + "; ".join(problems) + ")"


def _try_out(criu: Path) -> None:
    """Dump and restore something: `criu check` and the version do not tell whether the kernel's
    vdso, say, is one that this CRIU understands."""
    with ram_directory() as directory:
        workload = Workload("secret", Path(directory) / "work", make_needles())
        try:
            plain_dump(criu, workload, Path(directory) / "images")
            plain_restore(criu, Path(directory) / "images")
            workload.assert_continues(workload.start)
        finally:
            workload.close()


def find_criu() -> Path | None:
    """A CRIU that works here: SEALPOINT_CRIU, else the project's private one, else PATH's."""
    return _probe()[0]


def criu_problem() -> str:
    """Why find_criu() found none."""
    return _probe()[1]
