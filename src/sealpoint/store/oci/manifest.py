"""The manifest of a sealed file in a registry: which blobs it is made of.  Written canonically, read strictly.

Public and unproved: whoever can write the repository can write it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

from sealpoint.errors import FileError
from sealpoint.format.constants import PREAMBLE_SIZE, SLOT_SIZES
from sealpoint.names import printable
from sealpoint.store.oci.reference import is_digest

MAX_MANIFEST: Final = 4 * 1024 * 1024  # what registries accept
MEDIA_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
ARTIFACT_TYPE: Final = "application/vnd.sealpoint.checkpoint.v1"
HEAD_TYPE: Final = "application/vnd.sealpoint.head.v1"
BODY_TYPE: Final = "application/vnd.sealpoint.body.v1"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"
TITLE: Final = "org.opencontainers.image.title"
LAYER_SIZE: Final = 4 * 1024**3
MAX_HEAD: Final = PREAMBLE_SIZE + 2 * SLOT_SIZES[-1]
_MAX_BODY: Final = 1 << 50
_MAX_PROPERTIES: Final = 64


class Blob(NamedTuple):
    """digest: "sha256:..."; size: bytes."""

    digest: str
    size: int


class ArtifactManifest(NamedTuple):
    """body: at least one; title: a file name; properties: public facts by their annotation keys."""

    head: Blob
    body: tuple[Blob, ...]
    title: str
    properties: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of the sealed file."""
        return self.head.size + sum(blob.size for blob in self.body)

    def encode(self) -> bytes:
        """Raises FileError if registries would not take it."""
        kinds = [HEAD_TYPE] + [BODY_TYPE] * len(self.body)
        layers = [
            {
                "mediaType": kind,
                "digest": blob.digest,
                "size": blob.size,
                "annotations": {TITLE: f"{self.title}.{number:04d}"},
            }
            for number, (kind, blob) in enumerate(zip(kinds, (self.head, *self.body), strict=True))
        ]
        value = {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
            "layers": layers,
            "annotations": {**dict(sorted(self.properties.items())), TITLE: self.title},
        }
        data = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
        if len(data) > MAX_MANIFEST or len(self.properties) > _MAX_PROPERTIES:
            raise FileError("the facts about the checkpoint do not fit in a manifest")
        return data

    @classmethod
    def decode(cls, data: bytes, name: str) -> ArtifactManifest:
        """name: of the file, for messages.  Raises FileError, which says what else it is."""
        value = decode_json(data, f"{name}: the manifest")
        if value.get("artifactType") != ARTIFACT_TYPE or value.get("mediaType") != MEDIA_TYPE:
            raise FileError(
                f"{name} is not a sealed checkpoint but {_kind(value)}",
                hint="`sealpoint list` shows the sealed files of a repository",
            )
        layers = value.get("layers")
        if value.get("schemaVersion") != 2 or type(layers) is not list or len(layers) < 2:
            raise _malformed(name, "it needs a head and a body")
        head, *body = (_blob(each, name) for each in layers)
        if head[0] != HEAD_TYPE or any(kind != BODY_TYPE for kind, _ in body):
            raise _malformed(name, "its layers are not one head and then the body")
        title, properties = _annotations(value.get("annotations", {}), name)
        found = cls(head[1], tuple(blob for _, blob in body), title, properties)
        if not PREAMBLE_SIZE < found.head.size <= MAX_HEAD:
            raise _malformed(name, "its head has an impossible size")
        if any(not 0 < blob.size <= _MAX_BODY for blob in found.body) or found.size > _MAX_BODY:
            raise _malformed(name, "its body has an impossible size")
        return found


def only_layer(data: bytes, name: str) -> Blob | None:
    """The layer of an artifact of someone else that has one: it may be a whole sealed file.  Raises FileError."""
    value = decode_json(data, f"{name}: the manifest")
    layers = value.get("layers")
    if value.get("mediaType", MEDIA_TYPE) not in {MEDIA_TYPE, DOCKER_TYPE}:
        return None
    if value.get("artifactType") == ARTIFACT_TYPE or type(layers) is not list or len(layers) != 1:
        return None
    _, blob = _blob(layers[0], name)
    return blob if PREAMBLE_SIZE < blob.size <= _MAX_BODY else None


def digest_of(data: bytes) -> str:
    """As registries name it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def decode_json(data: bytes, what: str) -> dict[str, Any]:
    """An object without duplicate names, fractions, NaN and halves of characters.

    what: for messages.  Raises FileError.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError("a name occurs twice")
        return found

    def number(_: str) -> NoReturn:
        raise ValueError("a number is not an integer")

    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=pairs, parse_float=number, parse_constant=number
        )
        # Half a surrogate pair can be escaped in JSON, but neither sent nor printed.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise FileError(f"{what} is malformed") from None
    if type(value) is not dict:
        raise FileError(f"{what} is malformed")
    return value


def _malformed(name: str, why: str) -> FileError:
    return FileError(f"{name}: the manifest is malformed: {why}")


def _blob(layer: Any, name: str) -> tuple[Any, Blob]:
    """Its media type, and the blob."""
    if type(layer) is not dict or not is_digest(layer.get("digest")):
        raise _malformed(name, "a layer has no SHA-256 digest")
    size = layer.get("size")
    if type(size) is not int:
        raise _malformed(name, "a layer has no size")
    return layer.get("mediaType"), Blob(layer["digest"], size)


def _annotations(value: Any, name: str) -> tuple[str, dict[str, str]]:
    """Title and the rest."""
    if type(value) is not dict or any(type(text) is not str for text in value.values()):
        raise _malformed(name, "its annotations hold something other than text")
    properties = dict(value)
    title = properties.pop(TITLE, "")
    if len(properties) > _MAX_PROPERTIES:
        raise _malformed(name, "it has too many annotations")
    return title, properties


def _kind(value: dict[str, Any]) -> str:
    """What a manifest of someone else is, for a message."""
    media = value.get("mediaType")
    config = value.get("config")
    inner = config.get("mediaType") if type(config) is dict else None
    for found, what in (
        (value.get("artifactType"), "an artifact of the type"),
        (media if media != MEDIA_TYPE else None, "something of the type"),
        (inner, "an image with a configuration of the type"),
    ):
        if type(found) is str and found:
            return f"{what} {printable(found)[:128]}"
    return "something of an unknown type"
