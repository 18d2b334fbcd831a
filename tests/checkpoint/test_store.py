"""Sealed files whose pages lie in a chunk store."""

from __future__ import annotations

import pytest
from store_helpers import Store, noise, pages


@pytest.fixture
def store(tmp_path, keys):
    return Store(tmp_path / "store", keys)


SHARED = pages(1, 700)


def test_what_is_added_reads_back_as_it_was_and_equal_pages_are_kept_once(store):
    first = {"pages-1.img": SHARED + pages(2, 90), "core-1.img": b"one"}
    second = {"pages-1.img": pages(3, 60) + SHARED, "pages-2.img": noise(4, 30), "core-1.img": b"2"}
    one = store.add("one", first)
    before = len(store.chunks())
    two = store.add("two", second)
    assert len(store.chunks()) - before < 12
    for path, images in ((one, first), (two, second)):
        found = store.read(path)
        assert {n: found[n] for n in images} == images
        assert path.stat().st_size < 80_000
