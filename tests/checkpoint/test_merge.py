"""Chains made shorter: what is merged holds the same images, and whatever continues it finds it."""

from __future__ import annotations

import os
import random

import pytest

from sealpoint.checkpoint.history import merge as module, retention
from sealpoint.checkpoint.opening.chain import Chain
from sealpoint.checkpoint.opening.opener import Opening
from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.store.output import OutputFile
from tests.checkpoint.test_delta import Dumps, image

DAY = 24 * 3600


@pytest.fixture
def dumps(tmp_path, keys):
    """Six dumps of two images; numbers of their pages are in `expected`."""
    made = Dumps(tmp_path, keys)
    chance = random.Random(3)
    pages = list(range(400)), list(range(1000, 1100))
    made.expected = []
    path = None
    for step in range(6):
        for numbers in pages:
            for _ in range(20):
                numbers[chance.randrange(len(numbers))] = 10_000 * (step + 1) + chance.randrange(
                    999
                )
        images = {"pages-1.img": list(pages[0]), "pages-2.img": list(pages[1])}
        made.expected.append({n: image(x) for n, x in images.items()})
        path = made.add(images, parent=path, workload="w")
    return made


def merged(dumps, path, target, count=None):
    with Chain.open(str(path), dumps.keys.policy) as chain:
        files = chain.unlock([dumps.keys.identity])
        with OutputFile(str(target), force=True) as out:
            return module.merge(files, out, dumps.keys.sealing(), count=count)


def origin_of(dumps, path):
    with Chain.open(str(path), dumps.keys.policy) as chain:
        return chain.top.authentic.origin


def test_a_flattened_chain_restores_by_itself(dumps, tmp_path):
    before = origin_of(dumps, dumps.files[3])
    target = tmp_path / "elsewhere" / "whole.sealed"
    target.parent.mkdir()
    merged(dumps, dumps.files[3], target)
    for file in dumps.files:
        file.unlink()
    assert dumps.read(target) == dumps.expected[3]
    origin = origin_of(dumps, target)
    assert (origin.kind, origin.parent, origin.chain_sequence) == ("merged", None, 0)
    assert origin.stands_for.checkpoint_id == before.checkpoint_id
    assert (origin.captured, origin.workload) == (before.captured, "w")


def test_what_continues_a_file_finds_the_one_that_stands_for_it(dumps, tmp_path):
    target = tmp_path / "whole.sealed"
    merged(dumps, dumps.files[3], target)
    for file in dumps.files[:4]:
        file.unlink()
    assert dumps.read(dumps.files[5]) == dumps.expected[5]
    with Chain.open(str(dumps.files[5]), dumps.keys.policy) as chain:
        assert [link.path for link in chain.links] == [
            str(p) for p in (dumps.files[5], dumps.files[4], target)
        ]


