"""What the drop-in's gate takes for a yes at post-restore, when CRIU itself is content."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealpoint.criu.fuse import FuseServer
from tests.engines import dropin as dropin_tools, rpc, rpc_calls
from tests.engines.damage import OnceUnreadable, flip, frames_of
from tests.engines.rpc_faults import Places, assert_refused, places, restore
from tests.engines.test_rpc_restore_faults import assert_nothing_left, dumped
from tests.real import sealed

__all__ = ["dumped", "places"]  # fixtures


@pytest.fixture
def unreadable_once(keys: sealed.Keys, images: Path) -> Iterator:
    """unreadable_once(NAME): the file, as it is read from a disk that fails once where the object NAME lies."""
    servers: list[FuseServer] = []

    def make(name: str) -> OnceUnreadable:
        file = images / "inventory.img"
        disk = OnceUnreadable(file, frames_of(keys, file, name)[0])
        servers.append(FuseServer(disk, read_only=True))
        disk.path = servers[-1].path
        return disk

    yield make
    for server in servers:
        server.close()


def test_a_read_error_that_criu_ignores_is_a_no(
    dropin: dropin_tools.DropIn, dumped, places: Places, unreadable_once
) -> None:
    """Of shared memory: CRIU goes on with zeros.  Later all of it can be read and verified, but CRIU has not got it."""
    gone = dumped("ipc")
    disk = unreadable_once("shared memory")
    with (
        rpc.directory_descriptor(disk.path) as images,
        rpc.directory_descriptor(places.work) as work,
    ):
        options = {"images_dir_fd": images, "work_dir_fd": work, "log_file": "restore.log"}
        reply = rpc_calls.restore(dropin, **options)
    assert disk.failed == 1
    assert_refused(reply, places.log("restore.log"))
    assert_nothing_left(dropin, gone)
    assert restore(dropin, places).success
    gone.assert_intact()


def test_pages_that_criu_does_not_ask_for_are_verified_all_the_same(
    dropin: dropin_tools.DropIn,
    dumped,
    places: Places,
    keys: sealed.Keys,
    sealpoint: sealed.Sealpoint,
    ram_dir: Path,
) -> None:
    """Pages behind those that the pagemap counts: CRIU has no use for them."""
    gone = dumped("secret")
    file, plain = places.images / "inventory.img", ram_dir / "plain"
    sealpoint.run("open", file, "-o", plain, *keys.open).ok()
    with (plain / "pages-1.img").open("ab") as pages:
        pages.write(secrets.token_bytes(5 << 20))
    sealpoint.run("seal", plain, "-o", file, "--force", "--as-files", *keys.seal).ok()
    offset, size = frames_of(keys, file, "pages-1.img")[-1]
    flip(file, offset + size // 2)
    assert_refused(restore(dropin, places), places.log("restore.log"))
    assert_nothing_left(dropin, gone)
    flip(file, offset + size // 2)
    reply = restore(dropin, places)
    assert reply.success, reply
    gone.assert_intact()
