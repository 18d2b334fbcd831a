"""A body on its way into a registry: layer after layer, each by PATCHes one after the other.

A PATCH that breaks off kills an upload on the common registry: it keeps a part of the bytes and answers 404 to every
further request.  So after any failure the layer is sent again from its start, out of the spool.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlencode, urljoin

from sealpoint.errors import SealpointError, SystemEnvironmentError
from sealpoint.store.oci.client import DELETE, PUSH, Answer, Client, RegistryAnswerError, RetryError
from sealpoint.store.oci.manifest import EMPTY, LAYER_SIZE, ArtifactManifest, Blob, digest_of
from sealpoint.store.remote import Spooled
from sealpoint.store.sending import Sending

PART_SIZE: Final = 32 * 1024 * 1024  # LAYER_SIZE is a multiple
_STEP: Final = 1024 * 1024
_BINARY: Final = {"Content-Type": "application/octet-stream"}

Commit = Callable[[ArtifactManifest], str]


class _Layer:
    """The layer that is being sent.  start: its offset in the body; sent: bytes that the registry has of it."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.sent = 0
        self.hash = hashlib.sha256()
        self.location = ""


class RegistryUpload:
    """One upload."""

    parallel = 1

    def __init__(self, client: Client, spooled: Spooled, title: str, finish: Commit) -> None:
        """Sends nothing yet.  title: a file name; finish: pushes the manifest."""
        self._client = client
        self._spooled = spooled
        self._title = title
        self._finish = finish
        self._sending = Sending(client.name, client.interrupt)
        self._layer = _Layer(0)
        self._blobs: list[Blob] = []
        self._ours: list[
            Blob
        ] = []  # those that were not there before: of the same file, under another tag

    def part_size(self, number: int) -> int:  # noqa: ARG002 - parts of a registry need not grow
        """As `Upload.part_size`: a layer has any number of parts, so that they need not grow."""
        return PART_SIZE

    def send(self, number: int, offset: int, size: int) -> None:
        """As `Upload.send`; one part after the other."""
        with self._counted():
            end = offset + size
            if offset != self._layer.start + self._layer.sent:
                raise SystemEnvironmentError(f"{self._client.name}: part {number} is not the next")
            while offset < end:
                step = min(end - offset, LAYER_SIZE - self._layer.sent)
                self._append(step)
                offset += step
                if self._layer.sent == LAYER_SIZE:
                    self._finish_layer()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            with self._sending.counted():
                yield
        except RegistryAnswerError as error:
            raise self._client.refused(error) from None

    # --- Layers. ---

    def _append(self, size: int) -> None:
        """The next bytes of the layer; if that fails all of them again."""
        wanted = self._layer.sent + size

        def attempt() -> None:
            try:
                self._advance(wanted)
            except BaseException:
                self._forget()
                raise

        self._client.again(attempt, self._sending.cancelled)

    def _advance(self, wanted: int) -> None:
        """Send of the layer what is not there yet, up to `wanted` bytes of it."""
        layer = self._layer
        if not layer.location:
            layer.location = begin_upload(self._client)
        while layer.sent < wanted:
            size = min(PART_SIZE, wanted - layer.sent)
            answer, hashed = self._patch(layer, size)
            _check_progress(answer, layer.sent + size)
            layer.location = _next_location(answer)
            layer.hash = hashed
            layer.sent += size

    def _patch(self, layer: _Layer, size: int) -> tuple[Answer, hashlib._Hash]:
        """The answer, and the hash of the layer with these bytes."""
        hashed = layer.hash

        def pieces() -> Iterator[memoryview]:
            nonlocal hashed
            hashed = layer.hash.copy()
            for piece in self._pieces(layer.start + layer.sent, size):
                hashed.update(piece)
                yield piece

        extent = f"{layer.sent}-{layer.sent + size - 1}"
        headers = {**_BINARY, "Content-Range": extent}
        try:
            answer = self._client.once(
                "PATCH", layer.location, PUSH, headers=headers, pieces=(pieces, size)
            )
        except RegistryAnswerError as error:
            raise _lost(error) from None
        return answer, hashed

    def _pieces(self, start: int, size: int) -> Iterator[memoryview]:
        for at in range(start, start + size, _STEP):
            if self._sending.cancelled.is_set():
                raise OSError("given up")
            yield self._spooled.read(at, min(_STEP, start + size - at))

    def _forget(self) -> None:
        """The registry's upload of this layer may be broken: the next attempt begins another."""
        layer = self._layer
        if layer.location:
            self._delete_quietly(layer.location, PUSH)
        self._layer = _Layer(layer.start)

    def _delete_quietly(self, target: str, scope: str) -> None:
        """Best effort: the registry forgets uploads, and collects what nothing names, some day."""
        try:
            self._client.once("DELETE", target, scope)
        except (
            SealpointError,
            RegistryAnswerError,
            RetryError,
            OSError,
            http.client.HTTPException,
        ):
            pass

    def _finish_layer(self) -> None:
        """The registry compares the digest; only then the layer is there."""
        size, digest = self._layer.sent, ""

        def attempt() -> None:
            nonlocal digest
            try:
                self._advance(size)
                if not digest:
                    digest = f"sha256:{self._layer.hash.hexdigest()}"
                    self._note_ours(Blob(digest, size))
                close_upload(self._client, self._layer.location, digest, b"")
            except BaseException as error:
                # An answer may have been lost, and the blob be there.
                if digest and not isinstance(error, SealpointError) and self._there(digest, size):
                    return
                self._forget()
                raise

        self._client.again(attempt, self._sending.cancelled)
        check_blob(self._client, Blob(digest, size))
        self._blobs.append(Blob(digest, size))
        self._layer = _Layer(self._layer.start + size)

    def _note_ours(self, blob: Blob) -> None:
        """Before a blob gets its name: giving up may delete it only if nobody has it yet."""
        try:
            self._client.call(
                "HEAD",
                self._client.path(f"blobs/{blob.digest}"),
                PUSH,
                cancelled=self._sending.cancelled,
            )
        except RegistryAnswerError as error:
            if error.status == 404:
                self._ours.append(blob)
        except SystemEnvironmentError:
            pass  # not known: leave it

    def _there(self, digest: str, size: int) -> bool:
        try:
            check_blob(self._client, Blob(digest, size))
        except (SealpointError, RegistryAnswerError):
            return False
        return True

    # --- The end. ---

    def commit(self, head: bytes, properties: Mapping[str, str]) -> str:
        """As `Upload.commit`."""
        with self._counted():
            if self._layer.sent:
                self._finish_layer()
            if not self._blobs:
                raise SystemEnvironmentError(f"{self._client.name}: nothing was sent")
            self._note_ours(Blob(digest_of(head), len(head)))
            first = push_blob(self._client, head, self._sending.cancelled)
            push_blob(self._client, EMPTY, self._sending.cancelled)
            manifest = ArtifactManifest(first, tuple(self._blobs), self._title, properties)
            return self._sending.finish(lambda: self._finish(manifest))

    def abort(self) -> None:
        """As `Upload.abort`.  Layers that it brought are deleted where the registry allows it."""
        self._sending.give_up()
        if self._sending.visible:
            return
        if self._layer.location:
            self._delete_quietly(self._layer.location, PUSH)
        for blob in self._ours:
            self._delete_quietly(self._client.path(f"blobs/{blob.digest}"), DELETE)


