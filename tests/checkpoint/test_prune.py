"""Freeing what a chain no longer needs: what goes, what stays, and what a kill at any moment leaves."""

from __future__ import annotations

import os
import shutil

import pytest

from sealpoint.checkpoint.history import freeing as module
from sealpoint.checkpoint.history.freeing import (
    needed_pages,
    prune_parents,
    repair,
    unneeded_chunks,
)
from sealpoint.checkpoint.opening.access import CheckedFile, signing_by
from sealpoint.checkpoint.opening.chain import Chain
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import FileError, PolicyError, SealpointError
from sealpoint.format.preamble import Preamble
from sealpoint.format.writer import UNSIGNED
from sealpoint.keys import load_signer, load_trust
from sealpoint.state.chains import ImageLayout, StateStore
from tests.checkpoint.chain_helpers import NAME, PAGES, Memory, Steps, seal_images
from tests.checkpoint.test_chain import flat_of

CHUNK = 512  # pages


@pytest.fixture
def store(tmp_path):
    return StateStore(str(tmp_path / "state"))


@pytest.fixture
def steps(tmp_path, keys, store):
    """The second replaces the first chunk of the first, the third the second chunk of it, and all of the second."""
    memory = Memory(4 * CHUNK)
    made = Steps(tmp_path / "chain", keys, memory)
    made.add()
    memory.write(range(16, 16 + CHUNK))
    made.add()
    memory.write(range(16, 16 + 2 * CHUNK))
    made.add(dump=True)
    for state in made.states:
        store.save(state)
    return made


def prune(steps, store, number=-1, **changes):
    values = {"signing": steps.keys.signing, "policy": steps.keys.policy} | changes
    return prune_parents(str(steps.files[number]), steps.states[number].reference, store, **values)


def used(path) -> int:
    return path.stat().st_blocks * 512


def test_chunks_of_which_no_page_is_needed_are_freed(steps, store):
    before = [used(f) for f in steps.files]
    results = prune(steps, store)
    assert [r.path for r in results] == [str(f) for f in _by_link(steps)]
    assert [r.reason for r in results] == ["", ""]
    # The second's one chunk of pages, and two of the first's.
    assert results[0].freed >= CHUNK * PAGE
    assert results[1].freed >= 2 * CHUNK * PAGE
    after = [used(f) for f in steps.files]
    assert before[0] - after[0] >= 2 * CHUNK * PAGE - 4 * PAGE
    assert before[1] - after[1] >= CHUNK * PAGE - 4 * PAGE
    assert flat_of(steps)[PAGES] == steps.memory.whole()


def _by_link(steps):
    second = steps.files[2].parent / "parent" / "inventory.img"
    return [second, second.parent / "parent" / "inventory.img"]


def test_a_second_time_nothing_is_left_to_free(steps, store):
    prune(steps, store)
    size = steps.files[0].stat().st_size
    assert [r.freed for r in prune(steps, store)] == [0, 0]
    assert steps.files[0].stat().st_size == size


def test_after_each_step_more_is_freed_and_the_records_follow_one_another(steps, store):
    first = prune(steps, store, 1)
    assert first[0].freed >= CHUNK * PAGE
    assert flat_of(steps, steps.files[1])[NAME]
    second = prune(steps, store)
    assert second[1].freed >= CHUNK * PAGE
    with CheckedFile.open(str(steps.files[0]), steps.keys.policy) as checkpoint:
        statement = checkpoint.authentic.prune
        assert statement.sequence == 2
        assert statement.child == steps.states[2].reference
        checkpoint.authentic.check_frames()
    assert flat_of(steps)[PAGES] == steps.memory.whole()


def test_a_parent_restores_only_by_way_of_the_child_then(steps, store):
    prune(steps, store)
    for file in steps.files[:2]:
        with pytest.raises(FileError, match="parts of it were freed"):
            Chain.open(str(file), steps.keys.policy)


