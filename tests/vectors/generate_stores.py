"""Makes the vectors in stores/: `python -m tests.vectors.generate_stores` (docs/spec.md, Test vectors).

Each is what lies in a store, made of slices of the files of other vectors, and which file a reader must see there.
They come out the same each time; a test compares them with what is on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sealpoint.format.preamble import Preamble
from tests.vectors_reader import load, unpack

HERE = Path(__file__).resolve().parent / "stores"
FILE, REKEYED, FOREIGN = "aes-256-gcm", "rekeyed", "chacha20-poly1305"
PARTS = "5ea1ed00" * 4
OCI = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
OURS = "application/vnd.sealpoint"

Vector = dict[str, Any]
Piece = dict[str, Any]


class Files:
    """The files of other vectors, and slices of them."""

    def __init__(self) -> None:
        self.vectors = load()
        self.data = {n: unpack(self.vectors[n], self.vectors) for n in (FILE, REKEYED, FOREIGN)}
        self.head_size = Preamble.decode(self.data[FILE][:64]).frames_offset

    def head(self, name: str) -> list[Piece]:
        return [{"vector": name, "from": 0, "to": self.head_size}]

    def rest(self, name: str, start: int = 0, end: int | None = None) -> list[Piece]:
        """Of the body: bytes `start` to `end` of it."""
        size = len(self.data[name])
        first = self.head_size + start
        last = size if end is None else self.head_size + end
        return [{"vector": name, "from": first, "to": last}]

    def bytes_of(self, pieces: list[Piece]) -> bytes:
        return contents(pieces, self.data)


def contents(pieces: list[Piece], files: dict[str, bytes]) -> bytes:
    """What an object or a blob holds.  files: by the names of their vectors."""
    found = bytearray()
    for piece in pieces:
        if "text" in piece:
            found += piece["text"].encode()
        else:
            found += files[piece["vector"]][piece["from"] : piece["to"]]
    return bytes(found)


def etag(data: bytes) -> str:
    """As S3 makes it of an object that was put by one request."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _bucket(files: Files) -> Iterator[Vector]:
    body, head = files.rest(FILE), files.head(FILE)
    where = f"file.parts/{PARTS}"
    first, second = (f"{where}/head-{n:09d}" for n in range(2))

    def record(sequence: int = 0, **changes: Any) -> list[Piece]:
        value = {
            "format": "sealpoint.dev/bucket/v1",
            "parts": PARTS,
            "checkpoint": Preamble.decode(files.data[FILE][:64]).checkpoint_id.hex(),
            "head": {
                "size": str(files.head_size),
                "sequence": str(sequence),
                "etag": etag(files.bytes_of(head)),
            },
            "body": {
                "size": str(len(files.bytes_of(body))),
                "etag": etag(files.bytes_of(body)),
            },
            "properties": {},
        } | changes
        return [{"text": json.dumps(value, separators=(",", ":"))}]

    def vector(name: str, what: str, objects: dict[str, list[Piece]], file: str | None) -> Vector:
        objects = {"file": record(), f"{where}/body": body} | objects
        return _vector(f"bucket-{name}", what, file, {"objects": objects})

    yield vector("good", "a record, a head and a body", {first: head}, FILE)
    yield vector("head-missing", "no head at all", {}, None)
    yield vector(
        "head-missing-body-there-twice", "the body in place of a head", {first: body}, None
    )
    yield vector(
        "two-heads",
        "a rekey that was killed before the record: the higher head counts",
        {first: head, second: files.head(REKEYED)},
        REKEYED,
    )
    yield vector(
        "two-heads-higher-cut",
        "the higher head is cut: it is passed over",
        {first: head, second: [files.head(REKEYED)[0] | {"to": 1000}]},
        FILE,
    )
    yield vector(
        "head-put-back",
        "a head below the one that the record names, put back",
        {"file": record(1), first: head},
        None,
    )
    yield vector(
        "head-foreign",
        "the head of another checkpoint",
        {first: files.head(FOREIGN)},
        None,
    )
    yield vector(
        "two-heads-higher-foreign",
        "the higher head is of another checkpoint: it is passed over",
        {first: head, second: files.head(FOREIGN)},
        FILE,
    )
    yield vector(
        "head-number-of-ten-digits",
        "no head, for its number has not nine digits",
        {f"{where}/head-0000000000": head},
        None,
    )
    yield vector("head-slots-foreign", "the head has another file's slots", {
        first: [
            {"vector": FILE, "from": 0, "to": 64},
            {"vector": FOREIGN, "from": 64, "to": files.head_size},
        ]
    }, None)  # fmt: skip
    yield vector(
        "body-exchanged",
        "a body that the record does not name",
        {first: head, f"{where}/body": files.rest(FOREIGN)},
        None,
    )
    yield vector(
        "record-of-another-body",
        "a record that names the body of another checkpoint",
        {
            "file": record(
                body={
                    "size": str(len(files.bytes_of(files.rest(FOREIGN)))),
                    "etag": etag(files.bytes_of(files.rest(FOREIGN))),
                }
            ),
            first: head,
            f"{where}/body": files.rest(FOREIGN),
        },
        None,
    )
    for name, changes in (
        ("record-of-another-format", {"format": "sealpoint.dev/bucket/v2"}),
        ("record-with-an-unknown-member", {"more": "of it"}),
        ("record-with-a-number", {"body": {"size": 1, "etag": '"e"'}}),
        ("record-leads-elsewhere", {"parts": "../" + PARTS[3:]}),
    ):
        yield vector(name, name.replace("-", " "), {"file": record(**changes), first: head}, None)
    whole = [{"vector": FILE, "from": 0, "to": len(files.data[FILE])}]
    yield _vector("bucket-plain", "a whole file under its name", FILE, {"objects": {"file": whole}})
    cut = [whole[0] | {"to": len(files.data[FILE]) - 1}]
    yield _vector("bucket-plain-cut", "the same without its end", None, {"objects": {"file": cut}})


