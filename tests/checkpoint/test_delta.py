"""Increments on any kernel: pages are matched by keyed digests, and put together again from the whole chain."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.checkpoint.history import matching
from sealpoint.checkpoint.history.increments import Track
from sealpoint.checkpoint.history.matching import Matcher, ParentPages, digests_of
from sealpoint.checkpoint.opening.access import wrap_for
from sealpoint.checkpoint.opening.chain import Chain, ChainLink
from sealpoint.checkpoint.opening.flat import Flat
from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.checkpoint.tables import delta
from sealpoint.checkpoint.tables.delta import DELTA_NAME, Delta, PageRuns
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import FileError, UsageError
from sealpoint.format.constants import Suite
from sealpoint.format.writer import SealedWriter
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.source import Access
from sealpoint.state.chains import StateStore
from sealpoint.store.output import OutputFile
from tests.checkpoint.chain_helpers import seal_images

KEY = bytes(range(32))


def page(number: int) -> bytes:
    return random.Random(number).randbytes(32) * (PAGE // 32)


def image(numbers) -> bytes:
    return b"".join(page(n) for n in numbers)


class Dumps:
    """Dumps of a process whose pages images are given, one file each in one directory."""

    def __init__(self, directory, keys) -> None:
        self.directory, self.keys = directory, keys
        self.store = StateStore(str(directory / "state"))
        self.said: list[str] = []
        self.files = []
        self.track = None

    def add(self, images: dict[str, list[int]], *, parent=None, workload: str = ""):
        path = self.directory / f"{len(self.files) + 1}.sealed"
        track = self.track = Track(self.store, self.said.append, workload)
        if parent is None:
            track.start(None)
        else:
            with Chain.open(str(parent), self.keys.policy) as chain:
                track.start(ChainLink(str(parent), chain.top))
        with OutputFile(str(path)) as out:
            writer = SealedWriter(
                out, suite=Suite.AES_256_GCM, wrap=wrap_for([self.keys.recipient]),
                signing=self.keys.signing,
            )  # fmt: skip
            builder = CheckpointBuilder(writer, compression="none")
            for name, numbers in images.items():
                target = track.pages(builder, name)
                target.write(image(numbers))
                target.finish()
            builder.add("inventory.img", b"inventory")
            track.finish(builder)
            out.commit()
        self.files.append(path)
        return path

    def read(self, path, **options) -> dict[str, bytes]:
        with Chain.open(str(path), self.keys.policy, **options) as chain:
            flat = Flat(chain.unlock([self.keys.identity]))
            return {
                name: b"".join(bytes(p) for p in flat.read(found))
                for name, found in flat.images.items()
                if name.startswith("pages-")
            }


@pytest.fixture
def dumps(tmp_path, keys):
    return Dumps(tmp_path, keys)


def test_only_pages_that_changed_are_stored_and_all_come_back(dumps):
    first = list(range(1500))
    second = [5000 + n if n % 10 == 0 else n for n in first]
    third = [*second[:700], 9000, *second[700:]]
    one = dumps.add({"pages-1.img": first})
    assert dumps.track.changed == (1500, 1500)
    assert not dumps.track.continues
    two = dumps.add({"pages-1.img": second}, parent=one)
    assert dumps.track.changed == (150, 1500)
    three = dumps.add({"pages-1.img": third}, parent=two)
    assert dumps.track.changed == (1, 1501)
    for path, numbers in ((one, first), (two, second), (three, third)):
        assert dumps.read(path) == {"pages-1.img": image(numbers)}
    assert dumps.said == []
    assert two.stat().st_size < 150 * PAGE + 80_000
    assert three.stat().st_size < one.stat().st_size / 40


def test_pages_that_moved_to_another_image_are_found_again(dumps):
    one = dumps.add({"pages-1.img": list(range(100)), "pages-2.img": list(range(100, 300))})
    images = {"pages-7.img": list(range(100, 300)), "pages-8.img": list(range(40, 100))}
    two = dumps.add(images, parent=one)
    assert dumps.track.changed[0] < 40
    assert dumps.read(two) == {n: image(x) for n, x in images.items()}


def test_an_image_without_changes_and_an_empty_one(dumps):
    one = dumps.add({"pages-1.img": [1, 2, 3], "pages-2.img": []})
    two = dumps.add({"pages-1.img": [1, 2, 3], "pages-2.img": []}, parent=one)
    assert dumps.track.changed == (0, 3)
    assert dumps.read(two) == {"pages-1.img": image([1, 2, 3]), "pages-2.img": b""}


def test_a_lost_state_costs_a_full_dump(dumps):
    one = dumps.add({"pages-1.img": [1, 2, 3]})
    for file in (dumps.directory / "state").glob("?" * 32):
        file.unlink()
    two = dumps.add({"pages-1.img": [1, 2, 4]}, parent=one)
    assert ["a full dump is made" in text for text in dumps.said] == [True]
    assert dumps.track.changed == (3, 3)
    with Chain.open(str(two), dumps.keys.policy) as chain:
        assert chain.top.authentic.origin.kind == "full"
    three = dumps.add({"pages-1.img": [1, 2, 5]}, parent=two)
    assert dumps.track.changed == (1, 3)
    assert dumps.read(three) == {"pages-1.img": image([1, 2, 5])}


def test_a_file_that_was_not_tracked_costs_a_full_dump(dumps, keys):
    path = dumps.directory / "plain.sealed"
    dumps.store.save(seal_images(keys, path, {"inventory.img": b"", "pages-1.img": image([1])}))
    dumps.add({"pages-1.img": [1]}, parent=path)
    assert "dumped without --track" in dumps.said[0]


def test_a_chain_has_one_workload(dumps):
    one = dumps.add({"pages-1.img": [1]}, workload="billing")
    dumps.add({"pages-1.img": [1]}, parent=one)
    assert dumps.track.workload == "billing"
    with pytest.raises(UsageError, match="of the workload"):
        dumps.add({"pages-1.img": [1]}, parent=one, workload="another")


def test_no_digest_and_no_key_is_in_a_checkpoint(dumps):
    numbers = list(range(64))
    one = dumps.add({"pages-1.img": numbers})
    two = dumps.add({"pages-1.img": [*numbers[:-1], 99]}, parent=one)
    with Chain.open(str(two), dumps.keys.policy) as chain:
        files = chain.unlock([dumps.keys.identity])
        for opened in files:
            state = dumps.store.load(opened.authentic.reference)
            secrets = [state.sections["page-key"]]
            secrets += [d[:16] for n, d in state.sections.items() if n.startswith("digests")]
            everything = b"".join(opened.read_bytes(e) for e in opened.entries.values())
            assert not any(secret in everything for secret in secrets)
    keys = {
        dumps.store.load(c).sections["page-key"] for c in [f.authentic.reference for f in files]
    }
    assert len(keys) == 1  # of the chain
    dumps.add({"pages-1.img": numbers})
    assert dumps.track._key not in keys


def test_a_long_chain_and_one_that_forks(dumps):
    numbers = list(range(200))
    path = dumps.add({"pages-1.img": numbers})
    for step in range(25):
        numbers = list(numbers)
        numbers[step * 7 % 200] = 1000 + step
        path = dumps.add({"pages-1.img": numbers}, parent=path)
        if step == 10:
            middle = path
    assert dumps.read(path) == {"pages-1.img": image(numbers)}
    fork = dumps.add({"pages-1.img": [7, 7, 7]}, parent=middle)
    assert dumps.read(fork) == {"pages-1.img": image([7, 7, 7])}


def test_a_missing_parent_of_an_increment_is_refused(dumps):
    one = dumps.add({"pages-1.img": [1, 2]})
    two = dumps.add({"pages-1.img": [1, 3]}, parent=one)
    one.unlink()
    with pytest.raises(FileError, match="is missing"):
        dumps.read(two)


def test_commands_that_read_see_an_increment_whole(dumps):
    numbers = list(range(300))
    one = dumps.add({"pages-1.img": numbers})
    numbers[::7] = range(1000, 1043)
    two = dumps.add({"pages-1.img": numbers}, parent=one)
    access = Access(lambda: [dumps.keys.identity], lambda: dumps.keys.policy)
    with open_source(str(two), access) as source:
        assert set(source.names()) == {"inventory.img", "pages-1.img"}
        assert source.size("pages-1.img") == 300 * PAGE
        assert source.read("pages-1.img") == image(numbers)
        assert source.pread("pages-1.img", 5000, 70_000) == image(numbers)[5000:75_000]
        pieces = source.chunks("pages-1.img", 299 * PAGE - 5, None)
        assert b"".join(map(bytes, pieces)) == image(numbers)[299 * PAGE - 5 :]
        assert source.parent("") is None


# Matching


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_changed_every_page_is_where_it_is_said_to_be(data):
    old = data.draw(st.lists(st.integers(0, 60), max_size=120))
    new = list(old)
    for _ in range(data.draw(st.integers(0, 8))):
        at = data.draw(st.integers(0, len(new)))
        kind = data.draw(st.sampled_from(["insert", "delete", "replace", "move"]))
        count = data.draw(st.integers(1, 20))
        if kind == "insert":
            new[at:at] = range(100, 100 + count)
        elif kind == "delete":
            del new[at : at + count]
        elif kind == "replace":
            new[at : at + count] = [200 + n for n in range(len(new[at : at + count]))]
        else:
            part = new[at : at + count]
            del new[at : at + count]
            new[0:0] = part
    content = {n: page(n) for n in {*old, *new}}
    digests = {n: digests_of(memoryview(c), KEY)[0] for n, c in content.items()}
    parent = ParentPages({"pages-1.img": b"".join(digests[n] for n in old)})
    matcher = Matcher(parent, "pages-1.img")
    places: list[int] = []
    at = 0
    while at < len(new):
        size = data.draw(st.integers(1, 40))
        places += matcher.match([digests[n] for n in new[at : at + size]])
        at += size
    assert len(places) == len(new)
    assert all(p < 0 or old[p] == n for p, n in zip(places, new, strict=True))
    if old == new:
        assert -1 not in places


def test_after_a_shift_the_rest_is_found_again():
    old = list(range(1000))
    new = [*old[:100], 5000, *old[100:400], *old[450:]]
    parent = ParentPages({"pages-1.img": b"".join(digests_of(memoryview(image(old)), KEY))})
    places = Matcher(parent, "pages-1.img").match(digests_of(memoryview(image(new)), KEY))
    assert places.count(-1) == 1


def test_digests_depend_on_key_and_every_byte():
    data = bytearray(PAGE * 2)
    data[PAGE] = 1
    first, second = digests_of(memoryview(data), KEY)
    assert len(first) == matching.DIGEST >= 16
    assert first != second
    assert digests_of(memoryview(data), bytes(32))[0] != first


def test_what_goes_wrong_in_the_matching_thread_reaches_the_reader(dumps):
    class Broken:
        def write(self, data):
            raise OSError("no space")

        def finish(self):
            raise AssertionError

        abandon = finish

    target = matching.TrackedPages(Broken(), KEY, None, lambda *_: None)
    target.write(bytes(PAGE))
    with pytest.raises(OSError, match="no space"):
        target.finish()


# The table


RUN = st.tuples(st.none() | st.integers(0, 50), st.integers(1, 50))


@settings(deadline=None)
@given(st.lists(RUN, max_size=40))
def test_a_delta_comes_back_as_it_was(runs):
    table = PageRuns()
    for first, count in runs:
        table.add(first, count)
    made = Delta({"pages-1.img": 30, "pages-2.img": 70}, {"pages-3.img": table})
    found = delta.decode(made.encode())
    assert found.parent == made.parent
    assert list(found.images["pages-3.img"].runs()) == list(table.runs())
    assert found.images["pages-3.img"].own_pages == table.own_pages


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.data())
def test_noise_is_no_delta_or_a_consistent_one(noise, data):
    table = PageRuns()
    table.add(3, 4)
    table.add(None, 2)
    whole = Delta({"pages-1.img": 30}, {"pages-3.img": table}).encode()
    at = data.draw(st.integers(0, len(whole)))
    for made in (
        noise,
        whole[:8] + noise,
        whole[:at] + noise + whole[at + len(noise) :],
        whole[:at],
    ):
        try:
            found = delta.decode(made)
        except FileError:
            continue
        total = sum(found.parent.values())
        for runs in found.images.values():
            for first, count in runs.runs():
                assert first == delta.OWN or first + count <= total


@pytest.mark.parametrize(
    "change", ["another image", "fewer pages", "beyond", "own beyond", "a bomb", "own bomb"]
)
def test_a_delta_that_does_not_fit_its_parent_is_refused(dumps, keys, change):
    one = dumps.add({"pages-1.img": [1, 2, 3]})
    state = dumps.store.load(Chain.open(str(one), keys.policy).links[0].reference)
    table = PageRuns()
    table.add(0, 2)
    table.add(None, 1)
    made = Delta({"pages-1.img": 3}, {"pages-1.img": table})
    if change == "another image":
        made.parent = {"pages-9.img": 3}
    elif change == "fewer pages":
        made.parent = {"pages-1.img": 2}
    elif change == "own beyond":
        table.add(None, 1)
    elif change == "own bomb":
        table.add(None, 1 << 27)
    elif change == "a bomb":
        made.images["pages-1.img"] = table = PageRuns()
        table.add(None, 1)
        for _ in range(500_000):
            table.add(0, 3)
    raw = made.encode()
    if change == "beyond":
        raw = raw.replace(
            (0).to_bytes(8, "little") + (2).to_bytes(8, "little"),
            (2).to_bytes(8, "little") + (2).to_bytes(8, "little"),
        )
    path = dumps.directory / "other.sealed"
    seal_images(
        keys, path, {"pages-1.img": image([9]), "inventory.img": b"", DELTA_NAME: raw},
        parent=state.reference, chain=(state.chain[0], 1),
    )  # fmt: skip
    with pytest.raises(FileError):
        dumps.read(path)
