"""Sealed files in S3 buckets (`s3://bucket/key`).

**Layout.**  A sealed file under the name KEY is made of these objects, where P is 32 random hex digits:

| object | what it is |
|---|---|
| `KEY.parts/P/body` | the body: the file from byte 64 + 2S on; one multipart upload, never changed |
| `KEY.parts/P/head-N` | a head: the first 64 + 2S bytes.  N: its sequence in nine digits, from 000000000 |
| `KEY` | the commit record: it names the parts and is made last.  Without it there is no file |
| `KEY.parts/probe-R` | made and removed to see whether the store can create-only; R: random |

The commit record is canonical JSON of at most 65536 bytes (as statements are: no numbers, no unknown keys):
`{"format": "sealpoint.dev/bucket/v1", "parts": P, "checkpoint": id in hex, "head": {"size", "sequence", "etag"},
"body": {"size", "etag"}, "properties": {text: text}}`, keys in this order.  Sizes and sequence are decimal strings.
ETags are as the store says them, with their quotes.

- *Writing*: body; head 0; the commit record with `If-None-Match: *`.  Replacing another file (`--force`) puts a new
  record over the old one, and then removes the old one's parts.
- *Reading*: the record; then the **highest head that is valid**: its sequence is not below the record's, its size is
  the record's, it begins with a preamble for that size and with the record's checkpoint id.  Others are passed over.
  No such head: the file is refused.  Head and body together are exactly the local file.  The body is read with
  `If-Match`.
- *Rekey*: the new head gets the next number after the highest that is there, made with `If-None-Match: *`: of two
  at the same time one fails.  Who made it looks again, and where a higher one has come meanwhile, removes its own and
  fails.  Then the record is written anew (`If-Match`) with that sequence, and older heads are removed.
- *Removing*: the record first, then the parts.
- An object KEY that begins with the magic of a sealed file is one, whole, as other tools put it there.  `copy` over it
  gives it the layout above.

Nothing of this is proved by the store: who can write the bucket can write records and exchange parts.  What is read is
verified as a local file is.

**Client.**  botocore's low-level client signs and speaks S3; `wire` carries its requests.  Not obstore: with it
no single part can be sent again from the spool, parts cannot grow, uploads of killed processes can be neither found nor
aborted, the profiles of ~/.aws are not read, and the ETags of parts are not told (docs/adr/0065).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.names import printable
from sealpoint.store.bucket_client import AnswerError, BucketClient, StoredObject
from sealpoint.store.bucket_file import (
    BucketFile,
    head_sequences,
    newest_head,
    open_parts,
    open_plain,
    read_record,
)
from sealpoint.store.bucket_leftovers import leftovers, remove_below, remove_leftover
from sealpoint.store.bucket_record import (
    MAX_RECORD,
    MAX_SEQUENCE,
    SUFFIX,
    CommitRecord,
    directory,
    head_key,
    is_plain,
    split,
)
from sealpoint.store.bucket_upload import BucketUpload
from sealpoint.store.remote import (
    Incomplete,
    RemoteFile,
    Spooled,
    StoredFile,
    UncertainCommitError,
)

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_KEY: Final = 900  # of S3's 1024 bytes; the parts' names are longer than the file's
_CREATE_ONLY: Final = {"IfNoneMatch": "*"}


def open_store(url: str, *, plain_http: bool = False) -> BucketStore:
    """A place in a bucket; sends nothing yet.  plain_http: also to an endpoint that is not this machine.

    Raises UsageError, SystemEnvironmentError (no usable configuration).
    """
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        raise UsageError(
            f"{printable(url)}: only buckets with S3's protocol are supported (s3://bucket/key)",
            hint="Google Cloud Storage has it, too: AWS_ENDPOINT_URL=https://storage.googleapis.com and an HMAC key",
        )
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{printable(url)}: {printable(bucket)!r} cannot be the name of a bucket")
    if not key.isprintable() or len(key.encode(errors="replace")) > _MAX_KEY:
        raise UsageError(f"{printable(url)}: the key is too long or has unprintable characters")
    if SUFFIX in f"{key}/":
        raise UsageError(f"{printable(url)}: names with {SUFFIX} are for the parts of other files")
    return BucketStore(BucketClient(bucket, plain_http=plain_http), bucket, key)


class OvertakenError(SystemEnvironmentError):
    """Somebody else replaced the head at the same time."""


class BucketStore:
    """As `Store`."""

    def __init__(self, client: BucketClient, bucket: str, key: str) -> None:
        self.name = f"s3://{bucket}/{printable(key)}"
        self._client = client
        self._bucket = bucket
        self._key = key
        self._creates_only: bool | None = None

    # --- One file. ---

    def check_free(self, *, force: bool, unconditional: bool) -> None:
        """As `Store.check_free`."""
        self._named()
        if not force and self._exists():
            raise self._taken()
        if not self._can_create_only() and not unconditional:
            raise UsageError(
                f"{self.name}: this store cannot refuse to overwrite: of two writers one would overwrite the other",
                hint="use --unconditional if nobody else writes there",
            )

    def begin(self, spooled: Spooled, *, force: bool, unconditional: bool) -> BucketUpload:
        """As `Store.begin`."""
        self.check_free(force=force, unconditional=unconditional)

        def finish(record: CommitRecord) -> str:
            return self._commit(record, force=force)

        return BucketUpload(
            self._client,
            self._key,
            spooled,
            finish=finish,
            unwanted=lambda prefix: remove_below(self._client, prefix),
        )

    def open(self) -> RemoteFile:
        """As `Store.open`."""
        return self._open()

    def _open(self) -> BucketFile:
        self._named()
        try:
            start, size, etag = self._client.get(self._key, MAX_RECORD)
        except AnswerError as error:
            if error.missing:
                raise UsageError(f"{self.name} does not exist") from None
            raise self._client.refused(error) from None
        if is_plain(start):
            return open_plain(self._client, self.name, start, (self._key, size, etag))
        if size > len(start) or not start.startswith(b"{"):
            raise FileError(
                f"{self.name} is not a sealed checkpoint", hint="another object has that name"
            )
        record = CommitRecord.decode(start, self.name)
        return open_parts(self._client, self.name, self._key, record, etag)

    def replace_head(self, file: RemoteFile, head: bytes, properties: Mapping[str, str]) -> str:
        """As `Store.replace_head`.  Raises UsageError for a plain object, and where the store cannot create-only."""
        if not isinstance(file, BucketFile) or file.record is None:
            raise UsageError(
                f"{self.name} lies there in one piece, so its head cannot be replaced",
                hint="give it the layout of sealpoint first: sealpoint copy URL URL --force",
            )
        record = file.record
        if not record.accepts(head):
            raise FileError(f"{self.name}: the new head is not one of this checkpoint")
        if not self._can_create_only():
            raise UsageError(
                f"{self.name}: this store cannot refuse to overwrite, so one rekey could undo another",
                hint="download the file, rekey it, and upload it again",
            )
        sequence, etag = self._add_head(file, record, head)
        newer = record._replace(sequence=sequence, head_etag=etag, properties=properties)
        try:
            self._renew_record(newer, file.record_etag)
            for number, _ in head_sequences(self._client, self._key, record):
                if number < sequence:
                    self._client.remove(head_key(self._key, record.parts, number))
        except OvertakenError:
            raise
        except SystemEnvironmentError as error:
            raise SystemEnvironmentError(
                f"{error.message}; the new head of {self.name} counts, but older ones may still be there",
                hint="run the command again, or remove what `list --incomplete` shows",
            ) from None
        return self.name

    def _renew_record(self, record: CommitRecord, etag: str) -> None:
        try:
            self._client.put(self._key, record.encode(), IfMatch=etag)
        except AnswerError as error:
            if not error.taken and not error.missing:
                raise self._client.refused(error) from None
            if self._read_record() != record:  # else the answer to the first attempt was lost
                self._remove_quietly(head_key(self._key, record.parts, record.sequence))
                raise self._overtaken() from None

    def _add_head(self, file: BucketFile, record: CommitRecord, head: bytes) -> tuple[int, str]:
        """Its sequence and ETag, once it is certainly the highest."""
        there = [number for number, _ in head_sequences(self._client, self._key, record)]
        # In this order: a head that comes in between has the number that is taken here.
        newest, _ = newest_head(self._client, self.name, self._key, record)
        sequence = max(there, default=0) + 1
        if newest != file.sequence or sequence > MAX_SEQUENCE:
            raise self._overtaken()
        key = head_key(self._key, record.parts, sequence)
        try:
            etag = self._client.put(key, head, **_CREATE_ONLY)
        except AnswerError as error:
            if not error.taken:
                raise self._client.refused(error) from None
            etag = self._own_head(key, head)
        # One with that number may have come and gone, if there is a higher one now.
        after = [number for number, _ in head_sequences(self._client, self._key, record)]
        if max(after, default=0) != sequence:
            self._remove_quietly(key)
            raise self._overtaken()
        return sequence, etag

    def _own_head(self, key: str, head: bytes) -> str:
        """Its ETag, if the one that is there is ours: then the answer to the first attempt was lost."""
        try:
            found, size, etag = self._client.get(key, len(head))
        except AnswerError as error:
            if not error.missing:
                raise self._client.refused(error) from None
            raise self._overtaken() from None
        if found != head or size != len(head):
            raise self._overtaken()
        return etag

    def _overtaken(self) -> OvertakenError:
        return OvertakenError(
            f"{self.name}: someone else changed who can open it at the same time",
            hint="look at it with sealpoint info, then repeat what you still want",
        )

    def remove(self) -> None:
        """As `Store.remove`."""
        if not self._exists():
            raise UsageError(f"{self.name} does not exist")
        record = self._read_record()
        self._client.remove(self._key)
        if record is not None:
            remove_below(self._client, directory(self._key, record.parts))

    # --- Several. ---

    def list(self) -> Iterator[StoredFile]:
        """As `Store.list`: everything below; where nothing is below, what lies beside it."""
        for each in self._client.objects(self._prefix()):
            if split(each.key) is not None or SUFFIX in each.key:
                continue
            if (found := self._describe(each)) is not None:
                yield found

    def _describe(self, found: StoredObject) -> StoredFile | None:
        """None: something else."""
        name = f"s3://{self._bucket}/{printable(found.key)}"
        try:
            start, size, _ = self._client.get(
                found.key, MAX_RECORD if found.size <= MAX_RECORD else 64
            )
        except AnswerError as error:
            if error.missing:
                return None
            raise self._client.refused(error) from None
        if is_plain(start):
            return StoredFile(name, size, {})
        try:
            record = CommitRecord.decode(start, name) if size == len(start) else None
        except FileError:
            record = None
        return None if record is None else StoredFile(name, record.size, record.properties)

    def incomplete(self) -> Iterator[Incomplete]:
        """As `Store.incomplete`: directories of parts that no commit record names, heads below the newest, probes.

        An upload that runs at this moment is among them.
        """
        return leftovers(self._client, self._prefix())

    def remove_incomplete(self, leftover: Incomplete) -> None:
        """As `Store.remove_incomplete`.  Raises UsageError if it is none, or now belongs to a complete file."""
        remove_leftover(self._client, leftover)

    def close(self) -> None:
        """Let go of connections; more requests open others."""
        self._client.close()

    # --- Requests. ---

    def _named(self) -> None:
        if not self._key or self._key.endswith("/"):
            raise UsageError(f"{self.name} names no file", hint="s3://bucket/name")

    def _taken(self) -> UsageError:
        return UsageError(f"{self.name} exists already", hint="choose another name, or use --force")

    def _exists(self) -> bool:
        try:
            self._client.get(self._key, 1)
        except AnswerError as error:
            if error.missing:
                return False
            raise self._client.refused(error) from None
        return True

    def _can_create_only(self) -> bool:
        """Seen, not believed: the same name is made twice, and the second time must fail."""
        if self._creates_only is None:
            key = f"{self._key}{SUFFIX}probe-{os.urandom(16).hex()}"
            try:
                self._client.put(key, b"1", **_CREATE_ONLY)
                self._client.put(key, b"2", **_CREATE_ONLY)
                self._creates_only = False
            except AnswerError as error:
                if not error.taken and not error.unknown:
                    raise self._client.refused(error) from None
                self._creates_only = error.taken
            finally:
                self._remove_quietly(key)
        return self._creates_only

    def _commit(self, record: CommitRecord, *, force: bool) -> str:
        """Make the record.  Raises UsageError (taken), UncertainCommitError, SystemEnvironmentError."""
        before = self._read_record() if force else None
        conditions = {} if force or not self._can_create_only() else _CREATE_ONLY
        if not conditions and not force and self._exists():
            raise self._taken()
        try:
            self._client.put(self._key, record.encode(), **conditions)
        except AnswerError as error:
            if not error.taken:
                raise self._client.refused(error) from None
            if self._read_record() != record:  # else the answer to the first attempt was lost
                raise self._taken() from None
        except SystemEnvironmentError as error:
            raise UncertainCommitError(
                f"{error.message}; it is not known whether {self.name} was stored",
                hint="check with `sealpoint list`; `list --incomplete` shows what may be left of it",
            ) from None
        if before is not None and before.parts != record.parts:
            remove_below(self._client, directory(self._key, before.parts))
        return self.name

    def _read_record(self) -> CommitRecord | None:
        return read_record(self._client, self._key)

    def _remove_quietly(self, key: str) -> None:
        try:
            self._client.remove(key)
        except SealpointError:
            pass  # `incomplete` finds it

    def _prefix(self) -> str:
        """Of what lies below; where nothing does, of what lies beside."""
        if not self._key or self._key.endswith("/"):
            return self._key
        below = f"{self._key}/"
        if next(self._client.objects(below), None) is not None:
            return below
        return self._key[: self._key.rfind("/") + 1]
