"""Requests to an S3 server: signed by botocore, sent by `wire`, tried again, and their answers checked.

Credentials, region and endpoint are those of every AWS tool: environment, configuration files, profile, a role of the
machine.  Nothing of them is in a message; of what a server says, only its code is shown.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError, UsageError
from sealpoint.names import printable
from sealpoint.store import retry, wire

_MAX_NAMES: Final = 1_000_000
_AGAIN: Final = {
    "InternalError",
    "SlowDown",
    "RequestTimeout",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "ConditionalRequestConflict",
    "OperationAborted",
}
_NEEDED: Final = {
    "complete_multipart_upload": ("ETag",),
    "create_multipart_upload": ("UploadId",),
    "head_object": ("ETag", "ContentLength"),
    "list_objects_v2": ("IsTruncated",),
    "put_object": ("ETag",),
    "upload_part": ("ETag",),
}
_MD5: Final = re.compile(r'"?([0-9a-f]{32}(?:-\d+)?)"?')
_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


class AnswerError(Exception):
    """The server's answer is no, and it stays so.  code: S3's word, printable; status: HTTP's."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(code)
        self.code = code
        self.status = status

    @property
    def missing(self) -> bool:
        """No such object or upload; not: no such bucket."""
        return self.status == 404 and self.code != "NoSuchBucket"

    @property
    def taken(self) -> bool:
        """A condition did not hold."""
        return self.status == 412

    @property
    def unknown(self) -> bool:
        """The server does not know the request or its condition."""
        return self.status == 501 or self.code in {"NotImplemented", "InvalidArgument"}


class StoredObject(NamedTuple):
    """size: bytes; etag: with its quotes; since: RFC 3339, empty if the server does not tell."""

    key: str
    size: int
    etag: str
    since: str


