"""containerd's tasks, checkpointed and restored by its own client through the drop-in criu.  Runs in the machine.

Its CRI has no checkpoint call in version 1.7, the one that is packaged: `ctr containers checkpoint` is what there is.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.vm import podman

pytestmark = pytest.mark.usefixtures("dropin")

STORE = Path("/var/lib/containerd")
MAGIC = b"\x89SEALPT\n"


def ctr(*arguments: object) -> str:
    done = subprocess.run(
        ["ctr", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=podman.TIMEOUT,
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def containerd(dropin: Path, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The daemon, with the drop-in first in its PATH. Yields the image's name."""
    directory = tmp_path_factory.mktemp("containerd")
    archive = directory / "image.tar"
    podman.podman("save", "--format=docker-archive", "--output", archive, image).ok()
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["containerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        socket = Path("/run/containerd/containerd.sock")
        sealed.wait_until(socket.is_socket, "containerd listens", podman.TIMEOUT)
        said = ctr("images", "import", archive)
        yield next(w for line in said.splitlines() for w in line.split() if "sealpoint-test" in w)
    finally:
        daemon.terminate()
        daemon.wait(podman.TIMEOUT)


class Task:
    """A container of containerd's with a running task; its memory and its environment hold secrets."""

    def __init__(self, image: str) -> None:
        self.name = f"sealtest-{secrets.token_hex(4)}"
        needles = harness.make_needles()
        self.needles = {name: needles[name] for name in ("env", "heap")}
        ctr("run", "--detach", "--env", f"SECRET={needles['env'].decode()}", image, self.name)
        sealed.wait_until(lambda: self.path("/in").is_fifo(), "it has started", podman.TIMEOUT)
        words = (needles["heap"], b"pipe", b"unlinked")
        self.path("/in").write_bytes(b" ".join(words) + b"\n")
        self.count()

    def pid(self) -> int:
        rows = [row.split() for row in ctr("tasks", "list").splitlines()[1:]]
        return next(
            (int(pid) for name, pid, status in rows if name == self.name and status == "RUNNING"), 0
        )

    def path(self, inside: str) -> Path:
        return Path(f"/proc/{self.pid()}/root{inside}")

    def count(self) -> int:
        """How far it has counted; its memory must be intact."""

        def words() -> list[str]:
            try:
                found = self.path("/status").read_text().split()
            except OSError:
                return []
            return found if len(found) == 2 else []

        number, state = sealed.wait_until(words, "it counts", podman.TIMEOUT)
        assert state == "ok"
        return int(number)

    def remove(self) -> None:
        subprocess.run(["ctr", "tasks", "kill", "--signal=KILL", self.name], capture_output=True)
        sealed.wait_until(lambda: not self.pid(), "it has ended", podman.TIMEOUT)
        for words in (("tasks", "rm", "--force"), ("containers", "rm")):
            subprocess.run(["ctr", *words, self.name], capture_output=True)


def blobs() -> list[Path]:
    return [
        p for p in (STORE / "io.containerd.content.v1.content").rglob("blobs/*/*") if p.is_file()
    ]


def test_a_task_is_sealed_in_the_store_and_comes_back(containerd: str, tmp_path: Path) -> None:
    task = Task(containerd)
    reference = f"checkpoint/{task.name}:1"
    try:
        count = task.count()
        before = set(blobs())
        ctr("containers", "checkpoint", "--task", "--rw", "--image", task.name, reference)
        made = set(blobs()) - before
        assert any(MAGIC in blob.read_bytes() for blob in made)
        found = set().union(*(podman.found_in(blob, task.needles) for blob in made))
        assert (
            "heap" not in found
        )  # the environment is in its settings, which containerd keeps anyway
        task.remove()
        ctr("containers", "restore", "--live", "--rw", task.name, reference)
        assert task.count() >= count
        first = task.count()
        sealed.wait_until(lambda: task.count() > first, "it counts on", podman.TIMEOUT)
        heap = Path(f"/proc/{task.pid()}/environ").read_bytes()
        assert b"SECRET=" + task.needles["env"] in heap
    finally:
        task.remove()
        subprocess.run(["ctr", "images", "rm", reference], capture_output=True)
    assert "fuse.sealpoint" not in Path("/proc/self/mountinfo").read_text()


def test_without_a_usable_key_it_fails_and_the_task_runs_on(containerd: str, dropin: Path) -> None:
    task = Task(containerd)
    text = dropin.read_text()
    dropin.write_text(text.replace("signer.key", "no-such.key"))
    try:
        command = ["ctr", "containers", "checkpoint", "--task", task.name, "checkpoint/none:1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=podman.TIMEOUT)
        assert done.returncode != 0
        first = task.count()
        sealed.wait_until(lambda: task.count() > first, "it counts on", podman.TIMEOUT)
        assert os.path.exists(f"/proc/{task.pid()}")
    finally:
        dropin.write_text(text)
        task.remove()
