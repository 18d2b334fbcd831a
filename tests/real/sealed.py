"""Runs the real `sealpoint` command on real processes, and finds whatever a command leaves behind.

Everything that a command starts inherits a mark in its environment, so that stray processes can be told from others';
it gets a temporary directory and a home of its own, so that files can, too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.real import harness

SEALPOINT = (str(harness.ROOT / ".venv" / "bin" / "sealpoint"),)
if not os.access(SEALPOINT[0], os.X_OK):
    SEALPOINT = (sys.executable, "-c", "from sealpoint.cli import main; main()")
MARK = "SEALTEST_MARK"
TIMEOUT = float(os.environ.get("SEALPOINT_TEST_TIMEOUT", "60"))  # seconds for one command
_NO_DEFAULTS = """
recipients = []
metadata_recipients = []
signer = ""
identities = []
trust = []
compress = ""
suite = ""
criu = ""
"""

# Directories of the project's tests, demonstration and benchmark; CRIU's own record of what the kernel can do, and what
# it makes for containers, which are the affair of others.
_OTHERS = ("sealpoint-", "criu.kdat", ".criu.mntns.", ".criu.move_mount_set_group.")


def wait_until(condition: Callable[[], object], what: str, timeout: float = TIMEOUT):
    """Poll until `condition()` is true, and return it."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.002)
    return result


@dataclass
class Keys:
    """What `sealpoint keygen` made in a directory."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / name)

    @property
    def seal(self) -> list[str]:
        """Options that seal."""
        return ["-r", self.path("recipient.pub"), "--sign", self.path("signer.key")]

    @property
    def open(self) -> list[str]:
        """Options that open what `seal` sealed."""
        return ["-i", self.path("identity.key"), "--trust", self.path("signer.pub")]

    @property
    def secrets(self) -> list[bytes]:
        """Pieces of all private keys as they stand in their files."""
        return [
            line
            for path in sorted(self.directory.rglob("*.key"))
            for line in path.read_bytes().splitlines()
            if len(line) >= 24 and not line.startswith((b"#", b"-----"))
        ]


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    def ok(self) -> Result:
        assert self.code == 0, self
        return self

    def fails(self, code: int, *words: str) -> Result:
        """It ended with `code`, and its message has all the words; no traceback, no defect."""
        assert self.code == code, self
        assert self.err.startswith("sealpoint: "), self
        assert "Traceback" not in self.err, self
        assert "internal error" not in self.err, self
        for word in words:
            assert word in self.err, (word, self)
        return self


@dataclass
class Running:
    """A command that runs."""

    process: subprocess.Popen
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout: float = TIMEOUT) -> Result:
        code = self.process.wait(timeout)
        out = self.out.read_bytes() if self.out.exists() else b""
        return Result(code, out, self.err.read_text())

    def signal(self, number: int, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def notices(self, number: int) -> None:
        """Send a signal that it handles, and wait until one of its threads has got it."""
        self.signal(number)
        mask = 1 << (number - 1)

        def got() -> bool:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            pending = [line.split()[1] for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
            return not any(int(word, 16) & mask for word in pending)

        wait_until(got, "the signal has arrived")

    def criu(self) -> int:
        """The CRIU that it runs, once it does."""

        def find():
            assert self.process.poll() is None, ("it has ended", self.wait())
            for pid in children(self.pid):
                with contextlib.suppress(OSError):
                    if b"--no-default-config" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return pid
            return None

        return wait_until(find, "CRIU runs")


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def described(pid: int) -> dict[str, str]:
    """What a process is, and what it waits for: why a test found it where there should be none."""
    told = {"pid": str(pid)}
    for name in ("cmdline", "wchan", "syscall", "stack", "status"):
        with contextlib.suppress(OSError):
            told[name] = Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")[:600]
    with contextlib.suppress(OSError):
        told["log"] = Path(f"/proc/{pid}/cwd/criu.log").read_text(errors="replace")[-2000:]
    return told


class Sealpoint:
    """Runs `sealpoint`; `directory` is for what belongs to it (home, temporary files, what it prints)."""

    def __init__(self, directory: Path, criu: Path) -> None:
        self.mark = secrets.token_hex(16)
        self.directory = directory
        self._started: list[Running] = []
        self.temporary = directory / "tmp"
        self.temporary.mkdir(parents=True)
        # Settings of the machine must not help, nor disturb: these are read after them.
        (directory / "home" / ".config" / "sealpoint").mkdir(parents=True)
        (directory / "home" / ".config" / "sealpoint" / "config.toml").write_text(
            f'{_NO_DEFAULTS}state = "{directory}/state"\n'
        )
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            "HOME": str(directory / "home"),
            "TMPDIR": str(self.temporary),
            "SEALPOINT_CRIU": str(criu),
            MARK: self.mark,
        }
        self._before = self._places()

    def start(
        self,
        *arguments: str | Path,
        stdin: int | None = None,
        stdout: int | None = None,
        **environment: str,
    ) -> Running:
        """In a process group of its own, as a shell would run it."""
        number = len(self._started)
        out, err = self.directory / f"{number}.out", self.directory / f"{number}.err"
        with contextlib.ExitStack() as files:
            process = subprocess.Popen(
                [*SEALPOINT, *map(str, arguments)],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=files.enter_context(open(out, "wb")) if stdout is None else stdout,
                stderr=files.enter_context(open(err, "wb")),
                env=self.environment | environment,
                process_group=0,
            )
        self._started.append(Running(process, out, err))
        return self._started[-1]

    def run(self, *arguments: str | Path, timeout: float = TIMEOUT, **more) -> Result:
        return self.start(*arguments, **more).wait(timeout)

    def said(self) -> bytes:
        """All that commands wrote to standard output and standard error."""
        files = [f for running in self._started for f in (running.out, running.err)]
        return b"".join(f.read_bytes() for f in files if f.exists())

    # What is left

    def processes(self) -> list[int]:
        """Live processes that a command started and that have not become something else: CRIU, its hooks."""
        return harness.processes_with(f"{MARK}={self.mark}")

    def reap(self) -> None:
        """Take the exit status of orphans that came to us; not of what is a Popen's or a workload's."""
        known = {running.pid for running in self._started}
        for pid in children(os.getpid()):
            if pid not in known and harness.process_state(pid) == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def settle(self) -> None:
        """Wait until nothing runs that a command started."""
        for running in self._started:
            running.process.wait(TIMEOUT)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.processes(), "all has ended", 30)
        self.reap()
        assert self.processes() == [], [described(pid) for pid in self.processes()]

    def _places(self) -> set[str]:
        places = {
            f"{directory}/{name}"
            for directory in ("/tmp", "/var/tmp", "/run", "/dev/shm")
            for name in os.listdir(directory)
            if any(word in name for word in ("sealpoint", "criu", "streamer", ".partial"))
            and not name.startswith(_OTHERS)
            and (directory, name)
            != ("/run", "sealpoint")  # locks, which stays; what is in it does not
        }
        places |= {str(path) for path in Path("/run/sealpoint").glob("*/*")}
        for line in Path("/proc/self/mounts").read_text().splitlines():
            point = line.split()[1]
            if point.startswith((str(self.directory), "/proc/", "/dev/shm/", "/run/")):
                places.add(f"mount {point}")
        return places

    def left(self) -> list[str]:
        """Files and mounts that commands left where nobody asked for any.

        What is there only for a moment may be of another CRIU that runs at the same time.
        """
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self._left(), "nothing is left", 10)
        return self._left()

    def _left(self) -> list[str]:
        home = {p for p in (self.directory / "home").rglob("*") if p.is_file()}
        home.remove(self.directory / "home" / ".config" / "sealpoint" / "config.toml")
        mine = {str(p) for p in (*self.temporary.rglob("*"), *home)}
        return sorted(mine | (self._places() - self._before))

    def close(self) -> None:
        for running in self._started:
            if running.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
                running.process.wait(TIMEOUT)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.reap()


@dataclass
class Sink:
    """The reading end of a pipe, for `-o -`: it takes what the test says, when it says so."""

    taken: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def connected(self) -> None:
        """The command has the writing end now; without ours, its end can be seen."""
        os.close(self.writer)
        self.writer = -1

    def take(self, size: int | None = None) -> bytes:
        """Until `size` bytes were taken in all, or to the end."""
        while size is None or len(self.taken) < size:
            if not select.select([self.reader], [], [], TIMEOUT)[0]:
                raise TimeoutError(f"only {len(self.taken)} bytes came")
            piece = os.read(self.reader, 1 << 16)
            if not piece:
                break
            self.taken += piece
        return bytes(self.taken)

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)
        self.reader = self.writer = -1


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    made = Sink()
    try:
        yield made
    finally:
        made.close()


MIDDLE = 256 * 1024
"""So much of a sealed stream holds the header and the first pages: the tree is frozen then, CRIU in the middle."""


@contextlib.contextmanager
def stalled_dump(
    sealpoint: Sealpoint, keys: Keys, workload: harness.Workload, *options: str, stdin=None
) -> Iterator[tuple[Running, Sink]]:
    """A dump to standard output that is in its middle and cannot get on: nobody reads any more."""
    with sink() as target:
        running = sealpoint.start(
            "dump", "-t", str(workload.pid), "-o", "-", "--compress", "none", *keys.seal, *options,
            stdin=stdin, stdout=target.writer,
        )  # fmt: skip
        target.connected()
        target.take(MIDDLE)
        yield running, target


# --- stand-ins for CRIU and its hooks ----------------------------------------------------------------


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def pretended_criu(directory: Path, body: str, version: str = "4.1.1") -> Path:
    """An executable that says it is CRIU and does `body`; in it `$work` is CRIU's work directory."""
    find = 'for word; do [ "$last" = -W ] && work=$word; last=$word; done'
    answer = f'[ "$1" = --version ] && {{ echo "Version: {version}"; exit 0; }}'
    return script(directory / "pretended-criu", f"{answer}\n{find}\n{body}")


