"""What the drop-in's gate takes for a yes at post-restore, when CRIU itself is content."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import dropin as dropin_tools
import pytest
import rpc
import rpc_calls
import sealed
from rpc_faults import Places, assert_refused, places, restore
from test_rpc_restore_faults import assert_nothing_left, dumped, flip, frames_of

from sealpoint.criu.fuse import ROOT, Attributes, Filesystem, FuseServer

__all__ = ["dumped", "places"]  # fixtures


class OnceUnreadable(Filesystem):
    """A directory with one file, of which some bytes cannot be read the first time: a disk with a loose cable."""

    def __init__(self, file: Path, place: tuple[int, int]) -> None:
        self._fd = os.open(file, os.O_RDONLY)
        self._name, self._place = file.name, place
        size = os.fstat(self._fd).st_size
        self._attributes = Attributes(ROOT + 1, stat.S_IFREG | 0o600, size)
        self.failed = 0

    def lookup(self, parent, name):
        if name != self._name:
            raise OSError(errno.ENOENT, "no such file")
        return self._attributes

    def getattr(self, node):
        return Attributes(ROOT, stat.S_IFDIR | 0o700) if node == ROOT else self._attributes

    def readdir(self, node):
        return [(self._name, self._attributes)]

    def open(self, node, flags):
        return node

    def read(self, node, handle, offset, size):
        start, length = self._place
        if not self.failed and offset < start + length and start < offset + size:
            self.failed += 1
            raise OSError(errno.EIO, "input/output error")
        return [os.pread(self._fd, size, offset)]

    def close(self):
        os.close(self._fd)


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
    sealpoint.run("seal", plain, "-o", file, "--force", *keys.seal).ok()
    offset, size = frames_of(keys, file, "pages-1.img")[-1]
    flip(file, offset + size // 2)
    assert_refused(restore(dropin, places), places.log("restore.log"))
    assert_nothing_left(dropin, gone)
    flip(file, offset + size // 2)
    reply = restore(dropin, places)
    assert reply.success, reply
    gone.assert_intact()
