"""A restore by RPC through the drop-in when something breaks: it leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc
from tests.engines.damage import flip, frames_of
from tests.engines.rpc_faults import (
    BIG,
    LOST,
    Places,
    assert_refused,
    dump,
    helper,
    places,
    restore,
)
from tests.real import harness, sealed, stock_criu

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]


@pytest.fixture
def dumped(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: Places
) -> Callable[..., harness.Workload]:
    def make(*kind: str) -> harness.Workload:
        running = workload(*kind)
        reply = dump(dropin, places, running.pid)
        assert reply.success, reply
        running.wait_gone()
        return running

    return make


def assert_nothing_left(dropin: dropin_tools.DropIn, gone: harness.Workload) -> None:
    dropin.settle()
    with contextlib.suppress(TimeoutError):
        sealed.wait_until(lambda: gone.remains() == [], "nothing of the tree is left", 30)
    assert gone.remains() == [], [sealed.described(pid) for pid in gone.remains()]


REFUSED = {
    "untrusted signer": ({"trust": "other/signer.pub"}, "trust"),
    "nobody is trusted": ({"trust": None}, "trust"),
    "wrong identity": ({"identities": "other/identity.key"}, "not sealed to this identity"),
    "no identity": ({"identities": None}, "no identity"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_restore_without_trust_or_key_is_refused(
    dropin: dropin_tools.DropIn,
    dumped: Callable[..., harness.Workload],
    places: Places,
    keys: sealed.Keys,
    reason: str,
) -> None:
    gone = dumped("secret")
    settings, word = REFUSED[reason]
    dropin.configure(**{k: v and [keys.path(v)] for k, v in settings.items()})
    assert_refused(restore(dropin, places), places.log("restore.log"), word)
    assert_nothing_left(dropin, gone)
    dropin.configure()
    assert restore(dropin, places).success
    gone.assert_intact()


def test_plain_images_are_refused(
    dropin: dropin_tools.DropIn, criu: Path, workload: StartWorkload, work: Path, ram_dir: Path
) -> None:
    running = workload("secret")
    stock_criu.plain_dump(criu, running, ram_dir)
    places = Places(ram_dir, work)
    assert_refused(restore(dropin, places), places.log("restore.log"), "not sealed")
    assert_nothing_left(dropin, running)


def test_plain_images_are_restored_where_the_policy_allows_it_and_the_log_says_so(
    dropin: dropin_tools.DropIn, criu: Path, workload: StartWorkload, work: Path, ram_dir: Path
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    stock_criu.plain_dump(criu, running, ram_dir)
    running.wait_gone()
    dropin.configure(allow_plain_images=True)
    places = Places(ram_dir, work)
    reply = restore(dropin, places)
    assert reply.success, reply
    running.assert_continues(before)


def test_an_empty_directory_is_refused(dropin: dropin_tools.DropIn, places: Places) -> None:
    assert_refused(restore(dropin, places), places.log("restore.log"), "holds no inventory.img")


@pytest.mark.parametrize("name", ["pages-1.img", "shared memory", "pstree.img", "core"])
def test_one_flipped_bit_is_refused(
    dropin: dropin_tools.DropIn,
    dumped: Callable[..., harness.Workload],
    places: Places,
    keys: sealed.Keys,
    name: str,
) -> None:
    gone = dumped("tree")
    file = places.images / "inventory.img"
    if name == "core":
        name = f"core-{gone.pid}.img"
    offset, size = frames_of(keys, file, name)[-1]
    flip(file, offset + size // 2)
    reply = restore(dropin, places)
    assert_refused(reply, places.log("restore.log"))
    assert_nothing_left(dropin, gone)
    flip(file, offset + size // 2)
    assert restore(dropin, places).success
    gone.assert_intact()


def test_a_file_that_is_cut_or_has_another_files_header_is_refused(
    dropin: dropin_tools.DropIn, dumped: Callable[..., harness.Workload], places: Places
) -> None:
    gone = dumped("secret")
    file = places.images / "inventory.img"
    whole = file.read_bytes()
    other_workload = dumped("secret")
    other = file.read_bytes()
    for changed in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole + b"\0",
        other[:4096] + whole[4096:],
    ):
        file.write_bytes(changed)
        assert_refused(restore(dropin, places), places.log("restore.log"))
    assert_nothing_left(dropin, gone)
    assert_nothing_left(dropin, other_workload)


@pytest.mark.parametrize("victim", ["helper", "criu"])
@pytest.mark.parametrize("script", ["pre-restore", "post-restore", None])
def test_kill_9_in_a_restore_leaves_nothing_that_runs(
    dropin: dropin_tools.DropIn,
    dumped: Callable[..., harness.Workload],
    places: Places,
    script: str | None,
    victim: str,
) -> None:
    gone = dumped(*BIG)
    for _ in range(10):
        if _killed(dropin, gone, places, script, victim):
            break
        gone.kill()  # CRIU was faster than this test
        gone.wait_gone()
    else:
        pytest.fail("CRIU was never seen amid the pages")
    assert_nothing_left(dropin, gone)


def _killed(
    dropin: dropin_tools.DropIn, gone: harness.Workload, places: Places, script: str | None, victim: str
) -> bool:  # fmt: skip
    """A restore in which somebody is killed; False if the tree ran before that could be."""
    (places.work / "restore.log").unlink(missing_ok=True)
    with places.options(log_file="restore.log", notify_scripts=script is not None) as options:
        with rpc.Client(dropin.path, dropin.environment) as connection:
            criu = connection.process.pid

            def kill(notified: str = "", _: int = 0) -> bool:
                if notified == (script or ""):
                    os.kill(
                        helper(dropin, connection) if victim == "helper" else criu, signal.SIGKILL
                    )
                return True

            connection.send(rpc.request(rpc.RESTORE, **options))
            with contextlib.suppress(*LOST):
                if script is None:
                    amid = _stands_amid_the_pages(gone, places, criu)
                    if amid:
                        kill()
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(criu, signal.SIGCONT)
                    if not amid:
                        assert connection.finish().success
                        dropin.settle()
                        return False
                reply = connection.finish(kill)
                assert not reply.success
    return True


def _stands_amid_the_pages(gone: harness.Workload, places: Places, criu: int) -> bool:
    """Stop CRIU when it restores; False if it has already asked whether the tree may run."""
    said = lambda: places.log("restore.log") if (places.work / "restore.log").exists() else ""  # noqa: E731
    reading = lambda: gone.processes() or "Opened local page read" in said()  # noqa: E731
    sealed.wait_until(reading, "CRIU restores", 30)
    with contextlib.suppress(ProcessLookupError):
        os.kill(criu, signal.SIGSTOP)
    sealed.wait_until(lambda: harness.process_state(criu) in ("T", "Z", None), "CRIU stands")
    return harness.process_state(criu) == "T" and "post-restore scripts" not in said()
