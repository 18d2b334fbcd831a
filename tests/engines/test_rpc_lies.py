"""A CRIU that was led to other images, or that reports success and has asked nobody: no engine hears of success.

The stand-ins (`lying`) have the real CRIU behind them wherever something is dumped or restored.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc, rpc_faults
from tests.real import harness, lying, sealed, stock_criu

StartWorkload = Callable[..., harness.Workload]
Places = rpc_faults.Places
places = rpc_faults.places
silence = pytest.mark.parametrize("silent", [False, True], ids=["asks", "asks nobody"])


@pytest.fixture
def elsewhere(ram_dir: Path) -> Path:
    directory = ram_dir / "elsewhere"
    directory.mkdir()
    return directory


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def sealed_and_gone(
    dropin: dropin_tools.DropIn, places: Places, workload: StartWorkload
) -> harness.Workload:
    running = workload("secret")
    assert rpc_faults.dump(dropin, places, running.pid).success
    running.wait_gone()
    return running


@silence
@pytest.mark.parametrize("leave_running", [True, False], ids=["leave running", "end"])
def test_a_dump_into_another_directory_is_no_success(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    images: Path,
    elsewhere: Path,
    tmp_path: Path,
    criu: Path,
    silent: bool,
    leave_running: bool,
) -> None:
    """Where CRIU asks, the tree runs on; where it does not, its end cannot be prevented, but is said."""
    running = workload("tree")
    before = running.assert_intact()
    dropin.configure(criu=str(lying.by_rpc(tmp_path, criu, elsewhere, silent=silent)))
    reply = rpc_faults.dump(dropin, places, running.pid, leave_running=leave_running)
    words = ["no images of a checkpoint"]
    if silent:
        words = ["without a complete checkpoint", "runs on" if leave_running else "has ended"]
    rpc_faults.assert_refused(reply, places.log("dump.log"), *words)
    assert os.listdir(images) == []
    assert (elsewhere / "inventory.img").exists()
    if silent and not leave_running:
        running.wait_gone()
    else:
        running.assert_continues(before)


@silence
def test_a_restore_of_other_images_is_no_success_and_what_it_made_is_ended(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    elsewhere: Path,
    tmp_path: Path,
    criu: Path,
    silent: bool,
) -> None:
    """The sealed file is good, verified and approved of, but it is another that CRIU restores."""
    sealed_and_gone(dropin, places, workload)
    other = workload("tree")
    stock_criu.plain_dump(criu, other, elsewhere)
    dropin.configure(criu=str(lying.by_rpc(tmp_path, criu, elsewhere, silent=silent)))
    for rst_sibling in (False, True):
        reply = rpc_faults.restore(dropin, places, rst_sibling=rst_sibling)
        assert not reply.success, reply
        words = "was ended" if silent else "it never read core-"
        assert words in reply.message, reply
        sealed.wait_until(lambda: other.remains() == [], "nothing of it is left")


def test_success_without_anything_done_is_no_success(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    images: Path,
    tmp_path: Path,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    liar = lying.answers(tmp_path, rpc.encode({1: rpc.DUMP, 2: True}))
    dropin.configure(criu=str(liar))
    reply = rpc_faults.dump(dropin, places, running.pid)
    rpc_faults.assert_refused(reply, places.log("dump.log"), f"process {running.pid} runs on")
    assert os.listdir(images) == []
    running.assert_continues(before)


def test_a_process_that_has_the_pid_since_is_not_dumped_for_it(
    dropin: dropin_tools.DropIn, places: Places, images: Path, tmp_path: Path, criu: Path
) -> None:
    with lying.too_late(tmp_path, criu) as late:
        dropin.configure(criu=str(late.path))
        reply = rpc_faults.dump(dropin, places, late.pid)
        late.skip_unless_taken()
        rpc_faults.assert_refused(reply, places.log("dump.log"), "has ended meanwhile")
        assert late.stranger_runs()
    assert os.listdir(images) == []


def test_an_older_process_that_the_answer_names_as_restored_is_left_alone(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    tmp_path: Path,
    innocent: subprocess.Popen[bytes],
) -> None:
    sealed_and_gone(dropin, places, workload)
    answer = rpc.encode({1: rpc.RESTORE, 2: True, 4: {1: innocent.pid}})
    dropin.configure(criu=str(lying.answers(tmp_path, answer)))
    reply = rpc_faults.restore(dropin, places)
    rpc_faults.assert_refused(reply, places.log("restore.log"), "without a yes")
    assert 4 not in rpc.decode(reply.raw)
    assert innocent.poll() is None


def test_a_no_is_a_no_whatever_criu_makes_of_it(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    images: Path,
    elsewhere: Path,
    tmp_path: Path,
    criu: Path,
) -> None:
    """It asks, hears a no, goes on and reports success."""
    ours, other = workload("secret"), workload("tree")
    assert rpc_faults.dump(dropin, places, ours.pid).success
    ours.wait_gone()
    before = (images / "inventory.img").read_bytes()
    dropin.configure(criu=str(lying.by_rpc(tmp_path, criu, elsewhere, silent=False, deaf=True)))
    reply = rpc_faults.dump(dropin, places, other.pid)
    words = ("no images of a checkpoint", "but CRIU reported success", "has ended")
    rpc_faults.assert_refused(reply, places.log("dump.log"), *words)
    other.wait_gone()
    assert (images / "inventory.img").read_bytes() == before
    reply = rpc_faults.restore(dropin, places)
    assert not reply.success, reply
    assert "it never read core-" in reply.message
    assert "was ended" in reply.message
    sealed.wait_until(lambda: other.remains() == [], "nothing of it is left")
