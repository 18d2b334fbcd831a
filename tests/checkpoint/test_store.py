"""Sealed files whose pages lie in a chunk store: what comes back, what is refused, what survives which fault."""

from __future__ import annotations

import os
from array import array

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.checkpoint.history.merge import merge
from sealpoint.checkpoint.opening.access import CheckedFile, wrap_for
from sealpoint.checkpoint.opening.chain import Chain
from sealpoint.checkpoint.opening.stored_pages import check_references
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.checkpoint.sealing.chunking import LEAST, MOST, Cutter
from sealpoint.checkpoint.tables import chunk_table
from sealpoint.checkpoint.tables.chunk_table import TABLE_NAME, ChunkTable
from sealpoint.checkpoint.tables.delta import PageRuns
from sealpoint.chunks.directory import ChunkDirectory
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import FileError, IdentityError, UsageError
from sealpoint.format.constants import Suite
from sealpoint.format.index import Reference
from sealpoint.format.writer import SealedWriter
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.source import Access
from sealpoint.store.output import OutputFile
from tests.checkpoint.chain_helpers import seal_images
from tests.checkpoint.checkpoint_helpers import opened
from tests.checkpoint.store_helpers import KEY, Store, noise, pages, read

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
    with pytest.raises(UsageError, match="not a chunk store"):
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
            keys.sealing(),
        )
    for chunk in store.chunks():
        chunk.unlink()
    assert came_back(store, target, ONE)


# What others can do with a store.


def test_chunks_can_be_checked_without_a_key(store, keys):
    path = store.add("one", ONE)
    read_bytes = []
    with CheckedFile.open(str(path), keys.policy) as checkpoint:
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
    digest = store.tenant.digest(run)
    identifier = store.tenant.chunk_id(digest)
    lie = memoryview(b"\xcc" * len(run))
    data, _ = stored.seal(store.tenant, digest, lie, Coder("none"), Suite.AES_256_GCM)
    with ChunkDirectory(str(store.path)) as directory:
        assert directory.put(identifier, data)
    path = store.add("one", ONE)
    assert store.adder.damaged == {identifier}
    assert came_back(store, path, ONE)
    with CheckedFile.open(str(path), store.keys.policy) as checkpoint:
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
            assert runs.pages == sum(count for _, count in runs.runs())
