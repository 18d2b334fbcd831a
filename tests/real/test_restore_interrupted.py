"""A restore that is broken off in its middle: nothing of the tree runs or is left, and it can be repeated."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.sealed import Hold, wait_until

StartWorkload = Callable[..., harness.Workload]

KINDS = [("memory", "--mib", "64"), ("ipc",), ("tree",)]
WAYS = {"sealpoint": -9, "sealpoint by SIGINT": 130, "sealpoint by SIGTERM": 143, "criu": 7}


@dataclass
class Dumped:
    """A process that is gone, and its sealed file."""

    workload: harness.Workload
    before: dict[str, harness.Verdict]
    file: Path
    files: list[str]
    sealpoint: sealed.Sealpoint
    keys: sealed.Keys

    def restore(self, *options: str | Path, detach: bool = True) -> list[str | Path]:
        # fmt: off
        return ["restore", self.file, *(["--detach"] if detach else []), *self.keys.open, *options]
        # fmt: on

    def assert_nothing_left(self) -> None:
        self.sealpoint.settle()
        # Without sealpoint it takes CRIU a moment to notice.
        wait_until(lambda: self.workload.remains() == [], "nothing of the tree is left", 20)
        assert sorted(os.listdir(self.workload.dir)) == self.files
        with pytest.raises(harness.NoAnswerError):
            self.workload.check(timeout=0)

    def assert_can_be_restored(self) -> None:
        self.sealpoint.run(*self.restore()).ok()
        self.workload.assert_continues(self.before)


@pytest.fixture
def dumped(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> Callable[..., Dumped]:
    def dump(kind: tuple[str, ...]) -> Dumped:
        running = workload(*kind)
        before = running.assert_intact()
        file = tmp_path / "app.sealed"
        sealpoint.run("dump", "-t", running.pid, "-o", file, *keys.seal).ok()
        running.wait_gone()
        files = sorted(os.listdir(running.dir))
        return Dumped(running, before, file, files, sealpoint, keys)

    return dump


def strike(command: sealed.Running, whom: str) -> None:
    if whom == "criu":
        os.kill(command.criu(), signal.SIGKILL)
    else:
        numbers = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
        command.signal(numbers.get(whom.rpartition(" ")[2], signal.SIGKILL))


@pytest.mark.parametrize("whom", WAYS)
def test_before_criu_does_anything(
    dumped: Callable[..., Dumped], tmp_path: Path, criu: Path, whom: str
) -> None:
    it = dumped(("secret",))
    hold = Hold.criu(tmp_path, criu)
    command = it.sealpoint.start(*it.restore("--criu", hold.path))
    hold.reached()
    strike(command, whom)
    hold.go()
    assert command.wait().code == WAYS[whom]
    it.assert_nothing_left()
    it.assert_can_be_restored()


@pytest.mark.parametrize("whom", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_when_the_tree_is_there_and_waits_for_the_verdict(
    dumped: Callable[..., Dumped], tmp_path: Path, kind: tuple[str, ...], whom: str
) -> None:
    """A hook of the user is waiting, before sealpoint's own is asked: all memory was read, nothing has run."""
    it = dumped(kind)
    hold = Hold.action(tmp_path, "post-restore")
    command = it.sealpoint.start(*it.restore("--", "--action-script", hold.path))
    hold.reached()
    with pytest.raises(harness.NoAnswerError):
        it.workload.check(timeout=0.05)
    strike(command, whom)
    hold.go()
    assert command.wait().code == WAYS[whom]
    it.assert_nothing_left()
    it.assert_can_be_restored()


@pytest.mark.parametrize("whom", WAYS)
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "in the foreground"])
def test_amid_the_pages(dumped: Callable[..., Dumped], whom: str, detach: bool) -> None:
    """Sealpoint is stopped when CRIU has made the first process, and CRIU then waits for pages."""
    it = dumped(("memory", "--mib", "128"))
    command = it.sealpoint.start(*it.restore(detach=detach))
    criu = command.criu()
    wait_until(
        lambda: sealed.children(criu) or command.process.poll() is not None, "it has a child"
    )
    command.signal(signal.SIGSTOP)
    with pytest.raises(harness.NoAnswerError):
        it.workload.check(timeout=0.05)
    strike(command, whom)
    if whom != "sealpoint":
        command.signal(signal.SIGCONT)
    assert command.wait().code == WAYS[whom]
    it.assert_nothing_left()
    it.assert_can_be_restored()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reaches_sealpoint_and_criu_at_once(
    dumped: Callable[..., Dumped], tmp_path: Path, number: int
) -> None:
    it = dumped(("tree",))
    hold = Hold.action(tmp_path, "post-restore")
    command = it.sealpoint.start(*it.restore("--", "--action-script", hold.path, detach=False))
    hold.reached()
    command.signal(number, group=True)
    hold.go()
    assert command.wait().code in (128 + number, 7)
    it.assert_nothing_left()
    it.assert_can_be_restored()


def test_a_hook_of_the_user_that_fails(dumped: Callable[..., Dumped], tmp_path: Path) -> None:
    it = dumped(("tree",))
    hook = sealed.script(tmp_path / "hook", '[ "$CRTOOLS_SCRIPT_ACTION" != post-restore ]')
    result = it.sealpoint.run(*it.restore("--ack", "--", "--action-script", hook))
    result.fails(7, "criu restore")
    assert (
        result.out == b""
    )  # in particular no acknowledgement, upon which the sender ends the tree
    it.assert_nothing_left()
    it.assert_can_be_restored()


def test_an_acknowledgement_that_cannot_be_sent(dumped: Callable[..., Dumped]) -> None:
    """The sender will let its process run on: so this one must not run."""
    it = dumped(("tree",))
    reader, writer = os.pipe()
    os.close(reader)
    command = it.sealpoint.start(*it.restore("--ack"), stdout=writer)
    os.close(writer)
    command.wait().fails(6, "acknowledgement cannot be sent")
    it.assert_nothing_left()
    it.assert_can_be_restored()


def test_at_random_moments_it_runs_whole_or_nothing_is_left(
    dumped: Callable[..., Dumped],
) -> None:
    it = dumped(("tree",))
    for n in range(8):
        command = it.sealpoint.start(*it.restore())
        command.criu()
        with pytest.raises(TimeoutError):
            wait_until(lambda: None, "", timeout=n * 0.025)
        command.signal((signal.SIGKILL, signal.SIGINT)[n % 2])
        command.wait()
        it.sealpoint.settle()
        if it.workload.processes():
            it.workload.assert_continues(it.before)
            it.workload.kill()
        it.assert_nothing_left()