def test_a_merged_file_can_be_continued(dumps, tmp_path):
    target = tmp_path / "whole.sealed"
    merged(dumps, dumps.files[5], target)
    for file in dumps.files:
        file.unlink()
    images = {"pages-1.img": list(range(400)), "pages-2.img": list(range(1000, 1100))}
    after = dumps.add(images, parent=target)
    assert dumps.track.continues
    assert dumps.track.changed[0] < 250
    assert dumps.read(after) == {n: image(x) for n, x in images.items()}
    again = tmp_path / "again.sealed"
    merged(dumps, after, again)
    after.unlink()
    assert dumps.read(again) == {n: image(x) for n, x in images.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_some_of_a_chain_merged_forward(dumps, count):
    size = dumps.files[4].stat().st_size
    merged(dumps, dumps.files[4], dumps.files[4], count)
    for file in dumps.files[5 - count : 4]:
        file.unlink()
    assert dumps.read(dumps.files[4]) == dumps.expected[4]
    assert dumps.read(dumps.files[5]) == dumps.expected[5]
    if count == 2:
        assert dumps.files[4].stat().st_size < size * 3


def test_another_file_of_the_same_signer_does_not_stand_for_a_parent(dumps, tmp_path):
    """Derived is not enough: its images may be others."""
    from tests.checkpoint.chain_helpers import seal_images

    with Chain.open(str(dumps.files[3]), dumps.keys.policy) as chain:
        reference = chain.links[0].reference
    dumps.files[3].unlink()
    seal_images(
        dumps.keys, tmp_path / "edited.sealed", {"inventory.img": b""},
        kind="derived", derived_from=reference, workload="w",
    )  # fmt: skip
    with pytest.raises(FileError, match="is missing"):
        dumps.read(dumps.files[5])
    seal_images(
        dumps.keys, tmp_path / "merged.sealed", {"inventory.img": b""},
        kind="merged", derived_from=reference, workload="another",
    )  # fmt: skip
    with pytest.raises(FileError, match="its place in the chain"):
        dumps.read(dumps.files[5])


# What is kept


@pytest.mark.parametrize(
    ("last", "daily", "kept"),
    [
        (1, 0, {0}), (3, 0, {0, 1, 2}), (0, 1, {0}), (0, 2, {0, 3}), (0, 9, {0, 3, 5}), (2, 2, {0, 1, 3}),
        (99, 0, {0, 1, 2, 3, 4, 5, 6}),
    ],
)  # fmt: skip
def test_selection(last, daily, kept):
    times = [10 * DAY + 9, 10 * DAY + 8, 10 * DAY, 9 * DAY + 5, 9 * DAY + 4, 2 * DAY, 2 * DAY - 1]
    times[6] = 2 * DAY
    assert retention.select(times, last=last, daily=daily) == kept


def prune(dumps, *, last=0, daily=0, **options):
    def make(chain, first, count):
        files = chain.whole()
        with OutputFile(chain.links[first].path, force=True) as out:
            module.merge(files[first:], out, dumps.keys.sealing(), count=count)

    make = options.pop("make", make)
    opening = Opening(dumps.keys.policy, lambda: [dumps.keys.identity])
    return retention.prune(str(dumps.files[-1]), opening, make, last=last, daily=daily, **options)


@pytest.mark.parametrize("last", [1, 2, 4, 6, 9])
def test_pruning_keeps_what_it_says_and_every_kept_one_restores(dumps, last):
    done = prune(dumps, last=last)
    kept = dumps.files[-last:] if last < 6 else dumps.files
    assert [str(f) for f in kept] == list(done.kept)
    assert sorted(dumps.directory.glob("*.sealed")) == kept
    for file in kept:
        assert dumps.read(file) == dumps.expected[dumps.files.index(file)]
    assert prune(dumps, last=last).removed == ()
    track = dumps.add({"pages-1.img": [1]}, parent=dumps.files[-1])
    assert dumps.track.continues
    assert dumps.read(track) == {"pages-1.img": image([1])}


def test_a_dry_run_changes_nothing(dumps):
    before = {f: f.read_bytes() for f in dumps.files}
    done = prune(dumps, last=2, dry_run=True)
    assert list(done.removed) == [str(f) for f in reversed(dumps.files[:4])]
    assert done.replaced == (str(dumps.files[4]),)
    assert {f: f.read_bytes() for f in dumps.files} == before


def test_what_another_file_continues_is_kept(dumps):
    fork = dumps.add({"pages-1.img": [5, 6]}, parent=dumps.files[2])
    dumps.files.pop()
    done = prune(dumps, last=1)
    assert str(dumps.files[2]) in done.kept
    assert dumps.read(fork) == {"pages-1.img": image([5, 6])}
    assert dumps.read(dumps.files[-1]) == dumps.expected[5]


def test_nothing_to_keep_is_an_error(dumps):
    with pytest.raises(UsageError):
        prune(dumps)


def test_a_kill_before_files_are_removed_loses_nothing(dumps, monkeypatch):
    unlink = os.unlink

    def killed(path, *, dir_fd=None):
        if os.path.basename(path) not in {f.name for f in dumps.files}:  # of the file in the making
            return unlink(path, dir_fd=dir_fd)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(dumps, last=2)
    monkeypatch.undo()
    for number in range(6):
        assert dumps.read(dumps.files[number]) == dumps.expected[number]
    prune(dumps, last=2)
    for number in (4, 5):
        assert dumps.read(dumps.files[number]) == dumps.expected[number]


def merging_then(dumps, act):
    """What prunes, and does `act` between merging and removing."""

    def make(chain, first, count):
        files = chain.whole()
        with OutputFile(chain.links[first].path, force=True) as out:
            module.merge(files[first:], out, dumps.keys.sealing(), count=count)
        act()

    return make


def test_a_file_that_took_a_name_meanwhile_is_left_alone(dumps):
    stranger = dumps.directory / "stranger"
    stranger.write_bytes(b"somebody else's")
    victim = dumps.files[3]
    with pytest.raises(SystemEnvironmentError, match="is another file now"):
        prune(dumps, last=2, make=merging_then(dumps, lambda: stranger.rename(victim)))
    assert victim.read_bytes() == b"somebody else's"
    assert dumps.read(dumps.files[5]) == dumps.expected[5]


def test_a_directory_that_took_a_path_meanwhile_is_left_alone(dumps):
    moved = dumps.directory.with_name("moved")
    names = {f.name for f in dumps.files}

    def exchange():
        dumps.directory.rename(moved)
        dumps.directory.mkdir()
        for name in names:
            os.link(moved / name, dumps.directory / name)

    prune(dumps, last=2, make=merging_then(dumps, exchange))
    assert {f.name for f in dumps.directory.iterdir()} == names
    assert {f.name for f in moved.glob("*.sealed")} == names - {f.name for f in dumps.files[:4]}


def test_a_merge_that_fails_leaves_the_chain_as_it_was(dumps):
    before = {f: f.read_bytes() for f in dumps.files}
    data = bytearray(before[dumps.files[0]])
    data[len(data) // 3] ^= 1
    dumps.files[0].write_bytes(data)
    with pytest.raises(FileError):
        prune(dumps, last=2)
    dumps.files[0].write_bytes(before[dumps.files[0]])
    assert {f: f.read_bytes() for f in dumps.files} == before
    assert sorted(p.name for p in dumps.directory.iterdir()) == [
        *(f"{n}.sealed" for n in range(1, 7)), "state",
    ]  # fmt: skip
