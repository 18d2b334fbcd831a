"""What `sealpoint podman checkpoint` and `restore` take for a yes, with the real CRIU; the engine is a small one.

Podman itself: tests/vm.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealpoint.criu.fuse import FuseServer
from tests.engines import rpc
from tests.engines.damage import OnceUnreadable, flip, frames_of
from tests.podman import small_engine
from tests.real import harness, lying, sealed, stock_criu

NAME = "web"


@dataclass
class Sealed:
    """A sealed container, and what it was made of."""

    file: Path
    plain: Path  # the members of podman's archive
    workload: harness.Workload
    before: dict[str, harness.Verdict]
    seal: Callable[[], None]  # `plain` anew into `file`


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return small_engine.install(tmp_path / "small-engine", tmp_path / "containers")


@pytest.fixture
def container(
    tmp_path: Path,
    ram_dir: Path,
    criu: Path,
    workload: Callable[..., harness.Workload],
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
) -> Callable[..., Sealed]:
    """container(KIND): checkpointed by a stock CRIU, as podman's archive has it, and sealed."""

    def make(kind: str) -> Sealed:
        running = workload(kind)
        before = running.assert_intact()
        plain = ram_dir / "container"
        plain.mkdir()
        stock_criu.plain_dump(criu, running, plain / "checkpoint")
        for name in ("dump.log", "dump.out", "stats-dump"):
            (plain / "checkpoint" / name).unlink(missing_ok=True)
        (plain / "config.dump").write_text(json.dumps({"name": NAME}))
        (plain / "spec.dump").write_text("{}")
        file = tmp_path / "web.sealed"

        def seal(*more: str) -> None:
            sealpoint.run("seal", plain, "-o", file, "--force", *keys.seal, *more).ok()

        seal()
        return Sealed(file, plain, running, before, seal)

    return make


@pytest.fixture
def restore(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, engine: Path
) -> Callable[..., sealed.Result]:
    def call(file: object, podman: Path = engine, *more: object) -> sealed.Result:
        return sealpoint.run("podman", "restore", file, "--podman", podman, *keys.open, *more)

    return call


def assert_nothing_left(it: Sealed, tmp_path: Path) -> None:
    sealed.wait_until(lambda: it.workload.remains() == [], "nothing of the tree is left", 30)
    assert not (tmp_path / "containers" / NAME).exists()


def test_a_container_that_is_authentic_runs_again(container, restore) -> None:
    it = container("ipc")
    restore(it.file).ok()
    it.workload.assert_continues(it.before)


