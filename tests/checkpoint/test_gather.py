"""A directory is taken in as it is, or not at all."""

from __future__ import annotations

import os

import pytest

from sealpoint.checkpoint.sealing.gather import Gathering
from sealpoint.checkpoint.tables.whole import Taken
from sealpoint.errors import FileError, UsageError

CHANGES = {
    "it grows": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "it shrinks": lambda path: os.truncate(path, 3),
    "it is written over": lambda path: path.write_bytes(b"zyxwvut"),
}


@pytest.mark.parametrize("as_files", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before it is read", "after"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change, when, as_files):
    path = tmp_path / "pages-1.img"
    path.write_bytes(b"abcdefg")
    os.utime(path, ns=(1, 1))

    def add(name, source, size, attributes):
        if when == "after":
            data = source.read()
            CHANGES[change](path)
        else:
            CHANGES[change](path)
            data = source.read()
        return len(data)

    with pytest.raises(FileError, match=r"pages-1\.img was changed while it was sealed"):
        Gathering(str(tmp_path), Taken(as_files=as_files), add).run()


def test_descriptors_are_closed_whatever_happens(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "inventory.img").write_bytes(b"i")
    (tmp_path / "a" / "parent").symlink_to("b")
    (tmp_path / "a" / "link").symlink_to("inventory.img")
    before = os.listdir("/proc/self/fd")

    def refuse(name, source, size, attributes):
        raise UsageError(name)

    for add in (refuse, lambda name, source, size, attributes: size):
        for kind in (False, True):
            try:
                Gathering(str(tmp_path), Taken(as_files=kind), add).run()
            except UsageError:
                pass
            except FileError:
                pass
    assert os.listdir("/proc/self/fd") == before


def test_what_lies_too_deep_is_refused(tmp_path):
    at = tmp_path
    for _ in range(70):
        at = at / "d"
    at.mkdir(parents=True)
    with pytest.raises(UsageError, match="too deep"):
        Gathering(str(tmp_path), Taken(), lambda *_: 0).run()


def test_a_link_that_is_put_in_place_of_a_file_meanwhile_is_not_followed(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "outside"
    inside.mkdir()
    outside.write_bytes(b"of somebody else")
    for name in ("core-1.img", "pages-1.img"):
        (inside / name).write_bytes(b"image")
    taken = []

    def add(name, source, size, attributes):
        taken.append(source.read())
        (inside / "pages-1.img").unlink()
        (inside / "pages-1.img").symlink_to("../outside")
        return size

    with pytest.raises(UsageError, match=r"pages-1\.img is a link that leads out"):
        Gathering(str(inside), Taken(), add).run()
    assert taken == [b"image"]
