"""What killed uploads and rekeys leave in a bucket, and its removal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sealpoint.errors import FileError, UsageError
from sealpoint.names import printable
from sealpoint.store.bucket_client import AnswerError, BucketClient
from sealpoint.store.bucket_file import newest_head, read_record
from sealpoint.store.bucket_record import SUFFIX, CommitRecord, directory, sequence_of, split
from sealpoint.store.bucket_upload import abort_upload
from sealpoint.store.remote import Incomplete

_PROBE: Final = re.compile(r"probe-[0-9a-f]{32}")
_LEFTOVER: Final = re.compile(r"[0-9a-f]{32}/|probe-[0-9a-f]{32}")


def leftovers(client: BucketClient, prefix: str) -> Iterator[Incomplete]:
    """Below a prefix: directories of parts that no commit record names, heads below the newest, probes."""
    since: dict[str, str] = {}
    heads: dict[str, list[str]] = {}
    for key, _, begun in client.uploads(prefix):
        if (parts := split(key)) is not None:
            since.setdefault(directory(parts[0], parts[1]), begun)
    for each in client.objects(prefix):
        if (parts := split(each.key)) is not None:
            found = directory(parts[0], parts[1])
            since.setdefault(found, each.since)
            if sequence_of(parts[2]) is not None:
                heads.setdefault(found, []).append(each.key)
        elif SUFFIX in each.key and _PROBE.fullmatch(each.key.rpartition("/")[2]):
            since.setdefault(each.key, each.since)
    for found in sorted(since):
        for leftover in _unused(client, found, heads.get(found, [])):
            yield Incomplete(f"{client.name}/{printable(leftover)}", since[found] or None)


def _unused(client: BucketClient, found: str, heads: list[str]) -> list[str]:
    """Of a directory of parts or a probe: itself, or the heads that do not count any more."""
    key = found.partition(SUFFIX)[0]
    record = read_record(client, key)
    if record is None or found != directory(key, record.parts):
        return [found]
    return [head for head in heads if _is_older(client, head, record)] if len(heads) > 1 else []


def _is_older(client: BucketClient, head: str, record: CommitRecord) -> bool:
    """Whether a head is below the one that counts."""
    key, _, name = split(head) or ("", "", "")
    sequence = sequence_of(name)
    try:
        newest, _ = newest_head(client, client.name, key, record)
    except FileError:
        return False  # none of them counts: nothing is removed that someone may want to look at
    return sequence is not None and sequence < newest


def remove_leftover(client: BucketClient, leftover: Incomplete) -> None:
    """Raises UsageError if it is none, or now belongs to a complete file; SystemEnvironmentError."""
    target = leftover.name.removeprefix(f"{client.name}/")
    key, _, rest = target.partition(SUFFIX)
    parts, slash, name = rest.partition("/")
    wanted = f"{parts}{slash}" if sequence_of(name) is not None else rest
    if not key or not _LEFTOVER.fullmatch(wanted):
        raise UsageError(f"{leftover.name} is not what an upload leaves behind")
    record = read_record(client, key)
    if record is not None and record.parts == parts:
        if not name or not _is_older(client, target, record):
            raise UsageError(f"{leftover.name} now belongs to a complete file")
        client.remove(target)
        return
    try:
        for found, upload, _ in list(client.uploads(target)):
            abort_upload(client, found, upload)
    except AnswerError as error:
        raise client.refused(error) from None
    remove_below(client, target)


def remove_below(client: BucketClient, prefix: str) -> None:
    """All objects whose keys begin so."""
    for each in list(client.objects(prefix)):
        client.remove(each.key)
