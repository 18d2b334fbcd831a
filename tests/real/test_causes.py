"""Each failure is a real one of a real CRIU: the error names its cause, in CRIU's words, and what to do about it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.real import harness, sealed

pytestmark = pytest.mark.criu
FILE = 'f = open("data", "w"); f.write("12345"); f.flush()'


class Process:
    """A process that does what a test says, in a directory of the test's."""

    def __init__(self, code: str, directory: Path, *, session: bool, stdin: int) -> None:
        ready = directory / "ready"
        text = textwrap.dedent(code) + f"\nopen({str(ready)!r}, 'w').close()"
        text += "\nimport time\nwhile True: time.sleep(1)"
        harness.become_subreaper()
        with (directory / "stderr").open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", text],
                cwd=directory,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=session,
            )
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert self.process.poll() is None, (directory / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)  # its children, too
        self.process.kill()
        self.process.wait()


class Case(NamedTuple):
    code: str
    cause: str
    hint: str
    session: bool = True
    terminal: bool = False


DUMPS = {
    "a process that does not lead its session": Case(
        "pass", "session leader", "--shell-job", session=False
    ),
    "a terminal of somebody else": Case(
        "pass", "Found slave peer index", "--shell-job", terminal=True
    ),
    "a file lock": Case(
        'import fcntl; f = open("data", "w"); fcntl.flock(f, fcntl.LOCK_EX)',
        "Some file locks are hold",
        "-- --file-locks",
    ),
    "a file that lives on under another name": Case(
        'import os; f = open("data", "w"); os.link("data", "other"); os.unlink("data")',
        "Can't create link remap for",
        "-- --link-remap",
    ),
    "a large deleted file": Case(
        'import os; f = open("data", "w"); f.write("x" * (2 << 20)); f.flush(); os.unlink("data")',
        "Can't dump ghost file",
        "--ghost-limit",
    ),
    "System V shared memory of the host": Case(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        number = libc.shmget(0, 65536, 0o1600)
        libc.shmat.restype = ctypes.c_void_p
        libc.shmat(number, None, 0)
        libc.shmctl(number, 0, None)
        """,
        "doesn't live in IPC ns",
        "unshare --ipc",
    ),
    "a descriptor of userfaultfd": Case(
        "import ctypes; assert ctypes.CDLL(None).syscall(323, 0) >= 0",
        "Can't dump file 3 of that type",
        "cannot dump this kind of descriptor",
    ),
    "a device": Case(
        'import os; os.open("/dev/fuse", os.O_RDWR)',
        "chr 10:229",
        "cannot dump this kind of descriptor",
    ),
    "secret memory": Case(
        "import ctypes; assert ctypes.CDLL(None).syscall(447, 0) >= 0",
        "/secretmem",
        "secret memory",
    ),
    "a ring of io_uring": Case(
        "import ctypes; assert ctypes.CDLL(None).syscall(425, 4, (ctypes.c_char * 256)()) >= 0",
        "Can't retrieve FDs",
        "io_uring",
    ),
    "a child that is traced": Case(
        """
        import ctypes, os, time
        child = os.fork()
        while child == 0:
            time.sleep(1)
        assert ctypes.CDLL(None).ptrace(0x4206, child, 0, 0) == 0
        """,
        "Unseizable non-zombie",
        "debugger",
    ),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[[Case], Process]]:
    running: list[Process] = []
    descriptors: list[int] = []

    def run(case: Case) -> Process:
        stdin = subprocess.DEVNULL
        if case.terminal:
            descriptors.extend(os.openpty())
            stdin = descriptors[1]
        running.append(Process(case.code, directory, session=case.session, stdin=stdin))
        return running[-1]

    yield run
    for process in running:
        process.end()
    for fd in descriptors:
        os.close(fd)


@pytest.mark.parametrize("name", DUMPS)
def test_a_dump_says_why_it_failed(
    name: str,
    start: Callable[[Case], Process],
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
) -> None:
    case = DUMPS[name]
    process = start(case)
    sealpoint.run("dump", "-t", process.pid, "-o", out, *keys.seal).fails(7, case.cause, case.hint)
    assert process.process.poll() is None
    assert not out.exists()


def _unlink(directory: Path) -> None:
    (directory / "data").unlink()


def _append(directory: Path) -> None:
    with (directory / "program").open("a") as file:
        file.write("x")


RESTORES: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "a file of another size": (
        FILE,
        lambda d: (d / "data").write_text("1234567890"),
        "data has bad size 10 (expect 5)",
        "has changed since the dump",
    ),
    "a file that is gone": (FILE, _unlink, "Can't open file", "before you restore"),
    "a file of another mode": (
        FILE,
        lambda d: (d / "data").chmod(0o640),
        "has bad mode",
        "permissions",
    ),
    "a working directory that is gone": (
        'import os; os.mkdir("sub"); os.chdir("sub")',
        lambda d: (d / "sub").rmdir(),
        "/sub on restore",
        "before you restore",
    ),
    "a mapped file that is gone": (
        """
        import mmap
        f = open("data", "w+b")
        f.write(b"x" * 8192)
        f.flush()
        m = mmap.mmap(f.fileno(), 8192)
        f.close()
        """,
        _unlink,
        "Can't open file",
        "before you restore",
    ),
    "a FIFO that is gone": (
        'import os; os.mkfifo("data"); os.open("data", os.O_RDWR)',
        _unlink,
        "Can't open fake fifo",
        "before you restore",
    ),
    "a watched directory that is gone": (
        """
        import ctypes, os
        os.mkdir("sub")
        libc = ctypes.CDLL(None)
        libc.inotify_add_watch(libc.inotify_init(), b"sub", 2)
        """,
        lambda d: (d / "sub").rmdir(),
        "fsnotify: Unable to open",
        "before you restore",
    ),
    "a program that has changed": (
        """
        import os, shutil
        shutil.copy(os.path.realpath("/bin/sleep"), "program")
        open("ready", "w").close()
        os.execv("./program", ["program", "1000"])
        """,
        _append,
        "program has bad size",
        "has changed since the dump",
    ),
}


@pytest.mark.parametrize("name", RESTORES)
def test_a_restore_says_why_it_failed(
    name: str,
    start: Callable[[Case], Process],
    directory: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
) -> None:
    code, change, cause, hint = RESTORES[name]
    process = start(Case(code, cause, hint))
    sealpoint.run("dump", "-t", process.pid, "-o", out, *keys.seal).ok()
    process.end()
    change(directory)
    sealpoint.run("restore", out, "-d", *keys.open).fails(7, cause, hint)


def test_a_restore_says_that_its_pid_is_taken(
    start: Callable[[Case], Process], sealpoint: sealed.Sealpoint, keys: sealed.Keys, out: Path
) -> None:
    process = start(Case("pass", "", ""))
    sealpoint.run("dump", "-t", process.pid, "-o", out, *keys.seal, "--leave-running").ok()
    sealpoint.run("restore", out, "-d", *keys.open).fails(
        7, f"Can't fork for {process.pid}: File exists", "another process has that pid"
    )
    assert process.process.poll() is None


def test_what_follows_from_the_cause_is_not_repeated(
    start: Callable[[Case], Process],
    directory: Path,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
) -> None:
    process = start(Case(FILE, "", ""))
    sealpoint.run("dump", "-t", process.pid, "-o", out, *keys.seal).ok()
    process.end()
    shutil.move(directory / "data", directory / "elsewhere")
    done = sealpoint.run("restore", out, "-d", *keys.open)
    assert "Unable to open fd" not in done.err
    assert "FAILED" not in done.err


def test_a_killed_criu_has_no_cause(
    start: Callable[[Case], Process],
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    tmp_path: Path,
) -> None:
    process = start(Case("pass", "", ""))
    criu = sealed.pretended_criu(tmp_path, "kill -9 $$")
    done = sealpoint.run("dump", "-t", process.pid, "-o", out, "--criu", criu, *keys.seal)
    done.fails(7, f"was killed by signal {int(signal.SIGKILL)}", "--criu-log")