def test_pages_that_criu_does_not_ask_for_are_verified_all_the_same(
    container, restore, keys: sealed.Keys, tmp_path: Path
) -> None:
    it = container("secret")
    name = "checkpoint/pages-1.img"
    with (it.plain / name).open("ab") as pages:
        pages.write(secrets.token_bytes(5 << 20))
    it.seal("--as-files")
    offset, size = frames_of(keys, it.file, name)[-1]
    flip(it.file, offset + size // 2)
    assert restore(it.file).code != 0
    assert_nothing_left(it, tmp_path)
    flip(it.file, offset + size // 2)
    restore(it.file).ok()
    it.workload.assert_continues(it.before)


def test_a_read_error_that_criu_ignores_is_a_no(
    container, restore, keys: sealed.Keys, tmp_path: Path
) -> None:
    """Of shared memory: CRIU goes on with zeros.  Later all of it can be read and verified, but CRIU has not got it."""
    it = container("ipc")
    disk = OnceUnreadable(it.file, frames_of(keys, it.file, "shared memory")[0])
    server = FuseServer(disk, read_only=True)
    try:
        result = restore(f"/proc/{os.getpid()}/fd/{server.fd}/{it.file.name}")
    finally:
        server.close()
    assert disk.failed == 1
    assert result.code != 0
    assert_nothing_left(it, tmp_path)
    restore(it.file).ok()
    it.workload.assert_continues(it.before)


def test_an_engine_that_does_not_run_the_criu_that_it_was_given_is_no_yes(
    container, restore, criu: Path, tmp_path: Path
) -> None:
    it = container("secret")
    stubborn = small_engine.install(tmp_path / "stubborn", tmp_path / "containers", str(criu))
    result = restore(it.file, stubborn)
    assert result.code != 0
    assert_nothing_left(it, tmp_path)
    shutil.rmtree(tmp_path / "containers" / f"{NAME}.work")
    restore(it.file).ok()
    it.workload.assert_continues(it.before)


@pytest.fixture
def checkpoint(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, engine: Path, tmp_path: Path
) -> Callable[..., sealed.Result]:
    """checkpoint(RUNNING, FILE): of a container with that workload; more: options."""

    def call(
        running: harness.Workload, file: Path, *more: object, podman: Path = engine
    ) -> sealed.Result:
        shutil.rmtree(tmp_path / "containers" / NAME, ignore_errors=True)
        small_engine.Engine(str(tmp_path / "containers"), "").start(NAME, running.pid)
        command = ["podman", "checkpoint", NAME, "-o", file, "--podman", podman]
        return sealpoint.run(*command, *keys.seal, *more)

    return call


def test_a_container_is_sealed_and_ends(
    checkpoint, sealpoint: sealed.Sealpoint, workload, keys: sealed.Keys, tmp_path: Path
) -> None:
    running = workload("ipc")
    file = tmp_path / "web.sealed"
    checkpoint(running, file).ok()
    running.wait_gone()
    sealpoint.run("verify", file, *keys.open).ok()


@pytest.mark.parametrize("silent", [False, True], ids=["asks", "asks nobody"])
def test_a_container_whose_images_went_elsewhere_is_no_success(
    checkpoint, workload, criu: Path, tmp_path: Path, ram_dir: Path, silent: bool
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    led = lying.by_rpc(tmp_path, criu, ram_dir, silent=silent)
    result = checkpoint(running, tmp_path / "web.sealed", "--criu", led)
    result.fails(7, "no images of a checkpoint" if not silent else "without a complete checkpoint")
    assert not (tmp_path / "web.sealed").exists()
    assert (ram_dir / "inventory.img").exists()
    running.assert_continues(before)


def test_success_of_a_container_without_anything_done_is_no_success(
    checkpoint, workload, criu: Path, tmp_path: Path
) -> None:
    """By a CRIU that lies to the relay, by one that the engine runs in its place, and by one that lies to us."""
    running = workload("secret")
    before = running.assert_intact()
    liar = lying.answers(tmp_path, rpc.encode({1: rpc.DUMP, 2: True}))
    file = tmp_path / "web.sealed"
    checkpoint(running, file, "--criu", liar).fails(7, f"process {running.pid}")
    stubborn = small_engine.install(tmp_path / "stubborn", tmp_path / "containers", str(liar))
    checkpoint(running, file, podman=stubborn).fails(7, "did not run the criu")
    bold = lying.in_place_of_the_relay(tmp_path, rpc.encode({1: rpc.DUMP, 2: True}))
    direct = small_engine.install(tmp_path / "direct", tmp_path / "containers", str(bold))
    checkpoint(running, file, podman=direct).fails(7, "without asking")
    assert not file.exists()
    running.assert_continues(before)


@pytest.mark.parametrize("silent", [False, True], ids=["asks", "asks nobody"])
def test_a_container_of_other_images_leaves_nothing_that_runs(
    container, restore, workload, criu: Path, tmp_path: Path, ram_dir: Path, silent: bool
) -> None:
    it = container("secret")
    other = workload("tree")
    elsewhere = ram_dir / "elsewhere"
    stock_criu.plain_dump(criu, other, elsewhere)
    led = lying.by_rpc(tmp_path, criu, elsewhere, silent=silent)
    result = restore(it.file, tmp_path / "small-engine", "--criu", led)
    result.fails(7, "was ended" if silent else "it never read core-")
    assert_nothing_left(it, tmp_path)
    sealed.wait_until(lambda: other.remains() == [], "nothing of the other is left", 30)


def test_podman_ends_although_nobody_reads_its_archive_any_more(
    engine: Path,
    sealpoint: sealed.Sealpoint,
    workload,
    keys: sealed.Keys,
    tmp_path: Path,
) -> None:
    """The command is killed between the dump and the archive: podman is not left waiting, nor the container stopped."""
    running = workload("memory", "--mib", "4")
    state = tmp_path / "containers"
    small_engine.Engine(str(state), "").start(NAME, running.pid)
    (state / "hold").touch()
    file = tmp_path / "web.sealed"
    words = ["podman", "checkpoint", NAME, "-o", file, "--podman", engine]
    command = sealpoint.start(*words, *keys.seal)
    sealed.wait_until((state / "held").exists, "the dump is done")
    command.signal(signal.SIGKILL)
    command.process.wait()
    (state / "hold").unlink()
    sealed.wait_until(lambda: sealpoint.processes() == [], "podman and its guard have ended")
    running.assert_intact()
    assert not file.exists()
