"""Chunk stores under faults, several at once, and what a collection keeps and removes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from sealpoint.checkpoint.tables.chunk_table import TABLE_NAME
from sealpoint.chunks import directory as chunk_directory
from sealpoint.chunks.collect import collect, statistics
from sealpoint.chunks.directory import ChunkDirectory, ChunkFinder
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.index import Reference
from sealpoint.store.output import OutputFile
from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.store_helpers import KEY, Store, noise, pages

SHARED = pages(1, 700)
ONE = {"pages-1.img": SHARED + pages(2, 90), "core-1.img": b"one"}
TWO = {"pages-1.img": pages(3, 60) + SHARED, "pages-2.img": noise(4, 30), "core-1.img": b"two"}


@pytest.fixture
def store(tmp_path, keys):
    return Store(tmp_path / "store", keys)


def came_back(store, path, images, **options) -> bool:
    found = store.read(path, **options)
    return {n: found[n] for n in images} == images and TABLE_NAME not in found


# Faults.


def test_two_adds_of_the_same_at_once_end_well_and_share_all_chunks(store, keys):
    seal_images(keys, store.path.parent / "plain-a.sealed", {"inventory.img": b"i", **ONE})
    twins = [Store(store.path, keys) for _ in range(3)]
    made, failed = [], []

    def add(number: int) -> None:
        try:
            plain = store.path.parent / "plain-a.sealed"
            made.append(twins[number].add_file(plain, f"{number}"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sum(t.adder.added for t in twins) == len(store.chunks())
    assert all(came_back(store, path, ONE) for path in made)
    assert not any(t.adder.damaged for t in twins)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from sealpoint.format.index import Reference
from sealpoint.chunks import directory as chunk_directory
from tests.checkpoint.checkpoint_helpers import Keys
from tests.checkpoint import store_helpers

class Old(Keys):
    def __init__(self, directory):
        self.directory = str(directory)
        for name, file in (("identity", "identity.key"), ("recipient", "recipient.pub"),
                           ("signer", "signer.key"), ("trust", "signer.pub")):
            setattr(self, f"{name}_path", f"{directory}/{file}")

real, left = chunk_directory.link_file, [5]
def link(source, *target):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, *target)
chunk_directory.link_file = link
if sys.argv[4] == "named":
    real_open = os.open
    def no_tmpfile(path, flags, *more, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "not here")
        return real_open(path, flags, *more, **options)
    chunk_directory.os.open = no_tmpfile
store = store_helpers.Store(Path(sys.argv[2]), Old(sys.argv[3]))
store.add_file(Path(sys.argv[2]).parent / "plain-a.sealed", "a")
"""


@pytest.mark.parametrize("how", ["unnamed", "named"])
def test_a_kill_amid_an_add_leaves_no_file_and_what_gc_removes(store, keys, how):
    seal_images(keys, store.path.parent / "plain-a.sealed", {"inventory.img": b"i", **ONE})
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            Path(__file__).parents[2],
            store.path,
            keys.directory,
            how,
        ],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (store.path / "a.sealed").exists()
    assert 1 <= len(store.chunks()) <= 5
    leftovers = list(store.path.glob("chunks/??/.*.partial"))
    assert bool(leftovers) == (how == "named")
    other = {"pages-1.img": noise(8, 40)}
    path = store.add("two", other)
    killed = len(store.chunks()) - store.adder.added
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        done = collect(directory)
    assert done.removed == killed > 0
    assert not list(store.path.glob("chunks/??/.*.partial"))
    assert came_back(store, path, other)
    assert came_back(store, store.add_file(store.path.parent / "plain-a.sealed", "a"), ONE)


