"""Property tests of every parser: whatever comes in, only our own errors come out, and one encoding is accepted."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import assume, example, given, strategies as st

from sealpoint.errors import FileError, SealpointError
from sealpoint.format import attributes, codec, dsse, manifest, strictjson
from sealpoint.format.constants import (
    ENVELOPE_TYPE,
    MAX_SEQUENCE,
    ORIGIN_TYPE,
    SLOT_SIZES,
    Codec,
    Role,
    Roots,
    StanzaKind,
    Suite,
)
from sealpoint.format.index import Index, IndexBuilder
from sealpoint.format.preamble import Preamble, Trailer
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.format.slot import Slot, decode_slot, encode_slot
from sealpoint.format.stanza import Stanza, decode_stanzas, encode_stanzas
from sealpoint.format.statement import EnvelopeStatement, Origin
from tests.forge import Forge, read_all, rekeyed, sample

PREAMBLE = Preamble(Suite.AES_256_GCM, 24 * 1024, bytes(16), bytes(32))
SAMPLE = sample()
FORGE = Forge(SAMPLE.data, SAMPLE.roots)
SLOT = decode_slot(FORGE.slots[0])
ENVELOPE = dsse.decode(SLOT.envelope, ENVELOPE_TYPE, "e")

PARSERS = {
    "preamble": (Preamble.decode, SAMPLE.data[:64]),
    "trailer": (
        lambda d: Trailer.decode(d, FORGE.preamble, len(SAMPLE.data)),
        SAMPLE.data[-64:],
    ),
    "slot": (decode_slot, FORGE.slots[0].rstrip(b"\0") + bytes(64)),
    "stanzas": (decode_stanzas, SLOT.body),
    "index": (
        lambda d: Index(d, FORGE.preamble.frames_offset, FORGE.frames_size()),
        FORGE.stored_index,
    ),
    "json": (lambda d: strictjson.decode(d, "json"), FORGE.envelope().payload),
    "dsse": (lambda d: dsse.decode(d, ORIGIN_TYPE, "origin"), FORGE.origin),
    "origin": (Origin.decode, FORGE.envelope().payload),
    "envelope": (EnvelopeStatement.decode, ENVELOPE.payload),
    "metadata manifest": (
        lambda d: manifest.decode(memoryview(d), Role.METADATA),
        FORGE.manifest_bytes(Role.METADATA),
    ),
    "memory manifest": (
        lambda d: manifest.decode(memoryview(d), Role.MEMORY),
        FORGE.manifest_bytes(Role.MEMORY),
    ),
}
each_parser = pytest.mark.parametrize("name", PARSERS)


@each_parser
def test_a_parser_takes_what_the_writer_made(name):
    parse, valid = PARSERS[name]
    parse(valid)


@each_parser
@given(data=st.binary(max_size=300))
@example(b"")
@example(b"\0" * 64)
@example(b"\xff" * 80)
@example(b'{"a":"\\ud800"}')
@example(b"[" * 100_000)
@example(b'{"a":' * 50_000)
@example(b'{"version":' + b"9" * 100_000 + b"}")
@example(b'{"version":1e999}')
@example('{"version":"\u0661"}'.encode())
def test_noise_gives_our_errors_only(name, data):
    with contextlib.suppress(SealpointError):
        PARSERS[name][0](data)


@st.composite
def edits(draw, data):
    """`data` with a few bytes replaced, inserted or removed."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        remove = draw(st.integers(0, 4))
        changed[at : at + remove] = draw(st.binary(max_size=4))
    return bytes(changed)


@each_parser
@given(draw=st.data())
def test_damage_gives_our_errors_only(name, draw):
    parse, valid = PARSERS[name]
    with contextlib.suppress(SealpointError):
        parse(draw.draw(edits(valid)))


@given(edits(FORGE.envelope().payload))
def test_an_origin_that_is_accepted_has_one_spelling(data):
    try:
        origin = Origin.decode(data)
    except SealpointError:
        return
    assert origin.encode() == data


