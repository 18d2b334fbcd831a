"""An engine as podman and runc look to sealpoint: it writes and reads an archive, and has CRIU work by its RPC.

It knows `container exists|inspect NAME`, `container checkpoint --export ARCHIVE NAME`, `container restore --import
ARCHIVE`, `stop ... NAME`, `wait NAME` and `rm ... NAME`.  A container is a directory with the archive's members; its
first process stands in `pid`.  What podman itself does is tested in tests/vm.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path

from tests.engines import rpc

SCRIPT = """#!{python} -I
import sys
sys.path.insert(0, {root!r})
from tests.podman import small_engine
sys.exit(small_engine.Engine({state!r}, {criu!r}).run(sys.argv[1:]))
"""


def install(path: Path, state: Path, criu: str = "") -> Path:
    """An executable at `path`.  criu: the one that it runs whatever PATH says."""
    root = str(Path(__file__).resolve().parents[2])
    path.write_text(SCRIPT.format(python=sys.executable, root=root, state=str(state), criu=criu))
    path.chmod(0o755)
    state.mkdir(exist_ok=True)
    return path


class Engine:
    """state: where its containers are."""

    def __init__(self, state: str, criu: str) -> None:
        self.state = Path(state)
        self.criu = criu

    def run(self, arguments: list[str]) -> int:
        if arguments[:2] == ["container", "exists"]:
            return 0 if (self.state / arguments[2]).exists() else 1
        if arguments[:2] == ["container", "restore"]:
            (archive,) = (a.partition("=")[2] or b for a, b in _pairs(arguments) if "--import" in a)
            return self._restore(archive)
        if arguments[:2] == ["container", "inspect"]:
            return self._inspect(arguments[2])
        if arguments[:2] == ["container", "checkpoint"]:
            archive = next(b for a, b in _pairs(arguments) if a == "--export")
            return self._checkpoint(arguments[-1], archive)
        if arguments[:1] == ["stop"]:
            os.kill(self._pid(arguments[-1]), signal.SIGKILL)
            return 0
        if arguments[:1] == ["wait"]:
            return 0
        if arguments[:1] == ["rm"]:
            return self._remove(arguments[-1])
        return 125

    def _restore(self, archive: str) -> int:
        with tarfile.open(archive) as tar:
            members = {m.name: m for m in tar}
            settings = Path(members["config.dump"].linkname)
            name = json.loads(settings.read_bytes())["name"]
            container = self.state / name
            container.mkdir()
            for member in members.values():
                os.symlink(member.linkname, container / member.name)
        work = self.state / f"{name}.work"
        work.mkdir(exist_ok=True)
        with (
            rpc.directory_descriptor(container / "checkpoint") as images,
            rpc.directory_descriptor(work) as directory,
            rpc.Client(Path(self.criu or shutil.which("criu")), os.environ) as client,
        ):
            options = {"images_dir_fd": images, "work_dir_fd": directory, "log_level": 4}
            reply = client.call(rpc.request(rpc.RESTORE, log_file="restore.log", **options))
        (container / "pid").write_text(str(reply.pid))
        if not reply.success:
            print(f"Error: {reply.message or 'CRIU failed'}", file=sys.stderr)
            return 125
        return 0

    def start(self, name: str, pid: int) -> None:
        """A container of that name runs, with this process."""
        (self.state / name).mkdir()
        (self.state / name / "pid").write_text(str(pid))

    def _pid(self, name: str) -> int:
        return int((self.state / name / "pid").read_text())

    def _inspect(self, name: str) -> int:
        state = {"Status": "running", "Pid": self._pid(name)}
        values = {"Id": name, "Name": name, "State": state, "StaticDir": str(self.state / name)}
        print(json.dumps([values | {"HostConfig": {"NetworkMode": "bridge"}}]))
        return 0

    def _checkpoint(self, name: str, archive: str) -> int:
        container = self.state / name
        images = container / "checkpoint"
        images.mkdir()
        with (
            rpc.directory_descriptor(images) as directory,
            rpc.Client(Path(self.criu or shutil.which("criu")), os.environ) as client,
        ):
            options = {"images_dir_fd": directory, "work_dir_fd": directory, "log_level": 4}
            options |= {"pid": self._pid(name), "leave_running": True, "log_file": "dump.log"}
            reply = client.call(rpc.request(rpc.DUMP, **options))
        if not reply.success:
            print(f"Error: {reply.message or 'CRIU failed'}", file=sys.stderr)
            return 125
        (container / "config.dump").write_text(json.dumps({"name": name}))
        (container / "spec.dump").write_text("{}")
        # A test has something to do meanwhile.  Beside the container, since what is written in it goes to memory.
        if (hold := self.state / "hold").exists():
            (self.state / "held").touch()
            while hold.exists():
                time.sleep(0.01)
        with open(archive, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
            for member in ("config.dump", "spec.dump", "checkpoint"):
                tar.add(container / member, member)
        return 0

    def _remove(self, name: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.state / name / "pid").read_text())
            if pid > 1:
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.state / name, ignore_errors=True)
        return 0


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words, [*words[1:], ""], strict=True))
