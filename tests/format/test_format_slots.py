"""Which header counts, and what a rekey that was killed leaves behind."""

from __future__ import annotations

import dataclasses

import pytest

from sealpoint.errors import FileError, PolicyError, SealpointError, UsageError
from sealpoint.format import derive
from sealpoint.format.constants import MAX_SEQUENCE, Role, Roots, StanzaKind, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.preamble import Preamble
from sealpoint.format.raw import Descriptor
from sealpoint.format.slot import (
    decode_slot,
    encode_slot,
    make_slot,
    slot_size_for,
)
from sealpoint.format.stanza import Stanza
from tests.forge import SIGNER, STRANGER, Forge, read_all, rekeyed, sample, sign_slot


@pytest.fixture
def sealed():
    return sample()


def reads(data, sealed, **options):
    return read_all(data, sealed.roots, **options) == sealed.contents


def chosen(data):
    import os

    from sealpoint.format.reader import SealedFile
    from tests.forge import trusting

    fd = os.memfd_create("x")
    os.write(fd, data)
    try:
        return SealedFile(Descriptor(fd)).authenticate(trusting())
    finally:
        os.close(fd)


def test_a_new_file_has_one_header_and_an_idle_slot(sealed):
    forge = Forge(sealed.data)
    assert decode_slot(forge.slots[0]).sequence == 1
    assert decode_slot(forge.slots[1]) is None


def test_a_rekey_interrupted_before_the_old_slot_was_zeroed_opens_with_the_new_header(sealed):
    data = rekeyed(sealed, finish=False)
    assert reads(data, sealed)
    authentic = chosen(data)
    assert authentic.slot.sequence == 2
    assert authentic.interrupted


@pytest.mark.parametrize("share", [1 / 50, 1 / 2, 0.99])
def test_a_half_written_slot_is_refused_and_repaired_on_request_only(sealed, share):
    forge = Forge(rekeyed(sealed, finish=False))
    used = len(forge.slots[1].rstrip(b"\0"))
    forge.slots[1] = forge.slots[1][: int(used * share)].ljust(len(forge.slots[1]), b"\0")
    with pytest.raises(FileError, match="interrupted rekey, or tampering"):
        read_all(forge.build(), sealed.roots)
    assert reads(forge.build(), sealed, repair=True)


def test_a_half_zeroed_old_slot_is_refused_and_repaired_on_request_only(sealed):
    forge = Forge(rekeyed(sealed, finish=False))
    forge.slots[0] = bytes(300) + forge.slots[0][300:]
    with pytest.raises(FileError, match="interrupted rekey, or tampering"):
        read_all(forge.build(), sealed.roots)
    assert reads(forge.build(), sealed, repair=True)


def test_every_kill_of_a_rekey_leaves_a_file_that_opens_or_can_be_repaired(sealed):
    before, after = Forge(sealed.data), Forge(rekeyed(sealed))
    size = len(before.slots[0])
    for step in range(0, size + 1, 128):
        for slots in (
            (before.slots[0], after.slots[1][:step] + before.slots[1][step:]),
            (after.slots[0][:step] + before.slots[0][step:], after.slots[1]),
        ):
            forge = Forge(sealed.data)
            forge.slots = list(slots)
            assert reads(forge.build(), sealed, repair=True)


def test_an_older_header_is_refused_by_a_reader_that_remembers(sealed):
    assert reads(sealed.data, sealed)
    with pytest.raises(FileError, match="older copy"):
        read_all(sealed.data, sealed.roots, newest=2)


def test_repair_does_not_excuse_two_bad_headers(sealed):
    forge = Forge(sealed.data)
    forge.slots[0] = b"\1" * len(forge.slots[0])
    with pytest.raises(FileError):
        read_all(forge.build(), sealed.roots, repair=True)


def test_a_header_of_an_untrusted_signer_is_the_policy_s_matter(sealed):
    forge = Forge(sealed.data)
    slot = decode_slot(forge.slots[0])
    forge.set_slot(0, forge.new_slot(sealed, 1, slot.stanzas, STRANGER))
    with pytest.raises(PolicyError):
        read_all(forge.build(), sealed.roots)


def test_a_header_made_without_the_metadata_root_fails_its_mac(sealed):
    forge = Forge(sealed.data)
    slot = decode_slot(forge.slots[0])
    wrong = dataclasses.replace(sealed.roots, metadata=bytes(32))
    made = make_slot(forge.preamble, 1, slot.stanzas, wrong.metadata)
    with pytest.raises(FileError, match="cannot open the checkpoint"):
        made.check_mac(forge.preamble, sealed.roots.metadata)


def test_a_reader_refuses_a_header_that_was_made_without_the_metadata_root(sealed):
    """A trusted signer who cannot open the file signs a header for the recipients that it has: the MAC shows it."""
    forge = Forge(sealed.data)
    slot = decode_slot(forge.slots[0])
    ignorant = dataclasses.replace(sealed, roots=RootKeys.generate())
    known = {r: derive.commitment(sealed.roots.root(r), forge.preamble, r) for r in Role}
    made = make_slot(forge.preamble, 1, slot.stanzas, ignorant.roots.metadata)
    forge.set_slot(0, sign_slot(forge.preamble, made, known, SIGNER.signing))
    with pytest.raises(FileError, match="by someone who cannot open the checkpoint"):
        read_all(forge.build(), sealed.roots)


PREAMBLE = Preamble(Suite.AES_256_GCM, 24 * 1024, bytes(16), bytes(32))


def stanza(n, size=100, kind=StanzaKind.X25519):
    return Stanza(kind, Roots.BOTH, n.to_bytes(32, "big"), bytes(size))


@pytest.mark.parametrize(
    "stanzas",
    [
        [],
        [stanza(n) for n in range(65)],
        [stanza(1), stanza(1)],
        [stanza(1, 4097)],
        [stanza(1), stanza(0, kind=StanzaKind.SCRYPT)],
    ],
    ids=["none", "65", "twice", "too large", "passphrase beside others"],
)
def test_impossible_recipients_are_a_usage_error_when_written(stanzas):
    with pytest.raises(UsageError):
        make_slot(PREAMBLE, 1, stanzas, bytes(32))


def test_recipients_that_do_not_fit_are_a_usage_error():
    slot = make_slot(PREAMBLE, 1, [stanza(n, 4000) for n in range(7)], bytes(32))
    with pytest.raises(UsageError, match="room"):
        encode_slot(slot, PREAMBLE.slot_size)


def test_64_hybrid_recipients_fit_a_new_file_and_there_is_room_for_more_where_there_are_few():
    body = 64 * (36 + 1200)
    assert slot_size_for(body, 16_000) >= 64 + body + 16_000
    assert slot_size_for(2 * 1300, 2000) >= 3 * (64 + 2600 + 2000)


@pytest.mark.parametrize("sequence", [0, MAX_SEQUENCE + 1])
def test_a_sequence_out_of_range_is_refused(sequence):
    with pytest.raises(UsageError):
        make_slot(PREAMBLE, sequence, [stanza(1)], bytes(32))
    slot = make_slot(PREAMBLE, 1, [stanza(1)], bytes(32))._replace(sequence=sequence)
    with pytest.raises(SealpointError):
        decode_slot(encode_slot(slot, 8192))
