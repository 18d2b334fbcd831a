"""The commit record of a sealed file in a bucket: only what was written as the spec says is read."""

from __future__ import annotations

import json

import pytest

from sealpoint.errors import FileError
from sealpoint.format.preamble import Preamble, Suite
from sealpoint.store.bucket_record import CommitRecord, directory, head_key, sequence_of, split

PREAMBLE = Preamble.create(Suite(1), 8192)
RECORD = CommitRecord(
    parts="0123456789abcdef" * 2,
    checkpoint=PREAMBLE.checkpoint_id,
    head_size=PREAMBLE.frames_offset,
    sequence=3,
    head_etag='"a"',
    body_size=1 << 40,
    body_etag='"b-2"',
    properties={"workload": "räuber"},
)


def changed(**changes):
    """The record's text with other values; "." leads inside, None takes a key away."""
    table = json.loads(RECORD.encode())
    for path, value in changes.items():
        *above, last = path.split("__")
        inside = table
        for key in above:
            inside = inside[key]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
    return json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()


def test_what_is_written_is_read():
    assert CommitRecord.decode(RECORD.encode(), "x") == RECORD
    assert RECORD.size == RECORD.head_size + (1 << 40)


BAD = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "spaces": RECORD.encode().replace(b":", b": ", 1),
    "more behind": RECORD.encode() + b"\n",
    "a key twice": RECORD.encode().replace(b'{"format"', b'{"format":"x","format"', 1),
    "another format": changed(format="sealpoint.dev/bucket/v2"),
    "no format": changed(format=None),
    "parts lead out": changed(parts="../" * 10 + "ab"),
    "parts in capitals": changed(parts="ABCDEF0123456789" * 2),
    "parts too short": changed(parts="ab"),
    "a number": changed(body__size=5),
    "negative": changed(body__size="-5"),
    "no body": changed(body__size="0"),
    "a huge body": changed(body__size=str(1 << 60)),
    "a huge head": changed(head__size=str(1 << 30)),
    "a huge sequence": changed(head__sequence=str(10**9)),
    "no ETag": changed(body__etag=None),
    "an empty ETag": changed(body__etag=""),
    "an ETag that is a header": changed(body__etag="a\r\nX: y"),
    "a long ETag": changed(body__etag="x" * 300),
    "an unknown key": changed(more="x"),
    "an unknown key inside": changed(body__more="x"),
    "properties are a list": changed(properties=[]),
    "a property is a list": changed(properties={"a": ["b"]}),
    "many properties": changed(properties={str(n): "" for n in range(100)}),
    "too long": changed(properties={"a": "x" * 70_000}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_record_that_is_not_one_is_refused(case):
    with pytest.raises(FileError):
        CommitRecord.decode(BAD[case], "x")


def test_facts_that_no_reader_would_take_are_not_written():
    with pytest.raises(FileError):
        RECORD._replace(properties={"a": "x" * 70_000}).encode()
    with pytest.raises(FileError):
        RECORD._replace(properties={str(n): "" for n in range(65)}).encode()


def test_only_a_head_of_the_same_checkpoint_and_size_is_accepted():
    head = PREAMBLE.encode() + bytes(2 * 8192)
    other = Preamble.create(Suite(1), 8192).encode()
    larger = PREAMBLE._replace(slot_size=16384).encode()
    assert RECORD.accepts(head)
    for bad in (
        b"",
        head[:-1],
        head + b"x",
        bytes(len(head)),
        other + head[64:],
        larger + head[64:],
    ):
        assert not RECORD.accepts(bad)


@pytest.mark.parametrize("key", ["a", "a/b", "a b", "x.partsy"])
def test_the_keys_of_parts_are_read_as_they_are_made(key):
    made = head_key(key, RECORD.parts, 7)
    assert split(made) == (key, RECORD.parts, "head-000000007")
    assert made.startswith(directory(key, RECORD.parts))
    assert sequence_of("head-000000007") == 7


@pytest.mark.parametrize(
    "key", ["", "a", "a.parts/x", "a.parts/zz/body", "a.parts/" + "0" * 31 + "/body"]
)
def test_other_keys_are_no_parts(key):
    assert split(key) is None


@pytest.mark.parametrize(
    "name", ["body", "head-7", "head-0000000007", "head-00000000x", "head-999999999"]
)
def test_other_names_are_no_heads(name):
    assert sequence_of(name) is None
