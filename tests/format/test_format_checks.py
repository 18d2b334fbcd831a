"""Each check of a reader by itself: files in which everything is right but the one thing that it looks at."""

from __future__ import annotations

import dataclasses
import os

import pytest

from sealpoint.errors import FileError
from sealpoint.format import derive, dsse, manifest, strictjson
from sealpoint.format.constants import ENVELOPE_TYPE, ORIGIN_TYPE, Role
from sealpoint.format.manifest import Entry, Manifest, Stream
from sealpoint.format.opened import OpenFile
from sealpoint.format.preamble import Trailer
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.format.slot import decode_slot
from sealpoint.format.statement import EnvelopeStatement
from tests.faults import MEMORY, METADATA, ORIGIN
from tests.forge import MANIFEST_NUMBER, SIGNER, STRANGER, Forge, read_all, sample, trusting


@pytest.fixture
def sealed():
    return sample()


@pytest.fixture
def forge(sealed):
    return Forge(sealed.data, sealed.roots)


def opens(data, roots, evaluate=None):
    """Up to the manifests, and no chunk is looked at."""
    fd = os.memfd_create("x")
    try:
        os.write(fd, data)
        authentic = SealedFile(Descriptor(fd)).authenticate(evaluate or trusting(SIGNER.key_id))
        return OpenFile.unlock(authentic, lambda preamble, slot: roots)
    finally:
        os.close(fd)


def test_the_unchanged_file_opens(sealed):
    opens(sealed.data, sealed.roots)


def nested(payload, *keys, value):
    inner = payload
    for k in keys[:-1]:
        inner = inner[k]
    inner[keys[-1]] = value
    return payload


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("preamble",), "00" * 32),
        (("checkpoint",), "00" * 16),
        (("suite",), "chacha20-poly1305"),
        (("index", "root"), "00" * 32),
        (("index", "frames"), "3"),
        (("index", "size"), "3"),
        (("manifests", "metadata", "digest"), "00" * 32),
        (("manifests", "memory", "digest"), "00" * 32),
        (("manifests", "metadata", "frames"), "2"),
        (("manifests", "memory", "frames"), "0"),
        (("commitments", "memory"), "00" * 32),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, tuple) else "",
)
def test_every_digest_and_count_of_the_origin_is_compared(sealed, forge, keys, value):
    forge.set_payload(nested(forge.payload(), *keys, value=value), SIGNER)
    with pytest.raises(FileError):
        opens(forge.build(), sealed.roots)


def envelope_of(forge, **changes):
    """The header's statement with fields changed, properly signed."""
    slot = decode_slot(forge.slots[0])
    found = EnvelopeStatement.decode(dsse.decode(slot.envelope, ENVELOPE_TYPE, "e").payload)
    signed = SIGNER.signing.envelope(ENVELOPE_TYPE, found._replace(**changes).encode())
    forge.set_slot(0, slot._replace(envelope=signed))
    return forge.build()


def test_a_header_signed_again_without_a_change_opens(sealed, forge):
    opens(envelope_of(forge), sealed.roots)


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_id": bytes(16)},
        {"sequence": 2},
        {"slot_digest": bytes(32)},
        {"commitments": {r: bytes(32) for r in Role}},
        {"recipients": {Role.METADATA: (b"a" * 32,), Role.MEMORY: (b"a" * 32,)}},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_field_of_the_envelope_statement_is_compared(sealed, forge, changes):
    with pytest.raises(FileError, match="does not belong to its envelope statement"):
        opens(envelope_of(forge, **changes), sealed.roots)


def test_members_of_an_envelope_statement_in_another_order_are_refused(sealed, forge):
    slot = decode_slot(forge.slots[0])
    payload = strictjson.decode(dsse.decode(slot.envelope, ENVELOPE_TYPE, "e").payload, "e")
    text = strictjson.encode(dict(sorted(payload.items())))
    changed = SIGNER.signing.envelope(ENVELOPE_TYPE, text)
    forge.set_slot(0, slot._replace(envelope=changed))
    with pytest.raises(FileError, match="canonical"):
        opens(forge.build(), sealed.roots)


