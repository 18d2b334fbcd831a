"""A tree in a user namespace (`tests/workloads/userns.c`), and strangers who want to read what is not theirs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.real import harness, sealed
from tests.tools import need

MANY = "0 100000 65536"
ONE = "0 100000 1"
OUTSIDE = 100000
"""The user that root of the namespace is outside of it."""

_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


def build(directory: Path) -> Path:
    """The program, without libraries: it runs in a root that holds nothing else."""
    (compiler,) = need("gcc|cc")
    program = directory / "userns"
    source = harness.WORKLOADS / "userns.c"
    subprocess.run([compiler, "-static", "-O1", "-o", program, source], check=True)
    return program


class Tree:
    """Three processes, with three user ids unless the map has only one.  base: a directory that it gets for itself."""

    def __init__(self, program: Path, base: Path, uid_map: str, secret: str) -> None:
        harness.become_subreaper()
        base.chmod(0o755)  # its own user has to get there
        self.secret = secret
        self.root = base / "root"
        for name in ("proc", "tmp"):
            (self.root / name).mkdir(parents=True)
        shutil.copy(program, self.root / "userns")
        command = [self.root / "userns", uid_map, secret, self.root]
        self.pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        sealed.wait_until(lambda: self._says("ready "), "all three have begun")
        self.users = self._users()
        self._asked = 0

    @property
    def options(self) -> list[str]:
        """For a dump and a restore as typed."""
        return ["--root", str(self.root)]

    def processes(self) -> list[int]:
        """Pids of all that live."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[:2] == [b"userns", b"inside"] and self.secret.encode() in words:
                    found.append(int(entry.name))
        return sorted(found)

    def _names(self) -> list[str]:
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/comm").read_text().rstrip("\n"))
        return found

    def _says(self, beginning: str) -> bool:
        names = self._names()
        return len(names) == 3 and all(name.startswith(beginning) for name in names)

    def _users(self) -> list[int]:
        return sorted(os.stat(f"/proc/{pid}").st_uid for pid in self.processes())

    def assert_intact(self) -> None:
        """Each looks at its memory, its ids and its tmpfs, and says that all is well."""
        assert len(self.processes()) == 3, self._names()
        self._asked += 1
        for pid in self.processes():
            os.kill(pid, signal.SIGUSR1)
        wanted = [f"ok {self._asked}"] * 3
        sealed.wait_until(
            lambda: self._names() == wanted or any("bad" in n for n in self._names()), "they answer"
        )
        assert self._names() == wanted
        assert self._users() == self.users

    def wait_gone(self) -> None:
        """After a dump that killed them."""
        sealed.wait_until(lambda: self.processes() == [], "all have ended")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def close(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        sealed.wait_until(lambda: self.processes() == [], "all have ended")


def outcome(call: Callable[[], object], become: Callable[[], None], uid_map: str = "") -> str:
    """What comes of a call in another process: "done", the name of an error, or how it died.

    become: makes it a stranger; uid_map: of a user namespace that it gets first.
    """
    (asks, entered), (goes, may_go) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 255
        faulthandler.disable()
        try:
            if uid_map:
                assert _libc.unshare(_CLONE_NEWUSER) == 0
                os.write(entered, b"x")
                os.read(goes, 1)
            become()
            call()
            status = 0
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    try:
        if uid_map:
            assert os.read(asks, 1) == b"x"
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text(uid_map)
            os.write(may_go, b"x")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        for fd in (asks, entered, goes, may_go):
            os.close(fd)
    if code < 0:
        return signal.Signals(-code).name
    return "done" if code == 0 else errno.errorcode.get(code, str(code))


def user(uid: int) -> Callable[[], None]:
    """Become that user altogether."""

    def become() -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    return become


def lent() -> None:
    """As a program of root's that somebody else has started: the kernel's checks of files take it for root."""
    os.setgroups([])
    os.setresuid(65534, 0, 0)


STRANGERS: dict[str, tuple[Callable[[], None], str]] = {
    "nobody": (user(65534), ""),
    "the user that the tree has outside": (user(OUTSIDE), ""),
    "root of another namespace with that map": (user(0), MANY),
    "another user of such a namespace": (user(2000), MANY),
    "a program of root's in the hands of nobody": (lent, ""),
}


def views(pids: Sequence[int]) -> Iterator[str]:
    """Paths in /proc by which root finds an images mount in use."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in [*(f"fd/{n}" for n in os.listdir(f"/proc/{pid}/fd")), "cwd", "root"]:
                path = f"/proc/{pid}/{name}"
                with contextlib.suppress(OSError):
                    if "pstree.img" in os.listdir(path):
                        yield path
