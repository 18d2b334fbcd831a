"""A migration that is disturbed at any message: the tree runs on exactly one side, or its sealed file is there.

Each message is kept back, cut off or let through; then a side is killed, or not.  Whatever comes of it, somebody says
where the tree is: the side that lives, or the next `receive`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed
from tests.real.far_side import FarSide
from tests.real.moving import TIMEOUT, Receiver, far, migrate, receive, tap, through, where
from tests.real.tap import Tap

__all__ = ["far", "receive", "tap"]  # fixtures
StartWorkload = Callable[..., harness.Workload]

# Message at which it happens (and which of its kind: the second round is the last): where the tree may be then.
HERE, FAR, FILE = "here", "far", "file"
MESSAGES = {
    "hello": (Tap.HELLO, 1, {HERE}),
    "proof": (Tap.PROOF, 1, {HERE}),
    "offer": (Tap.OFFER, 1, {HERE}),
    "room": (Tap.ROOM, 1, {HERE}),
    "data": (Tap.DATA, 5, {HERE}),
    "end": (Tap.END, 1, {HERE}),
    "have": (Tap.HAVE, 1, {HERE}),
    "last offer": (Tap.OFFER, 2, {HERE}),
    "last room": (Tap.ROOM, 2, {HERE}),
    "last end": (Tap.END, 2, {HERE}),
    "ready": (Tap.READY, 1, {HERE}),
    "go": (Tap.GO, 1, {FILE}),
    "running": (Tap.RUNNING, 1, {FAR}),
}
FAULTS = ["cut", "freeze", "kill sender", "kill receiver", "stop sender", "stop receiver"]


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Scene:
    """A migration with one round, through a tap that does something at one message."""

    def __init__(
        self, far: FarSide, receiver: Receiver, tap: Callable[..., Tap], kind: int, number: int
    ) -> None:
        self.far, self.receiver = far, receiver
        self.unproven = kind in (Tap.HELLO, Tap.PROOF)  # a sender who vanishes now was nobody
        self.what = "pass"
        self.at, self.go_on = threading.Event(), threading.Event()
        seen = 0

        def moment(_: str, passing: int) -> str:
            nonlocal seen
            seen += passing == kind
            if passing != kind or seen != number:
                return "pass"
            self.at.set()
            assert self.go_on.wait(60)
            return self.what

        self.tap = tap(moment)

    def run(
        self, running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, fault: str
    ) -> None:
        words = through(self.tap, running, keys, "--rounds", "1", "--restore-timeout", TIMEOUT)
        self.sender = sealpoint.start(*words)
        try:
            assert self.at.wait(60), self.sender.wait()
            how, _, side = fault.partition(" ")
            self.what = "freeze" if side else how
            if side:
                if side == "sender":
                    pids = [self.sender.pid]
                else:
                    # RUNNING is the last that it says: it may have ended before the tap saw that.
                    pids = self.receiver.pids(self.far)
                    assert pids or self.receiver.process.wait() == 0, self.receiver.wait()
                if how == "stop":
                    signal_all(pids, signal.SIGSTOP)
                    self.what = "pass"
                    self.go_on.set()
                    # The other side must end by its own patience.
                    if side == "sender":
                        self._receiver_ends()
                    else:
                        self.sender.wait()
                signal_all(pids, signal.SIGKILL)
                # nsenter stops when its child does.
                self.receiver.process.send_signal(signal.SIGCONT)
        finally:
            self.go_on.set()
        self.result, self.received = self.sender.wait(), self._receiver_ends()
        sealed.wait_until(lambda: not sealpoint.processes(), "nothing is under way any more", 60)

    def _receiver_ends(self) -> sealed.Result:
        """By itself; or it goes on waiting for somebody who proves who he is."""
        process = self.receiver.process
        if self.unproven and process.poll() is None:
            turned_away = lambda: "turned away" in self.receiver.errors.read_text()  # noqa: E731
            sealed.wait_until(lambda: turned_away() or process.poll() is not None, "it is over")
            if process.poll() is None and turned_away():
                return self.receiver.end(self.far)
        return self.receiver.wait()


def places(scene: Scene, running: harness.Workload) -> set[str]:
    running.reap()
    found = set(where(running, scene.far))
    return found or {FILE}


def restored_there(
    scene: Scene, sealpoint: sealed.Sealpoint, keys: sealed.Keys, path: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    words = scene.far.command(*sealed.SEALPOINT, "restore", path, "--detach", *keys.open, *more)
    return subprocess.run(
        words, env=sealpoint.environment, capture_output=True, text=True, timeout=60
    )


def listed(scene: Scene, sealpoint: sealed.Sealpoint) -> str:
    words = [*sealed.SEALPOINT, "receive", "--list", "--keep", str(scene.receiver.keep)]
    done = subprocess.run(
        scene.far.command(*words), env=sealpoint.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("message", MESSAGES)
def test_the_tree_runs_on_exactly_one_side_or_its_file_is_there(
    message: str, fault: str, far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, tap: Callable[..., Tap],
) -> None:  # fmt: skip
    kind, number, expected = MESSAGES[message]
    if fault.startswith("stop") and message in ("go", "running", "ready"):
        expected = {HERE, FAR, FILE}  # who was stopped had said, or was told, already
    if message == "running" and fault == "kill receiver":
        expected = {FAR, FILE}
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    scene = Scene(far, receive(), tap, kind, number)
    scene.run(running, sealpoint, keys, fault)
    found = places(scene, running)
    assert len(found) == 1, found
    assert found <= expected, (found, scene.result, scene.received)
    kept = scene.receiver.kept()
    if found == {FILE}:
        assert kept
        told = scene.result.err + scene.received.err + listed(scene, sealpoint)
        assert str(kept[-1]) in told
        done = restored_there(scene, sealpoint, keys, kept[-1])
        if done.returncode == 5:  # it was let run and killed together with its receiver
            assert "was started here" in done.stderr
            done = restored_there(scene, sealpoint, keys, kept[-1], "--allow-older")
        assert done.returncode == 0, done
        found = {FAR}
    elif (
        found == {HERE} and kept
    ):  # nobody can know over there: whether READY was heard, or never sent
        said = listed(scene, sealpoint)
        assert (
            "it stayed at the sender" in said or "whether it runs at the sender is unknown" in said
        )
    running.assert_continues(before)
    assert set(where(running, far)) == found
    if found == {FAR} and kept:  # beside the tree that runs
        assert "its tree runs here" in listed(scene, sealpoint)
        refused = restored_there(scene, sealpoint, keys, kept[-1])
        assert refused.returncode == 5, refused
        assert "runs here" in refused.stderr


# --- CRIU fails, the receiver dies, when it cannot be undone any more --------------------------------------


# Kills the CRIU that called it just before the tree goes on, or the sealpoint that called that.
UP = 'p=$PPID; while grep -q "sh$" /proc/$p/comm; do p=$(ps -o ppid= -p $p | tr -d " "); done'
KILL_CRIU = f'[ "$CRTOOLS_SCRIPT_ACTION" = pre-resume ] || exit 0\n{UP}\nkill -9 $p'
KILL_RECEIVER = KILL_CRIU.replace("kill -9 $p", "kill -9 $(ps -o ppid= -p $p)")


def moved(
    far: FarSide, running: harness.Workload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, *more: str
) -> sealed.Result:  # fmt: skip
    result = sealpoint.run(*migrate(far, running, keys, "--rounds", "1", *more))
    running.reap()
    return result


def test_criu_that_dies_over_there_after_go_leaves_a_file_that_restores(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tmp_path: Path,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    script = sealed.script(tmp_path / "kill", KILL_CRIU)
    receiver = receive(*keys.open, "--", "--action-script", script)
    result = moved(far, running, sealpoint, keys).fails(6, "has ended here")
    received = receiver.wait().fails(7, "has ended at the sender and does not run here")
    assert where(running, far) == []
    kept = receiver.kept()
    assert len(kept) == 2  # the copy, too
    assert str(kept[-1]) in received.err
    assert str(kept[-1]) in result.err
    again = receive()
    again.end(far)
    assert f"restore {kept[-1]}" in again.errors.read_text()
    scene = Scene(far, receiver, lambda _: None, 0, 0)
    done = restored_there(scene, sealpoint, keys, kept[-1])
    assert done.returncode == 0, done
    running.assert_continues(before)
    # It has run by hand: what is still there says so, and does not run twice.
    assert "its tree runs here" in listed(scene, sealpoint)
    assert restored_there(scene, sealpoint, keys, kept[-1]).returncode == 5


def test_a_receiver_that_dies_when_the_tree_runs_leaves_a_file_that_does_not_run_twice(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tmp_path: Path,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    script = sealed.script(tmp_path / "kill", KILL_RECEIVER)
    receiver = receive(*keys.open, "--", "--action-script", script)
    result = moved(far, running, sealpoint, keys).fails(6, "has ended here")
    assert receiver.wait().code == -signal.SIGKILL
    running.assert_continues(before)
    assert where(running, far) == ["far"]
    kept = receiver.kept()
    assert str(kept[-1]) in result.err
    scene = Scene(far, receiver, lambda _: None, 0, 0)
    assert "its tree runs here" in listed(scene, sealpoint)
    refused = restored_there(scene, sealpoint, keys, kept[-1])
    assert refused.returncode == 5
    assert "runs here" in refused.stderr
    again = receive()
    again.end(far)
    assert "its tree runs here" in again.errors.read_text()
    name = kept[-1].parent.name
    words = [*sealed.SEALPOINT, "receive", "--remove", name, "--keep", str(receiver.keep)]
    subprocess.run(far.command(*words), env=sealpoint.environment, check=True)
    assert receiver.left() == []
    assert listed(scene, sealpoint) == ""


def test_a_criu_that_ends_the_tree_and_then_fails_does_not_make_the_sender_say_that_it_runs_on(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, criu: Path, tmp_path: Path,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    failing = sealed.script(
        tmp_path / "criu",
        f'[ "$1" = dump ] || exec {criu} "$@"\n{criu} "$@"\nexit 1\n',
    )
    receiver = receive()
    words = migrate(far, running, keys, "--rounds", "0", "--criu", str(failing))
    sealpoint.run(*words).fails(7, "runs on", "anyway")
    receiver.wait().ok()
    running.reap()
    running.assert_continues(before)
    assert where(running, far) == ["far"]


def test_a_tree_that_ends_in_part_is_told_with_what_to_end_and_what_to_restore(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, criu: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """CRIU has the yes to end the tree, ends one process of it, and is killed before it ends the others."""
    running = workload("tree")
    before = running.assert_intact()
    root, *others = running.processes()
    assert len(others) > 1
    failing = sealed.script(
        tmp_path / "criu",
        f'[ "$1" = dump ] || exec {criu} "$@"\n{criu} "$@" --leave-running\nkill -9 {root}\nexit 1\n',
    )
    receiver = receive()
    words = migrate(far, running, keys, "--rounds", "0", "--criu", str(failing))
    result = sealpoint.run(*words)
    receiver.wait().fails(6, "whether it runs at the sender is unknown")
    count = len(others)
    told = f"of {1 + count} processes {count} are left here ("
    result.fails(7, told, "end them, then restore", str(receiver.kept()[-1]))
    named = int(result.err.partition(told)[2].partition(")")[0])
    assert named in others
    assert (
        running.processes() == others
    )  # and none at the far side: that shares the list of processes
    running.kill()
    scene = Scene(far, receiver, lambda _: None, 0, 0)
    done = restored_there(scene, sealpoint, keys, receiver.kept()[-1])
    assert done.returncode == 0, done
    running.assert_continues(before)


# --- Room, and whose directory it is -----------------------------------------------------------------------


def test_no_room_over_there_is_a_refusal_before_the_tree_is_frozen(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tmp_path: Path,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "64")
    before = running.assert_intact()
    keep = tmp_path / "keep"
    keep.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "none", keep]
    subprocess.run(far.command(*mount), check=True)
    receiver = receive()
    marker = tmp_path / "frozen"
    script = sealed.script(tmp_path / "note", f"echo >{marker}\n")
    words = migrate(far, running, keys, "--rounds", "0", "--", "--action-script", str(script))
    sealpoint.run(*words).fails(6, "gave up", "no space left", "are to come", "are free")
    receiver.wait().fails(6, "no space left")
    assert not marker.exists()  # CRIU was not even started
    left = subprocess.run(far.command("find", keep, "-mindepth", "1"), capture_output=True)
    assert left.stdout == b""
    running.assert_continues(before)
    assert where(running, far) == ["here"]


@pytest.mark.parametrize("wrong", ["a file", "others may write", "another's", "below another's"])
def test_a_directory_that_cannot_keep_it_is_refused_before_anybody_connects(
    wrong: str, far: FarSide, receive: Callable[..., Receiver], keys: sealed.Keys, tmp_path: Path
) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=0o700)
    keep = above / "keep"
    if wrong == "a file":
        keep.write_text("")
    else:
        keep.mkdir(mode=0o700)
        if wrong == "others may write":
            above.chmod(0o777)
        else:
            os.chown(keep if wrong == "another's" else above, 12345, -1)
    receive(*keys.open, "--keep", str(keep), "--wait", "5").wait().fails(6, str(above))


def test_what_is_kept_is_for_root_alone(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tap: Callable[..., Tap],
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    receiver = receive()
    tapped = tap(lambda _, passing: "cut" if passing == Tap.GO else "pass")
    sealpoint.run(*through(tapped, running, keys))
    receiver.wait().fails(6, "whether it runs at the sender is unknown")
    running.reap()
    paths = [receiver.keep, *receiver.left()]
    assert [p for p in paths if p.stat().st_mode & 0o077] == []


def test_a_file_that_does_not_become_durable_is_no_ready(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tap: Callable[..., Tap],
) -> None:  # fmt: skip
    """Its name is taken when it is complete: nobody is told that the tree is here."""
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    receiver = receive()

    def moment(_: str, passing: int) -> str:
        if passing == Tap.END:
            [directory] = receiver.keep.iterdir()
            (directory / "01.sealed").write_text("in the way")
        return "pass"

    sealpoint.run(*through(tap(moment), running, keys, "--rounds", "0")).fails(
        6, "gave up", "exists"
    )
    receiver.wait().fails(2, "exists")
    running.assert_continues(before)
    assert where(running, far) == ["here"]
