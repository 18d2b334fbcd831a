"""Prune records: what was freed in a file, and nothing else, may be missing from it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, strategies as st

from sealpoint.errors import FileError, SealpointError
from sealpoint.format.constants import MAX_PRUNE_STATEMENT, PRUNE_MAGIC, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.opened import OpenFile
from sealpoint.format.prune import PruneStatement, PruneTail, bitmap
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.format.statement import ParentRef
from tests import prune_forge
from tests.forge import SIGNER, build_sample, read_all, sample, trusting
from tests.prune_forge import CHILD, memory_frames, pruned, signed_fault, split, statement_of


def read(data: bytes, roots: RootKeys | None) -> dict[str, bytes]:
    """What a careful reader reads of a pruned file: all objects that are whole."""
    fd = os.memfd_create("sealed")
    try:
        os.write(fd, data)
        authentic = SealedFile(Descriptor(fd)).authenticate(trusting(SIGNER.key_id))
        authentic.check_frames()
        if roots is None:
            return {}
        opened = OpenFile.unlock(authentic, lambda preamble, slot: roots)
        opened.verify_all()
        return {n: opened.read_bytes(e) for n, e in opened.entries.items() if opened.is_whole(e)}
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def files():
    """(sealed, pruned once, pruned twice, another's): chunks of pages-1.img and pages-2.img are freed."""
    sealed = sample()
    frames = memory_frames(sealed.data, [3])
    once = pruned(sealed.data, frames[:2])
    twice = pruned(once, memory_frames(sealed.data, [4])[:1])
    other = sample(seed=b"another")
    return sealed, once, twice, pruned(other.data, memory_frames(other.data, [3])[:2])


def test_what_is_whole_is_read_and_what_was_freed_is_not(files):
    sealed, once, twice, _ = files
    for data, gone in ((once, {"pages-1.img"}), (twice, {"pages-1.img", "pages-2.img"})):
        expected = {n: d for n, d in sealed.contents.items() if n not in gone}
        assert read(data, sealed.roots) == expected
        with pytest.raises(FileError, match="freed"):
            read_all(data, sealed.roots)


def test_a_record_before_its_frames_were_emptied_counts_already(files):
    """As a kill between the two leaves it."""
    sealed = files[0]
    data = pruned(sealed.data, memory_frames(sealed.data, [3])[:2], empty=False)
    assert "pages-1.img" not in read(data, sealed.roots)


def test_the_statement_names_the_child_and_what_was_freed(files):
    statement = statement_of(files[2])
    assert statement.child == CHILD
    assert statement.sequence == 2
    assert len(list(statement.positions())) == 3
    assert all(map(statement.frees, statement.positions()))


def test_nobody_accepts_a_mutation(files):
    sealed, once, twice, other = files
    made = list(prune_forge.mutations(twice, once, sealed.data, other))
    assert len({m.name for m in made}) == len(made) > 400
    for roots in (sealed.roots, RootKeys(sealed.roots.metadata, None), None):
        accepted = []
        for mutation in made:
            try:
                read(mutation.data, roots)
            except SealpointError:
                continue
            accepted.append(mutation.name)
        assert accepted == []


@pytest.mark.parametrize("fault", prune_forge.SIGNED_FAULTS)
def test_a_record_that_contradicts_the_file_is_refused_whoever_signed_it(files, fault):
    sealed = files[0]
    data = signed_fault(sealed.data, memory_frames(sealed.data, [3])[:2], fault)
    for roots in (sealed.roots, None):  # a gate without a key as well
        with pytest.raises(FileError):
            read(data, roots)


def test_a_statement_of_another_type_is_refused(files):
    sealed = files[0]
    data = prune_forge.wrong_type(sealed.data, memory_frames(sealed.data, [3])[:2])
    with pytest.raises(FileError, match="is of type"):
        read(data, sealed.roots)


def test_a_chunk_of_the_metadata_that_was_freed_is_missed(files):
    """The statement does not say what is freed; who needs it notices."""
    sealed = build_sample(suite=Suite.AES_256_GCM)
    for number in (6, 7):  # the packs
        data = pruned(sealed.data, memory_frames(sealed.data, [number]))
        with pytest.raises(FileError, match="freed"):
            read_all(data, sealed.roots)


def test_a_statement_can_name_every_frame_of_the_largest_file():
    count = 1 << 22
    statement = PruneStatement(
        b"a" * 16, b"b" * 32, 1, ParentRef(b"c" * 16, b"d" * 32), bitmap(range(0, count, 2), count),
        5, b"e" * 32, 1, ("f" * 64,),
    )  # fmt: skip
    payload = statement.encode()
    assert PruneStatement.decode(payload) == statement
    assert len(payload) * 4 // 3 + 10_000 < MAX_PRUNE_STATEMENT


@given(st.sets(st.integers(0, 99)), st.integers(100, 130))
def test_a_bitmap_names_what_was_put_in(positions, count):
    statement = PruneStatement(
        b"a" * 16, b"b" * 32, 1, ParentRef(b"c" * 16, b"d" * 32), bitmap(positions, count),
        0, b"e" * 32, 1,
    )  # fmt: skip
    assert list(statement.positions()) == sorted(positions)
    assert [p for p in range(count) if statement.frees(p)] == sorted(positions)


@given(st.binary(max_size=400))
def test_noise_is_no_statement(data):
    with pytest.raises(FileError):
        PruneStatement.decode(data)


@given(st.binary(min_size=64, max_size=64), st.integers(0, 1 << 20))
def test_noise_is_no_tail(noise, size):
    for data in (noise, PRUNE_MAGIC + noise[8:]):
        with pytest.raises(FileError):
            PruneTail.decode(data, size)


def test_a_file_of_records_alone_is_none():
    with pytest.raises(FileError):
        read(prune_forge.append(b"", b"{}", SIGNER), None)
    assert split(sample().data)[1] == b""
