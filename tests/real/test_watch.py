"""Checkpoints at regular times: each can be restored, and nothing that goes wrong ends the tree."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoints"
    made.mkdir()
    return made


def watch(running: harness.Workload, directory: Path, keys: sealed.Keys, *more: object) -> list:
    words = ["watch", "-t", str(running.pid), "-o", directory, "--json", "--every", "0.2s"]
    return [*words, *keys.seal, *more]


def rows(result: sealed.Result) -> list[dict]:
    return [json.loads(line) for line in result.out.splitlines()]


def restored(
    running: harness.Workload, file: str, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running.kill()
    sealpoint.run("restore", file, "--detach", "--allow-older", *keys.open).ok()
    running.assert_intact()


def test_each_checkpoint_continues_the_one_before_and_can_be_restored(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, directory: Path
) -> None:
    running = workload("dirty")
    before = running.assert_intact()
    found = rows(sealpoint.run(*watch(running, directory, keys, "--count", "3")).ok())
    running.assert_continues(before)
    assert sorted(os.listdir(directory)) == sorted(Path(row["file"]).name for row in found)
    first, *others = found
    assert first["pages_stored"] == first["pages"]
    assert all(row["pages_stored"] < row["pages"] / 2 for row in others)
    for row in found:
        sealpoint.run("verify", row["file"], "--trust", keys.path("signer.pub")).ok()
    for row in reversed(found):
        restored(running, row["file"], sealpoint, keys)


def test_older_ones_are_merged_into_what_is_kept(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, directory: Path
) -> None:
    running = workload("dirty", "--mib", "8")
    options = ["--count", "5", "--keep-last", "2", *keys.open]
    found = rows(sealpoint.run(*watch(running, directory, keys, *options)).ok())
    assert len(os.listdir(directory)) == 2
    assert found[-1]["pages_stored"] < found[-1]["pages"]  # it continues what was merged
    for row in found[-2:]:
        restored(running, row["file"], sealpoint, keys)


def test_it_ends_when_the_tree_has_ended(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, directory: Path
) -> None:
    running = workload("memory", "--mib", "8")
    watching = sealpoint.start(*watch(running, directory, keys))
    sealed.wait_until(lambda: len(os.listdir(directory)) >= 2, "there are checkpoints")
    running.kill()
    found = rows(watching.wait().ok())
    assert len(found) == len(os.listdir(directory)) >= 2


def test_a_dump_that_fails_is_told_and_the_next_ones_are_made(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, directory: Path
) -> None:
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    # Three failures in a row would end it: there has to be time to put the directory back.
    options = ["--every", "4s", "--count", "3"]
    watching = sealpoint.start(*watch(running, directory, keys, *options))
    sealed.wait_until(lambda: watching.out.read_bytes().count(b"\n") >= 1, "there is a checkpoint")
    away = directory.with_name("away")
    directory.rename(away)
    sealed.wait_until(lambda: b"no checkpoint" in watching.err.read_bytes(), "it was told")
    away.rename(directory)
    result = watching.wait().ok()
    assert "there is no directory" in result.err
    assert len(rows(result)) == 3
    running.assert_continues(before)
    restored(running, rows(result)[-1]["file"], sealpoint, keys)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_watch_that_is_ended_leaves_the_tree_and_whole_files(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    directory: Path,
    how: int,
) -> None:
    running = workload("memory", "--mib", "8")
    before = running.assert_intact()
    watching = sealpoint.start(*watch(running, directory, keys))
    sealed.wait_until(lambda: len(os.listdir(directory)) >= 2, "there are checkpoints")
    watching.signal(how)
    assert watching.wait().code == (130 if how == signal.SIGINT else -9)
    sealed.wait_until(lambda: harness.process_state(running.pid) in ("S", "R"), "it runs on")
    running.assert_continues(before)
    for name in os.listdir(directory):
        sealpoint.run("verify", directory / name, "--trust", keys.path("signer.pub")).ok()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--every", "soon"], 2, "is not a time"),
        (["--every", "0s"], 2, "is not a time"),
        (["--every", "1s", "--keep-last", "3"], 2, "identity"),
        (["--every", "1s", "-o", "/nowhere"], 2, "no directory"),
        (["--every", "1s", "-t", "4194304"], 2, "no process"),
    ],
)
def test_what_cannot_be_watched(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, directory: Path,
    words: list[str], code: int, said: str,
) -> None:  # fmt: skip
    given = ["watch", "-t", "1", "-o", directory, *keys.seal]
    sealpoint.run(*given, *words).fails(code, said)