def test_a_full_disk_ends_an_add_and_leaves_no_file(store, monkeypatch):
    put = ChunkDirectory.put
    left = [6]

    def full(self, identifier, data):
        left[0] -= 1
        if left[0] < 0:
            real = chunk_directory.write_all

            def no_space(*_):
                raise SystemEnvironmentError("no space left for chunks")

            monkeypatch.setattr(chunk_directory, "write_all", no_space)
            try:
                return put(self, identifier, data)
            finally:
                monkeypatch.setattr(chunk_directory, "write_all", real)
        return put(self, identifier, data)

    monkeypatch.setattr(ChunkDirectory, "put", full)
    with pytest.raises(SystemEnvironmentError, match="no space"):
        store.add("one", ONE)
    assert not (store.path / "one.sealed").exists()
    assert len(store.chunks()) <= 6
    monkeypatch.undo()
    assert came_back(store, store.add("one", ONE), ONE)


def test_nothing_refers_to_chunks_that_are_not_durable(store, monkeypatch):
    order = []
    sync, commit = ChunkDirectory.sync, OutputFile.commit
    monkeypatch.setattr(ChunkDirectory, "sync", lambda self: (order.append("sync"), sync(self)))
    monkeypatch.setattr(OutputFile, "commit", lambda self: (order.append("commit"), commit(self)))
    store.add("one", ONE)
    assert order[-2:] == ["sync", "commit"]

    def broken(self):
        raise SystemEnvironmentError("the disk is broken")

    monkeypatch.setattr(ChunkDirectory, "sync", broken)
    with pytest.raises(SystemEnvironmentError, match="broken"):
        store.add("two", TWO)
    assert not (store.path / "two.sealed").exists()


def test_gc_waits_for_adds_and_adds_for_gc(store, monkeypatch):
    monkeypatch.setattr(chunk_directory, "_PATIENCE", 0.2)
    with ChunkDirectory(str(store.path)), ChunkDirectory(str(store.path)):
        with pytest.raises(SystemEnvironmentError, match="in use"):
            ChunkDirectory(str(store.path), exclusive=True)
    with ChunkDirectory(str(store.path), exclusive=True):
        with pytest.raises(SystemEnvironmentError, match="in use"):
            ChunkDirectory(str(store.path))
    monkeypatch.setattr(chunk_directory, "_PATIENCE", 30)
    held = ChunkDirectory(str(store.path))
    threading.Timer(0.3, held.close).start()
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        assert collect(directory).removed == 0


