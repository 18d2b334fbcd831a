"""A sealed file that a migration has left, restored by an engine: it runs once, whichever door is tried next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.engines import dropin as dropin_tools
from tests.engines.rpc_faults import Places, assert_refused, restore
from tests.real import harness, sealed
from tests.real.far_side import FarSide
from tests.real.moving import Receiver, far, receive, tap, through, where
from tests.real.tap import Tap

__all__ = ["far", "receive", "tap"]  # fixtures


def test_a_file_that_a_migration_left_runs_once_through_the_drop_in(
    dropin: dropin_tools.DropIn, far: FarSide, receive: Callable[..., Receiver], tap: Callable[..., Tap],
    workload: Callable[..., harness.Workload], sealpoint: sealed.Sealpoint, keys: sealed.Keys, tmp_path: Path,
) -> None:  # fmt: skip
    running = workload("secret")
    before = running.assert_intact()
    receiver = receive()
    tapped = tap(lambda _, passing: "cut" if passing == Tap.GO else "pass")
    sealpoint.run(*through(tapped, running, keys, "--rounds", "0"))
    receiver.wait().fails(6, "whether it runs at the sender is unknown")
    running.reap()
    assert where(running, far) == []
    places = Places(tmp_path / "images", tmp_path / "work")
    places.images.mkdir()
    places.work.mkdir()
    shutil.copy(receiver.kept()[-1], places.images / "inventory.img")
    reply = restore(dropin, places)
    assert reply.success, (reply, places.log("restore.log"))
    running.assert_continues(before)
    pid = f"process {running.pid}"
    assert_refused(
        restore(dropin, places),
        places.log("restore.log"),
        "the tree of this checkpoint runs here",
        pid,
    )
    running.assert_continues(before)
    state = ["--state", str(dropin.config.parent / "state")]
    again = ["restore", str(places.images / "inventory.img"), *keys.open, "--detach", *state]
    sealpoint.run(*again).fails(5, "the tree of this checkpoint runs here", pid)
    running.kill()
    running.reap()
    assert_refused(
        restore(dropin, places), places.log("restore.log"), "none of its first processes"
    )
    assert running.remains() == []
