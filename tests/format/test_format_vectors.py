"""Every vector of tests/vectors ends as it says, and the vectors are those that the generator makes."""

from __future__ import annotations

import collections
import sys

import pytest

from tests import vectors_reader

STORED = vectors_reader.load()


@pytest.mark.parametrize("name", STORED)
def test_a_vector_ends_as_it_says(name):
    vector = STORED[name]
    data = vectors_reader.unpack(vector, STORED)
    assert vectors_reader.outcome(vector, data, STORED) == (
        vector["outcome"],
        vector.get("objects", {}),
    )


def test_most_vectors_are_broken_on_purpose_and_each_is_named_after_its_file():
    count = collections.Counter(v["outcome"] for v in STORED.values())
    assert count["success"] > 15
    assert sum(count.values()) - count["success"] > count["success"] * 4
    assert set(count) == {"success", "file", "identity", "policy", "usage"}
    assert all(name == vector["name"] for name, vector in STORED.items())


def test_the_generator_makes_the_vectors_that_are_stored(monkeypatch):
    monkeypatch.syspath_prepend(str(vectors_reader.HERE))
    import generate

    made = {}
    known = {n: v for n, v in STORED.items() if "file" in v}
    for vector in generate.derived(known):
        made[vector["name"]] = vector
        known[vector["name"]] = vector
    assert made == {n: v for n, v in STORED.items() if "file" not in v}
    sys.modules.pop("generate")


def test_vectors_stay_small():
    assert sum(p.stat().st_size for p in vectors_reader.HERE.glob("*.json")) < 700_000
