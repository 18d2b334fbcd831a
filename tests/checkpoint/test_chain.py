"""Chains of increments: which parents are found, which are refused, and what comes out when they are put together."""

from __future__ import annotations

import os
import random
import shutil
from array import array

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.checkpoint.opening.chain import Chain, claimed_id
from sealpoint.checkpoint.opening.flat import Flat, Runs
from sealpoint.criu import pagemap
from sealpoint.criu.pagemap import LAZY, PAGE, PARENT, PRESENT, Pagemap
from sealpoint.errors import FileError, PolicyError, UsageError
from sealpoint.format.manifest import Entry, Stream
from sealpoint.format.preamble import Preamble
from sealpoint.keys import load_trust
from tests.checkpoint.chain_helpers import NAME, PAGES, Memory, Steps, seal_images


@pytest.fixture(params=["linked", "beside"])
def steps(request, tmp_path, keys):
    """Three steps: first all pages, then two times some of them."""
    memory = Memory(1400)  # of three chunks
    made = Steps(tmp_path / "chain", keys, memory, flat=request.param == "beside")
    made.directory.mkdir()
    made.add()
    memory.write(range(100, 300))
    memory.write(range(900, 2000, 7))  # some of them for the first time
    made.add()
    memory.write(range(200, 250))
    memory.write([16, 1415])
    memory.unmap([1000, 1001])
    made.add(dump=True)
    return made


def flat_of(steps, path=None, **options):
    with Chain.open(str(path or steps.files[-1]), steps.keys.policy, **options) as chain:
        flat = Flat(chain.unlock([steps.keys.identity]))
        return {
            name: b"".join(bytes(p) for p in flat.read(image))
            for name, image in flat.images.items()
        }


def test_a_chain_is_one_full_checkpoint(steps):
    images = flat_of(steps)
    assert images[PAGES] == steps.memory.whole()
    table = pagemap.decode(images[NAME], NAME)
    assert not table.needs_parent
    pages = [p for start, count, _, _ in table.runs() for p in range(start, start + count)]
    assert pages == sorted(steps.memory.pages)
    assert images["core-1.img"] == b"registers"


def test_every_page_is_read_once_and_what_was_replaced_never(steps):
    with Chain.open(str(steps.files[-1]), steps.keys.policy) as chain:
        flat = Flat(chain.unlock([steps.keys.identity]))
        chunks = list(flat.chunks())
    assert len({(f, s.number, c) for f, s, c in chunks}) == len(chunks)
    assert {f for f, _, _ in chunks} == {0, 1, 2}


def test_the_steps_before_are_checkpoints_of_their_time(steps):
    with Chain.open(str(steps.files[0]), steps.keys.policy) as chain:
        assert len(chain.links) == 1
    with Chain.open(str(steps.files[1]), steps.keys.policy) as chain:
        assert [link.path for link in chain.links[:1]] == [str(steps.files[1])]
        assert len(chain.links) == 2


