"""A host of a test's own: a root directory in memory, its first process, and daemons in its namespaces.

Programs come from this machine's /usr.  What is a stand-in: a daemon is `sleep` by another name, with the PATH that a
test gives it, and a file in place of /proc/PID/cgroup says which systemd service it is in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 120
SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
_MAKE = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$0"
cd "$0"
mkdir -p dev etc/systemd/system opt proc rt run/systemd/system tmp usr var
mount --rbind /usr usr
for name in bin lib lib32 lib64 libx32 sbin; do
    if [ -L "/$name" ]; then ln -s "usr/$name" "$name"; fi
done
mount -t proc proc proc
mknod -m 600 dev/fuse c 10 229
mknod -m 666 dev/null c 1 3
cp /usr/bin/sleep rt/containerd
cp /usr/bin/sleep rt/containerd-shim
cp /usr/bin/sleep rt/crio
echo ready
exec chroot . /usr/bin/sleep infinity
"""
# What the command does, with a small bundle in place of the one that it would run from.
COMMAND = """
import sys
from sealpoint.node import bundle
path = sys.argv.pop(1)
bundle.own = lambda: bundle.read(path)
from sealpoint.cli import main
{before}
main()
"""


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


class OwnHost:
    """root: where the host's root directory is, in its mount namespace; bundle: what is installed."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "host"
        self.bundle = directory / "bundle"
        self.directory = directory
        self.root.mkdir(parents=True)
        make_bundle(self.bundle)
        self._holder = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--propagation", "private",
             "sh", "-c", _MAKE, str(self.root)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.ready = self._holder.stdout.readline() == b"ready\n"
        self.problem = "" if self.ready else self._holder.stderr.read().decode()
        self._daemons: list[subprocess.Popen] = []
        if self.ready:
            children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
            self.first = int(children.read_text().split()[0])
            wait_for(lambda: self.inside("/proc/1/comm").read_text() == "sleep\n")

    def inside(self, path: str) -> Path:
        """A path of the host's, seen from here.  Links in it must be relative."""
        return Path(f"/proc/{self.first}/root{path}")

    def enter(self, *arguments: object) -> list[str]:
        place = f"/proc/{self.first}/ns"
        return [
            *("nsenter", f"--mount={place}/mnt", f"--pid={place}/pid", "--"),
            *map(str, arguments),
        ]

    def run(self, *arguments: object) -> Done:
        """In the host's namespaces, with this machine's root directory."""
        done = subprocess.run(
            self.enter(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=TIMEOUT,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def shell(self, script: str) -> str:
        """On the host."""
        done = self.run("chroot", self.root, "/usr/bin/sh", "-c", script)
        assert done.code == 0, done.err
        return done.out

    def node(self, *arguments: object, before: str = "") -> Done:
        """`sealpoint node`, in a mount namespace that a container has."""
        command = (sys.executable, "-c", COMMAND.format(before=before), self.bundle, "node")
        return self.run("unshare", "--mount", *command, *arguments, "--host", self.root)

    def installed(self) -> Done:
        done = self.node("install", "--json")
        assert done.code == 0, done.err
        return done

    def start(self, *arguments: object, **options) -> subprocess.Popen:
        """A process in the host's namespaces, which ends with the test."""
        started = subprocess.Popen(
            self.enter(*arguments), stdin=subprocess.DEVNULL, start_new_session=True, **options
        )
        self._daemons.append(started)
        return started

    def daemon(
        self, name: str, path: str, unit: str = "", *, wrapper: tuple[str, ...] = ()
    ) -> subprocess.Popen:
        """A process of that name with that PATH; unit: the service that it is in."""
        command = ("env", "-i", f"PATH={path}", f"/rt/{name}", "infinity")
        started = self.start(*wrapper, "chroot", self.root, *command)
        wait_for(lambda: _name_of(started.pid) or _child(started.pid))
        wait_for(lambda: name[:15] in (_name_of(started.pid), _name_of(_child(started.pid))))
        if unit:
            number = self.pid_of(name)
            text = self.directory / f"cgroup-{number}"
            text.write_text(f"0::/../../system.slice/{unit}\n")
            assert self.run("mount", "--bind", text, self.root / f"proc/{number}/cgroup").code == 0
        return started

    def pid_of(self, name: str) -> int:
        """Of the newest process of that name, as the host numbers it."""
        entries = [p for p in self.inside("/proc").iterdir() if p.name.isdigit()]
        return max(int(p.name) for p in entries if _comm(p) == name[:15])

    def end(self, daemon: subprocess.Popen) -> None:
        os.killpg(daemon.pid, signal.SIGKILL)  # nsenter has a child, which would stay
        daemon.communicate()
        self._daemons.remove(daemon)

    def snapshot(self) -> dict[str, tuple]:
        """All that an installation could change on the host."""
        found = {}
        for top in ("/opt", "/etc", "/run", "/var", "/tmp"):
            base = self.inside(top)
            for path in [base, *sorted(base.rglob("*"))]:
                info = path.lstat()
                value = (info.st_mode, info.st_uid, info.st_gid)
                if path.is_symlink():
                    value += (os.readlink(path),)
                elif path.is_file():
                    value += (path.read_bytes(),)
                found[str(path.relative_to(self.inside("/")))] = value
        return found

    def close(self) -> None:
        for daemon in list(self._daemons):
            self.end(daemon)
        self._holder.kill()
        self._holder.communicate()


def make_bundle(directory: Path, text: str = "one") -> None:
    """Small, with every kind of thing that is in one: directories, programs, links of both kinds."""
    shutil.rmtree(directory, ignore_errors=True)
    for name in ("bin", "lib/start", "root/usr/lib"):
        (directory / name).mkdir(parents=True)
    (directory / ".sealpoint-bundle").write_text("0.1.0\n")
    (directory / "lib/start/sealpoint").write_text(f"{text}\n")
    shutil.copy("/usr/bin/sleep", directory / "bin" / "sealpoint")
    for name in ("python3", "criu"):
        os.link(directory / "bin" / "sealpoint", directory / "bin" / name)
    (directory / "lib/python3").symlink_to("../root/usr/lib")


def wait_for(what) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def _name_of(pid: int) -> str:
    return _comm(Path(f"/proc/{pid}")) if pid else ""


def _comm(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def _child(pid: int) -> int:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(words[0]) if words else 0
