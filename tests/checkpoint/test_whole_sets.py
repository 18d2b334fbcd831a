"""Sets of images that go into one sealed file: each is judged by itself, with its parent where that is there."""

from __future__ import annotations

import pytest

from sealpoint.checkpoint.tables import whole
from sealpoint.checkpoint.tables.whole import Taken
from sealpoint.criu.roles import is_pages
from sealpoint.errors import FileError, UsageError
from tests.checkpoint.checkpoint_helpers import a_pre_dump

MEMORY = b"m" * 8192


def take(taken: Taken, prefix: str, images: dict[str, bytes]) -> None:
    for name, data in images.items():
        passing = taken.image(prefix + name)
        assert passing is not None
        if is_pages(name):
            passing.count(len(data))
        else:
            passing.add(data)
        passing.end()


def test_each_set_has_a_kind_and_the_manifest_can_say_it():
    taken = Taken()
    take(taken, "", a_pre_dump(MEMORY))
    take(taken, "db/checkpoint/", a_pre_dump(MEMORY))
    kinds = taken.judge("it")
    assert kinds == {"": "pre-dump", "db/checkpoint/": "pre-dump"}
    assert whole.recorded({"layout": "x", **whole.properties(kinds)}) == kinds


@pytest.mark.parametrize("prefix", ["", "checkpoint/"])
def test_what_stands_in_place_of_an_image_is_missed_also_where_nothing_counts_it(prefix):
    taken = Taken()
    take(taken, prefix, a_pre_dump(MEMORY))
    taken.stub(prefix + "netdev-9.img")
    with pytest.raises(FileError, match=r"netdev-9\.img is a link or a special file"):
        taken.judge("it")


@pytest.mark.parametrize("link", ["../first", "./../first/", "../second/../first"])
def test_a_parent_in_the_same_file_must_have_the_pages_that_are_left_to_it(link):
    for parent, problem in ((a_pre_dump(MEMORY), "is in no image of the chain"), ({}, "")):
        taken = Taken()
        take(taken, "second/", a_pre_dump(MEMORY, parent=3))
        taken.link("second/parent", link)
        take(taken, "first/", parent)
        if problem:
            with pytest.raises(FileError, match=problem):
                taken.judge("it")
        else:
            taken.judge("it")
            assert taken.parentless() == ("second/",)


def test_images_without_a_link_to_a_parent_have_none():
    taken = Taken()
    take(taken, "", a_pre_dump(MEMORY, parent=3))
    with pytest.raises(FileError, match="3 pages that should be in a parent"):
        taken.judge("it")
    with pytest.raises(FileError, match="3 pages that are in a parent"):
        taken.require_pages()


def test_a_chain_that_leads_in_a_circle_is_refused():
    taken = Taken()
    for name, other in (("a", "b"), ("b", "a")):
        take(taken, f"{name}/", a_pre_dump(MEMORY, parent=3))
        taken.link(f"{name}/parent", f"../{other}")
    with pytest.raises(FileError, match="chain of parents has no end"):
        taken.judge("it")


def test_files_are_no_images_and_need_a_word():
    taken = Taken()
    passing = taken.image("disk.img")
    assert passing is not None
    passing.add(b"of a virtual machine")
    passing.end()
    with pytest.raises(UsageError, match="holds no images of CRIU"):
        taken.judge("it")
    assert Taken(as_files=True).judge("it") == {"": "files"}


def test_stubs_alone_are_no_set_of_a_known_kind():
    taken = Taken()
    taken.stub("inventory.img")
    with pytest.raises(FileError, match=r"there are no images of a checkpoint|inventory"):
        taken.judge("it")
    assert taken.verdicts()[""][0] == "files"
