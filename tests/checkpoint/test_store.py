"""Sealed files whose pages lie in a chunk store: what comes back, what is refused, what survives which fault."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from array import array

import pytest
from blake3 import blake3
from chain_helpers import seal_images
from checkpoint_helpers import opened
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import KEY, Store, noise, pages, read

from sealpoint.checkpoint import chunk_table
from sealpoint.checkpoint.access import Checkpoint, wrap_for
from sealpoint.checkpoint.builder import CheckpointBuilder
from sealpoint.checkpoint.chain import Chain
from sealpoint.checkpoint.chunk_table import TABLE_NAME, ChunkTable
from sealpoint.checkpoint.chunking import LEAST, MOST, Cutter
from sealpoint.checkpoint.delta import PageRuns
from sealpoint.checkpoint.merge import merge
from sealpoint.checkpoint.with_chunks import check_references
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import FileError, IdentityError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import Suite
from sealpoint.format.index import Reference
from sealpoint.format.writer import SealedWriter
from sealpoint.inspect.source import Access, open_source
from sealpoint.store import chunk_directory
from sealpoint.store.chunk_directory import ChunkDirectory, ChunkFinder
from sealpoint.store.collect import collect, statistics
from sealpoint.store.output import OutputFile

SHARED = pages(1, 700)
ONE = {"pages-1.img": SHARED + pages(2, 90), "core-1.img": b"one"}
TWO = {"pages-1.img": pages(3, 60) + SHARED, "pages-2.img": noise(4, 30), "core-1.img": b"two"}


@pytest.fixture
def store(tmp_path, keys):
    return Store(tmp_path / "store", keys)


def came_back(store, path, images, **options) -> bool:
    found = store.read(path, **options)
    return {n: found[n] for n in images} == images and TABLE_NAME not in found


# What comes back.


@pytest.mark.parametrize("compression", ["auto", "none"])
def test_what_is_added_reads_back_and_equal_pages_are_kept_once(store, compression):
    one = store.add("one", ONE, compression=compression)
    before = len(store.chunks())
    assert before > 15
    two = store.add("two", TWO, compression=compression)
    assert len(store.chunks()) - before < 12
    assert came_back(store, one, ONE)
    assert came_back(store, two, TWO)
    assert two.stat().st_size < 120_000


def test_pages_that_moved_are_found_again(store):
    store.add("one", {"pages-1.img": SHARED})
    known = len(store.chunks())
    store.add("two", {"pages-7.img": pages(5, 3) + SHARED[PAGE * 100 :] + SHARED[: PAGE * 100]})
    assert len(store.chunks()) - known <= 6


def test_pages_of_zeros_take_no_chunk(store):
    images = {
        "pages-1.img": SHARED[: 64 * PAGE] + bytes(500 * PAGE) + SHARED[64 * PAGE : 80 * PAGE]
    }
    path = store.add("zeros", images)
    assert store.adder.pages <= 64 + 16 + MOST
    assert came_back(store, path, images)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200)), max_size=6), st.integers(1, 700))
def test_an_image_is_cut_into_runs_that_make_it_up_wherever_the_buffers_end(parts, step):
    data = b"".join(bytes(n * PAGE) if not kind else pages(kind, n) for kind, n in parts)
    cutter, runs = Cutter(KEY), []
    for at in range(0, len(data), step * PAGE):
        runs += cutter.cut(memoryview(data[at : at + step * PAGE]))
    runs.append(cutter.rest())
    assert b"".join(run for run, _ in runs) == data
    assert all(len(run) <= MOST * PAGE for run, _ in runs)
    assert all(len(run) >= LEAST * PAGE for run, _ in runs[:-1])
    assert all(zeros == (not any(run)) for run, zeros in runs if run)
    whole = Cutter(KEY)
    assert [*whole.cut(memoryview(data)), whole.rest()] == runs


def test_readers_of_every_kind_see_whole_images(store, keys):
    path = store.add("one", ONE)
    with opened(keys, path) as checkpoint:
        assert checkpoint.entry("pages-1.img").size == len(ONE["pages-1.img"])
        checkpoint.verify_all()
    with open_source(str(path), Access.of([keys.identity], keys.policy)) as source:
        assert source.read("pages-1.img") == ONE["pages-1.img"]
        assert source.pread("pages-1.img", 500_000, 9000) == ONE["pages-1.img"][500_000:509_000]
        assert TABLE_NAME not in source.names()


def test_a_store_elsewhere_is_named(store, keys, tmp_path):
    path = store.add("one", ONE)
    moved = path.rename(tmp_path / "one.sealed")
    with pytest.raises(FileError, match="chunk store") as error:
        read(keys, moved)
    assert "--store" in error.value.hint
    assert came_back(store, moved, ONE, stores=[str(store.path)])
    with pytest.raises(UsageError, match="no chunk store"):
        read(keys, moved, stores=[str(tmp_path / "keys")])


def test_an_increment_is_added_whole_and_its_children_find_it(keys, tmp_path):
    store = Store(tmp_path / "store", keys)
    state = seal_images(keys, tmp_path / "1.sealed", ONE)
    chain = (state.chain[0], 1)
    seal_images(
        keys, tmp_path / "2.sealed", {"inventory.img": b"2"}, parent=state.reference, chain=chain
    )
    whole = store.add_file(tmp_path / "2.sealed", "2")
    (tmp_path / "1.sealed").unlink()
    assert store.read(whole)["inventory.img"] == b"2"


def test_an_engines_archive_shares_its_pages(store, keys, tmp_path):
    path = store.add(
        "archive", {"checkpoint/inventory.img": b"i", "checkpoint/pages-1.img": SHARED}
    )
    assert store.adder.pages == len(SHARED) // PAGE
    assert store.read(path)["checkpoint/pages-1.img"] == SHARED


def test_flatten_makes_a_file_that_needs_no_store(store, keys, tmp_path):
    path = store.add("one", ONE)
    target = tmp_path / "whole.sealed"
    with Chain.open(str(path), keys.policy) as chain, OutputFile(str(target)) as out:
        merge(
            chain.unlock([keys.identity]),
            out,
            wrap=wrap_for([keys.recipient]),
            signing=keys.signing,
        )
    for chunk in store.chunks():
        chunk.unlink()
    assert came_back(store, target, ONE)


# What others can do with a store.


def test_chunks_can_be_checked_without_a_key(store, keys):
    path = store.add("one", ONE)
    read_bytes = []
    with Checkpoint.open(str(path), keys.policy) as checkpoint:
        check_references(checkpoint.authentic, checkpoint.chunk_finder(), read_bytes.append)
        assert sum(read_bytes) == sum(c.stat().st_size for c in store.chunks())
        chunk = store.chunks()[3]
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
        with pytest.raises(FileError, match=f"{chunk.name}.*tampered"):
            check_references(checkpoint.authentic, checkpoint.chunk_finder(), read_bytes.append)


def spoil_byte(store):
    chunk = store.chunks()[0]
    data = bytearray(chunk.read_bytes())
    data[-30] ^= 4
    chunk.write_bytes(data)


def spoil_swap(store):
    one, two = store.chunks()[:2]
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)


def spoil_remove(store):
    store.chunks()[0].unlink()


def spoil_cut(store):
    chunk = store.chunks()[0]
    os.truncate(chunk, chunk.stat().st_size - 1)


def spoil_older(store):
    """The chunk of the same id and plaintext that an earlier life of the store had."""
    chunk = store.chunks()[0]
    other = Store(store.path.parent / "other", store.keys)
    other.add("one", ONE)
    twin = other.path / chunk.relative_to(store.path)
    assert twin.read_bytes() != chunk.read_bytes()
    chunk.write_bytes(twin.read_bytes())


def spoil_link(store):
    chunk = store.chunks()[0]
    elsewhere = store.path.parent / "elsewhere"
    chunk.rename(elsewhere)
    chunk.symlink_to(elsewhere)


def spoil_fifo(store):
    chunk = store.chunks()[0]
    chunk.unlink()
    os.mkfifo(chunk)


SPOIL = [v for n, v in sorted(globals().items()) if n.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOIL, ids=lambda f: f.__name__.removeprefix("spoil_"))
def test_a_chunk_that_is_not_the_one_that_was_signed_is_refused_on_every_read(store, spoil):
    path = store.add("one", ONE)
    assert came_back(store, path, ONE)
    spoil(store)
    with pytest.raises(FileError) as error:
        store.read(path)
    assert "chunk" in str(error.value)


def test_a_chunk_that_changes_after_it_was_read_is_noticed(store, keys):
    path = store.add("one", ONE)
    with opened(keys, path) as checkpoint:
        checkpoint.verify_all()
        spoil_byte(store)
        with pytest.raises(FileError, match="tampered"):
            checkpoint.verify_all()


def test_a_chunk_of_another_tenant_is_refused(store, keys, tmp_path):
    path = store.add("one", ONE)
    other = Store(tmp_path / "other", keys, b"another tenant's key, 32 bytes.."[:32])
    other.add("one", ONE)
    assert not {c.name for c in other.chunks()} & {c.name for c in store.chunks()}
    (store.chunks()[0]).write_bytes(other.chunks()[0].read_bytes())
    with pytest.raises(FileError, match="chunk"):
        store.read(path)


def test_another_tenant_key_is_refused_before_anything_is_written(store, keys):
    before = sorted(store.path.rglob("*"))
    store.tenant = Store(store.path, keys, b"x" * 32).tenant
    with pytest.raises(IdentityError, match="tenant key"):
        store.add("one", ONE)
    assert [p for p in sorted(store.path.rglob("*")) if p.name != "lock"] == before


@pytest.mark.parametrize("spoil", [spoil_byte, spoil_swap, spoil_cut, spoil_older, spoil_fifo])
def test_a_spoilt_chunk_is_not_referred_to_and_its_pages_are_sealed_all_the_same(store, spoil):
    """Else whoever can write to the store would have an honest signer sign what he likes, or none at all."""
    first = store.add("one", ONE)
    spoil(store)
    second = store.add("two", {**TWO, "pages-1.img": ONE["pages-1.img"]})
    assert store.read(second)["pages-1.img"] == ONE["pages-1.img"]
    spoilt_for_all = spoil is not spoil_older  # an older twin holds the same, and may be signed
    assert bool(store.adder.damaged) == spoilt_for_all
    with pytest.raises(FileError):
        store.read(first)


def test_a_chunk_that_lies_is_not_signed(store):
    """Made by who holds the tenant key, and put there first: it opens, but holds something else."""
    from sealpoint.format import stored
    from sealpoint.format.codec import Coder

    cutter = Cutter(store.tenant.cut_key)
    run = next(cutter.cut(memoryview(ONE["pages-1.img"])))[0]
    identifier = store.tenant.chunk_id(run)
    lie = memoryview(b"\xcc" * len(run))
    data, _ = stored.seal(store.tenant, identifier, lie, Coder("none"), Suite.AES_256_GCM)
    with ChunkDirectory(str(store.path)) as directory:
        assert directory.put(identifier, data)
    path = store.add("one", ONE)
    assert store.adder.damaged == {identifier}
    assert came_back(store, path, ONE)
    with Checkpoint.open(str(path), store.keys.policy) as checkpoint:
        index = checkpoint.authentic.index
        assert identifier not in {index.reference(n).identifier for n in range(index.references)}


# Hostile tables, properly signed.


def signed(keys, path, table: ChunkTable | bytes | None, references, own: bytes = b""):
    """What a signer who means harm can make."""
    with OutputFile(str(path), force=True) as out:
        writer = SealedWriter(
            out, suite=Suite.AES_256_GCM, wrap=wrap_for([keys.recipient]), signing=keys.signing
        )
        builder = CheckpointBuilder(writer, compression="none")
        builder.add("inventory.img", b"i")
        target = builder.large("pages-1.img")
        target.write(own)
        target.finish()
        if table is not None:
            builder.add(TABLE_NAME, table if isinstance(table, bytes) else table.encode())
        for reference in references:
            builder.refer(reference)
        builder.finish()
        out.commit()
    return path


def table_of(runs, sizes=(4, 8), name: str = "pages-1.img") -> ChunkTable:
    made = PageRuns()
    for first, count in runs:
        made.add(first, count)
    table = ChunkTable(bytes(16), array("I", sizes), bytearray(32 * len(sizes)))
    table.images[name] = made
    return table


REFERENCES = [Reference(bytes([n]) * 32, bytes(32), 4096 * n + 160) for n in (4, 8)]


@pytest.mark.parametrize(
    ("table", "count", "own"),
    [
        (None, 2, 0),
        (table_of([(0, 12)]), 1, 0),
        (table_of([(0, 12)]), 0, 0),
        (table_of([(0, 13)]), 2, 0),
        (table_of([(12, 1)]), 2, 0),
        (table_of([(1 << 63, 1)]), 2, 0),
        (table_of([(0, 12)]), 2, 1),
        (table_of([(0, 12), (None, 2)]), 2, 1),
        (table_of([(0, 12)], (4, 0)), 2, 0),
        (table_of([(0, 4)], (4, 257)), 2, 0),
        (table_of([(0, 12)], name="pages-2.img"), 2, 0),
        (table_of([(0, 12)], name="core-1.img"), 2, 0),
        (table_of([(n % 2, 11) for n in range(100_000)]), 2, 0),
        (table_of([(0, 12)]).encode()[:-1], 2, 0),
        (table_of([(0, 12)]).encode() + b"\0", 2, 0),
        (b"SPCHUNK\x02" + table_of([(0, 12)]).encode()[8:], 2, 0),
    ],
)
def test_a_table_that_does_not_fit_is_refused_whoever_signed_it(keys, tmp_path, table, count, own):
    path = signed(keys, tmp_path / "x.sealed", table, REFERENCES[:count], bytes(own * PAGE))
    with pytest.raises(FileError):
        read(keys, path)


def test_a_table_that_fits_is_read_up_to_the_first_chunk(keys, tmp_path):
    path = signed(
        keys, tmp_path / "x.sealed", table_of([(0, 12), (None, 1)]), REFERENCES, bytes(PAGE)
    )
    with opened(keys, path) as checkpoint:
        assert checkpoint.entry("pages-1.img").size == 13 * PAGE
        with pytest.raises(FileError, match="none beside it"):
            checkpoint.verify_all()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 150), st.binary(max_size=9))
def test_noise_is_no_table_or_a_consistent_one(noise_, at, piece):
    good = table_of([(0, 12), (None, 3)]).encode()
    for data in (b"SPCHUNK\x01" + noise_, good[:at] + piece + good[at + len(piece) :]):
        try:
            table = chunk_table.decode(data)
        except FileError:
            continue
        assert table.encode() == data
        assert len(table.keys) == 32 * len(table.pages)
        for runs in table.images.values():
            assert runs.pages == sum(count for _, _, count in runs.runs())


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
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from sealpoint.store import chunk_directory
from checkpoint_helpers import Keys
import store_helpers

class Old(Keys):
    def __init__(self, directory):
        self.directory = str(directory)
        for name, file in (("identity", "identity.key"), ("recipient", "recipient.pub"),
                           ("signer", "signer.key"), ("trust", "signer.pub")):
            setattr(self, f"{name}_path", f"{directory}/{file}")

real, left = chunk_directory.link_file, [5]
def link(source, target):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
chunk_directory.link_file = link
if sys.argv[5] == "named":
    real_open = os.open
    def no_tmpfile(path, flags, *more, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "not here")
        return real_open(path, flags, *more, **options)
    chunk_directory.os.open = no_tmpfile
store = store_helpers.Store(Path(sys.argv[3]), Old(sys.argv[4]))
store.add_file(Path(sys.argv[3]).parent / "plain-a.sealed", "a")
"""


