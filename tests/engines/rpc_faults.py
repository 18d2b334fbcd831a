"""Requests by RPC that something goes wrong with: their directories, what a refusal looks like, whom to kill."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import dropin as dropin_tools, rpc, rpc_calls
from tests.real import harness, sealed

BIG = ("memory", "--mib", "48")
LOST = (rpc.ClosedError, ConnectionError)


class Places:
    """The two directories of a request."""

    def __init__(self, images: Path, work: Path) -> None:
        self.images = images
        self.work = work

    @contextlib.contextmanager
    def options(self, **more: object) -> Iterator[dict[str, object]]:
        with (
            rpc.directory_descriptor(self.images) as images,
            rpc.directory_descriptor(self.work) as work,
        ):
            yield {"images_dir_fd": images, "work_dir_fd": work, "log_level": 4} | more

    def log(self, name: str) -> str:
        return (self.work / name).read_text(errors="replace")


@pytest.fixture
def places(images: Path, work: Path) -> Places:
    return Places(images, work)


def dump(dropin: dropin_tools.DropIn, places: Places, pid: int, **more: object) -> rpc.Reply:
    with places.options(log_file="dump.log", **more) as options:
        return rpc_calls.call(dropin, rpc.DUMP, pid=pid, **options)


def restore(dropin: dropin_tools.DropIn, places: Places, **more: object) -> rpc.Reply:
    with places.options(log_file="restore.log", **more) as options:
        return rpc_calls.call(dropin, rpc.RESTORE, **options)


def assert_refused(reply: rpc.Reply, log: str, *words: str) -> None:
    """The client hears our reason, and so does who reads CRIU's log."""
    assert not reply.success, reply
    assert reply.message.startswith("sealpoint: "), reply
    for word in words:
        assert word in reply.message, reply
    assert f"Error (sealpoint): {reply.message.removeprefix('sealpoint: ')}" in log, log


def helper(dropin: dropin_tools.DropIn, connection: rpc.Client) -> int:
    def others() -> list[int]:
        found = [pid for pid in dropin.helpers() if pid != connection.process.pid]
        below = [pid for pid in found if harness._parent(pid) in found]  # the other is its guard
        # A child that has not become its program yet looks the same.
        return below if len(below) == 1 else []

    [pid] = sealed.wait_until(others, "the helper runs", 30)
    return pid
