"""A process tree goes into one sealed file and comes back, and its secrets are found nowhere on the way."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import sealed

StartWorkload = Callable[..., harness.Workload]

QUICK = [("memory", "--mib", "16"), ("ipc",), ("tree",), ("secret",)]
WHOLE = pytest.param(("memory",), marks=pytest.mark.slow)


def assert_sealed(
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    file: Path,
    workload: harness.Workload,
    images: Path,
) -> None:
    """The secrets are in it, each in its image, for whoever has the key: so their absence elsewhere means something."""
    sealpoint.run("open", file, "-o", images, *keys.open).ok()
    found = harness.scan_directory(images, workload.needles)
    for name, pattern in harness.PLANTED[workload.kind].items():
        assert fnmatch.filter(found.get(name, []), pattern), (name, found)


@pytest.mark.parametrize("command", [*QUICK, WHOLE], ids=" ".join)
def test_dumped_to_a_file_killed_verified_and_restored(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    ram_dir: Path,
    command: tuple[str, ...],
) -> None:
    running = workload(*command)
    before = running.assert_intact()
    file = tmp_path / "out" / "app.sealed"
    file.parent.mkdir()
    with harness.FileWatcher(running.needles, [tmp_path], ignore=[running.dir]) as watcher:
        sealpoint.run("dump", "-t", running.pid, "-o", file, *keys.seal).ok()
        running.wait_gone()
        assert os.listdir(file.parent) == ["app.sealed"]
        sealpoint.run("verify", file, "--trust", keys.path("signer.pub")).ok()
        sealpoint.run("restore", file, "--detach", *keys.open).ok()
    running.assert_continues(before)
    assert len(running.processes()) == len(running.names)
    assert watcher.leaks() == []
    assert_sealed(sealpoint, keys, file, running, ram_dir / "images")
