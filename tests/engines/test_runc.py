"""Containers of a real runc, which knows nothing of sealpoint: it finds `criu` in PATH."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.format.constants import MAGIC
from tests.engines import dropin as dropin_tools
from tests.engines.containers import PLACES, Container
from tests.real import leaks

NewContainer = Callable[..., Container]

ENGINES_OWN = ("state.json", "state-")
"""runc keeps a container's environment in the state that it rewrites now and then; config.json has it anyway."""


def assert_sealed(images: Path) -> None:
    assert sorted(os.listdir(images)) == ["descriptors.json", "inventory.img"]
    assert (images / "inventory.img").read_bytes()[: len(MAGIC)] == MAGIC


def containers_own(leak: leaks.Leak) -> bool:
    """The file that the container holds without a name: closed when it ends, and made again, for a moment and where it
    was, when it is restored."""
    path = leak.path.removesuffix(" (deleted)")
    made_again = path.startswith(("/tmp/.criu.mntns.", "/tmp/unlinked.cr.")) and path.endswith(
        ".ghost"
    )
    closed = path == "/tmp/unlinked"  # as the container sees it
    return leak.how == "closed" and leak.needle == "unlinked" and (made_again or closed)


def unexpected(container: Container, found: list[leaks.Leak]) -> list[leaks.Leak]:
    """All leaks but those that are runc's own."""
    own = f"{container.state}/{container.id}/"
    return [
        leak
        for leak in found
        if not containers_own(leak)
        and not (
            leak.needle == "env"
            and leak.path.startswith(own)
            and leak.path.removeprefix(own).startswith(ENGINES_OWN)
        )
    ]


@pytest.mark.alone
@pytest.mark.parametrize("terminal", [False, True], ids=["without a terminal", "with a terminal"])
def test_a_container_is_sealed_and_restored_and_nothing_of_it_is_written_in_the_clear(
    dropin: dropin_tools.DropIn,
    container: NewContainer,
    images: Path,
    needles: dict[str, bytes],
    tmp_path: Path,
    terminal: bool,
) -> None:
    running = container(terminal=terminal)
    running.run(dropin.environment)
    count = running.assert_counts()
    secrets = {name: needles[name] for name in PLACES}
    with leaks.FileWatcher(secrets, [tmp_path], ignore=[running.rootfs]) as watcher:
        result = running.checkpoint(images, dropin.environment)
        assert result.code == 0, result
        assert running.stopped()
        assert_sealed(images)
        result = running.restore(images, dropin.environment)
        assert result.code == 0, (result, (running.work / "restore.log").read_text()[-3000:])
    running.assert_whole(count)
    assert watcher.traced
    assert unexpected(running, watcher.leaks()) == []
    assert {"dump.log", "restore.log"} <= set(os.listdir(running.work))


def test_a_container_left_running_goes_on_and_can_be_restored_later(
    dropin: dropin_tools.DropIn, container: NewContainer, images: Path
) -> None:
    running = container()
    running.run(dropin.environment)
    count = running.assert_counts()
    result = running.checkpoint(images, dropin.environment, "--leave-running")
    assert result.code == 0, result
    running.assert_whole(count)
    assert_sealed(images)
    later = running.assert_counts()
    running.kill()
    assert running.restore(images, dropin.environment).code == 0
    assert count <= running.count() < later + 10
    running.assert_whole(count)


def test_a_restored_container_can_be_checkpointed_again(
    dropin: dropin_tools.DropIn, container: NewContainer, tmp_path: Path
) -> None:
    running = container()
    running.run(dropin.environment)
    for number in range(2):
        images = tmp_path / f"round-{number}"
        images.mkdir()
        count = running.assert_counts()
        assert running.checkpoint(images, dropin.environment).code == 0
        assert running.restore(images, dropin.environment).code == 0
        running.assert_whole(count)


def test_with_the_stock_criu_every_secret_is_in_the_images(
    dropin: dropin_tools.DropIn,
    container: NewContainer,
    ram_dir: Path,
    needles: dict[str, bytes],
) -> None:
    running = container()
    running.run(dropin.stock_environment)
    result = running.checkpoint(ram_dir, dropin.stock_environment)
    assert result.code == 0, result
    secrets = {name: needles[name] for name in PLACES}
    assert set(leaks.scan_directory(ram_dir, secrets)) == set(PLACES)
    result = running.restore(ram_dir, dropin.environment)
    assert result.code != 0
    assert "not sealed" in (running.work / "restore.log").read_text()
    assert running.stopped()
