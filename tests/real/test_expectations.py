"""Doors that run something, typed and by command: what they say, what they expect, and that older ones are refused."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.opener import Opening
from sealpoint.keys import load_trust
from sealpoint.state.newest import Newest
from tests.real import harness, sealed
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]


def origin_of(file: Path, keys: sealed.Keys):
    policy = load_trust([keys.path("signer.pub")])
    with Opening(policy, alone=True).open(str(file)) as checkpoint:
        return checkpoint.origin, checkpoint.reference


# sealpoint restore


@pytest.fixture
def files(workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path):
    """files(WORKLOAD, ...): one dump of a process for each, a second apart; the last ends it."""
    running = workload("secret")
    running.before = running.assert_intact()

    def make(*names: str) -> tuple[harness.Workload, list[Path]]:
        made = []
        for number, name in enumerate(names):
            if number:
                time.sleep(1.1)  # capture times count in seconds
            file = tmp_path / f"{number}.sealed"
            last = number + 1 == len(names)
            words = [] if last else ["--leave-running"]
            words += ["--state", str(tmp_path / "dump-state"), "--workload", name]
            sealpoint.run("dump", "-t", str(running.pid), "-o", file, *keys.seal, *words).ok()
            made.append(file)
        running.wait_gone()
        return running, made

    return make


def test_files_that_were_exchanged_are_refused_by_workload_id_and_digest(
    files, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    """Storage has put another file of the same signer in the place of the one that was meant."""
    running, (billing, other) = files("billing", "other")
    _, reference = origin_of(billing, keys)
    options = [*keys.open, "--detach", "--state", str(tmp_path / "state")]
    for words in (
        ["--workload", "billing"],
        ["--expect", reference.checkpoint_id.hex()],
        ["--expect", reference.origin_digest.hex()],
    ):
        refused = sealpoint.run("restore", other, *options, *words)
        refused.fails(5, "another checkpoint was expected")
        assert "restoring" not in refused.err
        assert running.remains() == []
    words = ["--workload", "billing", "--expect", reference.origin_digest.hex()]
    done = sealpoint.run("restore", billing, *options, *words).ok()
    running.assert_continues(running.before)
    said = [line for line in done.err.splitlines() if line.startswith("sealpoint: restoring ")]
    assert f"workload 'billing', checkpoint {reference.checkpoint_id.hex()}, captured 20" in said[0]
    assert "signed by ed25519" in said[0]
    assert "command 'python" in said[1]


def test_an_untrusted_file_moves_no_mark(
    files, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running, (file,) = files("w")
    identity = [w for w in keys.open if w not in ("--trust", keys.path("signer.pub"))]
    words = [*identity, "--detach", "--state", str(tmp_path / "state"), "--allow-unsigned"]
    done = sealpoint.run("restore", file, *words).ok()
    assert "(not trusted)" in done.err
    assert Newest(str(tmp_path / "state")).of("w") is None
    running.kill()
    running.reap()
    sealpoint.run("restore", file, *keys.open, *words).ok()
    assert Newest(str(tmp_path / "state")).of("w") is not None


def test_a_restore_that_fails_moves_no_mark(
    files, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running, (file,) = files("w")
    with file.open("r+b") as sealed_file:
        sealed_file.seek(file.stat().st_size // 2)
        byte = sealed_file.read(1)[0]
        sealed_file.seek(-1, 1)
        sealed_file.write(bytes([byte ^ 1]))
    words = [*keys.open, "--detach", "--state", str(tmp_path / "state")]
    assert sealpoint.run("restore", file, *words).code != 0
    assert running.remains() == []
    assert Newest(str(tmp_path / "state")).of("w") is None


def test_a_step_back_is_allowed_once_for_a_command_too(
    files, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running, (older, _) = files("w", "w")
    state = ["--state", str(tmp_path / "dump-state")]
    words = ["restore", older, *keys.open, "--detach", *state]
    sealpoint.run(*words).fails(5, "it is older than checkpoint", "sealpoint state allow-older")
    sealpoint.run("state", "allow-older", "w", *state).ok()
    done = sealpoint.run(*words).ok()
    assert "an older checkpoint is restored" in done.err
    running.assert_continues(running.before)
    running.kill()
    running.reap()
    sealpoint.run(*words).fails(5, "it is older than checkpoint")


# criu restore, as typed


def typed_dump(dropin: DropIn, pid: int, images: Path, *more: str) -> None:
    images.mkdir()
    status, said = dropin.run("dump", "-t", pid, "-D", images, "--root", "/", *more)
    assert status == 0, said


def test_typed_at_the_drop_in_an_older_checkpoint_is_refused_and_allowed_once(
    workload: StartWorkload,
    dropin: DropIn,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    first, second = tmp_path / "first", tmp_path / "second"
    typed_dump(dropin, running.pid, first, "--leave-running")
    time.sleep(1.1)
    typed_dump(dropin, running.pid, second)
    running.wait_gone()
    (older, _), (newer, _) = (origin_of(d / "inventory.img", keys) for d in (first, second))
    assert older.workload == newer.workload
    assert re.fullmatch(r"container-[0-9a-f]{32}", older.workload)
    status, said = dropin.run("restore", "-d", "-D", first)
    assert status != 0
    assert "it is older than checkpoint" in said
    assert running.remains() == []
    state = str(dropin.home.parent / "state")
    sealpoint.run("state", "allow-older", older.workload, "--state", state).ok()
    status, said = dropin.run("restore", "-d", "-D", first)
    assert status == 0, said
    running.assert_continues(before)
    assert f"restoring workload '{older.workload}', checkpoint {older.checkpoint_id.hex()}" in said
    assert "an older checkpoint is restored" in said
    running.kill()
    running.reap()
    assert dropin.run("restore", "-d", "-D", first)[0] != 0
    assert running.remains() == []
    assert dropin.run("restore", "-d", "-D", second)[0] == 0
    running.assert_intact()


def test_typed_at_the_drop_in_what_is_not_expected_is_refused(
    workload: StartWorkload, dropin: DropIn, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    typed_dump(dropin, running.pid, tmp_path / "images")
    running.wait_gone()
    _, reference = origin_of(tmp_path / "images" / "inventory.img", keys)
    dropin.configure(expect='["' + "ab" * 16 + '"]')
    status, said = dropin.run("restore", "-d", "-D", tmp_path / "images")
    assert status != 0
    assert "another checkpoint was expected" in said
    assert running.remains() == []
    dropin.configure(expect=f'["{reference.checkpoint_id.hex()}"]')
    status, said = dropin.run("restore", "-d", "-D", tmp_path / "images")
    assert status == 0, said
    running.assert_continues(before)
