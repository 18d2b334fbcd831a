"""An engine as podman and runc look to sealpoint: it reads an archive, and restores what is in it by CRIU's RPC.

It knows `container exists NAME`, `container restore --import ARCHIVE` and `rm ... NAME`.  A container is a directory
with the archive's members; `trace` beside them says what was done.  What podman itself does is tested in tests/vm.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import rpc

SCRIPT = """#!{python} -I
import sys
sys.path[:0] = {paths!r}
import small_engine
sys.exit(small_engine.Engine({state!r}, {criu!r}).run(sys.argv[1:]))
"""


def install(path: Path, state: Path, criu: str = "") -> Path:
    """An executable at `path`.  criu: the one that it runs whatever PATH says."""
    paths = [str(Path(__file__).parent), str(Path(rpc.__file__).parent)]
    path.write_text(SCRIPT.format(python=sys.executable, paths=paths, state=str(state), criu=criu))
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

    def _remove(self, name: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.state / name / "pid").read_text())
            if pid > 1:
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.state / name, ignore_errors=True)
        return 0


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words, [*words[1:], ""], strict=True))
