"""dump --track and --parent with a real CRIU on any kernel: what changed is stored, and all of it comes back."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed

StartWorkload = Callable[..., harness.Workload]


class Dumps:
    """Increments of one workload."""

    def __init__(
        self, running: harness.Workload, command: sealed.Sealpoint, keys: sealed.Keys, where: Path
    ) -> None:
        self.running, self.command, self.keys, self.where = running, command, keys, where
        self.files: list[Path] = []

    def add(self, *options: object, kill: bool = False) -> tuple[dict, str]:
        path = self.where / f"{len(self.files) + 1}.sealed"
        more = ("--parent", self.files[-1]) if self.files else ("--track",)
        result = self.command.run(
            "dump", "-t", str(self.running.pid), "-o", path, "--json", *self.keys.seal, *more,
            "--state", self.where / "state", *(() if kill else ("-R",)), *options,
        ).ok()  # fmt: skip
        self.files.append(path)
        if kill:
            self.running.wait_gone()
        return json.loads(result.out), result.err


@pytest.fixture
def dumps(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> Callable[..., Dumps]:
    return lambda *kind: Dumps(workload(*kind), sealpoint, keys, tmp_path)


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["dirty", "tree", "memory", "ipc"])
def test_a_chain_of_three_comes_back(
    dumps: Callable[..., Dumps], sealpoint: sealed.Sealpoint, keys: sealed.Keys, kind: str
) -> None:
    made = dumps(kind)
    running = made.running
    with leaks.FileWatcher(running.needles, [made.where], ignore=[running.dir]) as watcher:
        first, _ = made.add()
        assert not first["increment"]
        time.sleep(0.2)
        second, _ = made.add()
        before = running.assert_intact()
        third, _ = made.add(kill=True)
        for values in (second, third):
            assert values["increment"]
            assert 0 < values["pages_stored"] < values["pages"] * 0.7
        sealpoint.run("restore", made.files[2], *keys.open, "--detach").ok()
        running.assert_continues(before)
    assert watcher.leaks() == []


def test_stored_is_what_changed(dumps: Callable[..., Dumps]) -> None:
    made = dumps("memory", "--mib", "64")
    made.add("--compress", "none")
    values, _ = made.add("--compress", "none")
    assert values["pages_stored"] < values["pages"] / 20
    assert made.files[1].stat().st_size < values["pages_stored"] * 4096 * 1.02 + 400_000
    made.running.assert_intact()


def test_without_a_state_the_dump_is_a_full_one_and_says_so(
    dumps: Callable[..., Dumps], sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    made = dumps("dirty")
    made.add()
    for state in (made.where / "state").glob("?" * 32):
        state.unlink()
    before = made.running.assert_intact()
    values, said = made.add(kill=True)
    assert not values["increment"]
    assert "sealpoint: warning: a full dump is made" in said
    made.files[0].unlink()
    sealpoint.run("restore", made.files[1], *keys.open, "--detach").ok()
    made.running.assert_continues(before)


def test_a_damaged_parent_costs_a_full_dump(dumps: Callable[..., Dumps]) -> None:
    made = dumps("secret")
    made.add()
    data = bytearray(made.files[0].read_bytes())
    data[-300] ^= 1
    made.files[0].write_bytes(data)
    values, said = made.add()
    assert not values["increment"]
    assert "a full dump is made" in said


def test_a_failed_dump_leaves_no_state_and_the_parent_can_be_continued(
    dumps: Callable[..., Dumps], sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    made = dumps("secret")
    made.add()
    states = sorted((made.where / "state").iterdir())
    refuse = made.where / "refuse.sh"
    refuse.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
    refuse.chmod(0o755)
    failed = sealpoint.run(
        "dump", "-t", str(made.running.pid), "-o", made.where / "x.sealed", *keys.seal,
        "--parent", made.files[0], "--state", made.where / "state",
        "--", "--action-script", refuse,
    )  # fmt: skip
    assert failed.code == 7
    made.running.assert_intact()
    assert sorted((made.where / "state").iterdir()) == states
    assert made.add()[0]["increment"]


def test_a_mount_shows_an_increment_whole_to_stock_criu(
    dumps: Callable[..., Dumps],
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    criu: Path,
    tmp_path: Path,
) -> None:
    made = dumps("dirty")
    made.add()
    before = made.running.assert_intact()
    made.add(kill=True)
    point = tmp_path / "mount"
    point.mkdir()
    sealpoint.run("mount", made.files[1], point, *keys.open).ok()
    try:
        subprocess.run(
            [criu, "restore", "-d", "-D", point, "-W", tmp_path, "-o", "restore.log"],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        made.running.assert_continues(before)
    finally:
        sealpoint.run("umount", point, "--lazy").ok()


def test_a_parent_in_the_place_of_the_output_is_an_error(
    dumps: Callable[..., Dumps], sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    made = dumps("secret")
    made.add()
    sealpoint.run(
        "dump", "-t", str(made.running.pid), "-o", made.files[0], "--force", *keys.seal,
        "--parent", made.files[0],
    ).fails(2, "would replace its parent")  # fmt: skip


def test_an_older_checkpoint_of_a_workload_is_restored_on_request_only(
    dumps: Callable[..., Dumps], sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    made = dumps("secret")
    before = made.running.assert_intact()
    made.add("--workload", "w")
    time.sleep(1.1)  # capture times count in seconds
    made.add("--workload", "w", kill=True)
    options = (*keys.open, "--detach", "--state", made.where / "state")
    refused = sealpoint.run("restore", made.files[0], *options)
    refused.fails(5, "it is older than checkpoint", "--allow-older")
    assert made.running.remains() == []
    sealpoint.run("restore", made.files[0], *options, "--allow-older").ok()
    made.running.assert_continues(before)
    made.running.kill()
    made.running.reap()
    sealpoint.run("restore", made.files[1], *options).ok()


def test_a_flattened_chain_and_a_pruned_one_come_back(
    dumps: Callable[..., Dumps], sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    made = dumps("dirty")
    for _ in range(3):
        made.add()
        time.sleep(0.1)
    before = made.running.assert_intact()
    made.add(kill=True)
    whole = made.where / "whole.sealed"
    sealpoint.run("flatten", made.files[3], "-o", whole, *keys.open, *keys.seal).ok()
    sealpoint.run("prune", made.files[3], "--keep-last", "2", *keys.open, *keys.seal).ok()
    assert [f.exists() for f in made.files] == [False, False, True, True]
    for file in (made.files[3], whole):
        sealpoint.run("restore", file, *keys.open, "--detach").ok()
        made.running.assert_continues(before)
        made.running.kill()
        made.running.reap()