def refused(steps, error, *words, **options):
    with pytest.raises(error) as caught:
        Chain.open(str(steps.files[-1]), steps.keys.policy, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_parent_is_refused(steps):
    steps.files[0].unlink()
    name = steps.states[0].reference.checkpoint_id.hex()
    refused(steps, FileError, "its parent", name, "is missing")


def test_a_parent_elsewhere_is_found_where_one_is_told_to_look(steps, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(steps.files[0], away / "anything")
    refused(steps, FileError, "is missing")
    images = flat_of(steps, directories=[str(away)])
    assert images[PAGES] == steps.memory.whole()


def test_a_place_to_look_that_does_not_exist_is_an_error(steps):
    refused(steps, UsageError, "is not a directory", directories=["/no/such/place"])


def test_parents_that_were_swapped_are_refused(steps):
    one, two = steps.files[:2]
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    if steps.flat:  # by id they are found all the same, and are the right ones
        assert flat_of(steps)[PAGES] == steps.memory.whole()
    else:
        refused(steps, FileError, "is missing")


def test_an_older_checkpoint_in_the_place_of_the_parent_is_refused(steps):
    steps.files[1].write_bytes(steps.files[0].read_bytes())
    refused(steps, FileError, "is missing")


def test_a_parent_that_only_claims_the_id_is_refused(steps, tmp_path):
    """Another file of the same signer, its id overwritten: nothing of it fits any more."""
    other = seal_images(steps.keys, tmp_path / "other", {"inventory.img": b"x"})
    data = bytearray((tmp_path / "other").read_bytes())
    assert data[16:32] == other.reference.checkpoint_id
    data[16:32] = steps.states[1].reference.checkpoint_id
    steps.files[1].write_bytes(data)
    assert claimed_id(str(steps.files[1])) == steps.states[1].reference.checkpoint_id
    refused(steps, FileError, str(steps.files[1].name))


def test_another_file_of_the_same_id_and_place_is_not_the_parent(tmp_path, keys, monkeypatch):
    """The same signer sealed it, under the id of the real parent: only the origin digest tells them apart."""
    memory = Memory(20)
    made = Steps(tmp_path, keys, memory)
    made.add()
    memory.write([17])
    made.add(dump=True)
    parent = made.states[0].reference
    create = Preamble.create

    def same_id(suite, size):
        return create(suite, size)._replace(checkpoint_id=parent.checkpoint_id)

    monkeypatch.setattr(Preamble, "create", same_id)
    images = {"inventory.img": b"inventory 1"} | Memory(20, seed=2).images(increment=False)
    other = seal_images(keys, made.files[0], images)
    assert other.reference.checkpoint_id == parent.checkpoint_id
    assert other.chain == made.states[0].chain
    refused(made, FileError, "is not the parent of")


def test_a_parent_by_another_signer_is_refused(tmp_path, keys, others):
    memory = Memory(20)
    made = Steps(tmp_path, keys, memory)
    made.add()
    memory.write([17])
    made.keys = others
    made.add(dump=True)
    with pytest.raises(PolicyError):
        Chain.open(str(made.files[1]), others.policy)
    both = load_trust([keys.trust_path, others.trust_path])
    with Chain.open(str(made.files[1]), both) as chain:
        assert len(chain.links) == 2


@pytest.mark.parametrize("change", ["sequence", "root", "workload"])
def test_a_place_in_the_chain_that_is_not_after_the_parent_is_refused(tmp_path, keys, change):
    memory = Memory(20)
    made = Steps(tmp_path, keys, memory)
    made.add()
    memory.write([17])
    root = made.states[0].chain[0]
    changes = {
        "sequence": {"chain": (root, 2)},
        "root": {"chain": (bytes(16), 1)},
        "workload": {"workload": "another"},
    }[change]
    made.add(dump=True, **changes)
    refused(made, FileError, "its place in the chain")


def test_a_damaged_page_of_a_parent_is_noticed_when_it_is_read(steps):
    file = steps.files[0]
    with Chain.open(str(file), steps.keys.policy) as chain:
        authentic = chain.top.authentic
        stream = steps.states[0].layout[PAGES].stream
        _, offset, size, _ = authentic.index.entry(authentic.index.frames_of(stream)[0])
    with file.open("r+b") as out:
        out.seek(offset + size // 2)
        out.write(b"\xff\x00\xff")
    with pytest.raises(FileError, match="changed after sealing"):
        flat_of(steps)


def test_pages_that_no_parent_has_are_an_error(tmp_path, keys):
    made = Steps(tmp_path, keys, Memory(20))
    made.add()
    table = Pagemap(1)
    table.add(16, 21, PARENT)  # one more than there are
    parent = made.states[0]
    path = tmp_path / "2" / "inventory.img"
    path.parent.mkdir()
    (path.parent / "parent").symlink_to("../1")
    images = {NAME: pagemap.encode(table), "inventory.img": b"", "pstree.img": b""}
    seal_images(keys, path, images, parent=parent.reference, chain=(parent.chain[0], 1))
    with pytest.raises(FileError, match="in no image of the chain"):
        flat_of(made, path)


def test_a_pagemap_that_does_not_fit_its_pages_is_an_error(tmp_path, keys):
    memory = Memory(20)
    made = Steps(tmp_path, keys, memory)
    made.add()
    table = Pagemap(1)
    table.add(16, 2, PRESENT)
    table.add(18, 2, PARENT)
    path = tmp_path / "2" / "inventory.img"
    path.parent.mkdir()
    (path.parent / "parent").symlink_to("../1")
    images = {NAME: pagemap.encode(table), PAGES: bytes(PAGE), "inventory.img": b""}
    parent = made.states[0]
    seal_images(keys, path, images, parent=parent.reference, chain=(parent.chain[0], 1))
    with pytest.raises(FileError, match="does not fit"):
        flat_of(made, path)


def test_a_file_without_parents_is_shown_as_it_is(tmp_path, keys):
    made = Steps(tmp_path, keys, Memory(600))
    made.add(dump=True)
    assert flat_of(made)[PAGES] == made.memory.whole()


def test_a_chain_longer_than_the_recursion_limit_of_python_would_allow(tmp_path, keys):
    memory = Memory(20)
    made = Steps(tmp_path, keys, memory, flat=True)
    for _ in range(60):
        made.add()
        memory.write([20])
    made.add(dump=True)
    before = os.listdir("/proc/self/fd")
    assert flat_of(made)[PAGES] == memory.whole()
    assert len(os.listdir("/proc/self/fd")) == len(before)


PART = st.tuples(
    st.integers(0, 200), st.integers(1, 40), st.sampled_from([PRESENT, PARENT, PRESENT | LAZY])
)


@settings(deadline=None)
@given(st.lists(PART, max_size=30), st.booleans())
def test_a_pagemap_comes_back_as_it_was(parts, wide):
    table, at = Pagemap(7, wide), 0
    for gap, count, flags in parts:
        table.add(at + gap, count, flags)
        at += gap + count
    found = pagemap.decode(pagemap.encode(table), NAME)
    assert list(found.runs()) == list(table.runs())
    assert (found.pages_id, found.pages) == (7, table.pages)
    assert found.wide == (wide and bool(parts))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_no_pagemap_or_a_consistent_one(data):
    magic = pagemap.encode(Pagemap(1))[:8]
    for noise in (data, magic + data):
        try:
            table = pagemap.decode(noise, NAME)
        except FileError:
            continue
        assert list(table.starts) == sorted(table.starts)
        assert all(table.counts)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_runs_give_the_bytes_from_where_they_say(data):
    chunk, pages = 2 * PAGE, 7
    offset = data.draw(st.sampled_from([0, PAGE, 2 * PAGE, 100]))  # of the images in their streams
    before = bytes([99]) * offset
    contents = [random.Random(n).randbytes(pages * PAGE) for n in range(3)]
    streams = [before + c for c in contents]
    entries = [
        Entry(n, f"pages-{n}.img", None, len(c), Stream(n, chunk, len(s), bytes(5)), offset=offset)
        for n, (c, s) in enumerate(zip(contents, streams, strict=True))
    ]
    runs, expected, places = Runs(), b"", array("Q")
    for _ in range(data.draw(st.integers(1, 12))):
        file = data.draw(st.integers(0, 2))
        first = data.draw(st.integers(0, pages - 1))
        count = data.draw(st.integers(1, pages - first))
        runs.add(file, entries[file], first, count)
        expected += contents[file][first * PAGE : (first + count) * PAGE]
        source = runs.objects.index((file, entries[file]))
        places.extend(range((source << 32) + first, (source << 32) + first + count))
    if data.draw(st.booleans()):
        assert list(Runs.of(runs.objects, places).parts()) == list(runs.parts())
        runs = Runs.of(runs.objects, places)
    asked = set()

    class Reader:
        """Two chunks at a time; what was given out before is overwritten when a third is loaded."""

        def __init__(self):
            self.loads, self.kept = 0, {}

        def chunk(self, file, stream, counter):
            key = (file, stream.number, counter)
            asked.add(key)
            if key not in self.kept:
                self.loads += 1
                if len(self.kept) == 2:
                    gone = self.kept.pop(next(iter(self.kept)))
                    gone[:] = bytes(len(gone))
                self.kept[key] = bytearray(streams[file][counter * chunk : (counter + 1) * chunk])
            return memoryview(self.kept[key])

        def into(self, out, file, stream, counter):
            if not straight:
                return False
            asked.add((file, stream.number, counter))
            out[:] = streams[file][counter * chunk : (counter + 1) * chunk]
            return True

    straight = data.draw(st.booleans())
    read = Reader()

    begin = data.draw(st.integers(0, len(expected) - 1))
    size = data.draw(st.integers(1, 5 * chunk))
    size = data.draw(st.sampled_from([size, chunk]))
    if data.draw(st.booleans()):  # as a restore asks, or nearly
        begin = min(begin - begin % chunk + data.draw(st.sampled_from([0, 1, PAGE])), begin)
    out = memoryview(bytearray(size))
    size = runs.fill(out, begin, read)
    assert size == min(len(out), len(expected) - begin)
    assert out[:size] == expected[begin : begin + size]
    runs.fill(memoryview(bytearray(len(expected))), 0, read)
    assert asked == {(f, s.number, c) for f, s, c in runs.chunks()}
