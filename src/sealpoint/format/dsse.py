"""DSSE envelopes (Dead Simple Signing Envelope v1.0.2): encoding, strict decoding and the PAE to be signed.

Written here rather than taken from a library because a reader must verify the exact received bytes and accept one
encoding only (no duplicate keys, no unknown fields, canonical base64); a test verifies our envelopes with an
independent implementation.  One addition to DSSE: a signature carries the public key that checks it (`publicKey`) or
the signer's X.509 chain (`certificates`), so that a reader without a trust list can still name the signer.  Both are
untrusted until a policy says otherwise; the payload names the signing key, which binds it (docs/spec.md, Statements).
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from sealpoint.errors import FileError
from sealpoint.format import strictjson
from sealpoint.format.strictjson import parse_base64

MAX_SIGNATURES = 8  # bounds the public-key operations that a stranger's file can cause
MAX_CERTIFICATES = 8


class Signature(NamedTuple):
    """One signature over the PAE.

    keyid: lower-case hex SHA-256 of the key's SubjectPublicKeyInfo (a hint); sig: raw signature bytes;
    public_key: SubjectPublicKeyInfo DER, or empty where certificates (DER, leaf first) carry the key.  One of the two
    is always there.
    """

    keyid: str
    sig: bytes
    public_key: bytes = b""
    certificates: tuple[bytes, ...] = ()


class Envelope(NamedTuple):
    """A decoded envelope.  `payload` is the exact bytes that were signed."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def pae(self) -> bytes:
        """The bytes that every signature covers."""
        return pae(self.payload_type, self.payload)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def encode(envelope: Envelope) -> bytes:
    """The JSON form as stored in the file."""
    signatures: list[dict[str, Any]] = []
    for s in envelope.signatures:
        entry: dict[str, Any] = {"keyid": s.keyid, "sig": _b64(s.sig)}
        if s.public_key:
            entry["publicKey"] = _b64(s.public_key)
        if s.certificates:
            entry["certificates"] = [_b64(c) for c in s.certificates]
        signatures.append(entry)
    return strictjson.encode(
        {
            "payload": _b64(envelope.payload),
            "payloadType": envelope.payload_type,
            "signatures": signatures,
        }
    )


def decode(data: bytes, payload_type: str, what: str) -> Envelope:
    """Decode and insist on `payload_type`.  Signatures are not checked here; there may be none.  Raises FileError."""
    fields = strictjson.Fields(strictjson.decode(data, what), what)
    found = fields.text("payloadType", limit=256)
    if found != payload_type:
        raise FileError(f"{what}: is of type {found!r}, not {payload_type!r}")
    payload = parse_base64(fields.text("payload", limit=1 << 20), what)
    signatures = []
    for value in fields.array("signatures", limit=MAX_SIGNATURES):
        entry = strictjson.Fields(value, f"{what}: signature")
        keyid = entry.text("keyid", limit=128)
        sig = parse_base64(entry.text("sig", limit=4096), what)
        public_key = b""
        if entry.has("publicKey"):
            public_key = parse_base64(entry.text("publicKey", limit=4096), what)
        certificates: tuple[bytes, ...] = ()
        if entry.has("certificates"):
            chain = entry.array("certificates", limit=MAX_CERTIFICATES)
            certificates = tuple(parse_base64(c, what) for c in chain)
        entry.done()
        if bool(public_key) == bool(certificates):
            raise FileError(f"{what}: a signature carries either its key or certificates")
        signatures.append(Signature(keyid, sig, public_key, certificates))
    fields.done()
    envelope = Envelope(payload_type, payload, tuple(signatures))
    if encode(envelope) != data:
        # One encoding only: a second spelling of the same statement would be a way to change bytes unnoticed.  Spelling
        # as JSON was compared already; this is about the order of keys.
        raise FileError(f"{what}: not in canonical form")
    return envelope


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