def test_pages_that_are_no_longer_there_need_not_be_kept(tmp_path, keys, store):
    memory = Memory(3 * CHUNK)
    made = Steps(tmp_path / "chain", keys, memory)
    made.add()
    memory.unmap(range(16, 16 + CHUNK))
    made.add(dump=True)
    for state in made.states:
        store.save(state)
    (result,) = prune(made, store)
    assert result.freed >= CHUNK * PAGE
    assert flat_of(made)[PAGES] == memory.whole()


def test_a_chunk_with_one_needed_page_stays(tmp_path, keys, store):
    memory = Memory(2 * CHUNK)
    made = Steps(tmp_path / "chain", keys, memory)
    made.add()
    memory.write(range(16, 16 + CHUNK - 1))
    made.add(dump=True)
    for state in made.states:
        store.save(state)
    (result,) = prune(made, store)
    assert (result.freed, result.reason) == (0, "")
    assert made.files[0].stat().st_size == used(made.files[0]) or used(made.files[0])
    with CheckedFile.open(str(made.files[0]), keys.policy) as checkpoint:
        assert checkpoint.authentic.prune is None


def test_what_is_needed_follows_from_the_pagemaps(steps):
    needed = needed_pages(list(reversed(steps.states)))
    assert needed[0][PAGES] == [(0, 2 * CHUNK)]
    assert needed[1] == {}
    assert needed[2][PAGES] == [(2 * CHUNK, 2 * CHUNK)]


@pytest.mark.parametrize(
    ("size", "needed", "chunks"),
    [
        (0, [], []),
        (PAGE, [], [0]),
        (2 * PAGE, [(1, 1)], []),
        (5 * PAGE, [(0, 1)], [1, 2]),
        (4 * PAGE, [(1, 2)], []),
        (8 * PAGE, [(7, 1)], [0, 1, 2]),
    ],
)
def test_unneeded_chunks(size, needed, chunks):
    assert unneeded_chunks(ImageLayout(3, 2 * PAGE, size), needed) == chunks


def test_a_file_of_another_chain_is_left_alone(steps, store, tmp_path, keys):
    """Freed for one child, it cannot be freed for another."""
    prune(steps, store, 1)
    memory = steps.memory
    fork = Steps(tmp_path / "chain", keys, memory)
    fork.files, fork.states = steps.files[:1], steps.states[:1]
    shutil.rmtree(tmp_path / "chain" / "2")
    memory.write(range(16, 16 + 4 * CHUNK))
    fork.add(dump=True)
    store.save(fork.states[-1])
    size = steps.files[0].stat().st_size
    (result,) = prune(fork, store)
    assert "not in this chain" in result.reason
    assert steps.files[0].stat().st_size == size


def test_another_file_of_the_same_id_is_left_alone(steps, store, keys, monkeypatch):
    """It lies where the parent lay, and the same signer sealed it: its pages are not those that the child replaced."""
    create = Preamble.create

    def same_id(suite, size):
        return create(suite, size)._replace(checkpoint_id=steps.states[0].reference.checkpoint_id)

    monkeypatch.setattr(Preamble, "create", same_id)
    images = {"inventory.img": b"inventory 1"} | Memory(4 * CHUNK, 2).images(increment=False)
    seal_images(keys, steps.files[0], images)
    data = steps.files[0].read_bytes()
    (result,) = prune(steps, store, 1)
    assert "another file" in result.reason
    assert steps.files[0].read_bytes() == data


def test_without_a_state_nothing_is_freed_and_it_says_so(steps, store):
    store.remove(steps.states[1].reference.checkpoint_id)
    (result,) = prune(steps, store)
    assert "no state" in result.reason
    store.remove(steps.states[2].reference.checkpoint_id)
    with pytest.raises(FileError, match="nothing can be freed"):
        prune(steps, store)


def test_a_file_that_is_not_there_is_said(steps, store):
    steps.files[1].unlink()
    (result,) = prune(steps, store)
    assert "not beside its child" in result.reason


def test_a_file_of_an_untrusted_signer_is_left_alone(steps, store, others):
    signing = signing_by(load_signer(others.signer_path))
    data = steps.files[1].read_bytes()
    for result in prune(steps, store, policy=load_trust([others.trust_path]), signing=signing):
        assert "no trusted signer signed this" in result.reason
    assert steps.files[1].read_bytes() == data


