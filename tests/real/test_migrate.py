"""Process trees move to another machine: whole, to the right one, and never run on both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.live import peer
from sealpoint.checkpoint.opening.access import signing_by
from sealpoint.keys import load_signer
from tests.real import harness, sealed
from tests.real.far_side import FarSide
from tests.real.moving import Receiver, far, migrate, receive, tap, through, where
from tests.real.tap import PORT, Tap

__all__ = ["far", "receive", "tap"]  # fixtures
from sealpoint.state.newest import Mark, Newest

StartWorkload = Callable[..., harness.Workload]


@pytest.mark.parametrize("kind", ["memory", "tree", "ipc"])
def test_a_tree_moves_to_another_machine_with_all_it_holds(
    kind: str, far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys,
) -> None:  # fmt: skip
    running = workload(kind)
    before = running.assert_intact()
    receiver = receive()
    result = sealpoint.run(*migrate(far, running, keys)).ok()
    assert f"process {running.pid} runs on {far.address}".encode() in result.out
    assert b"runs here" in receiver.wait().ok().out
    running.assert_continues(before)
    assert where(running, far) == ["far"]
    assert receiver.kept() == []


# A sender with our keys that forgets, with each copy, the ones before.
FORGETFUL = """
from sealpoint.checkpoint.live import migrate

def forget(sender):
    track = migrate.Track(None, lambda _: None, sender._request.dump.workload)
    track.start(None)
    return track

migrate.Sender._next_track = forget
from sealpoint.cli import main