def _registry(files: Files) -> Iterator[Vector]:
    body, head = files.rest(FILE), files.head(FILE)

    def vector(
        name: str,
        what: str,
        layers: list[tuple[str, list[Piece]]],
        file: str | None,
        kind: str = f"{OURS}.checkpoint.v1",
    ) -> Vector:
        blobs = {_digest(b"{}"): [{"text": "{}"}]}
        listed = []
        for media, pieces in layers:
            data = files.bytes_of(pieces)
            blobs[_digest(data)] = pieces
            listed.append({"mediaType": media, "digest": _digest(data), "size": len(data)})
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI,
            "artifactType": kind,
            "config": {"mediaType": EMPTY, "digest": _digest(b"{}"), "size": 2},
            "layers": listed,
        }
        return _vector(
            f"registry-{name}", what, file, {"manifest": json.dumps(manifest), "blobs": blobs}
        )

    is_head, is_body = f"{OURS}.head.v1", f"{OURS}.body.v1"
    yield vector("good", "a head and a body", [(is_head, head), (is_body, body)], FILE)
    split = [files.rest(FILE, 0, 1000), files.rest(FILE, 1000)]
    yield vector(
        "two-layers",
        "a body of two layers",
        [(is_head, head), *((is_body, layer) for layer in split)],
        FILE,
    )
    yield vector(
        "layers-swapped",
        "the layers of a body in another order",
        [(is_head, head), *((is_body, layer) for layer in reversed(split))],
        None,
    )
    yield vector("head-missing", "no head", [(is_body, layer) for layer in split], None)
    yield vector("body-missing", "no body", [(is_head, head)], None)
    yield vector(
        "two-heads",
        "two heads",
        [(is_head, head), (is_head, files.head(REKEYED)), (is_body, body)],
        None,
    )
    yield vector("head-last", "a head behind the body", [(is_body, body), (is_head, head)], None)
    yield vector(
        "head-foreign",
        "the head of another checkpoint",
        [(is_head, files.head(FOREIGN)), (is_body, body)],
        None,
    )
    yield vector(
        "head-cut",
        "a head that is shorter than its preamble says",
        [(is_head, [head[0] | {"to": files.head_size - 1}]), (is_body, body)],
        None,
    )
    yield vector(
        "layer-of-another-type",
        "a layer that is neither head nor body",
        [(is_head, head), ("application/octet-stream", body)],
        None,
    )
    yield vector(
        "another-artifact",
        "layers as in a sealed file, in an artifact of another type",
        [(is_head, head), (is_body, body)],
        None,
        "application/vnd.example.thing",
    )

    whole = [{"vector": FILE, "from": 0, "to": len(files.data[FILE])}]
    octets, other = "application/octet-stream", "application/vnd.example.thing"
    yield vector(
        "plain", "a whole file in one layer of another type", [(octets, whole)], FILE, other
    )
    cut = [whole[0] | {"to": len(files.data[FILE]) - 1}]
    yield vector("plain-cut", "the same without its end", [(octets, cut)], None, other)
    yield vector("plain-twice", "two such layers", [(octets, whole), (octets, whole)], None, other)
    yield vector("plain-as-ours", "a whole file in one layer of ours", [(is_body, whole)], None)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _vector(name: str, what: str, file: str | None, more: Vector) -> Vector:
    return {"name": name, "what": what, "file": file, **more}


def made() -> Iterator[Vector]:
    """All of them."""
    files = Files()
    yield from _bucket(files)
    yield from _registry(files)


def main() -> None:
    for old in HERE.glob("*.json"):
        old.unlink()
    for vector in made():
        text = json.dumps(vector, indent=1)
        (HERE / f"{vector['name']}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
