"""The commit record of a sealed file in a bucket: what lies under its name, and the names of its parts.

Public and unproved: whoever can write the bucket can write it.  It says where to look and what to expect; whether that
is a checkpoint, and whose, is said by the sealed file itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sealpoint.errors import FileError
from sealpoint.format import strictjson
from sealpoint.format.constants import MAGIC, PREAMBLE_SIZE, SLOT_SIZES
from sealpoint.format.preamble import Preamble

FORMAT: Final = "sealpoint.dev/bucket/v1"
MAX_RECORD: Final = 64 * 1024
SUFFIX: Final = ".parts/"
MAX_SEQUENCE: Final = 10**8
MAX_HEAD: Final = PREAMBLE_SIZE + 2 * SLOT_SIZES[-1]
_MAX_PROPERTIES: Final = 64
_MAX_BODY: Final = 1 << 50
_HEAD: Final = re.compile(r"head-(\d{9})")
_PARTS: Final = re.compile(r"[0-9a-f]{32}")


def new_parts() -> str:
    """A random name of a directory of parts."""
    return os.urandom(16).hex()


def directory(key: str, parts: str) -> str:
    """The prefix of a file's parts."""
    return f"{key}{SUFFIX}{parts}/"


def body_key(key: str, parts: str) -> str:
    return f"{directory(key, parts)}body"


def head_key(key: str, parts: str, sequence: int) -> str:
    """Of equal length, so that a listing has them in their order."""
    return f"{directory(key, parts)}head-{sequence:09d}"


def sequence_of(name: str) -> int | None:
    """Of a head by the last component of its key."""
    found = _HEAD.fullmatch(name)
    return int(found[1]) if found and int(found[1]) <= MAX_SEQUENCE else None


def split(object_key: str) -> tuple[str, str, str] | None:
    """(key, parts, name) of an object among parts, else None; key: of the commit record."""
    above, slash, name = object_key.rpartition("/")
    key, marked, parts = above.rpartition(SUFFIX)
    if slash and marked and key and _PARTS.fullmatch(parts):
        return key, parts, name
    return None


class CommitRecord(NamedTuple):
    """parts: the directory's name; checkpoint: its id; head_size, body_size: bytes; sequence: of the newest head when
    the record was written; head_etag, body_etag: as the store said, with quotes; properties: public facts.
    """

    parts: str
    checkpoint: bytes
    head_size: int
    sequence: int
    head_etag: str
    body_size: int
    body_etag: str
    properties: Mapping[str, str]

    @property
    def size(self) -> int:
        return self.head_size + self.body_size

    def encode(self) -> bytes:
        """Raises FileError if it would be larger than a reader takes."""
        data = strictjson.encode(
            {
                "format": FORMAT,
                "parts": self.parts,
                "checkpoint": self.checkpoint.hex(),
                "head": {
                    "size": str(self.head_size),
                    "sequence": str(self.sequence),
                    "etag": self.head_etag,
                },
                "body": {"size": str(self.body_size), "etag": self.body_etag},
                "properties": dict(sorted(self.properties.items())),
            }
        )
        if len(data) > MAX_RECORD or len(self.properties) > _MAX_PROPERTIES:
            raise FileError("the facts about the checkpoint do not fit in a commit record")
        return data

    @classmethod
    def decode(cls, data: bytes, name: str) -> CommitRecord:
        """name: of the file, for messages.  Raises FileError."""
        what = f"{name}: the commit record"
        if len(data) > MAX_RECORD:
            raise FileError(f"{what} is longer than {MAX_RECORD} bytes")
        fields = strictjson.Fields(strictjson.decode(data, what), what)
        if fields.text("format") != FORMAT:
            raise FileError(f"{what} has an unknown format", hint="use a newer sealpoint")
        head, body = fields.fields("head"), fields.fields("body")
        properties = fields.mapping("properties")
        record = cls(
            parts=fields.hex("parts", 16).hex(),
            checkpoint=fields.hex("checkpoint", 16),
            head_size=head.u64("size"),
            sequence=head.u64("sequence"),
            head_etag=head.text("etag", limit=256),
            body_size=body.u64("size"),
            body_etag=body.text("etag", limit=256),
            properties=properties,
        )
        for each in (head, body, fields):
            each.done()
        if len(properties) > _MAX_PROPERTIES or any(
            type(v) is not str for v in properties.values()
        ):
            raise FileError(f"{what}: 'properties' holds something other than text")
        if record.head_size > MAX_HEAD or not 0 < record.body_size <= _MAX_BODY:
            raise FileError(f"{what} names an impossible size")
        if record.sequence > MAX_SEQUENCE:
            raise FileError(f"{what} names an impossible sequence")
        if not record.body_etag.isprintable() or not record.body_etag:
            raise FileError(f"{what}: 'etag' is none")
        return record

    def accepts(self, head: bytes) -> bool:
        """Whether a head can be this file's: its size and the checkpoint id that it begins with."""
        try:
            preamble = Preamble.decode(head[:PREAMBLE_SIZE])
        except FileError:
            return False
        fits = len(head) == self.head_size == preamble.frames_offset
        return fits and preamble.checkpoint_id == self.checkpoint


def is_plain(start: bytes) -> bool:
    """Whether an object that begins so is a whole sealed file."""
    return start.startswith(MAGIC)