main()
"""


def test_files_that_do_not_continue_each_other_are_refused_and_the_tree_runs_on_here(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys,
) -> None:  # fmt: skip
    """All of them are trusted, and made for this migration."""
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    receiver = receive()
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL, *migrate(far, running, keys)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=sealpoint.environment, timeout=60,
    )  # fmt: skip
    receiver.wait().fails(3, "do not continue each other")
    assert done.returncode != 0
    running.assert_continues(before)
    assert where(running, far) == ["here"]


def test_rounds_send_what_has_changed_and_none_can_be_asked_for(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "32")
    before = running.assert_intact()
    receiver = receive()
    result = sealpoint.run(*migrate(far, running, keys, "--json", "--compress", "none")).ok()
    receiver.wait().ok()
    values = json.loads(result.out)
    first, second = values["rounds"]  # little is left: no third one
    assert first["pages_sent"] == first["pages"] > 32 * 256 / 2
    assert 0 < second["pages_sent"] < first["pages_sent"] / 4
    assert values["sent"] < 2 * 4096 * first["pages"]
    running.assert_continues(before)
    running.kill()
    running = workload("memory", "--mib", "8")
    receiver = receive()
    result = sealpoint.run(*migrate(far, running, keys, "--json", "--rounds", "0")).ok()
    receiver.wait().ok()
    assert json.loads(result.out)["rounds"] == []
    running.assert_intact()


def test_it_moves_over_ssh_too(
    far: FarSide,
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    # As ssh does: options, --, host, one command for the shell over there.
    ssh = sealed.script(
        tmp_path / "ssh",
        f'[ "$3" = -- ] && [ "$4" = root@there ] || exit 1\nexec {" ".join(far.command())} sh -c "$5"\n',
    )
    remote = " ".join([*sealed.SEALPOINT, "receive", "--stdio", *keys.open])
    words = [
        "migrate",
        "-t",
        running.pid,
        "--to",
        "ssh://root@there:2222",
        "--ssh",
        ssh,
        "--remote",
        remote,
    ]
    sealpoint.run(*words, *keys.seal).ok()
    running.assert_continues(before)
    assert where(running, far) == ["far"]


# --- The other side says no ------------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["identity", "trust"])
def test_a_far_side_that_cannot_open_or_does_not_trust_it_refuses_and_the_tree_runs_on_here(
    lacks: str, far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    identity = "other/identity.key" if lacks == "identity" else "identity.key"
    signer = "other/signer.pub" if lacks == "trust" else "signer.pub"
    receiver = receive("-i", keys.path(identity), "--trust", keys.path(signer))
    sealpoint.run(*migrate(far, running, keys)).fails(6, "gave up")
    if lacks == "identity":
        receiver.wait().fails(4)
    else:  # a stranger does not use up its one migration
        assert receiver.process.poll() is None
        assert "was turned away: no trusted signer signed this" in receiver.end(far).err
    running.assert_continues(before)
    assert where(running, far) == ["here"]


@pytest.mark.parametrize("what", ["another workload", "an id", "an older one"])
def test_a_tree_that_is_not_expected_or_older_is_refused_and_runs_on_here(
    what: str, far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    state = tmp_path / "receiver's state"
    words = {"another workload": ["--workload", "other"], "an id": ["--expect", "ab" * 16]}
    if what == "an older one":
        Newest(str(state)).note("billing", Mark(bytes(16), int(time.time()) + 200, 1))
    receiver = receive(*keys.open, "--state", str(state), *words.get(what, []))
    options = ["--workload", "billing"]
    sealpoint.run(*migrate(far, running, keys, *options)).fails(6, "gave up")
    message = "it is older than" if what == "an older one" else "another checkpoint was expected"
    receiver.wait().fails(5, message)
    running.assert_continues(before)
    assert where(running, far) == ["here"]
    known = Newest(str(state)).of("billing")
    assert known is None or known.checkpoint_id == bytes(16)


def test_what_moves_in_is_said_and_is_the_newest_from_then_on(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    state = tmp_path / "receiver's state"
    receiver = receive(*keys.open, "--state", str(state), "--workload", "billing")
    moved = sealpoint.run(*migrate(far, running, keys, "--workload", "billing", "--json")).ok()
    identifier = json.loads(moved.out)["checkpoint"]
    done = receiver.wait().ok()
    assert f"sealpoint: restoring workload 'billing', checkpoint {identifier}, " in done.err
    running.assert_continues(before)
    assert where(running, far) == ["far"]
    assert Newest(str(state)).of("billing").checkpoint_id.hex() == identifier


def test_a_restore_that_fails_over_there_leaves_the_tree_here(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys,
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    receiver = receive(*keys.open)
    blocker = subprocess.Popen(
        far.command(
            "sh", "-c", f"echo {running.pid - 1} >/proc/sys/kernel/ns_last_pid; sleep 100 & wait"
        )
    )
    try:
        taken = lambda: os.path.exists(f"/proc/{far.init}/root/proc/{running.pid}")  # noqa: E731
        sealed.wait_until(taken, "its pid is taken over there", 30)
        sealpoint.run(*migrate(far, running, keys)).fails(6, "gave up", "File exists")
        receiver.wait().fails(7, "File exists")
    finally:
        blocker.kill()
        blocker.wait()
    running.assert_continues(before)
    assert where(running, far) == ["here"]


def test_nobody_listens(
    workload: StartWorkload, far: FarSide, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("memory", "--mib", "8")
    sealpoint.run(*migrate(far, running, keys)).fails(6, "cannot connect")
    running.assert_intact()


# --- The link breaks, or somebody sits on it ---------------------------------------------------------------


def test_nothing_on_the_wire_is_readable(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, needles: dict[str, bytes], tap: Callable[..., Tap],
) -> None:  # fmt: skip
    running = workload("ipc")
    receiver, tapped = receive(), tap()
    sealpoint.run(*through(tapped, running, keys)).ok()
    receiver.wait().ok()
    running.assert_intact()
    wire = tapped.wire()
    assert len(wire) > 100_000
    assert [n for n, v in needles.items() if v in wire] == []


def test_a_cable_that_is_pulled_out_leaves_the_tree_here(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
) -> None:  # fmt: skip
    running = workload("memory")
    before = running.assert_intact()
    receiver = receive()
    migration = sealpoint.start(*migrate(far, running, keys))
    migration.criu()
    far.cut()
    migration.wait().fails(6, "link")
    receiver.wait().fails(6, "link")
    running.assert_continues(before)
    assert where(running, far) == ["here"]


def test_a_migration_that_is_played_again_is_refused(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tap: Callable[..., Tap],
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    tapped = tap()
    first = receive()
    sealpoint.run(*through(tapped, running, keys)).ok()
    first.wait().ok()
    running.kill()
    again = receive()

    def play(proof: Callable[[bytes], bytes] | None) -> None:
        with socket.create_connection((far.address, PORT)) as attacker:
            hello = attacker.recv(4096)
            for direction, kind, body in tapped.seen:
                if direction == "to far":
                    sent = proof(hello[-32:]) if proof and kind == Tap.PROOF else body
                    with contextlib.suppress(OSError):  # it has had enough
                        attacker.sendall(bytes([kind]) + len(sent).to_bytes(4, "little") + sent)
            with contextlib.suppress(OSError):
                while attacker.recv(4096):
                    pass

    play(None)
    sealed.wait_until(lambda: "was turned away" in again.errors.read_text(), "it is turned away")
    assert "made for another connection" in again.errors.read_text()
    signing = signing_by(load_signer(keys.path("signer.key")))
    play(lambda nonce: peer.prove(signing, peer.MIGRATION, nonce))  # by somebody who is trusted
    assert "sent again" in again.wait().err
    assert again.process.returncode == 5
    assert where(running, far) == []
    assert again.left() == []


@pytest.mark.parametrize("kind", [Tap.READY, Tap.GO])
def test_a_word_that_somebody_else_made_is_not_believed(
    kind: int, far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload,
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, tap: Callable[..., Tap],
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    receiver = receive()
    tapped = tap(lambda _, passing: "spoil" if passing == kind else "pass")
    result = sealpoint.run(*through(tapped, running, keys)).fails(6)
    receiver.wait().fails(6)
    if kind == Tap.READY:
        assert "cannot prove" in result.err
        assert where(running, far) == ["here"]
        running.assert_intact()
    else:
        running.reap()
        assert where(running, far) == []
        assert str(receiver.kept()[-1]) in result.err


def test_a_tree_runs_on_while_the_link_is_slow_to_take_a_copy_of_it(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tap: Callable[..., Tap],
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "32")  # more than a socket holds
    before = running.assert_intact()
    receiver = receive("--timeout", "60", *keys.open)
    at_data, go_on = threading.Event(), threading.Event()

    def moment(_: str, passing: int) -> str:
        if passing == Tap.DATA:
            at_data.set()
            go_on.wait(60)
        return "pass"

    more = ["--timeout", "60", "--compress", "none"]
    migration = sealpoint.start(*through(tap(moment), running, keys, *more))
    try:
        assert at_data.wait(60)
        running.assert_continues(before)  # the first message of the first copy has not arrived yet
    finally:
        go_on.set()
    migration.wait().ok()
    receiver.wait().ok()
    running.assert_continues(before)
    assert where(running, far) == ["far"]


def test_ctrl_c_leaves_the_tree_here(
    far: FarSide, receive: Callable[..., Receiver], workload: StartWorkload, sealpoint: sealed.Sealpoint,
    keys: sealed.Keys, tap: Callable[..., Tap],
) -> None:  # fmt: skip
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    receiver = receive()
    at_end = threading.Event()

    def moment(_: str, passing: int) -> str:
        if passing == Tap.END:
            at_end.set()
            time.sleep(1)
        return "pass"

    migration = sealpoint.start(*through(tap(moment), running, keys, "--rounds", "0"))
    assert at_end.wait(60)
    migration.signal(signal.SIGINT, group=True)
    assert migration.wait().code == 130
    receiver.wait().fails(6)
    running.assert_continues(before)
    assert where(running, far) == ["here"]
