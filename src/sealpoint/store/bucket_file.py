"""A sealed file in a bucket, read by ranges: from its parts, or from a plain object that holds all of it."""

from __future__ import annotations

from collections.abc import Mapping

from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.names import printable
from sealpoint.store.bucket_client import AnswerError, BucketClient, changed
from sealpoint.store.bucket_record import (
    MAX_RECORD,
    CommitRecord,
    body_key,
    directory,
    head_key,
    sequence_of,
)

_MAX_HEADS = 1000
_TRIES = 3  # a rekey may take a head away between two requests


class BucketFile:
    """As RemoteFile.

    record: None for a plain object; record_etag: of the object under the final name; sequence: of the head.
    """

    def __init__(
        self, client: BucketClient, name: str, *, body: tuple[str, int, str], head: bytes = b""
    ) -> None:
        """body: key, size and ETag of the object behind the head."""
        self.name = name
        self._client = client
        self._body = body
        self._head = head
        self.head_size = len(head)
        self.size = len(head) + body[1]
        self.properties: Mapping[str, str] = {}
        self.record: CommitRecord | None = None
        self.record_etag = body[2]
        self.sequence = 0

    def read_into(self, out: memoryview, offset: int) -> None:
        """As RemoteFile.read_into."""
        if offset < 0 or offset + len(out) > self.size:
            raise FileError(f"{self.name} ends before that")
        inside = min(max(len(self._head) - offset, 0), len(out))
        out[:inside] = self._head[offset : offset + inside]
        if rest := out[inside:]:
            key, size, etag = self._body
            at = offset + inside - len(self._head)
            self._client.read(key, at, rest, size=size, etag=etag)

    def close(self) -> None:
        self._client.close()


def open_plain(
    client: BucketClient, name: str, start: bytes, found: tuple[str, int, str]
) -> BucketFile:
    """found: key, size and ETag of an object that begins with `start`.  Raises FileError."""
    preamble = Preamble.decode(start[:PREAMBLE_SIZE])
    file = BucketFile(client, name, body=found)
    file.head_size = preamble.frames_offset
    return file


def open_parts(
    client: BucketClient, name: str, key: str, record: CommitRecord, etag: str
) -> BucketFile:
    """By its commit record, with the highest head that can be its.  Raises FileError, SystemEnvironmentError."""
    sequence, head = newest_head(client, name, key, record)
    body = (body_key(key, record.parts), record.body_size, record.body_etag)
    file = BucketFile(client, name, body=body, head=head)
    file.properties = record.properties
    file.record, file.record_etag, file.sequence = record, etag, sequence
    return file


def head_sequences(client: BucketClient, key: str, record: CommitRecord) -> list[tuple[int, int]]:
    """(sequence, size) of all objects that are named as heads, the highest first."""
    prefix = directory(key, record.parts)
    found = []
    for each in client.objects(f"{prefix}head-"):
        number = sequence_of(each.key.removeprefix(prefix))
        if number is not None:
            found.append((number, each.size))
        if len(found) > _MAX_HEADS:
            raise SystemEnvironmentError(f"{client.name}: {printable(key)} has too many heads")
    return sorted(found, reverse=True)


def newest_head(
    client: BucketClient, name: str, key: str, record: CommitRecord
) -> tuple[int, bytes]:
    """The highest one that is no older than the record, of the right size, with the file's checkpoint id."""
    for _ in range(_TRIES):
        gone = False
        for number, size in head_sequences(client, key, record):
            if number < record.sequence or size != record.head_size:
                continue
            try:
                head, whole, _ = client.get(head_key(key, record.parts, number), record.head_size)
            except AnswerError as error:
                if not error.missing:
                    raise client.refused(error) from None
                gone = True
                break
            if whole == len(head) and record.accepts(head):
                return number, head
        if not gone:
            break
    else:
        raise changed(name)
    raise FileError(
        f"{name} has no head that fits it", hint="someone removed or replaced a part of it"
    )


def read_record(client: BucketClient, key: str) -> CommitRecord | None:
    """The commit record under a name; None: there is none, or something else."""
    try:
        start, size, _ = client.get(key, MAX_RECORD)
    except AnswerError as error:
        if error.missing:
            return None
        raise client.refused(error) from None
    try:
        return CommitRecord.decode(start, client.name) if size == len(start) else None
    except FileError:
        return None
