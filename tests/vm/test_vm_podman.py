"""podman with stock CRIU: what the tests of the drop-in stand on; and its archives, sealed and opened again.

Were the first not so, the others would prove nothing: that these containers can be dumped and restored at all, and that
their secrets do lie in the clear in podman's archives.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import sealed
from tests.vm import podman

StartContainer = Callable[..., podman.Container]
RUNTIMES = ("crun", "runc")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_stock_checkpoint_and_restore(container: StartContainer, runtime: str) -> None:
    running = container(runtime)
    count = running.assert_counts()
    running.checkpoint().ok()
    assert running.processes() == []
    running.restore().ok()
    running.assert_whole(count)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_stock_archives_show_every_secret_and_sealed_ones_none(
    container: StartContainer,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    runtime: str,
) -> None:
    running = container(runtime)
    count = running.assert_counts()
    plain = tmp_path / "plain.tar"
    running.checkpoint("--export", plain, "--compress=none").ok()
    assert podman.found_in(plain, running.needles) == set(podman.PLACES)
    running.remove()

    running.restore_archive(plain).ok()
    running.assert_whole(count)
    running.remove()

    file, opened = tmp_path / "app.sealed", tmp_path / "opened.tar"
    sealpoint.run("seal", plain, "-o", file, *keys.seal).ok()
    assert podman.found_in(file, running.needles) == set()
    plain.unlink()
    sealpoint.run("open", file, "-o", opened, *keys.open).ok()
    running.restore_archive(opened).ok()
    running.assert_whole(count)


def test_a_compressed_archive_comes_back(
    container: StartContainer, sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path
) -> None:
    """podman's default is zstd; it recognises what it gets by content, as `seal` does."""
    running = container("crun")
    count = running.assert_counts()
    plain, file, opened = (tmp_path / name for name in ("plain.zst", "app.sealed", "opened.tar"))
    running.checkpoint("--export", plain).ok()
    running.remove()
    sealpoint.run("seal", plain, "-o", file, *keys.seal).ok()
    sealpoint.run("open", file, "-o", opened, *keys.open).ok()
    running.restore_archive(opened).ok()
    running.assert_whole(count)
