"""The drop-in by RPC: what it says that it restores, what it expects, and that it refuses what is older."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.opener import Opening
from sealpoint.format.statement import Origin
from sealpoint.keys import load_trust
from sealpoint.state.newest import Newest
from tests.engines import dropin as dropin_tools
from tests.engines.rpc_faults import Places, assert_refused, dump, restore
from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]


class Container:
    """A process as an engine dumps it: with a root directory in the request, step by step."""

    def __init__(self, dropin, running, directory: Path, keys: sealed.Keys) -> None:
        self.dropin, self.running, self.directory, self.keys = dropin, running, directory, keys
        self.before = running.assert_intact()
        self.steps: list[Places] = []

    def dump(self, *, root: str = "/", **more: object) -> Origin:
        places = Places(
            *(self.directory / f"{kind}-{len(self.steps)}" for kind in ("images", "work"))
        )
        places.images.mkdir()
        places.work.mkdir()
        options = {"root": root} if root else {}
        reply = dump(self.dropin, places, self.running.pid, **options, **more)
        assert reply.success, reply
        self.steps.append(places)
        return self.origin(places)

    def origin(self, places: Places) -> Origin:
        policy = load_trust([self.keys.path("signer.pub")])
        path = str(places.images / "inventory.img")
        with Opening(policy, alone=True).open(path) as checkpoint:
            return checkpoint.origin

    def end(self) -> None:
        self.running.kill()
        self.running.reap()


@pytest.fixture
def container(
    dropin: dropin_tools.DropIn, workload: StartWorkload, tmp_path: Path, keys: sealed.Keys
) -> Container:
    return Container(dropin, workload("secret"), tmp_path, keys)


def state_of(dropin: dropin_tools.DropIn) -> str:
    return str(dropin.config.parent / "state")


def two_steps(container: Container) -> tuple[Origin, Origin]:
    older = container.dump(leave_running=True)
    time.sleep(1.1)  # capture times count in seconds
    newer = container.dump()
    container.running.wait_gone()
    return older, newer


def test_a_container_has_one_opaque_workload_and_its_mark_rises_when_it_is_dumped(
    container: Container, dropin: dropin_tools.DropIn
) -> None:
    older, newer = two_steps(container)
    assert re.fullmatch(r"container-[0-9a-f]{32}", older.workload)
    assert newer.workload == older.workload
    mark = Newest(state_of(dropin)).of(newer.workload)
    assert (mark.checkpoint_id, mark.captured) == (newer.checkpoint_id, newer.captured)


def test_an_older_checkpoint_is_refused_and_restored_once_where_that_is_allowed(
    container: Container, dropin: dropin_tools.DropIn, sealpoint: sealed.Sealpoint
) -> None:
    older, newer = two_steps(container)
    first, second = container.steps
    assert_refused(
        restore(dropin, first),
        first.log("restore.log"),
        "it is older than checkpoint",
        older.workload,
    )
    assert container.running.remains() == []
    state = state_of(dropin)
    sealpoint.run("state", "allow-older", older.workload, "--for", "10m", "--state", state).ok()
    reply = restore(dropin, first)
    assert reply.success, reply
    container.running.assert_continues(container.before)
    assert "an older checkpoint is restored" in first.log("restore.log")
    container.end()
    assert_refused(restore(dropin, first), first.log("restore.log"), "it is older than checkpoint")
    assert container.running.remains() == []
    log = [json.loads(line) for line in Path(state, "newest", "log").read_text().splitlines()]
    assert [next(k for k in entry if k in ("allowed", "took")) for entry in log] == [
        "allowed",
        "took",
    ]
    assert Newest(state).of(older.workload).checkpoint_id == newer.checkpoint_id
    assert restore(dropin, second).success
    container.running.assert_intact()


def test_the_mark_of_a_restore_refuses_what_is_older_on_a_machine_that_did_not_dump_it(
    container: Container, dropin: dropin_tools.DropIn
) -> None:
    _, newer = two_steps(container)
    newest = Newest(state_of(dropin))
    for file in Path(state_of(dropin), "newest").iterdir():
        file.unlink()
    first, second = container.steps
    assert restore(dropin, second).success
    container.end()
    assert newest.of(newer.workload).checkpoint_id == newer.checkpoint_id
    assert_refused(restore(dropin, first), first.log("restore.log"), "it is older than checkpoint")


def test_what_is_restored_is_in_criu_s_log_before_it_runs(
    container: Container, dropin: dropin_tools.DropIn
) -> None:
    origin = container.dump()
    container.running.wait_gone()
    (places,) = container.steps
    assert restore(dropin, places).success
    lines = places.log("restore.log").splitlines()
    said = [n for n, line in enumerate(lines) if "(sealpoint): restoring" in line]
    assert origin.workload in lines[said[0]]
    assert origin.checkpoint_id.hex() in lines[said[0]]
    assert "signed by ed25519" in lines[said[0]]
    assert "command 'python" in lines[said[1]]
    released = next(n for n, line in enumerate(lines) if "Restore finished successfully" in line)
    assert said[-1] < released


@pytest.mark.parametrize("setting", ["expect_workloads", "expect"])
def test_what_the_configuration_does_not_expect_is_refused(
    container: Container, dropin: dropin_tools.DropIn, setting: str
) -> None:
    origin = container.dump()
    container.running.wait_gone()
    (places,) = container.steps
    other = {"expect_workloads": ["another"], "expect": ["ab" * 16]}[setting]
    own = {"expect_workloads": origin.workload, "expect": origin.checkpoint_id.hex()}[setting]
    dropin.configure(**{setting: other})
    reply = restore(dropin, places)
    assert_refused(reply, places.log("restore.log"), "another checkpoint was expected")
    assert container.running.remains() == []
    dropin.configure(**{setting: [*other, own]})
    assert restore(dropin, places).success
    container.running.assert_continues(container.before)


@pytest.mark.parametrize("why", ["no engine", "switched off"])
def test_without_a_container_or_where_it_is_switched_off_there_is_no_workload(
    container: Container, dropin: dropin_tools.DropIn, why: str
) -> None:
    if why == "switched off":
        dropin.configure(container_workloads=False)
    origin = container.dump(root="" if why == "no engine" else "/")
    assert origin.workload == ""
    container.running.wait_gone()
    assert restore(dropin, container.steps[0]).success
    assert not Path(state_of(dropin), "newest").exists()


def test_a_dump_that_failed_moves_no_mark(
    container: Container, dropin: dropin_tools.DropIn, tmp_path: Path
) -> None:
    origin = container.dump(leave_running=True)
    known = Newest(state_of(dropin)).of(origin.workload)
    time.sleep(1.1)
    places = Places(tmp_path / "failing", tmp_path / "failing-work")
    places.images.mkdir()
    places.work.mkdir()
    reply = dump(dropin, places, container.running.pid, root="/", ps={1: "127.0.0.1", 2: 1})
    assert not reply.success
    assert Newest(state_of(dropin)).of(origin.workload) == known
    container.running.assert_intact()
