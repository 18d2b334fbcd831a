"""`criu lazy-pages` and `criu restore --lazy-pages` of the drop-in: each page is verified before a task gets it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]


@pytest.fixture(autouse=True)
def _userfaultfd(criu: Path) -> None:
    for feature in ("uffd", "uffd-noncoop"):
        done = subprocess.run([criu, "check", "--feature", feature], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"this kernel does not support {feature}")


class Lazy:
    """A directory with a sealed file, and the daemon that serves its pages."""

    def __init__(self, dropin: DropIn, directory: Path) -> None:
        self.dropin = dropin
        self.images = directory / "images"
        self.images.mkdir()
        self.log = directory / "lazy.out"
        self.process: subprocess.Popen[bytes] | None = None

    def dump(self, running: harness.Workload, *options: object) -> None:
        status, said = self.dropin.run("dump", "-t", running.pid, "-D", self.images, *options)
        assert status == 0, said
        if not options:
            running.wait_gone()

    def serve(self, *options: object) -> subprocess.Popen[bytes]:
        self.process = self.dropin.start("lazy-pages", "-D", self.images, *options, log=self.log)
        sealed.wait_until(
            lambda: self.listens() or self.process.poll() is not None, "the daemon listens"
        )
        return self.process

    def listens(self) -> bool:
        return (self.images / "lazy-pages.socket").exists()

    def restore(self, *options: object) -> tuple[int, str]:
        return self.dropin.run(
            "restore", "-d", "--lazy-pages", "-D", self.images, "-o", "restore.log", *options
        )

    def restore_and_hold(self, pid: int) -> None:
        """Restore, and stop that daemon before it brings what no task has asked for."""
        script = self.images.parent / "hold.sh"
        script.write_text(
            f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-restore ] || kill -STOP {pid}\n'
        )
        script.chmod(0o755)
        status, said = self.restore("--action-script", script)
        assert status == 0, (said, self.said())
        # A signal works when its target runs next.
        sealed.wait_until(lambda: harness.process_state(pid) == "T", "the daemon stands")

    def daemon(self) -> int:
        """The real one."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (pid,) = map(int, children.split())
        return pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def lazy(dropin: DropIn, tmp_path: Path) -> Iterator[Lazy]:
    dropin.configure(allow_lazy_restore="true")
    made = Lazy(dropin, tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def nothing_runs(running: harness.Workload) -> None:
    sealed.wait_until(lambda: running.remains() == [], "nothing of the tree is left")


@pytest.mark.parametrize("kind", ["memory", "secret", "ipc", "tree"])
def test_the_tree_runs_and_its_memory_comes_after_it(
    workload: StartWorkload, lazy: Lazy, kind: str
) -> None:
    running = workload(kind, *(("--mib", "64") if kind == "memory" else ()))
    before = running.assert_intact()
    lazy.dump(running)
    daemon = lazy.serve("-o", "lazy.log", "-v4")
    status, said = lazy.restore("-v4")
    assert status == 0, (said, lazy.said())
    # The kernel does not wait for pages when it shows /proc/PID/environ: stock CRIU has that, too.
    bad = {name for verdict in running.check().values() for name in verdict.bad}
    assert bad <= {"env"}
    assert daemon.wait(60) == 0, lazy.said()
    running.assert_continues(before)
    log = (lazy.images / "lazy.log").read_text(errors="replace")
    if kind == "memory":
        assert "UFFD transferred pages" in log
    assert not lazy.listens()


def test_it_is_off_unless_the_configuration_allows_it(workload: StartWorkload, lazy: Lazy) -> None:
    running = workload("secret")
    lazy.dump(running)
    lazy.dropin.configure()
    daemon = lazy.serve()
    assert daemon.wait(60) == 1
    assert "allow_lazy_restore" in lazy.said()
    status, said = lazy.restore()
    assert status == 1
    assert "allow_lazy_restore" in said
    assert running.remains() == []


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_bad_page_ends_the_tree_before_anybody_reads_it(
    workload: StartWorkload, lazy: Lazy, place: float
) -> None:
    running = workload("memory", "--mib", "64")
    lazy.dump(running)
    file = lazy.images / "inventory.img"
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 1
    file.write_bytes(data)
    daemon = lazy.serve()
    _, said = lazy.restore()
    assert daemon.wait(60) != 0
    assert "Error (sealpoint)" in said + lazy.said()
    nothing_runs(running)
    assert not lazy.listens()


def test_a_page_that_changes_after_the_tree_runs_ends_it(
    workload: StartWorkload, lazy: Lazy
) -> None:
    running = workload("memory", "--mib", "64")
    lazy.dump(running)
    daemon = lazy.serve()
    lazy.restore_and_hold(daemon.pid)
    assert harness.process_state(running.pid) is not None
    file = lazy.images / "inventory.img"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        for place in range(size // 4, size - size // 8, 4096):
            handle.seek(place)
            handle.write(b"changed")
    daemon.send_signal(signal.SIGCONT)
    assert daemon.wait(60) == 1
    assert "the tree is ended" in lazy.said()
    nothing_runs(running)


@pytest.mark.parametrize("victim", ["the daemon", "CRIU's daemon", "both"])
@pytest.mark.parametrize("kind", ["memory"])
def test_kill_9_of_who_brings_the_pages_ends_the_tree(
    workload: StartWorkload, lazy: Lazy, kind: str, victim: str
) -> None:
    running = workload(kind, *(("--mib", "64") if kind == "memory" else ()))
    lazy.dump(running)
    daemon = lazy.serve()
    real = lazy.daemon()
    lazy.restore_and_hold(real)
    assert harness.process_state(running.pid) is not None
    if victim != "the daemon":
        os.kill(real, signal.SIGKILL)
    if victim != "CRIU's daemon":
        os.kill(daemon.pid, signal.SIGKILL)
    assert daemon.wait(60) != 0
    nothing_runs(running)
    sealed.wait_until(lambda: harness.process_state(real) in (None, "Z"), "CRIU's daemon ends")


def test_it_goes_on_without_its_guard(workload: StartWorkload, lazy: Lazy) -> None:
    running = workload("memory", "--mib", "64")
    before = running.assert_intact()
    lazy.dump(running)
    daemon = lazy.serve()
    (guard,) = [p for p in lazy.dropin.processes() if p != daemon.pid]
    os.kill(guard, signal.SIGKILL)
    status, said = lazy.restore()
    assert status == 0, said
    assert daemon.wait(60) == 0, lazy.said()
    running.assert_continues(before)


def test_another_checkpoint_s_daemon_is_not_taken(
    workload: StartWorkload, lazy: Lazy, tmp_path: Path
) -> None:
    running = workload("secret")
    lazy.dump(running, "-R")
    older = lazy.images / "older"
    older.mkdir()
    (lazy.images / "inventory.img").rename(older / "inventory.img")
    lazy.dump(running)
    daemon = lazy.serve()
    status, said = lazy.dropin.run("restore", "-d", "--lazy-pages", "-D", older, "-W", lazy.images)
    assert status == 1
    assert "no sealpoint daemon serves the pages of this checkpoint" in said
    nothing_runs(running)
    daemon.terminate()
    daemon.wait(60)


def test_without_a_daemon_nothing_is_restored(workload: StartWorkload, lazy: Lazy) -> None:
    running = workload("secret")
    lazy.dump(running)
    status, said = lazy.restore()
    assert status == 1
    assert "criu lazy-pages" in said
    assert running.remains() == []


def test_the_daemon_that_dies_before_the_tree_runs_fails_the_restore(
    workload: StartWorkload, lazy: Lazy, tmp_path: Path
) -> None:
    running = workload("secret")
    lazy.dump(running)
    daemon = lazy.serve()
    script = tmp_path / "kill.sh"
    script.write_text(
        f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != setup-namespaces ] || kill -9 {daemon.pid}\n'
        f'[ "$CRTOOLS_SCRIPT_ACTION" != pre-restore ] || kill -9 {daemon.pid}\nexit 0\n'
    )
    script.chmod(0o755)
    status, _ = lazy.restore("--action-script", script)
    assert status != 0
    nothing_runs(running)


def test_in_the_background_with_a_pid_file(workload: StartWorkload, lazy: Lazy) -> None:
    running = workload("memory", "--mib", "16")
    before = running.assert_intact()
    lazy.dump(running)
    launcher = lazy.serve("--daemon", "--pidfile", "lazy.pid", "-o", "lazy.log")
    assert launcher.wait(20) == 0
    pid = int((lazy.images / "lazy.pid").read_text())
    status, said = lazy.restore()
    assert status == 0, said
    sealed.wait_until(lambda: harness.process_state(pid) in (None, "Z"), "it has ended", 60)
    running.assert_continues(before)


def test_pages_that_a_page_server_stored_are_served(
    workload: StartWorkload, lazy: Lazy, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "16")
    before = running.assert_intact()
    ours, theirs = socket.socketpair()
    server = lazy.dropin.start(
        "page-server", "-D", lazy.images, "--ps-socket", theirs.fileno(),
        log=tmp_path / "ps.log", fds=(theirs.fileno(),),
    )  # fmt: skip
    theirs.close()
    with ours:
        status, said = lazy.dropin.run(
            "dump", "-t", running.pid, "-D", lazy.images, "--page-server",
            "--ps-socket", ours.fileno(), fds=(ours.fileno(),),
        )  # fmt: skip
    assert status == 0, said
    assert server.wait(20) == 0
    running.wait_gone()
    daemon = lazy.serve()
    status, said = lazy.restore()
    assert status == 0, said
    assert daemon.wait(60) == 0, lazy.said()
    running.assert_continues(before)


@pytest.mark.parametrize(
    "arguments",
    [
        ("dump", "-t", "1", "--lazy-pages"),
        ("lazy-pages", "--page-server", "--port", "1"),
    ],
    ids=" ".join,
)
def test_what_would_send_memory_in_the_clear_is_refused(
    lazy: Lazy, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    status, said = lazy.dropin.run(*arguments, cwd=tmp_path)
    assert status == 1
    assert said.startswith("criu (sealpoint): --")