@dataclass
class Hold:
    """Something that waits at a certain point until the test lets it go on."""

    directory: Path
    path: Path

    @classmethod
    def criu(cls, directory: Path, criu: Path) -> Hold:
        """A CRIU that waits before it does anything."""
        wait = cls._wait(directory)
        body = f'[ "$1" = --version ] || {{ {wait}; }}\nexec {criu} "$@"'
        return cls(directory, script(directory / "held-criu", body))

    @classmethod
    def action(cls, directory: Path, action: str) -> Hold:
        """An action script for CRIU that waits at `action`."""
        body = f'[ "$CRTOOLS_SCRIPT_ACTION" = {action} ] || exit 0\n{cls._wait(directory)}'
        return cls(directory, script(directory / "held-action", body))

    @staticmethod
    def _wait(directory: Path) -> str:
        return f"touch {directory}/reached; while [ ! -e {directory}/go ]; do sleep 0.01; done"

    def reached(self) -> None:
        wait_until((self.directory / "reached").exists, f"{self.path} was reached")

    def go(self) -> None:
        (self.directory / "go").touch()


@contextlib.contextmanager
def small_filesystem(point: Path, options: str) -> Iterator[Path]:
    """A tmpfs of the test's own, mounted at `point`."""
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def run_plainly(command: list[str], environment: dict[str, str]) -> Result:
    """Any command line."""
    done = subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT)
    return Result(done.returncode, done.stdout, done.stderr.decode())