def begin_upload(client: Client) -> str:
    """Where to send it.  Raises RetryError, RegistryAnswerError, SystemEnvironmentError."""
    return _next_location(client.once("POST", client.path("blobs/uploads/"), PUSH))


def close_upload(client: Client, location: str, digest: str, data: bytes) -> None:
    """One attempt; data: what is still missing."""
    target = location + ("&" if "?" in location else "?") + urlencode({"digest": digest})
    try:
        answer = client.once("PUT", target, PUSH, headers=_BINARY, body=data)
    except RegistryAnswerError as error:
        raise _lost(error) from None
    if answer.headers.get("Docker-Content-Digest", digest) != digest:
        raise RetryError("the registry's digest differs from that of the data sent")


def push_blob(client: Client, data: bytes, cancelled: threading.Event | None = None) -> Blob:
    """A small one.  Raises RegistryAnswerError, SystemEnvironmentError."""
    blob = Blob(digest_of(data), len(data))

    def attempt() -> None:
        close_upload(client, begin_upload(client), blob.digest, data)

    client.again(attempt, cancelled)
    check_blob(client, blob)
    return blob


def check_blob(client: Client, blob: Blob) -> None:
    """The registry has it, of this size.  Raises SystemEnvironmentError, RegistryAnswerError."""
    answer = client.call("HEAD", client.path(f"blobs/{blob.digest}"), PUSH)
    size = answer.headers.get("Content-Length", "")
    if (
        size != str(blob.size)
        or answer.headers.get("Docker-Content-Digest", blob.digest) != blob.digest
    ):
        raise SystemEnvironmentError(
            f"{client.name}: the registry has other data than was sent",
            hint="nothing was stored under the final name; try again",
        )


def _lost(error: RegistryAnswerError) -> RegistryAnswerError | RetryError:
    """An upload that the registry does not know any more, or whose bytes do not fit, is begun again."""
    if error.status in {404, 416} or error.code in {"BLOB_UPLOAD_INVALID", "DIGEST_INVALID"}:
        return RetryError(f"the registry lost the upload ({error.status})")
    return error


def _next_location(answer: Answer) -> str:
    """The newest one, with its query."""
    location = answer.headers.get("Location")
    if not location:
        raise RetryError("it does not say where the upload continues")
    return urljoin(answer.url.geturl(), location)


def _check_progress(answer: Answer, expected: int) -> None:
    """What the registry says that it has, where it says so."""
    stated = answer.headers.get("Range")
    found = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", stated) if stated else None
    if stated and (found is None or int(found[1]) + 1 != expected):
        raise RetryError("it has another part of the layer than was sent")
