"""Manifests: the encrypted tables of contents, one per role (docs/spec.md, Manifests).

The metadata manifest lists metadata objects in full and of memory objects only number and size; the memory manifest
lists memory objects in full.  Both are strict JSON inside an ordinary chunk stream.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sealpoint.errors import FileError
from sealpoint.format import attributes, strictjson
from sealpoint.format.constants import (
    FIRST_OBJECT,
    MAX_CHUNK,
    MAX_FRAMES,
    MAX_MANIFEST,
    MAX_OBJECT_NUMBER,
    MAX_OBJECTS,
    MIN_CHUNK,
    PAD_GRANULE,
    Codec,
    Role,
)
from sealpoint.format.strictjson import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIZE = struct.Struct("<Q")
_CODECS = frozenset(Codec)
_PATH_MAX = 4095  # bytes, Linux
_NAME_MAX = 255


class Stream(NamedTuple):
    """An object that has frames of its own.

    number: its object number; chunk_size: plaintext bytes per chunk; padded: plaintext bytes in all, padding included;
    codecs: one byte per chunk.
    """

    number: int
    chunk_size: int
    padded: int
    codecs: bytes

    @property
    def chunks(self) -> int:
        """How many chunks (and frames); the last holds fewer than `chunk_size` bytes."""
        return len(self.codecs)

    def plain_size(self, counter: int) -> int:
        """Plaintext length of a chunk."""
        return min(self.chunk_size, self.padded - counter * self.chunk_size)


class Entry(NamedTuple):
    """One named object.

    name: relative path; size: plaintext bytes without padding; stream: where its bytes are; offset: where they start
    in that stream (objects in a pack share one stream); attributes: what an archive said of the member, or None.
    """

    number: int
    name: str
    role: Role
    size: int
    stream: Stream
    offset: int = 0
    attributes: dict[str, Any] | None = None


@dataclass(slots=True)
class Manifest:
    """Decoded manifest of one role.  `memory` (metadata manifest only): size of each memory object by number."""

    role: Role
    entries: list[Entry] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    memory: dict[int, int] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)


def check_name(name: str) -> str:
    """A relative path without tricks.  Raises FileError."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise FileError(
            f"the name '{name[:80]}' is not UTF-8, as names in a sealed file must be",
            hint="rename it, or leave it out",
        ) from None
    if (
        not 0 < len(raw) <= _PATH_MAX
        or b"\0" in raw
        or any(p in (b"", b".", b"..") or len(p) > _NAME_MAX for p in raw.split(b"/"))
    ):
        raise FileError(f"object name {name[:80]!r} is not a plain relative path")
    return name


def encode(manifest: Manifest) -> bytes:
    """u64 LE length, JSON, zeros up to a multiple of the padding granule."""
    value: dict[str, Any] = {
        "role": manifest.role.value,
        "properties": manifest.properties,
        "streams": [
            {
                "number": str(s.number),
                "chunk": str(s.chunk_size),
                "padded": str(s.padded),
                "codecs": base64.b64encode(s.codecs).decode(),
            }
            for s in manifest.streams
        ],
        "objects": [_encode_entry(e) for e in manifest.entries],
    }
    if manifest.role is Role.METADATA:
        value["memory"] = [[str(n), str(size)] for n, size in manifest.memory.items()]
    data = strictjson.encode(value)
    if len(data) > MAX_MANIFEST - PAD_GRANULE:
        raise FileError("the checkpoint has more objects than a manifest can list")
    data = _SIZE.pack(len(data)) + data
    return data + bytes(-len(data) % PAD_GRANULE)


def _encode_entry(entry: Entry) -> dict[str, Any]:
    value: dict[str, Any] = {
        "number": str(entry.number),
        "name": entry.name,
        "size": str(entry.size),
        "stream": str(entry.stream.number),
        "offset": str(entry.offset),
    }
    if entry.attributes is not None:
        value["attributes"] = entry.attributes
    return value