def test_the_mac_is_checked_although_the_header_is_signed(sealed, forge):
    wrong = dataclasses.replace(sealed, roots=derive.RootKeys(bytes(32), bytes(32)))
    slot = decode_slot(forge.slots[0])
    made = forge.new_slot(wrong, 1, slot.stanzas)
    forge.set_slot(0, made._replace(envelope=b""))
    fields = EnvelopeStatement.decode(dsse.decode(slot.envelope, ENVELOPE_TYPE, "e").payload)
    statement = fields._replace(slot_digest=made.digest(forge.preamble))
    signed = SIGNER.signing.envelope(ENVELOPE_TYPE, statement.encode())
    forge.set_slot(0, made._replace(envelope=signed))
    with pytest.raises(FileError, match="cannot open the checkpoint"):
        opens(forge.build(), sealed.roots)


def test_a_key_under_another_s_id_is_refused_whatever_the_policy_says(sealed, forge):
    (stranger,) = STRANGER.sign(forge.envelope().pae)
    disguised = stranger._replace(keyid=SIGNER.key_id)
    forge.origin = dsse.encode(forge.envelope()._replace(signatures=(disguised,)))
    with pytest.raises(FileError, match="another key than it names"):
        opens(forge.build(), sealed.roots, evaluate=lambda envelope: [])


def test_whom_a_policy_calls_a_signer_must_be_named_by_the_statement(sealed):
    with pytest.raises(FileError, match="exactly the keys"):
        opens(sealed.data, sealed.roots, evaluate=lambda envelope: ["00" * 32])


def test_the_parts_of_an_envelope_have_one_order(forge):
    value = strictjson.decode(forge.origin, "x")
    dsse.decode(strictjson.encode(value), ORIGIN_TYPE, "x")
    turned = strictjson.encode(dict(reversed(value.items())))
    with pytest.raises(FileError, match="canonical"):
        dsse.decode(turned, ORIGIN_TYPE, "x")


@pytest.mark.parametrize("carried", [(), ("publicKey", "certificates"), ("certificates",) * 9])
def test_a_signature_carries_either_a_key_or_a_chain(forge, carried):
    value = strictjson.decode(forge.origin, "x")
    (entry,) = value["signatures"]
    entry.pop("publicKey")
    if "publicKey" in carried:
        entry["publicKey"] = "AAAA"
    if "certificates" in carried:
        entry["certificates"] = ["AAAA"] * carried.count("certificates")
    with pytest.raises(FileError):
        dsse.decode(strictjson.encode(value), ORIGIN_TYPE, "x")


def test_a_nine_times_signed_statement_is_refused(forge):
    value = strictjson.decode(forge.origin, "x")
    value["signatures"] *= 9
    with pytest.raises(FileError):
        dsse.decode(strictjson.encode(value), ORIGIN_TYPE, "x")


# Faults that show only beside the other manifest or the index.
_LATER = {
    "name of a metadata object", "name below a file", "chunk size of two", "raw for compressed", "zero for raw",
    "zstd for lz4", "stream of the other role", "an object fewer than the metadata manifest says",
    "size other than the metadata manifest says", "memory object more", "memory object fewer",
    "number of another object",
    "unused stream",
}  # fmt: skip


@pytest.mark.parametrize(
    ("role", "name"),
    [(Role.MEMORY, n) for n in MEMORY if n not in _LATER]
    + [(Role.METADATA, n) for n in METADATA if n not in _LATER],
)
def test_a_manifest_with_a_fault_is_refused_by_itself(forge, role, name):
    table = forge.manifest(role)
    made = ({**MEMORY, **METADATA})[name](table)
    if not isinstance(made, bytes):
        text = strictjson.encode(table)
        made = len(text).to_bytes(8, "little") + text
        made += bytes(-len(made) % 4096)
    with pytest.raises(FileError):
        manifest.decode(memoryview(made), role)


@pytest.mark.parametrize("codecs", ["AAACAA==", "AAECAg==", "AQECAA==", "AAEAAA=="])
def test_chunk_lengths_are_checked_before_a_chunk_is_read(sealed, forge, codecs):
    table = forge.manifest(Role.MEMORY)
    table["streams"][1]["codecs"] = codecs
    forge.set_manifest(Role.MEMORY, table)
    with pytest.raises(FileError, match="impossible length"):
        opens(forge.resign(SIGNER).build(), sealed.roots)


