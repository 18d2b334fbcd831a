"""Real containers: runc with a root file system that is one static busybox.

The container has three processes, secrets in five places and a shell that counts and compares its memory with a copy
of it, without starting further processes. It has no network namespace: not every machine has what runc wants for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.real import harness

TIMEOUT = 90.0
PACKAGES = {"runc": "runc", "busybox": "busybox-static"}
PLACES = ("env", "heap", "pipe", "unlinked", "shm")
"""Secrets: environment, memory, a pipe, a file without a name, a tmpfs mount (`shm`)."""

_INIT = """
exec 6<>/tick 7<>/in
read heap pipe unlinked <&7
big=$heap
while [ ${#big} -lt 20000 ]; do big=$big$big; done
copy=$big
exec 5<>/tmp/unlinked
echo $unlinked >&5
rm /tmp/unlinked
( echo $pipe; exec sleep 100000 ) | sleep 100000 &
i=0
while :; do
  i=$((i+1))
  if [ $big = $copy ] && [ ${#big} -ge 20000 ]; then s=ok; else s=BAD; fi
  echo $i $s >/secret/status
  read -t 0.02 x <&6
done
"""

_CAPABILITIES = ["CAP_KILL", "CAP_DAC_OVERRIDE"]
_MOUNTS = [
    ("/proc", "proc", "proc", []),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    ),
    ("/secret", "tmpfs", "tmpfs", ["nosuid", "mode=700", "size=65536k"]),
]


def missing_tools() -> str:
    """Installs what is missing, and says why that was not possible."""
    wanted = [package for name, package in PACKAGES.items() if not _find(name)]
    if not wanted:
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"needs {', '.join(wanted)}, and only root on Debian can install that"
    # Without what these recommend: Debian's own criu must not appear in PATH because of a test.
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *wanted]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for attempt in (command, ["apt-get", "update", "-q"], command):
        done = subprocess.run(attempt, env=environment, capture_output=True, timeout=300)
        if attempt is command and done.returncode == 0:
            return ""
    return f"cannot install {', '.join(wanted)}: {done.stderr.decode(errors='replace')[-300:]}"


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass
class Ran:
    """How a call of runc ended, with all that it printed."""

    code: int
    said: str


class Container:
    """One container; `run` starts it and waits until its secrets are in place."""

    def __init__(
        self, directory: Path, needles: Mapping[str, bytes], *, terminal: bool = False
    ) -> None:
        self.id = f"sealtest-{secrets.token_hex(6)}"
        self.needles = {name: needles[name] for name in PLACES}
        self.bundle = directory / "bundle"
        self.rootfs = self.bundle / "rootfs"
        self.state = directory / "state"
        self.work = directory / "work"
        self.terminal = terminal
        self.master = -1
        self._directory = directory
        self._output = directory / "runc.out"
        self._runc = _find("runc")
        self.work.mkdir(parents=True)
        self._make_bundle()

    def _make_bundle(self) -> None:
        for name in ("bin", "dev", "proc", "tmp", "secret"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(_find("busybox"), self.rootfs / "bin/busybox")
        for name in ("sh", "sleep", "rm"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        for name in ("in", "tick"):
            os.mkfifo(self.rootfs / name)
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": self.terminal,
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", _INIT],
                "env": ["PATH=/bin", f"SECRET={self.needles['env'].decode()}"],
                "cwd": "/",
                "capabilities": dict.fromkeys(
                    ("bounding", "effective", "permitted"), _CAPABILITIES
                ),
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs"},
            "hostname": "sealtest",
            "mounts": [
                {"destination": place, "type": kind, "source": source, "options": options}
                for place, kind, source, options in _MOUNTS
            ],
            "linux": {
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            },
        }
        (self.bundle / "config.json").write_text(json.dumps(config))

    # runc

    def runc(self, *arguments: object, environment: Mapping[str, str]) -> Ran:
        """Call runc. Its output goes into a file: the container keeps the descriptor."""
        with self._output.open("wb") as out:
            done = subprocess.run(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=self.bundle,
                timeout=TIMEOUT,
            )
        return Ran(done.returncode, self._output.read_text(errors="replace"))

    def command(self, *arguments: object) -> list[str]:
        return [self._runc, "--root", str(self.state), *map(str, arguments)]

    def detached(self, command: Sequence[object], environment: Mapping[str, str]) -> Ran:
        """`run` or `restore`, which leave the container behind; a terminal's other end comes here."""
        if not self.terminal:
            log = self._directory / "runc.log"
            log.write_text("")
            with open(os.devnull, "r+b") as null:  # the container keeps all three
                done = subprocess.run(
                    self.command("--log", log, *command, self.id),
                    stdin=null,
                    stdout=null,
                    stderr=null,
                    env=dict(environment),
                    cwd=self.bundle,
                    timeout=TIMEOUT,
                )
            return Ran(done.returncode, log.read_text())
        path = f"/tmp/{self.id}.sock"  # of limited length
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(1)
            server.settimeout(TIMEOUT)
            result = self.runc(*command, "--console-socket", path, self.id, environment=environment)
            if result.code == 0:
                connection, _ = server.accept()
                with connection:
                    _, [self.master, *_], _, _ = socket.recv_fds(connection, 100, 4)
        os.unlink(path)
        return result

    def run(self, environment: Mapping[str, str]) -> None:
        result = self.detached(["run", "-d"], environment)
        assert result.code == 0, result
        words = [self.needles[name] for name in ("heap", "pipe", "unlinked")]
        (self.rootfs / "in").write_bytes(b" ".join(words) + b"\n")
        self.assert_counts()
        # Among so many random bytes that the compressor of the dump's tar file stores it as it is.
        random = os.urandom(100_000)
        self.path("/secret/file").write_bytes(random + self.needles["shm"] + random[::-1])
        self.contents = self.path("/secret/file").read_bytes()
        deadline = time.monotonic() + 30
        while len(self.processes()) != 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.processes()) == 3

    def checkpoint(self, images: Path, environment: Mapping[str, str], *options: str) -> Ran:
        return self.runc(
            "checkpoint", "--image-path", images, "--work-path", self.work, *options, self.id,
            environment=environment,
        )  # fmt: skip

    def restore(self, images: Path, environment: Mapping[str, str], *options: str) -> Ran:
        self.release_terminal()
        self.runc("delete", self.id, environment=environment)
        command = ["restore", "-d", "--image-path", images, "--work-path", self.work, *options]
        return self.detached(command, environment)

    def release_terminal(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def forget(self) -> None:
        """Take away what a runc that was killed knows of it."""
        self._unmount()  # first: `runc delete` would empty the container's file system through it
        self.runc("delete", "-f", self.id, environment={"PATH": os.environ.get("PATH", os.defpath)})
        shutil.rmtree(self.state / self.id, ignore_errors=True)
        # What a killed CRIU has just made of the file without a name, and would have removed.
        for ghost in (self.rootfs / "tmp").glob("*.ghost"):
            ghost.unlink()

    def _unmount(self) -> None:
        """A runc that was killed leaves the mount on which it restores."""
        for point in reversed(self.mounts()):
            subprocess.run(["umount", "-l", point], check=True)

    def mounts(self) -> list[str]:
        """Mounts that somebody made in its directories."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [p for line in lines if (p := line.split()[4]).startswith(str(self._directory))]

    # What is in it

    def processes(self) -> list[int]:
        """Pids of all processes in its cgroups, its init first: whatever runc knows or has forgotten."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    groups = Path(f"/proc/{entry}/cgroup").read_text()
                    runs = harness.process_state(int(entry)) not in (None, "Z")
                    if runs and f"/{self.id}\n" in groups:
                        found.append(int(entry))
        return sorted(found, key=_pid_inside)

    def path(self, inside: str) -> Path:
        return Path(f"/proc/{self.processes()[0]}/root{inside}")

    def count(self) -> int:
        """How far it has counted; its memory must be intact."""
        # In its tmpfs: a file that is on disk must not change between a dump and a restore.
        deadline = time.monotonic() + 20
        while True:
            words = []
            with contextlib.suppress(OSError, IndexError):
                words = self.path("/secret/status").read_text().split()
            if len(words) == 2:
                assert words[1] == "ok"
                return int(words[0])
            assert time.monotonic() < deadline, (words, self.processes())
            time.sleep(0.005)

    def assert_counts(self) -> int:
        """It runs, and its memory is intact; the number it has got to."""
        first = self.count()
        deadline = time.monotonic() + 20
        while (now := self.count()) < first + 2:
            assert time.monotonic() < deadline, (first, now)
            time.sleep(0.005)
        return now

    def assert_whole(self, since: int) -> None:
        """It counts on from `since`, has three processes, and everything it held is there."""
        assert self.assert_counts() > since
        init, *others = self.processes()
        assert len(others) == 2, [Path(f"/proc/{p}/cmdline").read_bytes() for p in others]
        assert self.path("/secret/file").read_bytes() == self.contents
        assert Path(f"/proc/{init}/fd/5").read_bytes().strip() == self.needles["unlinked"]
        environment = Path(f"/proc/{init}/environ").read_bytes()
        assert self.needles["env"] in environment
        assert self.needles["pipe"] in {self._piped(pid) for pid in others}

    @staticmethod
    def _piped(pid: int) -> bytes:
        """What waits in a process's standard input, put back."""
        if not os.readlink(f"/proc/{pid}/fd/0").startswith("pipe:"):
            return b""
        fd = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NONBLOCK)
        try:
            data = os.read(fd, 1000)
            os.write(fd, data)
            return data.strip()
        except BlockingIOError:
            return b""
        finally:
            os.close(fd)

    def stopped(self) -> bool:
        return not self.processes()

    def kill(self) -> None:
        """End its processes, as the end of its machine would."""
        pids = self.processes()
        os.kill(pids[0], signal.SIGKILL)
        _await_end(pids)

    def close(self) -> None:
        self.release_terminal()
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        freezer = Path(f"/sys/fs/cgroup/freezer/{self.id}/freezer.state")
        with contextlib.suppress(OSError):
            freezer.write_text("THAWED")
        pids = self.processes()
        self._unmount()
        self.runc("delete", "-f", self.id, environment=environment)
        _await_end(pids)


def _pid_inside(pid: int) -> int:
    """Its number in its innermost pid namespace."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 1 << 30


def _await_end(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + 30
    while any(harness.process_state(p) not in (None, "Z") for p in pids):
        assert time.monotonic() < deadline, "the container cannot be ended"
        time.sleep(0.01)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # not ours
            os.waitpid(pid, os.WNOHANG)
