"""Every vector of tests/vectors/criusec ends as it says, and the vectors are those that the generator makes."""

from __future__ import annotations

import hashlib

import pytest

from sealpoint.errors import FileError, IdentityError
from tests.criusec.criusec_helpers import VECTORS, decrypt, load_vectors, unpack
from tests.vectors.criusec import generate

STORED = load_vectors()
WHOLE = STORED["whole"]
ERRORS = {"file": FileError, "identity": IdentityError}


@pytest.mark.parametrize("name", STORED)
def test_vector(name, identity):
    vector = STORED[name]
    files = unpack(vector)
    if vector["outcome"] != "plain":
        with pytest.raises(ERRORS[vector["outcome"]]):
            decrypt(files, identity)
        return
    plain = decrypt(files, identity)
    changed = set(vector.get("edits", ())) | set(vector.get("removed", ()))
    if "cipher.img" in changed and name == "iv-changed":
        changed |= {n for n in plain if n.startswith("pages-")}
    for image, digest in WHOLE["plain"].items():
        if image in changed:
            continue
        assert hashlib.sha256(plain[image]).hexdigest() == digest, image
    assert plain.keys() <= WHOLE["plain"].keys()
    if vector.get("undetected"):
        shown = {n: hashlib.sha256(d).hexdigest() for n, d in plain.items()}
        assert shown != WHOLE["plain"]  # it is something else, and nothing said so


def test_all_that_is_wrong_with_a_key_is_told_in_the_same_words(identity):
    told = set()
    for name, vector in STORED.items():
        if vector["outcome"] == "identity":
            with pytest.raises(IdentityError) as caught:
                decrypt(unpack(vector), identity)
            told.add((caught.value.message, caught.value.hint, caught.value.__context__ is None))
            assert len(told) == 1, name
    assert told


def test_every_layout_is_in_the_whole_dump(identity):
    from sealpoint.criusec.grammar import FieldLayout
    from tests.criusec.criusec_helpers import open_dump

    dump = open_dump(unpack(WHOLE), identity)
    found = {dump.layout(name) for name in dump.names()}
    assert found == set(FieldLayout) - {FieldLayout.KEYS}


def test_the_generator_makes_the_vectors_that_are_stored():
    made = generate.generate()
    assert made.keys() == STORED.keys()
    for name, vector in made.items():
        # Not the bytes of "files": another zlib may compress otherwise.
        assert {**vector, "files": 0} == {**STORED[name], "files": 0}, name
        assert unpack(vector) == unpack(STORED[name]), name


def test_most_vectors_are_broken_and_all_are_small():
    outcomes = [v["outcome"] for v in STORED.values()]
    assert outcomes.count("file") + outcomes.count("identity") > len(outcomes) / 2
    assert sum(p.stat().st_size for p in VECTORS.glob("*.json")) < 200_000