def test_missing_and_surplus_frames_are_noticed_before_a_chunk_is_read(sealed, forge):
    number = 3
    extra = forge.seal_chunk(Role.MEMORY, number, 9, b"x", last=True)
    for frames in (
        [*forge.frames, (number, extra)],
        [f for n, f in enumerate(forge.frames) if n != forge.positions(number)[-1]],
    ):
        changed = Forge(sealed.data, sealed.roots)
        changed.frames = frames
        with pytest.raises(FileError, match="missing or too many"):
            opens(changed.resign(SIGNER).build(), sealed.roots)


def test_a_manifest_whose_chunks_are_cut_otherwise_is_refused(sealed, forge):
    """Two short chunks instead of one: the same plaintext, another division."""
    plain, number = forge.manifest_bytes(Role.MEMORY), MANIFEST_NUMBER[Role.MEMORY]
    at = forge.positions(number)[0]
    cut = [
        (number, forge.seal_chunk(Role.MEMORY, number, n, part, last=n == 1))
        for n, part in enumerate((plain[:1000], plain[1000:]))
    ]
    forge.frames[at : at + 1] = cut
    with pytest.raises(FileError, match="impossible length"):
        opens(forge.resign(SIGNER).build(), sealed.roots)


def test_both_manifests_together_may_list_a_stream_and_a_name_only_once():
    stream = Stream(3, 4096, 1, b"\0")
    mine = Manifest(Role.METADATA, [Entry(5, "a", Role.METADATA, 1, stream)], [stream])
    name = Manifest(Role.MEMORY, [Entry(6, "a", Role.MEMORY, 1, stream)], [])
    with pytest.raises(FileError, match="both manifests list 'a'"):
        manifest.check_together({Role.METADATA: mine, Role.MEMORY: name})
    number = Manifest(Role.MEMORY, [Entry(6, "b", Role.MEMORY, 1, stream)], [stream])
    with pytest.raises(FileError, match="the same stream"):
        manifest.check_together({Role.METADATA: mine, Role.MEMORY: number})


def test_objects_may_lie_below_directories_and_nothing_else():
    stream = Stream(3, 4096, 1, b"\0")

    def entries(kind):
        attributes = {"type": kind}
        return [
            Entry(5, "a", Role.MEMORY, 0, stream, 0, attributes),
            Entry(6, "a/b/c", Role.MEMORY, 0, stream),
        ]

    for kind, fine in (("directory", True), ("symlink", False), ("file", False)):
        table = {
            Role.METADATA: Manifest(Role.METADATA, memory={5: 0, 6: 0}),
            Role.MEMORY: Manifest(Role.MEMORY, entries(kind), [stream]),
        }
        if fine:
            manifest.check_together(table)
        else:
            with pytest.raises(FileError, match="lies below"):
                manifest.check_together(table)


def test_objects_that_touch_do_not_overlap(forge):
    table = forge.manifest(Role.MEMORY)
    first, second = table["objects"][:2]
    for size, offset, fine in (("5", "22", True), ("5", "21", False), ("0", "10", True)):
        second.update(size=size, offset=offset)
        text = strictjson.encode(table)
        data = len(text).to_bytes(8, "little") + text
        data += bytes(-len(data) % 4096)
        if fine:
            manifest.decode(memoryview(data), Role.MEMORY)
        else:
            with pytest.raises(FileError, match="overlaps"):
                manifest.decode(memoryview(data), Role.MEMORY)
    assert first["size"] == "22"


def test_every_size_of_the_trailer_is_compared(sealed, forge):
    for name in ("index_offset", "index_size", "origin_offset", "origin_size", "file_size"):
        for delta in (-40, -1, 1, 40):
            fields = {name: getattr(forge.trailer, name) + delta, "checksum": b""}
            wrong = forge.trailer._replace(**fields)
            wrong = wrong._replace(checksum=wrong._sum(forge.origin))
            with pytest.raises(FileError, match="contradicts the file"):
                Trailer.decode(wrong.encode(), forge.preamble, len(sealed.data))


def test_an_origin_fault_is_no_matter_of_trust(sealed):
    """Whoever signed it, and if nobody did."""
    for fault in ORIGIN:
        forge = Forge(sealed.data)
        forge.set_payload(forge.payload() | ORIGIN[fault], SIGNER)
        with pytest.raises(FileError):
            read_all(forge.build(), sealed.roots, trust=())