class BucketClient:
    """One bucket.  From any thread.

    Every method raises SystemEnvironmentError where the server cannot be reached, refuses the credentials or answers
    nonsense, UsageError where there is no such bucket, and AnswerError where it says no to this request.
    """

    def __init__(self, bucket: str, *, plain_http: bool) -> None:
        """Reads the configuration; sends nothing.  Raises UsageError, SystemEnvironmentError."""
        self.name = f"s3://{bucket}"
        self._bucket = bucket
        self._wire = wire.Wire()
        weakref.finalize(self, self._wire.close)  # where nobody closes it
        self._s3 = _make_client(self.name, self._wire)
        _check_endpoint(self.name, self._s3.meta.endpoint_url, plain_http=plain_http)

    def call(
        self, operation: str, cancelled: threading.Event | None = None, /, **parameters: Any
    ) -> dict[str, Any]:
        """One of the client's methods; what it returns.  cancelled: no further attempt once it is set."""
        method = getattr(self._s3, operation)
        body = parameters.get("Body")

        def attempt() -> dict[str, Any]:
            if isinstance(body, io.IOBase):
                body.seek(0)
            answer: dict[str, Any] = method(Bucket=self._bucket, **parameters)
            # The HTTP client takes headers that a cut connection ended for all of them.
            if not all(name in answer for name in _NEEDED.get(operation, ())):
                raise http.client.HTTPException("headers are missing")
            return answer

        return self.again(attempt, cancelled)

    def again(
        self, attempt: Callable[[], dict[str, Any]], cancelled: threading.Event | None = None
    ) -> dict[str, Any]:
        """Try until it works, or will not."""
        return retry.again(attempt, self._judge, self._unusable, cancelled)

    def _judge(self, error: Exception) -> retry.Failure:
        return retry.Failure(_judge(self.name, error))

    def _unusable(self, reason: str) -> SystemEnvironmentError:
        return SystemEnvironmentError(
            f"{self.name}: the store does not work as expected: {reason}",
            hint="check the endpoint and the network, then try again",
        )

    def interrupt(self, threads: set[int]) -> None:
        """Cut what these threads are sending."""
        self._wire.interrupt(threads)

    def close(self) -> None:
        self._wire.close()

    # --- Small objects. ---

    def put(self, key: str, data: bytes, **conditions: str) -> str:
        """One object in one request; returns its ETag.  conditions: IfNoneMatch, IfMatch."""
        answer = self.call(
            "put_object",
            Key=key,
            Body=data,
            ContentMD5=content_md5(md5_of(data)),
            ContentType="application/octet-stream",
            **conditions,
        )
        check_etag(f"{self.name}/{key}", answer, md5_of(data).hex())
        return str(answer.get("ETag", ""))

    def get(self, key: str, limit: int) -> tuple[bytes, int, str]:
        """(the first `limit` bytes of an object, its size, its ETag); an answer with all of it is cut off."""

        def attempt() -> dict[str, Any]:
            answer = self._s3.get_object(Bucket=self._bucket, Key=key, Range=f"bytes=0-{limit - 1}")
            with answer["Body"] as body:
                size = _whole_size(answer)
                out = memoryview(bytearray(min(size, limit)))
                _fill(body, out)
            return {"data": bytes(out), "size": size, "etag": str(answer.get("ETag", ""))}

        try:
            found = self.again(attempt)
        except AnswerError as error:
            if error.status == 416:  # an empty object has no first byte
                return b"", 0, ""
            raise
        return found["data"], found["size"], found["etag"]

    def remove(self, key: str) -> None:
        """What is not there is removed already."""
        try:
            self.call("delete_object", Key=key)
        except AnswerError as error:
            if not error.missing:
                raise self.refused(error) from None

    # --- Ranges. ---

    def read(self, key: str, offset: int, out: memoryview, *, size: int, etag: str) -> None:
        """Fill `out` from `offset` of an object that still has this size and ETag.

        A cut connection goes on where it broke off.  Raises FileError: the object is another by now, or gone.
        """
        done = 0

        def attempt() -> dict[str, Any]:
            nonlocal done
            first, last = offset + done, offset + len(out) - 1
            answer = self._s3.get_object(
                Bucket=self._bucket, Key=key, Range=f"bytes={first}-{last}", IfMatch=etag
            )
            with answer["Body"] as body:
                _check_range(f"{self.name}/{key}", answer, (first, last, size), etag)
                while done < len(out):
                    got = body.readinto(out[done:])
                    if not got:
                        raise http.client.IncompleteRead(b"", len(out) - done)
                    done += got
            return {}

        try:
            self.again(attempt)
        except AnswerError as error:
            if error.status in {404, 412, 416}:
                raise changed(f"{self.name}/{key}") from None
            raise self.refused(error) from None

    # --- Listings. ---

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """Those whose keys begin so, in the order of their keys."""
        token: dict[str, str] = {}
        for _ in range(_MAX_NAMES // 1000):
            try:
                page = self.call("list_objects_v2", Prefix=prefix, **token)
            except AnswerError as error:
                raise self.refused(error) from None
            for entry in page.get("Contents", ()):
                found = StoredObject(
                    str(entry["Key"]),
                    int(entry.get("Size", 0)),
                    str(entry.get("ETag", "")),
                    _time(entry.get("LastModified")),
                )
                if found.key.startswith(prefix):
                    yield found
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": str(page.get("NextContinuationToken", ""))}
        raise SystemEnvironmentError(f"{self.name}: the listing of {printable(prefix)} has no end")

    def uploads(self, prefix: str) -> Iterator[tuple[str, str, str]]:
        """(key, upload's id, since) of the multipart uploads that were begun and are not complete."""
        marker: dict[str, str] = {}
        for _ in range(_MAX_NAMES // 1000):
            try:
                page = self.call("list_multipart_uploads", Prefix=prefix, **marker)
            except AnswerError as error:
                if error.unknown:
                    return  # this server cannot tell
                raise self.refused(error) from None
            for entry in page.get("Uploads", ()):
                if str(entry["Key"]).startswith(prefix):
                    yield str(entry["Key"]), str(entry["UploadId"]), _time(entry.get("Initiated"))
            if not page.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": str(page.get("NextKeyMarker", "")),
                "UploadIdMarker": str(page.get("NextUploadIdMarker", "")),
            }
        raise SystemEnvironmentError(f"{self.name}: the listing of uploads has no end")

    def refused(self, error: AnswerError) -> SealpointError:
        """A refusal that the caller has no use for."""
        return refusal(self.name, error)


def refusal(name: str, error: AnswerError) -> SealpointError:
    if error.code == "NoSuchBucket":
        return UsageError(f"there is no bucket {name}", hint="create the bucket, or name another")
    if error.status in {401, 403}:
        return SystemEnvironmentError(
            f"{name}: the store refused: {error.code}",
            hint="check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and what they permit",
        )
    return SystemEnvironmentError(f"{name}: the store refused: {error.code} ({error.status})")


def changed(name: str) -> FileError:
    return FileError(
        f"{printable(name)} was changed or removed while it was read", hint="start again"
    )


def md5_of(data: bytes) -> bytes:
    """S3's checksum of one request: against damage, not against people."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def content_md5(digest: bytes) -> str:
    import base64

    return base64.b64encode(digest).decode()


def check_etag(name: str, answer: dict[str, Any], expected: str) -> None:
    """Of what was written, where the ETag is a checksum: not with keys of a KMS or of the customer's.

    expected: MD5 in hex, of several parts with "-N".  Raises SystemEnvironmentError.
    """
    keyed = str(answer.get("ServerSideEncryption", "")).startswith("aws:")
    found = _MD5.fullmatch(str(answer.get("ETag", "")))
    if keyed or "SSECustomerAlgorithm" in answer or found is None:
        return
    if ("-" in found[1]) == ("-" in expected) and found[1] != expected:
        raise SystemEnvironmentError(
            f"{printable(name)}: the store's checksum differs from that of the data sent",
            hint="nothing was stored under the final name; try again",
        )


def _make_client(name: str, carrier: wire.Wire) -> Any:
    try:
        import botocore.exceptions
        import botocore.session
        from botocore.config import Config
    except ImportError:
        raise UsageError(
            f"{name}: buckets need sealpoint's extra `s3`", hint="pip install 'sealpoint[s3]'"
        ) from None
    try:
        session = botocore.session.Session()
        own = session.get_scoped_config().get("s3")
        style = own.get("addressing_style") if isinstance(own, dict) else None
        config = Config(
            retries={"total_max_attempts": 1},  # `BucketClient.again` does that
            request_checksum_calculation="when_required",  # Content-MD5 is known to every server
            response_checksum_validation="when_required",
            s3={"addressing_style": style} if style else None,
        )
        client = session.create_client("s3", config=config)
        if style is None and not _is_aws(client.meta.endpoint_url):
            # Other servers rarely have a host name for each bucket.
            path = config.merge(Config(s3={"addressing_style": "path"}))
            client = session.create_client("s3", config=path)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise _configuration(name, error) from None
    client.meta.events.register("before-send.s3", carrier.send)
    return client


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _check_endpoint(name: str, endpoint: str, *, plain_http: bool) -> None:
    url = urlsplit(endpoint)
    host = url.hostname or ""
    if url.username is not None or url.scheme not in {"http", "https"}:
        raise UsageError(f"{name}: the endpoint of S3 must be an http(s) URL without a password")
    if url.scheme == "http" and not plain_http and not _LOOPBACK.fullmatch(host):
        raise UsageError(
            f"{name}: the endpoint {printable(host)} is plain HTTP, which anyone on the network path can change",
            hint="use https; or --plain-http, if you trust the network",
        )


def _configuration(name: str, error: Exception) -> SystemEnvironmentError:
    """The text of the error may name what is secret: only its kind is told."""
    kind = type(error).__name__
    if kind == "NoCredentialsError":
        return SystemEnvironmentError(
            f"{name}: no credentials for S3 were found",
            hint="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return SystemEnvironmentError(
        f"{name}: cannot use the configuration of AWS ({kind})",
        hint="`aws sts get-caller-identity` says what is wrong with it",
    )


def _judge(name: str, error: Exception) -> str:
    """Why to try again; raises what will not change."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    if isinstance(error, ClientError):
        code = printable(str(error.response.get("Error", {}).get("Code", "")))[:64]
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if (status >= 500 and status != 501) or status == 429 or code in _AGAIN:
            return f"{code} ({status})"
        raise AnswerError(code, status) from None
    if isinstance(error, AnswerError):
        raise error
    if isinstance(error, ResponseParserError):
        return "its answer is not the XML of S3"
    if isinstance(error, BotoCoreError):
        raise _configuration(name, error) from None
    untrusted = SystemEnvironmentError(
        f"{name}: the certificate of the store is not trusted on this machine",
        hint="to trust other authorities, name their file in AWS_CA_BUNDLE",
    )
    return wire.reason(error, untrusted)


def _whole_size(answer: dict[str, Any]) -> int:
    """Of the object, from the answer to a range from its start, or to a range that was not understood."""
    stated = str(answer.get("ContentRange", ""))
    if found := re.fullmatch(r"bytes 0-\d+/(\d{1,18})", stated):
        return int(found[1])
    size = answer.get("ContentLength")
    if stated or not isinstance(size, int) or size < 0:
        raise http.client.HTTPException("the size is missing")
    return size


def _check_range(
    name: str, answer: dict[str, Any], wanted: tuple[int, int, int], etag: str
) -> None:
    """wanted: first and last byte, size of the object.  Raises FileError, SystemEnvironmentError."""
    first, last, size = wanted
    if "ETag" not in answer:
        raise http.client.HTTPException("headers are missing")
    if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
        raise SystemEnvironmentError(
            f"{printable(name)}: the store sent the whole object instead of a range",
            hint="this server does not support ranges (status 200 instead of 206): copy the object to a file first",
        )
    if answer["ETag"] != etag:
        raise changed(name)
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", str(answer.get("ContentRange")))
    if found is None or [int(n) for n in found.groups()[:2]] != [first, last]:
        raise SystemEnvironmentError(
            f"{printable(name)}: the store sent another range than it was asked for"
        )
    if int(found[3]) != size:
        raise changed(name)
    if answer.get("ContentLength") != last - first + 1:
        raise SystemEnvironmentError(
            f"{printable(name)}: the store sent a range of the wrong length"
        )


def _fill(body: Any, out: memoryview) -> None:
    done = 0
    while done < len(out):
        got = body.readinto(out[done:])
        if not got:
            raise http.client.IncompleteRead(b"", len(out) - done)
        done += got


def _time(value: Any) -> str:
    try:
        return str(value.astimezone().isoformat()) if value is not None else ""
    except (AttributeError, ValueError, OverflowError):
        return ""
