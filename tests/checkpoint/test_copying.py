"""A copy is made of the bytes that were checked, whatever its source says at other times."""

from __future__ import annotations

import contextlib
import os

import pytest

from sealpoint.checkpoint import Opening, copy
from sealpoint.errors import FileError
from sealpoint.format.raw import Descriptor
from sealpoint.store.output import OutputFile
from tests.checkpoint.checkpoint_helpers import attributes, seal_objects

PAGES = os.urandom(300_000)


class Fickle:
    """A source of which one read, counted from 0, says something else in its last byte."""

    def __init__(self, path, wrong):
        self.inner = Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self.size, self.wrong, self.reads = self.inner.size, wrong, 0

    def read_into(self, out, offset):
        self.inner.read_into(out, offset)
        if self.reads == self.wrong:
            out[-1] ^= 1
        self.reads += 1

    def close(self):
        self.inner.close()


def copied(source, keys, target):
    """Whether there is a copy."""
    opening = Opening(keys.policy, alone=True, lenient=True)
    with contextlib.suppress(FileError), OutputFile(str(target)) as out:
        with opening.take(source) as checkpoint:
            copy(checkpoint, keys.policy, out)
    return target.exists()


@pytest.fixture
def sealed(keys, tmp_path):
    objects = {"inventory.img": (b"inventory", attributes()), "pages-1.img": (PAGES, attributes())}
    seal_objects(keys, tmp_path / "s.sealed", objects)
    return tmp_path / "s.sealed"


def test_bytes_that_were_not_checked_are_not_written(keys, sealed, tmp_path):
    steady = Fickle(sealed, None)
    assert copied(steady, keys, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == sealed.read_bytes()
    assert steady.reads > 10
    for number in range(steady.reads):
        source = Fickle(sealed, number)
        target = tmp_path / f"copy-{number}"
        if copied(source, keys, target):
            assert target.read_bytes() == sealed.read_bytes()
        assert source.reads > number


def test_a_file_that_becomes_another_one_is_not_copied(keys, sealed, tmp_path):
    other = tmp_path / "other.sealed"
    seal_objects(keys, other, {"inventory.img": (b"other", attributes())})
    seal_objects(keys, tmp_path / "first.sealed", {"inventory.img": (b"first", attributes())})
    opening = Opening(keys.policy, alone=True, lenient=True)
    source = Fickle(tmp_path / "first.sealed", None)
    with opening.take(source) as checkpoint, OutputFile(str(tmp_path / "copy")) as out:
        source.inner, _ = Descriptor(os.open(other, os.O_RDONLY | os.O_CLOEXEC)), source.close()
        assert source.inner.size == source.size
        with pytest.raises(FileError, match="another file"):
            copy(checkpoint, keys.policy, out)
    assert not (tmp_path / "copy").exists()
