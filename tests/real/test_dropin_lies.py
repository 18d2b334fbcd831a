"""`criu dump` and `criu restore` as typed, with a CRIU behind the drop-in that was led elsewhere: no success."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import harness, lying, sealed, stock_criu, typed

StartWorkload = Callable[..., harness.Workload]
silence = pytest.mark.parametrize("silent", [False, True], ids=["asks", "asks nobody"])


def lead(dropin: typed.DropIn, tmp_path: Path, criu: Path, elsewhere: Path, silent: bool) -> None:
    """Put a CRIU that works in `elsewhere` behind the drop-in."""
    (tmp_path / "led").mkdir()
    led = lying.typed(tmp_path / "led", criu, elsewhere, silent=silent)
    led.rename(tmp_path / "led/criu")
    path = f"{dropin.path.parent}:{tmp_path}/led:{os.environ['PATH']}"
    dropin.environment["PATH"] = path


@silence
@pytest.mark.parametrize("leave_running", [True, False], ids=["leave running", "end"])
def test_a_dump_into_another_directory_is_no_success(
    dropin: typed.DropIn,
    workload: StartWorkload,
    tmp_path: Path,
    ram_dir: Path,
    criu: Path,
    silent: bool,
    leave_running: bool,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    images = tmp_path / "images"
    images.mkdir()
    lead(dropin, tmp_path, criu, ram_dir, silent)
    options = ["--leave-running"] if leave_running else []
    status, said = dropin.run("dump", "-t", running.pid, "-D", images, "-o", "log", *options)
    assert status != 0, said
    assert not (images / "inventory.img").exists()
    assert (ram_dir / "inventory.img").exists()
    assert "Traceback" not in said
    if silent:
        assert ("runs on" if leave_running else "has ended") in said
    if silent and not leave_running:
        running.wait_gone()
    else:
        running.assert_continues(before)


# In the foreground, of a tree that nobody was asked about, one hears when it has ended.
@pytest.mark.parametrize(("silent", "options"), [(False, ["-d"]), (False, []), (True, ["-d"])])
def test_a_restore_of_other_images_leaves_nothing_that_runs(
    dropin: typed.DropIn,
    workload: StartWorkload,
    tmp_path: Path,
    ram_dir: Path,
    criu: Path,
    silent: bool,
    options: list[str],
) -> None:
    ours, other = workload("secret"), workload("tree")
    images = tmp_path / "images"
    images.mkdir()
    status, said = dropin.run("dump", "-t", ours.pid, "-D", images)
    assert status == 0, said
    ours.wait_gone()
    stock_criu.plain_dump(criu, other, ram_dir)
    lead(dropin, tmp_path, criu, ram_dir, silent)
    status, said = dropin.run("restore", "-D", images, *options)
    assert status != 0, said
    assert "Traceback" not in said
    sealed.wait_until(lambda: other.remains() == [], "nothing of it is left")
