"""Reads the vectors of tests/vectors and drives the reader with one of them, real keys and real trust included."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_der_private_key

from sealpoint.checkpoint.opening.access import unwrap_with
from sealpoint.checkpoint.opening.stored_pages import WithChunks, check_references, refers
from sealpoint.chunks.directory import ChunkFinder
from sealpoint.errors import FileError, IdentityError, PolicyError, SealpointError, UsageError
from sealpoint.format.constants import StanzaKind
from sealpoint.format.opened import OpenFile
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.keys import Identity, TrustedKey, TrustPolicy, hybrid, nist, scrypt, x25519
from sealpoint.keys.rsa import RsaIdentity

HERE = Path(__file__).resolve().parent / "vectors"
OUTCOMES = {
    FileError: "file",
    IdentityError: "identity",
    PolicyError: "policy",
    UsageError: "usage",
}


def load() -> dict[str, dict[str, Any]]:
    """All vectors by name."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(HERE.glob("*.json"))}


def unpack(vector: dict[str, Any], stored: dict[str, dict[str, Any]] | None = None) -> bytes:
    """The sealed file of a vector."""
    if "file" in vector:
        return zlib.decompress(base64.b64decode(vector["file"]))
    base = (stored or {}).get(vector["base"]) or json.loads(
        (HERE / f"{vector['base']}.json").read_text()
    )
    return apply(unpack(base, stored), vector["edits"])


def apply(data: bytes, edits: list) -> bytes:
    done, made = 0, bytearray()
    for offset, length, new in edits:
        made += data[done:offset] + bytes.fromhex(new)
        done = offset + length
    return bytes(made) + data[done:]


def identity_of(value: dict[str, str]) -> Identity:
    kind = value["kind"]
    if kind == "passphrase":
        return scrypt.passphrase_identity(value["text"].encode())
    if kind == "rsa":
        return RsaIdentity(load_der_private_key(bytes.fromhex(value["pkcs8"]), None))
    private = bytes.fromhex(value["private"])
    if kind in ("p256", "p384"):
        return nist.identity(StanzaKind[kind.upper()], private)
    return {"hybrid": hybrid, "x25519": x25519}[kind].identity(private)


def chunks_of(
    vector: dict[str, Any], stored: dict[str, dict[str, Any]] | None = None
) -> dict[bytes, bytes]:
    """The chunk store of a vector: its own chunks on top of those of its base."""
    found: dict[bytes, bytes] = {}
    if "base" in vector:
        base = (stored or {}).get(vector["base"]) or json.loads(
            (HERE / f"{vector['base']}.json").read_text()
        )
        found = chunks_of(base, stored)
    for name, data in vector.get("chunks", {}).items():
        if data is None:
            del found[bytes.fromhex(name)]
        else:
            found[bytes.fromhex(name)] = base64.b64decode(data)
    return found


@contextlib.contextmanager
def store_of(chunks: dict[bytes, bytes]) -> Iterator[ChunkFinder]:
    """Where a reader finds them."""
    with tempfile.TemporaryDirectory(prefix="sealpoint-vectors-") as directory:
        (Path(directory) / "chunks").mkdir()
        for identifier, data in chunks.items():
            path = Path(directory) / "chunks" / identifier.hex()[:2] / identifier.hex()
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        yield ChunkFinder(None, [directory])


def read(
    vector: dict[str, Any],
    data: bytes,
    spy: Callable[[Any], None] = lambda _: None,
    stored: dict[str, dict[str, Any]] | None = None,
) -> dict[str, bytes]:
    """Everything within reach of the vector's identity.  `spy` gets the roots."""
    with store_of(chunks_of(vector, stored)) as finder:
        return _read(vector, data, spy, finder)


def _read(
    vector: dict[str, Any], data: bytes, spy: Callable[[Any], None], finder: ChunkFinder
) -> dict[str, bytes]:
    keys = [bytes.fromhex(s) for s in vector["trust"]]
    pinned = tuple(TrustedKey(hashlib.sha256(k).hexdigest(), "a signer", k) for k in keys)
    policy = TrustPolicy(pinned=pinned, allow_unsigned=not pinned)
    fd = os.memfd_create("vector")
    try:
        os.write(fd, data)
        authentic = SealedFile(Descriptor(fd)).authenticate(
            lambda envelope: policy.evaluate(envelope).key_ids,
            repair=vector.get("repair", False),
            newest=vector.get("newest", 0),
        )
        authentic.check_frames()
        check_references(authentic, finder, lambda _: None)
        opened = OpenFile.unlock(authentic, unwrap_with([identity_of(vector["identity"])]))
        spy(opened.roots)
        if refers(opened):
            opened = WithChunks(opened, finder)
        opened.verify_all()
        return {
            name: opened.read_bytes(entry)
            for name, entry in opened.entries.items()
            if opened.is_whole(entry)
        }
    finally:
        os.close(fd)


def outcome(
    vector: dict[str, Any], data: bytes, stored: dict[str, dict[str, Any]] | None = None
) -> tuple[str, dict[str, str]]:
    """The outcome class, and on success the SHA-256 of every object."""
    try:
        found = read(vector, data, stored=stored)
    except SealpointError as error:
        return OUTCOMES[type(error)], {}
    return "success", {name: hashlib.sha256(d).hexdigest() for name, d in sorted(found.items())}