@pytest.mark.parametrize("how", ["unnamed", "named"])
def test_a_kill_amid_an_add_leaves_no_file_and_what_gc_removes(store, keys, how):
    seal_images(keys, store.path.parent / "plain-a.sealed", {"inventory.img": b"i", **ONE})
    here = os.path.dirname(__file__)
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            here,
            os.path.dirname(here),
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
    with pytest.raises(UsageError, match="no chunk store"):
        ChunkDirectory(str(tmp_path))
    store = Store(tmp_path / "store", keys)
    with pytest.raises(UsageError, match="exists"):
        ChunkDirectory.make(str(store.path), bytes(16))
    for text in (b"", b"{}", b'{"version":"2","tenant":"' + b"0" * 32 + b'"}'):
        (store.path / "chunks" / "store.json").write_bytes(text)
        with pytest.raises(FileError):
            ChunkDirectory(str(store.path))


def test_everything_in_a_store_is_private(store):
    path = store.add("one", ONE)
    for found in (path, *store.path.rglob("*")):
        assert found.stat().st_mode & 0o077 == 0, found


def test_a_finder_without_a_store_says_what_to_do(tmp_path):
    with pytest.raises(FileError) as error:
        ChunkFinder(None).read_into(REFERENCES[0], memoryview(bytearray(1)))
    assert "--store" in error.value.hint


def test_no_key_and_no_page_shows_in_a_store(store):
    store.add("one", ONE)
    everything = b"".join(p.read_bytes() for p in store.path.rglob("*") if p.is_file())
    assert KEY not in everything
    assert SHARED[:64] not in everything
    for page in range(0, 100, 7):
        piece = SHARED[page * PAGE : (page + 1) * PAGE]
        assert blake3(piece).digest() not in everything
