"""What `sealpoint podman restore` takes for a yes, with the real CRIU; the engine is a small one.  Podman: tests/vm."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import pytest
import sealed
import small_engine
import stock_criu
from damage import OnceUnreadable, flip, frames_of

from sealpoint.criu.fuse import FuseServer

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

        def seal() -> None:
            sealpoint.run("seal", plain, "-o", file, "--force", *keys.seal).ok()

        seal()
        return Sealed(file, plain, running, before, seal)

    return make


@pytest.fixture
def restore(
    sealpoint: sealed.Sealpoint, keys: sealed.Keys, engine: Path
) -> Callable[..., sealed.Result]:
    def call(file: object, podman: Path = engine) -> sealed.Result:
        return sealpoint.run("podman", "restore", file, "--podman", podman, *keys.open)

    return call


def assert_nothing_left(it: Sealed, tmp_path: Path) -> None:
    sealed.wait_until(lambda: it.workload.remains() == [], "nothing of the tree is left", 10)
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
    it.seal()
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
        result = restore(f"{server.path}/{it.file.name}")
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
