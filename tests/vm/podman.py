"""podman with real containers, in the virtual machine.

A container is one static busybox with three processes. Its shell counts, and compares a part of its memory with a copy;
secrets are in five places. It is looked into from outside, through /proc, so nothing runs in it but itself.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import secrets
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.real import leaks

TIMEOUT = 300.0  # the processor is emulated, and the machine below may be busy
PLACES = ("env", "heap", "pipe", "unlinked", "shm")
"""Secrets: the environment, memory, a pipe, a file without a name, a file in a tmpfs mount."""
STORAGE = Path("/var/lib/containers")
IMAGE = "localhost/sealpoint-test:latest"
# podman's defaults are made for systemd, which is not in the machine.
GLOBAL = ("--cgroup-manager=cgroupfs", "--events-backend=file")

# Nothing sleeps in it: busybox's `sleep` ends where it is interrupted, and so it is by a restore.
_INIT = """\
mkfifo /in /tick /wait
exec 6<>/tick 7<>/in
read heap pipe unlinked <&7
big=$heap
while [ ${#big} -lt 20000 ]; do big=$big$big; done
copy=$big
exec 5<>/tmp/unlinked
echo $unlinked >&5
rm /tmp/unlinked
( echo $pipe; exec cat <>/wait ) | cat /wait &
i=0
while :; do
  i=$((i+1))
  if [ $big = $copy ] && [ ${#big} -ge 20000 ]; then s=ok; else s=BAD; fi
  echo $i $s >/status
  read -t 0.05 x <&6
done
"""


@dataclass
class Ran:
    """How a call of podman ended, with all that it printed."""

    code: int
    said: str

    log: str = ""
    """The end of CRIU's log, where podman takes it away with a container that was not restored."""

    def ok(self) -> str:
        assert self.code == 0, f"podman ended with {self.code}:\n{self.said}\n{self.log}"
        return self.said


class _LogKeeper:
    """Holds CRIU's logs of that name open, of all containers: podman may have removed them when they are needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._files: dict[tuple[int, int], io.BufferedReader] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        started = time.time()
        while not self._end.wait(0.1):
            for path in STORAGE.glob(f"storage/overlay-containers/*/userdata/{self._name}"):
                with contextlib.suppress(OSError):
                    info = path.stat()
                    key = (info.st_dev, info.st_ino)
                    if info.st_mtime >= started - 1 and key not in self._files:
                        self._files[key] = path.open("rb")

    def text(self, lines: int = 60) -> str:
        """The last lines of each."""
        parts = []
        for file in self._files.values():
            with file:
                parts += file.read().decode(errors="replace").splitlines()[-lines:]
        self._files.clear()
        return "\n".join(parts)


def podman(*arguments: object, environment: Mapping[str, str] | None = None) -> Ran:
    """Its output goes into a file: conmon and the container would keep a pipe open."""
    output = Path(f"/run/podman-output-{secrets.token_hex(4)}")
    try:
        with output.open("wb") as out:
            done = subprocess.run(
                ["podman", *GLOBAL, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(os.environ if environment is None else environment),
                timeout=TIMEOUT,
            )
        return Ran(done.returncode, output.read_text(errors="replace").strip())
    finally:
        output.unlink()


def import_image(directory: Path) -> str:
    """Makes the image and returns its name."""
    file = directory / "image.tar"
    with tarfile.open(file, "w") as tar:
        add_image(tar)
    podman("import", "--change", 'CMD ["/bin/sh", "/init"]', file, IMAGE).ok()
    return IMAGE


def add_image(tar: tarfile.TarFile) -> None:
    """The files of the image."""
    for name in ("bin", "dev", "etc", "proc", "run", "secret", "sys", "tmp"):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    tar.add("/bin/busybox", "bin/busybox")
    for name in ("cat", "mkfifo", "rm", "sh", "sleep"):
        entry = tarfile.TarInfo(f"bin/{name}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(entry)
    entry = tarfile.TarInfo("init")
    entry.size = len(_INIT)
    tar.addfile(entry, io.BytesIO(_INIT.encode()))


class View:
    """A container that runs the image, seen from outside, whatever its engine. The secret is in its environment."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def processes(self) -> list[int]:
        """Pids of its processes, its init's first; known by the secret in their environment."""
        mark = b"SECRET=" + self._secret
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, StopIteration):
                    if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        status = Path(f"/proc/{entry}/status").read_text().splitlines()
                        inside = next(line for line in status if line.startswith("NSpid:"))
                        if (
                            len(inside.split()) > 2
                        ):  # podman and conmon may have it too, for a moment
                            found[int(entry)] = int(inside.split()[-1])
        return sorted(found, key=lambda pid: found[pid])

    def path(self, inside: str) -> Path:
        """The path from outside; while it runs only."""
        return Path(f"/proc/{self.processes()[0]}/root{inside}")

    def count(self) -> int:
        """How far it has counted; its memory must be intact."""

        def words() -> Sequence[str]:  # the file is empty for a moment, each time
            with contextlib.suppress(OSError):
                found = self.path("/status").read_text().split()
                return found if len(found) == 2 else ()
            return ()

        number, state = _wait(words, "the container counts")
        assert state == "ok"
        return int(number)

    def assert_counts(self) -> int:
        """It runs, and its memory is intact; the number it has got to."""
        first = self.count()
        return _wait(lambda: max(self.count() - first - 1, 0), "the container counts on") + first


class Container(View):
    """A running container; its secrets are in place when the constructor returns."""

    def __init__(
        self, runtime: str, image: str, needles: Mapping[str, bytes], *options: str
    ) -> None:
        self.name = f"sealtest-{secrets.token_hex(4)}"
        self.runtime = runtime
        super().__init__(needles["env"])
        self.needles = {name: needles[name] for name in PLACES}
        if not any(option.startswith("--network") for option in options):
            options = ("--network=none", *options)
        try:
            self.podman(
                "run", "--detach", "--name", self.name, "--tmpfs", "/secret",
                "--env", f"SECRET={self.needles['env'].decode()}", *options, image,
            ).ok()  # fmt: skip
            self._plant()
        except BaseException:
            self.remove()
            raise

    def podman(
        self, command: str, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> Ran:
        """`podman COMMAND ...` with the container's own runtime; COMMAND may be of several words."""
        words = ("--runtime", self.runtime, *command.split(), *arguments)
        return podman(*words, environment=environment)

    def _plant(self) -> None:
        _wait(lambda: self.processes() and self.path("/in").is_fifo(), "the container has started")
        words = [self.needles[name] for name in ("heap", "pipe", "unlinked")]
        self.path("/in").write_bytes(b" ".join(words) + b"\n")
        # Among so many random bytes that a compressor stores it as it is.
        random = os.urandom(100_000)
        self.contents = random + self.needles["shm"] + random[::-1]
        self.path("/secret/file").write_bytes(self.contents)
        _wait(lambda: len(self.processes()) == 3, "the container has its three processes")
        self.assert_counts()

    def plant_in_network(self) -> None:
        """An address and a table of packet filter rules in its network namespace."""
        self.address = ipaddress.IPv6Address(b"\xfd" + secrets.token_bytes(15))
        self.table = f"table_{secrets.token_hex(12)}"
        self._in_network("ip", "addr", "add", f"{self.address}/128", "dev", "lo")
        self._in_network("nft", "add", "table", "inet", self.table)

    def network_needles(self) -> dict[str, bytes]:
        """What `plant_in_network` planted, as it stands in memory and in text."""
        return {
            "address": self.address.packed,
            "address text": str(self.address).encode(),
            "table": self.table.encode(),
        }

    def assert_network(self) -> None:
        """What `plant_in_network` planted is there."""
        assert str(self.address) in self._in_network("ip", "-6", "addr", "show", "dev", "lo")
        assert self.table in self._in_network("nft", "list", "tables")

    def network_lock(self) -> str:
        """The packet filter's rules in its network namespace if CRIU's lock, of either kind, is among them."""
        rules = self._in_network("nft", "list", "ruleset")
        return rules if "CRIU" in rules else ""

    def _in_network(self, *command: str) -> str:
        words = ["nsenter", "--target", str(self.processes()[0]), "--net", *command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    # Its life

    def checkpoint(self, *options: object, environment: Mapping[str, str] | None = None) -> Ran:
        return self.podman("container checkpoint", *options, self.name, environment=environment)

    def restore(self, *options: object, environment: Mapping[str, str] | None = None) -> Ran:
        """From what podman kept; for an archive `restore_archive`."""
        return self.podman("container restore", *options, self.name, environment=environment)

    def restore_archive(
        self, file: Path, *options: object, environment: Mapping[str, str] | None = None
    ) -> Ran:
        """The container must be removed before: it keeps its name."""
        with _LogKeeper("restore.log") as keeper:
            ran = self.podman(
                "container restore", "--import", file, *options, environment=environment
            )
        ran.log = keeper.text()
        return ran

    def remove(self) -> None:
        """With everything of it; nothing happens if it is gone already."""
        for pid in self.processes()[:1]:  # faster than podman's own way, which asks it to end first
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.podman("rm", "--force", "--ignore", "--time=0", self.name).ok()
        _wait(lambda: not self.processes(), "the container has ended")

    # What is in it

    def assert_whole(self, since: int) -> None:
        """It counts on from `since`, has three processes, and everything that it held is there."""
        assert self.assert_counts() > since
        init, *others = self.processes()
        assert len(others) == 2
        assert self.path("/secret/file").read_bytes() == self.contents
        assert Path(f"/proc/{init}/fd/5").read_bytes().strip() == self.needles["unlinked"]
        assert self.needles["pipe"] in {_piped(pid) for pid in others}


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


def _wait(condition, what: str, timeout: float = 120.0):
    """Poll until `condition()` is true, and return it."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)
    return result


def program(pid: int) -> str:
    """Name of the file that a process runs; of a script its interpreter's."""
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    except OSError:
        return ""


def found_in(file: Path, needles: Mapping[str, bytes]) -> set[str]:
    """Names of the secrets that are in a file as they are."""
    data = file.read_bytes()
    return {name for name, needle in needles.items() if needle in data}


def leaked(watcher: leaks.FileWatcher) -> set[tuple[str, str]]:
    """(name of a file, secret in it), but for the container's own.

    That is the file without a name, which it closes in its end and which CRIU has to make again, and its /dev/shm.
    """
    own = ("/tmp/unlinked", "/userdata/shm/secret")
    return {
        (Path(leak.path).name, leak.needle)
        for leak in watcher.leaks()
        if not leak.path.startswith(own[0]) and not leak.path.endswith(own[1])
    }


# What podman keeps of every container, from the day that it is made: its settings, and so its environment.
KEPT = {(name, "env") for name in ("db.sql", "db.sql-wal", "db.sql-journal", "config.json")}
