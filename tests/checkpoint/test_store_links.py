"""Links in a chunk store lead nowhere: nothing is read, written or removed through them."""

from __future__ import annotations

import errno
import os

import pytest

from sealpoint.chunks.collect import collect, statistics
from sealpoint.chunks.directory import ChunkDirectory
from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError
from tests import failing
from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.checkpoint_helpers import Keys
from tests.checkpoint.store_helpers import Store, noise

ONE = {"pages-1.img": noise(1, 300), "core-1.img": b"one"}


@pytest.fixture
def store(tmp_path, keys):
    return Store(tmp_path / "store", keys)


@pytest.fixture
def other(tmp_path, keys: Keys):
    """Somebody else's store, with chunks to which none of ours refers."""
    made = Store(tmp_path / "other", keys)
    made.add("two", {"pages-1.img": noise(2, 300)})
    return made


def link_shard(store: Store, other: Store) -> str:
    """One of the other store's shards under a name that ours lacks; the directory's name."""
    theirs = {p.name for p in (other.path / "chunks").iterdir() if p.is_dir()}
    ours = {p.name for p in (store.path / "chunks").iterdir()}
    name = min(theirs - ours)
    (store.path / "chunks" / name).symlink_to(other.path / "chunks" / name)
    return name


def test_gc_removes_nothing_behind_a_linked_directory(store, other):
    store.add("one", ONE)
    before = other.chunks()
    link_shard(store, other)
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        with pytest.raises(FileError, match="link"):
            collect(directory)
        with pytest.raises(FileError, match="link"):
            statistics(directory)
    assert other.chunks() == before


def test_gc_removes_nothing_behind_a_directory_that_becomes_a_link_while_it_works(store, other):
    store.add("one", ONE).unlink()
    before = other.chunks()
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        entries = directory.entries

        def exchanged():
            for found in entries():
                name = found[0].hex()[:2]
                shard = store.path / "chunks" / name
                if not shard.is_symlink():
                    shard.rename(store.path / f"away-{name}")
                    theirs = next(p for p in (other.path / "chunks").iterdir() if p.is_dir())
                    shard.symlink_to(theirs)
                yield found

        directory.entries = exchanged
        with pytest.raises(FileError, match="link"):
            collect(directory)
    assert other.chunks() == before


def test_a_store_that_is_a_link_is_not_opened(store, other, tmp_path):
    path = store.add("one", ONE)
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "chunks").symlink_to(other.path / "chunks")
    with pytest.raises(FileError, match="link"):
        ChunkDirectory(str(tmp_path / "third"))
    moved = path.rename(tmp_path / "third" / "one.sealed")
    with pytest.raises(FileError, match="link"):
        store.read(moved)


@pytest.mark.parametrize("what", ["chunk", "shard"])
def test_a_linked_chunk_or_directory_is_neither_read_nor_referred_to(store, tmp_path, keys, what):
    path = store.add("one", ONE)
    chunk = store.chunks()[0]
    moved = chunk if what == "chunk" else chunk.parent
    moved.rename(tmp_path / "moved")
    moved.symlink_to(tmp_path / "moved")
    with pytest.raises(FileError, match=r"no chunk|link"):
        store.read(path)
    again = store.add_file(store.path.parent / "plain-one.sealed", "again")
    assert store.adder.damaged
    moved.unlink()
    (tmp_path / "moved").rename(moved)
    assert store.read(again)["pages-1.img"] == ONE["pages-1.img"]


@pytest.mark.parametrize("name", ["lock", "store.json"])
def test_a_link_in_the_place_of_a_store_s_own_file_is_not_followed(store, tmp_path, name):
    with ChunkDirectory(str(store.path)):
        pass
    own = store.path / "chunks" / name
    own.rename(tmp_path / "moved")
    own.symlink_to(tmp_path / "moved")
    with pytest.raises((FileError, SystemEnvironmentError)):
        ChunkDirectory(str(store.path))


def test_what_is_left_half_written_is_removed_where_it_lies_only(store, tmp_path):
    store.add("one", ONE)
    shard = store.chunks()[0].parent
    (tmp_path / "precious").write_bytes(b"precious")
    (shard / ".aa.partial").symlink_to(tmp_path / "precious")
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        collect(directory)
    assert not os.path.lexists(shard / ".aa.partial")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_sealed_file_behind_a_link_that_leads_nowhere_keeps_its_chunks(store, tmp_path):
    path = store.add("one", ONE)
    path.rename(tmp_path / "unmounted.sealed")
    path.symlink_to(tmp_path / "unmounted.sealed")
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        assert collect(directory, dry_run=True).removed == 0
        (tmp_path / "unmounted.sealed").rename(tmp_path / "away")
        with pytest.raises(FileError, match="leads nowhere"):
            collect(directory)


def test_nobody_who_can_only_read_can_hold_the_lock(store):
    with ChunkDirectory(str(store.path)):
        lock = store.path / "chunks" / "lock"
    lock.chmod(0o644)
    with ChunkDirectory(str(store.path)):
        assert lock.stat().st_mode & 0o777 == 0o600
    lock.chmod(0o664)
    with ChunkDirectory(str(store.path)):
        assert lock.stat().st_mode & 0o777 == 0o660


# What is referred to is durable.


def test_a_dump_that_refers_only_to_what_others_added_makes_that_durable(store, keys):
    """The kernel refuses syncfs: then no file may be there that refers to a chunk, whoever has added it."""
    seal_images(keys, store.path.parent / "plain-one.sealed", {"inventory.img": b"i", **ONE})
    plain = store.path.parent / "plain-one.sealed"
    store.add_file(plain, "first")

    def again() -> None:
        failing.install("syncfs", errno.EIO)
        try:
            store.add_file(plain, "second")
        except SealpointError:
            os._exit(3)

    assert failing.in_child(again) == 3
    assert not (store.path / "second.sealed").exists()
    store.add_file(plain, "third")
    assert store.adder.added == 0


def test_a_store_is_there_when_it_is_durable_and_not_before(tmp_path):
    def make() -> None:
        failing.install("fsync", errno.EIO)
        try:
            ChunkDirectory.make(str(tmp_path / "new"), bytes(16))
        except SystemEnvironmentError:
            os._exit(3)

    (tmp_path / "new").mkdir()
    assert failing.in_child(make) == 3
    assert os.listdir(tmp_path / "new") == []
    ChunkDirectory.make(str(tmp_path / "new"), bytes(16))
