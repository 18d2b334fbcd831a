"""A sealed file in a registry, read by ranges of its layers, each by its digest."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sealpoint.errors import FileError, SystemEnvironmentError, UsageError
from sealpoint.format.constants import MAGIC, PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.store.oci.client import PULL, Client, RegistryAnswerError
from sealpoint.store.oci.manifest import (
    DOCKER_TYPE,
    INDEX_TYPE,
    MAX_MANIFEST,
    MEDIA_TYPE,
    ArtifactManifest,
    Blob,
    digest_of,
    only_layer,
)
from sealpoint.store.oci.reference import ArtifactName, is_digest

# What a tag may name: others than ours are asked for, too, so that the error can say what they are.
ACCEPT: Final = (
    f"{MEDIA_TYPE}, {INDEX_TYPE}, {DOCKER_TYPE}, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)


class Found(NamedTuple):
    """A manifest as the registry has it, checked against its digest."""

    digest: str
    data: bytes
    media_type: str


def fetch_manifest(client: Client, where: str, limit: int = MAX_MANIFEST) -> Found | None:
    """where: a tag or a digest.  None: there is none.  Raises FileError, SystemEnvironmentError."""
    try:
        answer = client.call(
            "GET", client.path(f"manifests/{where}"), headers={"Accept": ACCEPT}, limit=limit
        )
    except RegistryAnswerError as error:
        if error.status == 404:
            return None
        raise client.refused(error) from None
    digest = digest_of(answer.data)
    stated = answer.headers.get("Docker-Content-Digest", digest)
    if stated != digest or (is_digest(where) and where != digest):
        raise FileError(
            f"{client.name}: the manifest does not match its digest",
            hint="the registry, or someone on the network path, replaced it",
        )
    return Found(digest, answer.data, answer.headers.get("Content-Type", MEDIA_TYPE))


class RegistryFile:
    """As RemoteFile.  digest: of its manifest, by which everything is read.

    manifest: None where someone else put the whole file into one layer.
    """

    def __init__(self, client: Client, reference: ArtifactName, found: Found) -> None:
        """Reads the head.  Raises FileError, SystemEnvironmentError."""
        self.name = str(reference)
        self.digest = found.digest
        self._client = client
        self.manifest: ArtifactManifest | None = None
        self._head = b""
        self.properties: Mapping[str, str] = {}
        plain = only_layer(found.data, self.name)
        preamble = None if plain is None else self._preamble_of(plain)
        if plain is not None and preamble is not None:
            self._blobs: tuple[Blob, ...] = (plain,)
            self.head_size, self.size = preamble.frames_offset, plain.size
            return
        manifest = self.manifest = ArtifactManifest.decode(found.data, self.name)
        self._head = self._fetch_head(manifest.head)
        self._blobs = manifest.body
        self.head_size, self.size = len(self._head), manifest.size
        self.properties = manifest.properties

    def _preamble_of(self, blob: Blob) -> Preamble | None:
        """None: the layer is no sealed file.  Raises FileError, SystemEnvironmentError."""
        data = bytearray(PREAMBLE_SIZE)
        self._read_blob(blob, memoryview(data), 0)
        return Preamble.decode(bytes(data)) if data.startswith(MAGIC) else None

    def _fetch_head(self, blob: Blob) -> bytes:
        data = bytearray(blob.size)
        self._read_blob(blob, memoryview(data), 0)
        if digest_of(bytes(data)) != blob.digest:
            raise FileError(f"{self.name}: the head does not match its digest")
        if Preamble.decode(bytes(data[:PREAMBLE_SIZE])).frames_offset != blob.size:
            raise FileError(f"{self.name} has no head that fits it")
        return bytes(data)

    def read_into(self, out: memoryview, offset: int) -> None:
        """As RemoteFile.read_into."""
        if offset < 0 or offset + len(out) > self.size:
            raise FileError(f"{self.name} ends before that")
        inside = min(max(len(self._head) - offset, 0), len(out))
        out[:inside] = self._head[offset : offset + inside]
        start, at, done = len(self._head), offset + inside, inside
        for blob in self._blobs:
            if done < len(out) and at < start + blob.size:
                part = out[done : done + start + blob.size - at]
                self._read_blob(blob, part, at - start)
                done, at = done + len(part), at + len(part)
            start += blob.size

    def check_new_head(self, head: bytes) -> None:
        """Whether it can stand before this body.  Raises FileError."""
        new, old = (
            Preamble.decode(head[:PREAMBLE_SIZE]),
            Preamble.decode(self._head[:PREAMBLE_SIZE]),
        )
        if len(head) != self.head_size or new.checkpoint_id != old.checkpoint_id:
            raise FileError(f"{self.name}: the new head is not one of this checkpoint")

    def _read_blob(self, blob: Blob, out: memoryview, offset: int) -> None:
        """A cut connection goes on where it broke off."""
        done = 0

        def attempt() -> None:
            nonlocal done
            first, last = offset + done, offset + len(out) - 1
            answer, content, _ = self._client.begin(
                "GET",
                self._client.path(f"blobs/{blob.digest}"),
                PULL,
                headers={"Range": f"bytes={first}-{last}"},
            )
            try:
                self._check_range(answer, (first, last, blob.size))
                while done < len(out):
                    got = content.readinto(out[done:])
                    if not got:
                        raise http.client.IncompleteRead(b"", len(out) - done)
                    done += got
            finally:
                content.close()

        try:
            self._client.again(attempt)
        except RegistryAnswerError as error:
            if error.status in {404, 416}:
                raise self._client.changed(f"the layer {blob.digest[:19]}...") from None
            raise self._client.refused(error) from None

    def _check_range(self, answer: http.client.HTTPResponse, wanted: tuple[int, int, int]) -> None:
        """wanted: first and last byte, size of the layer.  Raises SystemEnvironmentError, FileError."""
        first, last, size = wanted
        whole = first == 0 and last == size - 1
        if answer.status != 206 and not (whole and answer.status == 200):
            raise SystemEnvironmentError(
                f"{self.name}: the registry sent the whole layer instead of a range",
                hint="this registry does not support ranges (status 200 instead of 206): pull it to a file first",
            )
        if answer.length not in {None, last - first + 1}:
            raise SystemEnvironmentError(
                f"{self.name}: the registry sent a range of the wrong length"
            )
        if answer.status == 200:
            return
        stated = answer.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", stated)
        if found is None or (int(found[1]), int(found[2])) != (first, last):
            raise SystemEnvironmentError(
                f"{self.name}: the registry sent another range than it was asked for"
            )
        if found[3] not in {"*", str(size)}:
            raise FileError(f"{self.name}: a layer has another size than the manifest says")

    def close(self) -> None:
        """As RemoteFile.close."""
        self._client.close()


def open_artifact(client: Client, reference: ArtifactName) -> RegistryFile:
    """Raises UsageError (there is none), FileError, SystemEnvironmentError."""
    if not reference.where:
        raise UsageError(f"{reference} names no file", hint="oci://registry/name:tag")
    found = fetch_manifest(client, reference.where)
    if found is None:
        raise UsageError(f"{reference} does not exist")
    return RegistryFile(client, reference, found)
