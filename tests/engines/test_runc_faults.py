"""What runc and its user meet when something breaks: the container runs on, or nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools
from tests.engines.containers import Container
from tests.real import harness, sealed

NewContainer = Callable[..., Container]


def test_the_reason_of_a_refused_checkpoint_is_in_the_log_that_runc_names(
    dropin: dropin_tools.DropIn, container: NewContainer, images: Path
) -> None:
    running = container()
    running.run(dropin.environment)
    count = running.assert_counts()
    dropin.configure(recipients=["/nowhere/recipient.pub"])
    result = running.checkpoint(images, dropin.environment)
    assert result.code != 0
    log = running.work / "dump.log"
    assert str(log) in result.said
    assert "Error (sealpoint): " in log.read_text()
    assert "/nowhere/recipient.pub" in log.read_text()
    running.assert_whole(count)
    assert "inventory.img" not in os.listdir(images)
    dropin.configure()
    assert running.checkpoint(images, dropin.environment).code == 0


def test_the_reason_of_a_checkpoint_that_fails_late_is_in_the_log_that_runc_names(
    dropin: dropin_tools.DropIn, container: NewContainer, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "sealtest", small], check=True)
    try:
        running = container()
        running.run(dropin.environment)
        count = running.assert_counts()
        result = running.checkpoint(small, dropin.environment)
        assert result.code != 0
        log = (running.work / "dump.log").read_text()
        assert "Error (sealpoint): no space left for " in log
        running.assert_whole(count)
        assert set(os.listdir(small)) <= {"descriptors.json"}
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_the_reason_of_a_refused_restore_is_in_the_log_that_runc_names(
    dropin: dropin_tools.DropIn, container: NewContainer, images: Path, keys: sealed.Keys
) -> None:
    running = container()
    running.run(dropin.environment)
    count = running.assert_counts()
    assert running.checkpoint(images, dropin.environment).code == 0
    dropin.configure(trust=[keys.path("other/signer.pub")])
    result = running.restore(images, dropin.environment)
    assert result.code != 0
    log = running.work / "restore.log"
    assert str(log) in result.said
    assert "Error (sealpoint): " in log.read_text()
    assert running.stopped()
    dropin.configure()
    assert running.restore(images, dropin.environment).code == 0
    running.assert_whole(count)


@pytest.mark.parametrize("victim", ["runc", "helper", "criu"])
@pytest.mark.parametrize("when", ["Seized task", "Dumping pages"])
def test_kill_9_in_a_checkpoint_leaves_the_container_as_it_was(
    dropin: dropin_tools.DropIn, container: NewContainer, images: Path, victim: str, when: str
) -> None:
    running = container()
    running.run(dropin.environment)
    count = running.assert_counts()
    log = running.work / "dump.log"
    with open(os.devnull, "r+b") as null:
        runc = subprocess.Popen(
            running.command(
                "checkpoint", "--leave-running", "--image-path", images, "--work-path", running.work, running.id
            ),
            env=dropin.environment, stdin=null, stdout=null, stderr=null,
        )  # fmt: skip
    sealed.wait_until(
        lambda: log.exists() and when in log.read_text(errors="replace"), "CRIU is at it", 20
    )
    with held(dropin, runc) if victim == "criu" else contextlib.nullcontext():
        kill(dropin, runc, victim)
    runc.wait(30)
    dropin.settle()
    running.assert_whole(count)
    assert set(os.listdir(images)) <= {"descriptors.json", "inventory.img"}
    result = running.checkpoint(images, dropin.environment, "--leave-running")
    assert result.code == 0, result
    running.assert_whole(count)


@pytest.mark.parametrize("victim", ["runc", "helper", "criu"])
def test_kill_9_in_a_restore_leaves_nothing_that_runs(
    dropin: dropin_tools.DropIn, container: NewContainer, images: Path, victim: str
) -> None:
    running = container()
    running.run(dropin.environment)
    count = running.assert_counts()
    assert running.checkpoint(images, dropin.environment).code == 0
    running.runc("delete", running.id, environment=dropin.environment)
    log = running.work / "restore.log"
    with open(os.devnull, "r+b") as null:
        runc = subprocess.Popen(
            running.command(
                "restore", "-d", "--image-path", images, "--work-path", running.work, running.id
            ),
            env=dropin.environment, stdin=null, stdout=null, stderr=null, cwd=running.bundle,
        )  # fmt: skip
    sealed.wait_until(
        lambda: log.exists() and "Forking task" in log.read_text(errors="replace"),
        "CRIU is at it",
        20,
    )
    kill(dropin, runc, victim)
    if runc.wait(30) == 0:
        running.assert_whole(count)  # it was done before
        return
    dropin.settle()
    sealed.wait_until(running.stopped, "nothing of it runs", 30)
    if victim != "runc":  # which leaves its own mount
        assert running.mounts() == []
    running.forget()
    result = running.restore(images, dropin.environment)
    assert result.code == 0, result
    running.assert_whole(count)


@contextlib.contextmanager
def held(dropin: dropin_tools.DropIn, runc: subprocess.Popen) -> Iterator[None]:
    """The real CRIU waits for the helper, so it is not at this instant putting itself into a task by ptrace: a task
    would not survive that CRIU is killed then, whoever called it."""
    helpers = dropin.helpers()
    for pid in helpers:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in real(dropin, runc):
            sealed.wait_until(
                lambda pid=pid: harness.waits_for_helper(pid), "CRIU waits for the helper"
            )
        yield
    finally:
        for pid in helpers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def real(dropin: dropin_tools.DropIn, runc: subprocess.Popen) -> list[int]:
    """The real CRIU that runc started."""
    helpers = dropin.helpers()
    return [
        pid for pid in sealed.children(runc.pid) if pid in dropin.processes() and pid not in helpers
    ]


def kill(dropin: dropin_tools.DropIn, runc: subprocess.Popen, victim: str) -> None:
    """SIGKILL to runc, to the helper (the only one that still is our script), or to the real CRIU."""
    if victim == "runc":
        os.kill(runc.pid, signal.SIGKILL)
        return
    for pid in dropin.helpers() if victim == "helper" else real(dropin, runc):
        with contextlib.suppress(ProcessLookupError):  # it was done before
            os.kill(pid, signal.SIGKILL)


def test_containers_are_checkpointed_at_the_same_time(
    dropin: dropin_tools.DropIn, container: NewContainer, tmp_path: Path
) -> None:
    all_of_them = [container() for _ in range(3)]
    for each in all_of_them:
        each.run(dropin.environment)
    counts = [each.assert_counts() for each in all_of_them]
    started = []
    for number, each in enumerate(all_of_them):
        images = tmp_path / f"images-{number}"
        images.mkdir()
        with open(os.devnull, "r+b") as null:
            command = each.command(
                "checkpoint", "--image-path", images, "--work-path", each.work, each.id
            )
            started.append(
                subprocess.Popen(
                    command, env=dropin.environment, stdin=null, stdout=null, stderr=null
                )
            )
    assert [process.wait(60) for process in started] == [0, 0, 0]
    for number, each in enumerate(all_of_them):
        assert each.restore(tmp_path / f"images-{number}", dropin.environment).code == 0
        each.assert_whole(counts[number])
