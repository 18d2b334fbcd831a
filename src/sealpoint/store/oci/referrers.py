"""What refers to a manifest (signatures, attestations): attached again when a rekey replaces it.

A registry either answers the referrers API, and then keeps the list by itself, or the list is an index under the tag
`sha256-<hex>` (OCI distribution 1.1, "referrers tag schema"), which clients keep.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sealpoint.errors import FileError, SealpointError, SystemEnvironmentError
from sealpoint.store.oci.artifact import fetch_manifest
from sealpoint.store.oci.client import DELETE, PULL, PUSH, Client, RegistryAnswerError
from sealpoint.store.oci.manifest import (
    INDEX_TYPE,
    MAX_MANIFEST,
    MEDIA_TYPE,
    decode_json,
    digest_of,
)
from sealpoint.store.oci.reference import is_digest

_MOST: Final = 256


def fallback_tag(digest: str) -> str:
    """Of the index that lists what refers to a manifest."""
    return digest.replace(":", "-")


def referrers(client: Client, digest: str) -> list[str]:
    """Digests of the manifests that refer to one.  Raises FileError, SystemEnvironmentError."""
    try:
        data = client.call(
            "GET",
            client.path(f"referrers/{digest}"),
            PULL,
            headers={"Accept": INDEX_TYPE},
            limit=MAX_MANIFEST,
        ).data
    except RegistryAnswerError as error:
        if error.status not in {400, 404, 405}:
            raise client.refused(error) from None
        found = fetch_manifest(client, fallback_tag(digest))
        if found is None:
            return []
        data = found.data
    listed = decode_json(data, f"{client.name}: the list of referrers").get("manifests")
    if type(listed) is not list or len(listed) > _MOST:
        raise FileError(f"{client.name}: the list of referrers is malformed or too long")
    digests = [each.get("digest") for each in listed if type(each) is dict]
    return [str(each) for each in digests if is_digest(each)]


def move_referrers(client: Client, old: str, manifest: bytes) -> None:
    """Attach to a new manifest what refers to the old one, and delete it there.

    Raises FileError, SystemEnvironmentError, RegistryAnswerError; then the old ones are all still there.
    """
    subject = {"mediaType": MEDIA_TYPE, "digest": digest_of(manifest), "size": len(manifest)}
    moved: list[dict[str, Any]] = []
    before: list[str] = []
    kept_by_registry = True
    for digest in referrers(client, old):
        found = fetch_manifest(client, digest)
        if found is None:
            continue
        value = decode_json(found.data, f"{client.name}: a referrer")
        refers = value.get("subject")
        if type(refers) is not dict or refers.get("digest") != old:
            continue
        data = json.dumps({**value, "subject": subject}, separators=(",", ":")).encode()
        kept_by_registry &= _put(client, digest_of(data), data, found.media_type)
        moved.append(_descriptor(value, data, found.media_type))
        before.append(digest)
    if moved and not kept_by_registry:
        _write_index(client, fallback_tag(subject["digest"]), moved)  # type: ignore[arg-type]
    delete_manifests(client, [*before, *_index_of(client, old)])


def listed_referrers(client: Client, digest: str) -> list[str]:
    """Digests of what refers to a manifest and says so itself, and of the index under the fallback tag.

    Raises FileError, SystemEnvironmentError.
    """
    found = []
    for each in referrers(client, digest):
        manifest = fetch_manifest(client, each)
        if manifest is None:
            continue
        refers = decode_json(manifest.data, f"{client.name}: a referrer").get("subject")
        # A list is written by anybody: it must not choose what is deleted.
        if type(refers) is dict and refers.get("digest") == digest:
            found.append(each)
    return [*found, *_index_of(client, digest)]


def _index_of(client: Client, digest: str) -> list[str]:
    index = fetch_manifest(client, fallback_tag(digest))
    return [index.digest] if index else []


def delete_manifests(client: Client, digests: list[str]) -> None:
    """Those that are there.  Raises RegistryAnswerError, SystemEnvironmentError."""
    for digest in digests:
        try:
            client.call("DELETE", client.path(f"manifests/{digest}"), DELETE)
        except RegistryAnswerError as error:
            if error.status != 404:
                raise


def _descriptor(value: dict[str, Any], data: bytes, media_type: str) -> dict[str, Any]:
    """As an index lists it."""
    found: dict[str, Any] = {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
    config = value.get("config")
    kind = value.get("artifactType") or (config.get("mediaType") if type(config) is dict else None)
    if kind:
        found["artifactType"] = kind
    if value.get("annotations"):
        found["annotations"] = value["annotations"]
    return found


def _put(client: Client, where: str, data: bytes, media_type: str) -> bool:
    """Whether the registry keeps the list of referrers."""
    answer = client.call(
        "PUT",
        client.path(f"manifests/{where}"),
        PUSH,
        headers={"Content-Type": media_type},
        body=data,
    )
    return "OCI-Subject" in answer.headers


def _write_index(client: Client, tag: str, entries: list[dict[str, Any]]) -> None:
    """Nobody else writes this one yet: its manifest is new.  Read back all the same."""
    value = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
    data = json.dumps(value, separators=(",", ":")).encode()
    _put(client, tag, data, INDEX_TYPE)
    try:
        found = fetch_manifest(client, tag)
    except SealpointError as error:
        raise SystemEnvironmentError(error.message) from None
    if found is None or found.digest != digest_of(data):
        raise SystemEnvironmentError(f"{client.name}: the list of referrers was not stored")