@given(edits(FORGE.origin))
def test_an_envelope_that_is_accepted_has_one_spelling(data):
    try:
        envelope = dsse.decode(data, ORIGIN_TYPE, "origin")
    except SealpointError:
        return
    assert dsse.encode(envelope) == data


@given(edits(SLOT.body))
def test_recipients_that_are_accepted_have_one_spelling(data):
    try:
        stanzas = decode_stanzas(data)
    except SealpointError:
        return
    assert encode_stanzas(stanzas) == data


@given(edits(SAMPLE.data[-1500:]), st.booleans())
def test_a_damaged_tail_of_a_file_gives_our_errors_only(tail, keep_size):
    data = SAMPLE.data[:-1500] + tail
    assume(data != SAMPLE.data)
    with pytest.raises(SealpointError):
        read_all(data, SAMPLE.roots)


json_values = st.recursive(
    st.none() | st.booleans() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_json_round_trips(value):
    assert strictjson.decode(strictjson.encode(value), "x") == value


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"b" }', b' {"a":"b"}', b'{"a":"b"}\n', b'{"a":"\\u0062"}', b'{"a":"\\/"}',
        b'{"a":"b","a":"b"}', b'{"a":"b","\\u0061":"b"}', b'{"a":1}', b'{"a":-1}', b'{"a":1.0}',
        b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e5}', b"[]", b'"a"', b"null",
        b"true", b"", b"\xef\xbb\xbf{}", b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\\ud800"}',
        b'{"\\udc00":"a"}', b'{"a":"\x00"}', b'{"a":"\\u000A"}', b"{}{}", b"{'a':'b'}", b'{"a":"b",}',
        '{"a":"\u00e9"}'.encode("utf-16"), b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)  # fmt: skip
def test_json_of_another_spelling_is_refused(text):
    with pytest.raises(FileError):
        strictjson.decode(text, "x")


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "01", "00", " 1", "1 ", "1_0", "0x1", "1e3", "١", "²", "9" * 21, str(1 << 64), None, 1, True, []],
)  # fmt: skip
def test_a_number_has_one_spelling(text):
    with pytest.raises(FileError):
        strictjson.parse_u64(text, "x")


@given(st.integers(0, (1 << 64) - 1))
def test_every_u64_can_be_written(value):
    assert strictjson.parse_u64(str(value), "x") == value


@pytest.mark.parametrize(
    "text", ["A", "AB==", "AA=", "AA", "A A=", "AA==\n", "AA==AA==", "é", 1, None]
)
def test_base64_has_one_spelling(text):
    with pytest.raises(FileError):
        strictjson.parse_base64(text, "x")


@pytest.mark.parametrize(
    "text", ["AB" * 32, "a" * 63, "a" * 65, "g" * 64, " " * 64, "١" * 64, None, 7]
)
def test_hex_has_one_spelling(text):
    with pytest.raises(FileError):
        strictjson.parse_hex(text, 32, "x")


stanza_lists = st.lists(
    st.builds(
        Stanza,
        st.sampled_from([k for k in StanzaKind if k is not StanzaKind.SCRYPT]),
        st.sampled_from(Roots),
        st.binary(min_size=32, max_size=32),
        st.binary(max_size=200),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda s: s.fingerprint,
)


@given(
    stanza_lists,
    st.integers(1, MAX_SEQUENCE),
    st.binary(max_size=300),
    st.binary(min_size=32, max_size=32),
)
def test_a_slot_round_trips(stanzas, sequence, envelope, mac):
    slot = Slot(sequence, encode_stanzas(stanzas), mac, envelope)
    raw = encode_slot(slot, 8192)
    assert len(raw) == 8192
    assert decode_slot(raw) == slot
    assert slot.stanzas == stanzas


@given(
    st.sampled_from(Suite),
    st.sampled_from(SLOT_SIZES),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
)
def test_a_preamble_round_trips(suite, size, checkpoint_id, salt):
    preamble = Preamble(suite, size, checkpoint_id, salt)
    assert Preamble.decode(preamble.encode()) == preamble


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(16, 5000), st.binary(min_size=32, max_size=32)),
        min_size=1,
        max_size=20,
    )
)
def test_an_index_round_trips(entries):
    builder = IndexBuilder()
    for entry in entries:
        builder.append(*entry)
    total = sum(8 + size for _, size, _ in entries)
    index = Index(builder.encode(), 100, total)
    at = 100
    for n, (number, size, digest) in enumerate(entries):
        assert index.entry(n) == (number, at, size, digest)
        assert n in index.frames_of(number)
        at += 8 + size
    for wrong in (total - 1, total + 1):
        with pytest.raises(FileError):
            Index(builder.encode(), 100, wrong)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    names
    | st.sampled_from(
        [
            "a/b",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "./a",
            "a\0",
            "é" * 128,
            "a" * 255,
            "a/" * 2047 + "a",
            "a/" * 2048,
        ]
    )
)
def test_a_name_that_is_accepted_stays_inside_of_a_directory(name):
    try:
        manifest.check_name(name)
    except FileError:
        return
    assert name
    assert not name.startswith("/")
    assert "\0" not in name
    assert os.path.normpath(name) == name
    assert not name.startswith("..") or name.split("/")[0] != ".."
    assert len(name.encode()) < 4096
    assert all(len(p.encode()) <= 255 for p in name.split("/"))