def test_a_store_that_cannot_be_locked_is_not_written_to(store, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(SystemEnvironmentError, match="cannot be locked"):
        ChunkDirectory(str(store.path))


# Collecting and counting.


def test_gc_removes_what_no_file_refers_to(store):
    one, two = store.add("one", ONE), store.add("two", TWO)
    one.unlink()
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        counted = statistics(directory)
        tried = collect(directory, dry_run=True)
        assert len(store.chunks()) == tried.kept + tried.removed
        done = collect(directory)
    assert (done.removed, done.freed) == (tried.removed, tried.freed)
    assert (counted.unused_chunks, counted.unused) == (done.removed, done.freed)
    assert done.removed > 0
    assert len(store.chunks()) == done.kept
    assert came_back(store, two, TWO)


def test_gc_removes_nothing_where_a_sealed_file_cannot_be_read(store):
    store.add("one", ONE)
    path = store.add("two", TWO)
    before = store.chunks()
    path.write_bytes(path.read_bytes()[:-1])
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        with pytest.raises(FileError, match=r"two\.sealed"):
            collect(directory)
    path.write_bytes(b"")
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        with pytest.raises(FileError, match=r"two\.sealed"):
            collect(directory)
    assert store.chunks() == before


def test_gc_counts_files_under_other_names_and_in_directories_that_are_named(store, tmp_path):
    one, two = store.add("one", ONE), store.add("two", TWO)
    one.rename(store.path / "inventory.img")
    away = tmp_path / "away"
    away.mkdir()
    two = two.rename(away / "two.sealed")
    (store.path / "archive").mkdir()
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        assert collect(directory, [str(away)]).removed == 0
        assert collect(directory, dry_run=True).removed > 0
        assert collect(directory, dry_run=True).elsewhere == [str(store.path / "archive")]
        with pytest.raises(UsageError, match="not a directory"):
            collect(directory, [str(tmp_path / "nowhere")])
    assert came_back(store, two, TWO, stores=[str(store.path)])


@pytest.mark.parametrize("name", ["two.partial", ".two.sealed.0123456789ab.partial", ".two"])
def test_gc_counts_a_whole_file_whatever_its_name_is(store, name):
    two = store.add("two", TWO)
    whole = two.read_bytes()
    two = two.rename(store.path / name)
    (store.path / ".three.sealed.0123456789ab.partial").write_bytes(whole[: len(whole) // 2])
    (store.path / ".four.sealed.0123456789ab.partial").write_bytes(b"")
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        assert collect(directory).removed == 0
    assert came_back(store, two, TWO)


def test_gc_counts_a_file_that_gets_another_name_meanwhile(store, monkeypatch):
    one, two = store.add("one", ONE), store.add("two", TWO)
    scans = []
    scan = os.scandir

    def scandir(path):
        found = scan(path)
        if path != str(store.path):
            return found
        scans.append(path)
        if len(scans) > 1:
            return found
        # What a file system may answer while `mv two.sealed a.sealed` runs: neither name.
        kept = [e for e in found if e.name != "two.sealed"]
        two.rename(store.path / "a.sealed")
        return contextlib.nullcontext(kept)

    monkeypatch.setattr(os, "scandir", scandir)
    with ChunkDirectory(str(store.path), exclusive=True) as directory:
        assert collect(directory).removed == 0
    assert len(scans) > 1
    assert came_back(store, store.path / "a.sealed", TWO)
    assert came_back(store, one, ONE)


def test_what_a_store_saves_is_counted(store):
    images = {"pages-1.img": noise(9, 300)}
    paths = [store.add(name, images) for name in ("one", "two", "three")]
    with ChunkDirectory(str(store.path)) as directory:
        found = statistics(directory)
        files = sum(p.stat().st_size for p in paths)
        chunks = sum(c.stat().st_size for c in store.chunks())
        assert (len(found.files), found.chunks, found.stored) == (3, len(store.chunks()), chunks)
        assert found.together == files + chunks
        assert found.alone > found.together * 2
        store.chunks()[0].unlink()
        assert statistics(directory).missing == 1


def test_what_is_no_store_is_refused(tmp_path, keys):
    with pytest.raises(UsageError, match="not a chunk store"):
        ChunkDirectory(str(tmp_path))
    store = Store(tmp_path / "store", keys)
    with pytest.raises(UsageError, match="exists"):
        ChunkDirectory.make(str(store.path), bytes(16))
    for text in (b"", b"{}", b'{"version":"3","tenant":"' + b"0" * 32 + b'"}'):
        (store.path / "chunks" / "store.json").write_bytes(text)
        with pytest.raises(FileError):
            ChunkDirectory(str(store.path))


def test_everything_in_a_store_is_private(store):
    path = store.add("one", ONE)
    for found in (path, *store.path.rglob("*")):
        assert found.stat().st_mode & 0o077 == 0, found


def test_a_finder_without_a_store_says_what_to_do(tmp_path):
    with pytest.raises(FileError) as error:
        ChunkFinder(None).read_into(Reference(bytes(32), bytes(32), 4256), memoryview(bytearray(1)))
    assert "--store" in error.value.hint


def test_no_key_and_no_page_shows_in_a_store(store):
    store.add("one", ONE)
    everything = b"".join(p.read_bytes() for p in store.path.rglob("*") if p.is_file())
    assert KEY not in everything
    assert SHARED[:64] not in everything
    for page in range(0, 100, 7):
        piece = SHARED[page * PAGE : (page + 1) * PAGE]
        assert blake3(piece).digest() not in everything
