"""Public keys as one line of text: `sealpoint-<kind>:` + base64url(bytes || checksum), without padding.

The checksum is the first 4 bytes of SHA-256("sealpoint recipient" || kind || bytes), for a signer of
SHA-256("sealpoint signer" || bytes).  It catches a key cut off or mistyped; it is no
protection against anyone.  Only the canonical spelling is accepted, so one key has one text.
"""

from __future__ import annotations

import base64
import hashlib
import re

from sealpoint.errors import IdentityError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys.base import KIND_NAMES

RECIPIENT_KINDS = (StanzaKind.HYBRID, StanzaKind.X25519, StanzaKind.P256, StanzaKind.P384)
_SIGNER = "signer"
_CHECKSUM = 4
_LITERAL = re.compile(r"sealpoint-([a-z0-9]+):", re.ASCII)


def is_literal(text: str) -> bool:
    """Whether `text` is meant as a key and not as a path (a path that looks like one can be given as ./…)."""
    return _LITERAL.match(text) is not None


def encode_recipient(kind: StanzaKind, public: bytes) -> str:
    """For instance `sealpoint-hybrid:…`."""
    return _encode(KIND_NAMES[kind], public)


def decode_recipient(text: str) -> tuple[StanzaKind, bytes]:
    """Kind and public key bytes, whose meaning is not checked here.  Raises IdentityError."""
    name, public = _decode(text)
    for kind in RECIPIENT_KINDS:
        if KIND_NAMES[kind] == name:
            return kind, public
    if name == _SIGNER:
        raise IdentityError("this is a signer, not a recipient", hint="signers go to --trust")
    raise IdentityError(f"a recipient of an unknown kind, {name[:20]!r}")


def encode_signer(spki: bytes) -> str:
    """`sealpoint-signer:…` of a SubjectPublicKeyInfo in DER."""
    return _encode(_SIGNER, spki)


def decode_signer(text: str) -> bytes:
    """The SubjectPublicKeyInfo bytes, not parsed.  Raises IdentityError."""
    name, spki = _decode(text)
    if name != _SIGNER:
        raise IdentityError("this is a recipient, not a signer", hint="recipients go to -r")
    return spki


def _encode(name: str, data: bytes) -> str:
    body = base64.urlsafe_b64encode(data + _checksum(name, data))
    return f"sealpoint-{name}:{body.rstrip(b'=').decode()}"


def _decode(text: str) -> tuple[str, bytes]:
    match = _LITERAL.match(text)
    if match is None:
        raise IdentityError("not the text of a key", hint="it begins with sealpoint- and a kind")
    name, digits = match[1], text[match.end() :]
    try:
        body = base64.b64decode(digits + "=" * (-len(digits) % 4), altchars=b"-_", validate=True)
    except ValueError:  # binascii.Error is one
        body = b""
    data, found = body[:-_CHECKSUM], body[-_CHECKSUM:]
    if not data or base64.urlsafe_b64encode(body).rstrip(b"=").decode() != digits:
        raise IdentityError("the text of the key is damaged, or something follows it")
    if found != _checksum(name, data):
        raise IdentityError("the text of the key has a wrong checksum: mistyped or cut off")
    return name, data


def _checksum(name: str, data: bytes) -> bytes:
    label = b"sealpoint signer" if name == _SIGNER else b"sealpoint recipient" + name.encode()
    return hashlib.sha256(label + data).digest()[:_CHECKSUM]
