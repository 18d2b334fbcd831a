"""Answers of a client to notifications that nobody has sent it: they must not stand in for the gate's own answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc, rpc_faults
from tests.engines.damage import flip, frames_of
from tests.engines.rpc_calls import client
from tests.engines.rpc_faults import Places, assert_refused, places
from tests.real import harness, lying, sealed

__all__ = ["places"]  # a fixture

StartWorkload = Callable[..., harness.Workload]
YES = rpc.encode({1: rpc.NOTIFY, 3: True})
ahead = pytest.mark.parametrize("listens", [False, True], ids=["asks for none", "asks for them"])


def call(dropin: dropin_tools.DropIn, places: Places, kind: int, **options: object) -> rpc.Reply:
    """A request, with more answers behind it than CRIU has notifications."""
    with (
        client(dropin) as connection,
        rpc.directory_descriptor(places.images) as images,
        rpc.directory_descriptor(places.work) as work,
    ):
        options |= {"images_dir_fd": images, "work_dir_fd": work, "log_level": 4}
        connection.send(rpc.request(kind, log_file="rpc.log", **options))
        for _ in range(20):
            connection.send(YES)
        reply = connection.finish()
        connection.wait()
    return reply


@ahead
def test_an_answer_ahead_of_its_question_is_no_yes_to_a_dump(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    ram_dir: Path,
    tmp_path: Path,
    criu: Path,
    listens: bool,
) -> None:
    """The gate says no, because CRIU has written elsewhere: the tree must run on."""
    elsewhere = ram_dir / "elsewhere"
    elsewhere.mkdir()
    running = workload("secret")
    before = running.assert_intact()
    dropin.configure(criu=str(lying.by_rpc(tmp_path, criu, elsewhere, silent=False)))
    reply = call(dropin, places, rpc.DUMP, pid=running.pid, notify_scripts=listens)
    assert_refused(reply, places.log("rpc.log"), "no images of a checkpoint")
    running.assert_continues(before)


@ahead
def test_an_answer_ahead_of_its_question_is_no_yes_to_a_restore(
    dropin: dropin_tools.DropIn,
    workload: StartWorkload,
    places: Places,
    keys: sealed.Keys,
    sealpoint: sealed.Sealpoint,
    ram_dir: Path,
    listens: bool,
) -> None:
    """The gate says no, because pages that CRIU has no use for are damaged: nothing restored may run."""
    running = workload("secret")
    assert rpc_faults.dump(dropin, places, running.pid).success
    running.wait_gone()
    file, plain = places.images / "inventory.img", ram_dir / "plain"
    sealpoint.run("open", file, "-o", plain, *keys.open).ok()
    with (plain / "pages-1.img").open("ab") as pages:
        pages.write(bytes(range(256)) * (5 << 12))
    sealpoint.run("seal", plain, "-o", file, "--force", "--as-files", *keys.seal).ok()
    offset, size = frames_of(keys, file, "pages-1.img")[-1]
    flip(file, offset + size // 2)
    reply = call(dropin, places, rpc.RESTORE, notify_scripts=listens)
    assert_refused(reply, places.log("rpc.log"))
    assert "CRIU reported success" not in reply.message  # it heard the gate's no
    running.wait_gone()  # CRIU answers as soon as it has killed the tree, which then ends


@ahead
def test_answers_that_nobody_asked_for_do_no_harm(
    dropin: dropin_tools.DropIn, workload: StartWorkload, places: Places, listens: bool
) -> None:
    running = workload("secret")
    assert call(dropin, places, rpc.DUMP, pid=running.pid, notify_scripts=listens).success
    running.wait_gone()
    assert call(dropin, places, rpc.RESTORE, notify_scripts=listens).success
    running.assert_intact()


@pytest.mark.parametrize("kind", [rpc.DUMP, rpc.RESTORE])
def test_an_answer_before_the_request_is_none(
    dropin: dropin_tools.DropIn, places: Places, kind: int
) -> None:
    """CRIU never sees it, and works on the request behind it."""
    with client(dropin) as connection:
        connection.send(YES)
        reply = connection.call(rpc.request(kind, pid=0))
        connection.wait()
    assert reply.kind == kind
    assert not reply.success