def test_an_unsigned_record_is_refused_by_readers(steps, store):
    prune(steps, store, signing=UNSIGNED)
    with pytest.raises((FileError, PolicyError)):
        Chain.open(str(steps.files[2]), steps.keys.policy)


# What a kill leaves


def test_a_record_that_was_cut_short_is_refused_and_taken_away_by_the_next_run(steps, store):
    file = steps.files[0]
    whole = file.read_bytes()
    prune(steps, store, 1)
    record = file.read_bytes()[len(whole) :]
    assert len(record) > 200
    for kept in (1, 63, 64, 65, len(record) // 2, len(record) - 1):
        file.write_bytes(whole + record[:kept])
        with pytest.raises(SealpointError):
            CheckedFile.open(str(file), steps.keys.policy)
        (result,) = prune(steps, store, 1)
        assert result.freed >= CHUNK * PAGE
        assert flat_of(steps, steps.files[1])[NAME]
    file.write_bytes(whole + record[: len(record) // 2])
    with file.open("r+b") as opened:
        assert repair(opened.fileno())
        assert not repair(opened.fileno())
    assert file.read_bytes() == whole


def test_a_second_record_that_was_cut_short_leaves_the_first(steps, store):
    file = steps.files[0]
    prune(steps, store, 1)
    once = file.read_bytes()
    prune(steps, store)
    twice = file.read_bytes()
    file.write_bytes(once + twice[len(once) : len(once) + 300])
    with file.open("r+b") as opened:
        assert repair(opened.fileno())
    assert file.read_bytes() == once
    assert flat_of(steps)[PAGES] == steps.memory.whole()


@pytest.mark.parametrize("when", ["none", "some"])
def test_a_kill_before_the_frames_were_emptied_costs_only_the_space(
    steps, store, monkeypatch, when
):
    file = steps.files[0]
    real = module._punch

    def killed(fd, index, frames):
        if when == "some":
            real(fd, index, list(frames)[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_punch", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(steps, store)
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):  # as the first parent of the chain was interrupted
        monkeypatch.setattr(module, "_punch", killed)
        prune(steps, store)
    monkeypatch.undo()
    assert flat_of(steps)[PAGES] == steps.memory.whole()
    before = used(file)
    prune(steps, store)
    assert used(file) < before
    assert flat_of(steps)[PAGES] == steps.memory.whole()


def test_a_record_is_durable_before_any_frame_is_emptied(steps, store, monkeypatch):
    """Else a power cut could leave empty frames that no statement excuses."""
    durable: dict[int, int] = {}  # size of each file when it was last synced
    emptied = []
    sync, punch = os.fsync, module._punch

    def synced(fd):
        sync(fd)
        durable[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    def punched(fd, index, frames):
        status = os.fstat(fd)
        emptied.append(durable.get(status.st_ino) == status.st_size)
        punch(fd, index, frames)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(module, "_punch", punched)
    assert all(result.freed for result in prune(steps, store))
    assert emptied == [True, True]


def test_a_full_disk_leaves_the_file_as_it_was(steps, store, monkeypatch):
    file = steps.files[0]
    data = file.read_bytes()
    real = os.pwrite

    def full(fd, piece, offset):
        if offset > len(data):
            raise OSError(28, "No space left on device")
        return real(fd, bytes(piece)[:100], offset)

    monkeypatch.setattr(os, "pwrite", full)
    (result,) = prune(steps, store, 1)
    assert "No space left" in result.reason
    assert file.read_bytes() == data


def test_a_file_system_that_has_no_holes_is_said(steps, store, monkeypatch):
    class NoHoles:
        @staticmethod
        def fallocate(*_):
            module.ctypes.set_errno(95)
            return -1

    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: NoHoles)
    results = prune(steps, store)
    assert all("cannot free parts" in r.reason for r in results)
    assert flat_of(steps)[PAGES] == steps.memory.whole()