def decode(data: memoryview, role: Role) -> Manifest:
    """Inverse of `encode`, with every cross-check that needs no other part of the file.  Raises FileError."""
    what = f"{role.value} manifest"
    if len(data) < _SIZE.size or len(data) % PAD_GRANULE:
        raise FileError(f"{what}: impossible length")
    (size,) = _SIZE.unpack_from(data)
    if size > len(data) - _SIZE.size or any(data[_SIZE.size + size :]):
        raise FileError(f"{what}: impossible length")
    fields = Fields(strictjson.decode(data[_SIZE.size : _SIZE.size + size], what), what)
    if fields.text("role") != role.value:
        raise FileError(f"{what}: is the manifest of another role")
    manifest = Manifest(role)
    properties = fields.fields("properties")
    for key in sorted(properties.keys()):
        manifest.properties[key] = properties.text(key)
    streams: dict[int, Stream] = {}
    for value in fields.array("streams", limit=MAX_OBJECTS):
        stream = _decode_stream(Fields(value, what))
        if stream.number in streams:
            raise FileError(f"{what}: stream {stream.number} is listed twice")
        streams[stream.number] = stream
    manifest.streams = list(streams.values())
    for value in fields.array("objects", limit=MAX_OBJECTS):
        manifest.entries.append(_decode_entry(Fields(value, what), role, streams))
    if role is Role.METADATA:
        for pair in fields.array("memory", limit=MAX_OBJECTS):
            if not isinstance(pair, list) or len(pair) != 2:
                raise FileError(f"{what}: malformed list of memory objects")
            number, object_size = (strictjson.parse_u64(x, what) for x in pair)
            if number in manifest.memory:
                raise FileError(f"{what}: memory object {number} is listed twice")
            manifest.memory[number] = object_size
    fields.done()
    _check_unique(manifest, what)
    return manifest


def _decode_stream(fields: Fields) -> Stream:
    number, chunk, padded = fields.u64("number"), fields.u64("chunk"), fields.u64("padded")
    what = f"{fields.what}: stream {number}: 'codecs'"
    codecs = strictjson.parse_base64(fields.text("codecs", limit=2 * MAX_FRAMES), what)
    fields.done()
    if (
        not FIRST_OBJECT <= number <= MAX_OBJECT_NUMBER
        or not MIN_CHUNK <= chunk <= MAX_CHUNK
        or chunk % MIN_CHUNK
        or len(codecs) != padded // chunk + 1
        or set(codecs) - _CODECS
    ):
        raise FileError(f"{fields.what}: stream {number} contradicts itself")
    return Stream(number, chunk, padded, codecs)


def _decode_entry(fields: Fields, role: Role, streams: dict[int, Stream]) -> Entry:
    number, name, size = fields.u64("number"), check_name(fields.text("name")), fields.u64("size")
    stream, offset = streams.get(fields.u64("stream")), fields.u64("offset")
    value = None
    if fields.has("attributes"):
        value = attributes.check(fields.mapping("attributes"), size, f"{fields.what}: {name!r}")
    fields.done()
    if (
        not FIRST_OBJECT <= number <= MAX_OBJECT_NUMBER
        or stream is None
        or offset + size > stream.padded
    ):
        raise FileError(f"{fields.what}: object {name!r} lies outside its stream")
    return Entry(number, name, role, size, stream, offset, value)


def _check_unique(manifest: Manifest, what: str) -> None:
    numbers = {e.number for e in manifest.entries}
    if len(numbers) != len(manifest.entries) or numbers & manifest.memory.keys():
        raise FileError(f"{what}: an object number is used twice")
    if len({e.name for e in manifest.entries}) != len(manifest.entries):
        raise FileError(f"{what}: an object name is used twice")
    # Objects that shared bytes would let a small file claim any amount of data.
    end: dict[int, int] = {}
    for entry in sorted(manifest.entries, key=lambda e: (e.offset, e.size)):
        if entry.size and entry.offset < end.get(entry.stream.number, 0):
            raise FileError(f"{what}: object {entry.name!r} overlaps another")
        end[entry.stream.number] = max(entry.offset + entry.size, end.get(entry.stream.number, 0))
    if len(end) != len(manifest.streams):
        raise FileError(f"{what}: lists a stream that no object uses")


def check_together(manifests: Mapping[Role, Manifest]) -> dict[str, Entry]:
    """Cross-checks of the manifests within reach; returns all objects by name.  Raises FileError."""
    entries: dict[str, Entry] = {}
    streams: set[int] = set()
    for table in manifests.values():
        for entry in table.entries:
            if entries.setdefault(entry.name, entry) is not entry:
                raise FileError(f"both manifests list {entry.name!r}")
        numbers = {s.number for s in table.streams}
        if numbers & streams:
            raise FileError("both manifests list the same stream")
        streams |= numbers
    for name in entries:
        for end in (at for at, letter in enumerate(name) if letter == "/"):
            above = entries.get(name[:end])
            # Whoever writes `a` as a link and then `a/b` writes somewhere else.
            if above is not None and not attributes.is_directory(above.attributes):
                raise FileError(f"object {name!r} lies below one that is not a directory")
    if Role.MEMORY in manifests:
        memory = {e.number: e.size for e in manifests[Role.MEMORY].entries}
        if manifests[Role.METADATA].memory != memory:
            raise FileError("the two manifests contradict each other")
    return entries