def test_a_name_that_is_not_utf8_is_refused():
    with pytest.raises(FileError):
        manifest.check_name(os.fsdecode(b"caf\xe9"))


FILE = {"type": "file", "mode": "420", "uid": "0", "gid": "0", "mtime": "1"}


@pytest.mark.parametrize(
    "value",
    [
        FILE, FILE | {"user": "root", "group": "root"}, FILE | {"type": "directory"},
        FILE | {"type": "symlink", "link": "../x"}, FILE | {"type": "character", "major": "1", "minor": "3"},
        FILE | {"xattrs": {"user.a": "AA=="}},
    ],
)  # fmt: skip
def test_attributes_of_members_are_accepted(value):
    assert attributes.check(value, 0, "x") == value


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({}, 0), (FILE | {"type": "socket"}, 0), (FILE | {"mode": "4096"}, 0), (FILE | {"mode": 420}, 0),
        (FILE | {"uid": str(1 << 32)}, 0), (FILE | {"link": "x"}, 0), (FILE | {"type": "symlink"}, 0),
        (FILE | {"type": "symlink", "link": ""}, 0), (FILE | {"type": "symlink", "link": "a\0"}, 0),
        (FILE | {"type": "symlink", "link": "x"}, 1), (FILE | {"type": "directory"}, 1), (FILE | {"more": "x"}, 0),
        (FILE | {"xattrs": {}}, 0), (FILE | {"xattrs": {"a": "A"}}, 0), (FILE | {"xattrs": []}, 0),
        (FILE | {"type": "block", "major": "1"}, 0), (FILE | {"mtime": "-1"}, 0),
        (FILE | {"xattrs": {str(n): "" for n in range(257)}}, 0),
    ],
)  # fmt: skip
def test_impossible_attributes_are_refused(value, size):
    with pytest.raises(FileError):
        attributes.check(value, size, "x")


@given(st.sampled_from(Codec), st.binary(max_size=200), st.integers(0, 5000))
def test_coded_noise_gives_our_errors_only(which, data, size):
    out = memoryview(bytearray(size))
    with contextlib.suppress(FileError):
        codec.decode_into(out, which, memoryview(data))


@pytest.mark.parametrize("opened", ["directory", "pipe", "empty", "device"])
def test_what_is_no_file_is_refused(opened, tmp_path):
    if opened == "pipe":
        fd, other = os.pipe()
        os.close(other)
    elif opened == "empty":
        fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    else:
        fd = os.open(tmp_path if opened == "directory" else "/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(FileError, match="not a sealed checkpoint"):
            SealedFile(Descriptor(fd))
    finally:
        os.close(fd)


def test_a_file_that_becomes_unreadable_is_an_error_of_the_system(tmp_path):
    from sealpoint.errors import SystemEnvironmentError

    path = tmp_path / "x"
    path.write_bytes(rekeyed(SAMPLE))
    fd = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(SystemEnvironmentError):
            SealedFile(Descriptor(fd))
    finally:
        os.close(fd)
