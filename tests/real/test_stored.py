"""Checkpoints whose memory lies in a chunk store, with a real CRIU: dump, restore, verify, flatten, gc."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, leaks, sealed
from tests.real.typed import DropIn

StartWorkload = Callable[..., harness.Workload]


class Store:
    """A store, and what goes into it."""

    def __init__(self, command: sealed.Sealpoint, keys: sealed.Keys, where: Path) -> None:
        self.command, self.keys = command, keys
        self.path, self.key = where / "store", where / "tenant.key"
        command.run("store", "init", self.path, "--tenant-key", self.key).ok()

    @property
    def options(self) -> list[object]:
        return ["--store", self.path, "--tenant-key", self.key]

    def dump(self, pid: int, name: str, *more: object) -> dict:
        result = self.command.run(
            "dump", "-t", str(pid), "-o", self.path / name, "--json", *self.options,
            *self.keys.seal, *more,
        ).ok()  # fmt: skip
        return json.loads(result.out)

    def stat(self) -> dict:
        return json.loads(self.command.run("store", "stat", self.path, "--json").ok().out)

    def chunks(self) -> list[Path]:
        return sorted((self.path / "chunks").glob("??/*"))


@pytest.fixture
def store(sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path) -> Store:
    return Store(sealpoint, keys, tmp_path)


@pytest.mark.parametrize("kind", ["tree", "memory"])
def test_a_process_is_dumped_into_a_store_twice_and_comes_back(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, kind: str
) -> None:
    running = workload(kind)
    first = store.dump(running.pid, "1.sealed", "-R")
    before = running.assert_intact()
    second = store.dump(running.pid, "2.sealed")
    running.wait_gone()
    assert first["chunks_added"] > second["chunks_added"]
    assert second["chunks_added_size"] < first["chunks_added_size"] * 0.8
    found = store.stat()
    assert len(found["checkpoints"]) == 2
    assert found["size"] < found["size_alone"] * 0.9
    assert found["missing_chunks"] == found["unused_chunks"] == 0
    verified = sealpoint.run(
        "verify", store.path / "2.sealed", "--trust", keys.path("signer.pub"), "--json"
    ).ok()
    assert json.loads(verified.out)["stored_chunks_checked"]
    sealpoint.run("restore", store.path / "2.sealed", *keys.open, "--detach").ok()
    running.assert_continues(before)


@pytest.mark.alone
def test_no_secret_is_written_in_the_clear(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("secret")
    with leaks.FileWatcher(running.needles, [store.path], ignore=[running.dir]) as watcher:
        store.dump(running.pid, "1.sealed")
        running.wait_gone()
        sealpoint.run("restore", store.path / "1.sealed", *keys.open, "--detach").ok()
    assert watcher.leaks() == []


def test_an_ordinary_file_is_added_to_a_store_and_taken_back_without_it(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path
) -> None:
    running = workload("memory")
    before = running.assert_intact()
    plain, whole = tmp_path / "a.sealed", tmp_path / "whole.sealed"
    sealpoint.run("dump", "-t", str(running.pid), "-o", plain, *keys.seal).ok()
    running.wait_gone()
    sealpoint.run(
        "store", "add", store.path, plain, "--tenant-key", store.key, *keys.open, *keys.seal
    ).ok()
    referring = store.path / "a.sealed"
    assert referring.stat().st_size < plain.stat().st_size / 2
    elsewhere = tmp_path / "b.sealed"
    referring.rename(elsewhere)
    sealpoint.run("restore", elsewhere, *keys.open, "--detach").fails(3, "chunk store", "--store")
    sealpoint.run(
        "flatten", elsewhere, "-o", whole, "--store", store.path, *keys.open, *keys.seal
    ).ok()
    sealpoint.run("store", "gc", store.path).ok()
    assert store.chunks() == []
    sealpoint.run("restore", whole, *keys.open, "--detach").ok()
    running.assert_continues(before)


def test_a_tampered_or_missing_chunk_stops_the_restore(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path
) -> None:
    running = workload("secret")
    store.dump(running.pid, "1.sealed")
    running.wait_gone()
    chunk = max(store.chunks(), key=lambda p: p.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[-20] ^= 1
    chunk.write_bytes(data)
    restore = ("restore", store.path / "1.sealed", *keys.open, "--detach")
    sealpoint.run(*restore).fails(3, chunk.name, "tampered")
    chunk.unlink()
    log = tmp_path / "criu.log"
    missing = sealpoint.run(*restore, "--criu-log", log)
    missing.fails(3, chunk.name, "missing", str(store.path))
    assert not log.exists()  # CRIU, which acts as root, has not even been started


def test_increments_lie_in_a_store_too(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path
) -> None:
    running = workload("dirty")
    state = ("--state", tmp_path / "state")
    store.dump(running.pid, "1.sealed", "--track", "-R", *state)
    before = running.assert_intact()
    second = store.dump(running.pid, "2.sealed", "--parent", store.path / "1.sealed", *state)
    running.wait_gone()
    assert second["increment"]
    assert second["pages_stored"] < second["pages"]
    sealpoint.run("restore", store.path / "2.sealed", *keys.open, "--detach").ok()
    running.assert_continues(before)


def test_a_foreign_tenant_key_leaves_the_process_running(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path
) -> None:
    running = workload("secret")
    other = tmp_path / "other.key"
    sealpoint.run("store", "init", tmp_path / "other", "--tenant-key", other).ok()
    target = store.path / "1.sealed"
    dump = ("dump", "-t", str(running.pid), "-o", target, "--store", store.path, *keys.seal)
    sealpoint.run(*dump, "--tenant-key", other).fails(4, "tenant key", str(store.path))
    running.assert_intact()
    assert not target.exists()
    assert store.chunks() == []


def test_a_full_disk_under_the_store_fails_the_dump_and_the_process_runs_on(
    workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("memory", "--mib", "32")
    before = running.assert_intact()
    with sealed.small_filesystem(tmp_path / "small", "size=6m") as small:
        made = Store(sealpoint, keys, small)
        target = tmp_path / "1.sealed"
        sealpoint.run(
            "dump", "-t", running.pid, "-o", target, "--compress", "none", *made.options, *keys.seal
        ).fails(6, "no space left")
        assert not target.exists()
        running.assert_continues(before)
        sealpoint.run("store", "gc", made.path).ok()
        assert made.chunks() == []


def test_killed_at_random_moments_the_store_stays_sound_and_the_process_runs_on(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys
) -> None:
    running = workload("secret")
    target = store.path / "1.sealed"
    for n in range(5):
        before = running.assert_intact()
        command = sealpoint.start(
            "dump", "-R", "-t", running.pid, "-o", target, *store.options, *keys.seal
        )
        command.criu()
        time.sleep(n * 0.04)
        command.signal(signal.SIGKILL)
        command.wait()
        sealpoint.settle()
        running.assert_continues(before)
        sealpoint.run("store", "gc", store.path).ok()  # the lock of the dead one is gone
        if target.exists():
            sealpoint.run("verify", target, *keys.open).ok()
            target.unlink()
    store.dump(running.pid, "2.sealed")
    running.wait_gone()
    sealpoint.run("verify", store.path / "2.sealed", *keys.open).ok()


def test_what_lies_in_a_store_can_be_mounted_inspected_and_edited(
    store: Store, workload: StartWorkload, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path
) -> None:
    running = workload("secret")
    path, point, images = store.path / "1.sealed", tmp_path / "view", tmp_path / "images"
    store.dump(running.pid, path.name, "-R", "--scan")
    point.mkdir()
    sealpoint.run("open", path, "-o", images, *keys.open).ok()
    sealpoint.run("mount", path, point, *keys.open).ok()
    try:
        assert sorted(p.name for p in point.iterdir()) == sorted(p.name for p in images.iterdir())
        assert (point / "pages-1.img").read_bytes() == (images / "pages-1.img").read_bytes()
        assert "sealpoint-chunks" not in {p.name for p in images.iterdir()}
    finally:
        sealpoint.run("umount", point).ok()
    shown = sealpoint.run("memparse", path, *keys.open).ok()
    assert str(running.pid).encode() in shown.out
    json_file, edited = tmp_path / "files.json", tmp_path / "edited.sealed"
    sealpoint.run("crit", "decode", f"{path}:files.img", "-o", json_file, *keys.open).ok()
    sealpoint.run(
        "crit", "encode", json_file, "--into", f"{path}:files.img", "-o", edited,
        *keys.open, *keys.seal,
    ).ok()  # fmt: skip
    sealpoint.run("open", edited, "-o", tmp_path / "again", *keys.open).ok()
    again = tmp_path / "again" / "pages-1.img"
    assert again.read_bytes() == (images / "pages-1.img").read_bytes()


def test_the_drop_in_restores_what_lies_in_a_store_or_says_why_not(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    dropin: DropIn,
    tmp_path,
) -> None:
    running = workload("secret")
    made = Store(sealpoint, keys, tmp_path)
    made.dump(running.pid, "inventory.img")
    running.wait_gone()
    chunks, away = made.path / "chunks", tmp_path / "away"
    chunks.rename(away)
    status, said = dropin.run("restore", "-d", "-D", made.path)
    assert status != 0
    assert "chunk store" in said
    away.rename(chunks)
    status, said = dropin.run("restore", "-d", "-D", made.path)
    assert status == 0, said
    running.assert_intact()
