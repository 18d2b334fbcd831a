"""A body on its way into a bucket: one multipart upload, whose parts come from the spool as often as needed."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sealpoint.errors import SealpointError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.names import printable
from sealpoint.store.bucket_client import (
    AnswerError,
    BucketClient,
    check_etag,
    content_md5,
)
from sealpoint.store.bucket_record import (
    CommitRecord,
    body_key,
    directory,
    head_key,
    new_parts,
)
from sealpoint.store.remote import Spooled
from sealpoint.store.sending import Sending

PARALLEL: Final = 4
_MIB: Final = 1024 * 1024
_FIRST_PART: Final = 16 * _MIB
_SAME_SIZE: Final = 150  # parts; 10,000 that grow like this hold 5.2 TiB, the largest has 1.05 GiB
_MAX_PARTS: Final = 10_000
_STEP: Final = _MIB
_LOST: Final = 3  # uploads that the store may lose before that is an error

Commit = Callable[[CommitRecord], str]


def part_size(number: int) -> int:
    """Bytes of part `number`, from 0."""
    return _FIRST_PART * (1 + number // _SAME_SIZE)


class BucketUpload:
    """One upload.  parts: the directory's random name."""

    parallel = PARALLEL

    def __init__(
        self,
        client: BucketClient,
        key: str,
        spooled: Spooled,
        *,
        finish: Commit,
        unwanted: Callable[[str], None],
    ) -> None:
        """Begins it.  finish: makes the record; unwanted: removes the objects of a directory of parts."""
        self.parts = new_parts()
        self._client = client
        self._file = key
        self._key = body_key(key, self.parts)
        self._spooled = spooled
        self._finish = finish
        self._unwanted = unwanted
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._sending = Sending(client.name, client.interrupt)
        self._sent: dict[int, tuple[int, int, str, bytes]] = {}  # offset, size, ETag, MD5
        self._generation = 0
        self._id = self._create()

    def part_size(self, number: int) -> int:
        return part_size(number)

    def send(self, number: int, offset: int, size: int) -> None:
        """As `Upload.send`; up to `parallel` at a time."""
        if not 0 <= number < _MAX_PARTS:
            raise UsageError(f"{self._client.name}: the checkpoint is too large for a bucket")
        with self._sending.counted():
            self._send(number, offset, size)

    def _send(self, number: int, offset: int, size: int) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        for piece in _pieces(self._spooled, offset, size):
            digest.update(piece)
        answer: dict[str, Any] = {}
        generation = 0
        while not answer:
            with self._lock:
                upload, generation = self._id, self._generation
            try:
                answer = self._put_part(upload, number, (offset, size), digest.digest())
            except AnswerError as error:
                if not error.missing:
                    raise self._client.refused(error) from None
                self._renew(generation)
        check_etag(f"{self._client.name}/{self._file}", answer, digest.hexdigest())
        with self._lock:
            lost = generation != self._generation
            self._sent[number] = (offset, size, str(answer["ETag"]), digest.digest())
        if lost:  # someone began another upload meanwhile, which does not have this part
            self._send(number, offset, size)

    def _put_part(
        self, upload: str, number: int, extent: tuple[int, int], digest: bytes
    ) -> dict[str, Any]:
        return self._client.call(
            "upload_part",
            self._sending.cancelled,
            Key=self._key,
            UploadId=upload,
            PartNumber=number + 1,
            Body=_SpooledBody(self._spooled, *extent, self._sending.cancelled),
            ContentLength=extent[1],
            ContentMD5=content_md5(digest),
        )

    def _renew(self, generation: int) -> None:
        """The store has lost the upload: begin another, and send again what went before.  One thread does so."""
        with self._renewing:
            with self._lock:
                if generation != self._generation:
                    return
                before = sorted(self._sent.items())
            if generation + 1 >= _LOST:
                raise SystemEnvironmentError(
                    f"{self._client.name}: the store keeps losing the upload"
                )
            upload = self._create()
            for number, (offset, size, _, digest) in before:
                try:
                    answer = self._put_part(upload, number, (offset, size), digest)
                except AnswerError as error:
                    raise self._client.refused(error) from None
                with self._lock:
                    self._sent[number] = (offset, size, str(answer["ETag"]), digest)
            with self._lock:
                self._id, self._generation = upload, generation + 1

    def _create(self) -> str:
        try:
            answer = self._client.call(
                "create_multipart_upload", Key=self._key, ContentType="application/octet-stream"
            )
        except AnswerError as error:
            raise self._client.refused(error) from None
        return str(answer["UploadId"])

    def commit(self, head: bytes, properties: Mapping[str, str]) -> str:
        """As `Upload.commit`."""
        preamble = Preamble.decode(head[:PREAMBLE_SIZE])
        with self._sending.counted():
            size = self._check_contiguous()
            etag = self._complete(size)
            record = CommitRecord(
                parts=self.parts,
                checkpoint=preamble.checkpoint_id,
                head_size=len(head),
                sequence=0,
                head_etag=self._put_head(head),
                body_size=size,
                body_etag=etag,
                properties=properties,
            )
            return self._sending.finish(lambda: self._finish(record))

    def _put_head(self, head: bytes) -> str:
        try:
            return self._client.put(head_key(self._file, self.parts, 0), head)
        except AnswerError as error:
            raise self._client.refused(error) from None

    def _check_contiguous(self) -> int:
        end = 0
        with self._lock:
            for expected, (number, (offset, size, _, _)) in enumerate(sorted(self._sent.items())):
                if number != expected or offset != end:
                    raise SystemEnvironmentError(f"{self._client.name}: a part was not sent")
                end += size
        return end

    def _complete(self, size: int) -> str:
        """The body gets its name; returns its ETag, once size and checksum agree."""
        name = f"{self._client.name}/{self._key}"
        for _ in range(_LOST):
            with self._lock:
                upload, generation, sent = self._id, self._generation, sorted(self._sent.items())
            listed = [{"PartNumber": n + 1, "ETag": etag} for n, (_, _, etag, _) in sent]
            whole = hashlib.md5(b"".join(part[3] for _, part in sent), usedforsecurity=False)
            try:
                answer = self._client.call(
                    "complete_multipart_upload",
                    self._sending.cancelled,
                    Key=self._key,
                    UploadId=upload,
                    MultipartUpload={"Parts": listed},
                )
                check_etag(name, answer, f"{whole.hexdigest()}-{len(sent)}")
            except AnswerError as error:
                if not error.missing:
                    raise self._client.refused(error) from None
            # "No such upload" may be the answer to a second attempt: the first may have done it.
            try:
                found = self._client.call("head_object", Key=self._key)
            except AnswerError as error:
                if not error.missing:
                    raise self._client.refused(error) from None
                self._renew(generation)
                continue
            check_etag(name, found, f"{whole.hexdigest()}-{len(sent)}")
            if found.get("ContentLength") != size:
                raise SystemEnvironmentError(
                    f"{printable(name)}: the stored size differs from the size sent"
                )
            return str(found.get("ETag", ""))
        raise SystemEnvironmentError(f"{self._client.name}: the store keeps losing the upload")

    def abort(self) -> None:
        """As `Upload.abort`."""
        self._sending.give_up()
        with self._lock:
            upload = self._id
        if self._sending.visible:
            return  # a record may name the parts; if it does not, `incomplete` finds them
        try:
            abort_upload(self._client, self._key, upload)
            self._unwanted(directory(self._file, self.parts))
        except (SealpointError, AnswerError):
            pass  # best effort: `incomplete` finds what is left


def abort_upload(client: BucketClient, key: str, upload: str) -> None:
    """With all its parts.  Raises AnswerError, SystemEnvironmentError."""
    try:
        client.call("abort_multipart_upload", Key=key, UploadId=upload)
    except AnswerError as error:
        if not error.missing:
            raise


def _pieces(spooled: Spooled, offset: int, size: int) -> Iterator[memoryview]:
    for start in range(offset, offset + size, _STEP):
        yield spooled.read(start, min(_STEP, offset + size - start))


class _SpooledBody(io.RawIOBase):
    """A part as a file for the client, which reads it from the start for each attempt."""

    def __init__(
        self, spooled: Spooled, offset: int, size: int, cancelled: threading.Event
    ) -> None:
        self._spooled = spooled
        self._offset = offset
        self._size = size
        self._cancelled = cancelled
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if self._cancelled.is_set():
            raise OSError("given up")
        left = self._size - self._at
        size = left if size < 0 else min(size, left)
        if size <= 0:
            return b""
        data = bytes(self._spooled.read(self._offset + self._at, size))
        self._at += size
        return data
