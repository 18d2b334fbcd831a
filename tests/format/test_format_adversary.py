"""Every single-fault mutation of a sealed file is refused, with one of our errors."""

from __future__ import annotations

import itertools

import pytest

from sealpoint.errors import SealpointError
from sealpoint.format.constants import Suite
from sealpoint.format.derive import RootKeys
from tests import stored_forge
from tests.adversary import mutations
from tests.forge import build_sample, read_all, rekeyed, sample


@pytest.fixture(scope="module", params=Suite, ids=lambda s: s.label)
def material(request):
    sealed, other = sample(suite=request.param), build_sample(suite=request.param)
    made = mutations(rekeyed(sealed), roots=sealed.roots, other=rekeyed(other), before=sealed.data)
    return sealed, list(made)


def accepted(material, roots):
    found = []
    for mutation in material[1]:
        try:
            read_all(mutation.data, roots, newest=mutation.newest)
        except SealpointError:
            continue
        found.append(mutation.name)
    return found


def test_the_unchanged_file_is_read(material):
    sealed = material[0]
    assert read_all(rekeyed(sealed), sealed.roots, newest=2) == sealed.contents


def test_there_are_many_mutations_and_each_has_a_name_of_its_own(material):
    names = [m.name for m in material[1]]
    assert len(names) > 1000
    assert len(set(names)) == len(names)


def test_a_memory_recipient_refuses_every_mutation(material):
    assert accepted(material, material[0].roots) == []


def test_a_metadata_recipient_refuses_every_mutation(material):
    assert accepted(material, RootKeys(material[0].roots.metadata, None)) == []


def test_a_gate_without_a_key_refuses_every_mutation(material):
    assert accepted(material, None) == []


def test_every_kind_of_attack_of_the_design_is_among_them(material):
    text = "\n".join(m.name for m in material[1])
    for attack in (
        "bit flipped in preamble", "bit flipped in idle slot", "padding", "stanza 0 body", "tag",
        "index entry", "origin", "trailer", "truncated to 0", "extended", "chunks of one object swapped",
        "frames of two objects swapped", "repeated", "dropped", "objects 1 and 2 swapped",
        "another's memory manifest", "another's origin", "another's index", "another's trailer",
        "the older one put back", "encrypted again by a recipient; index kept",
        "encrypted again by a recipient; re-derived, signature kept", "memory stripped", "version 2",
        "suite 3", "a codec changed",
    ):  # fmt: skip
        assert attack in text, attack


def test_a_file_that_refers_to_stored_chunks_is_no_easier_to_change():
    sealed, _ = stored_forge.sample()
    other, _ = stored_forge.sample()
    made = list(
        mutations(rekeyed(sealed), roots=sealed.roots, other=rekeyed(other), before=sealed.data)
    )
    names = "\n".join(m.name for m in made)
    for attack in (
        "bit flipped in reference",
        "reference dropped; re-derived",
        "references swapped",
    ):
        assert attack in names
    for roots in (sealed.roots, None):
        assert accepted((sealed, made), roots) == []


def test_any_flipped_bit_of_a_small_part_is_noticed(material):
    sealed = material[0]
    data = sealed.data
    for at in itertools.chain(range(64), range(len(data) - 64, len(data)), range(64, 400, 3)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(SealpointError):
                read_all(bytes(changed), sealed.roots)
