"""Recipient stanzas: how a header slot carries the roots wrapped for one recipient.

Out of scope: the wrapping itself (`sealpoint.keys`), which needs keys; here are only bytes and the binding context.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from sealpoint.errors import FileError, UsageError
from sealpoint.format.constants import (
    HASH_SIZE,
    LABEL,
    MAX_STANZA_BODY,
    MAX_STANZAS,
    Roots,
    StanzaKind,
    Suite,
)

_HEAD = struct.Struct("<BBH")  # kind, roots, length of body
_COUNT = struct.Struct("<H")


class Stanza(NamedTuple):
    """The roots wrapped for one recipient.

    kind: how; roots: which; fingerprint: 32 bytes, SHA-256 of the recipient's public key bytes (32 zero bytes for
    scrypt); body: what the recipient's kind needs to unwrap, at most 4096 bytes.
    """

    kind: StanzaKind
    roots: Roots
    fingerprint: bytes
    body: bytes


class WrapContext(NamedTuple):
    """What every wrap is bound to, so that a stanza cannot be moved to another file or claim other roots."""

    suite: Suite
    checkpoint_id: bytes
    roots: Roots

    def info(self, kind: StanzaKind, fingerprint: bytes) -> bytes:
        """HPKE `info`, OAEP label and scrypt AAD: length-prefixed fields (u16 LE each), in this order."""
        fields = (
            LABEL,
            bytes([kind]),
            bytes([self.suite]),
            self.checkpoint_id,
            bytes([self.roots]),
            fingerprint,
        )
        return b"".join(len(f).to_bytes(2, "little") + f for f in fields)


def encode_stanzas(stanzas: list[Stanza]) -> bytes:
    """u16 count, then each {u8 kind, u8 roots, u16 body length, 32-byte fingerprint, body}, little-endian.

    Raises UsageError.
    """
    if len(stanzas) > MAX_STANZAS or any(len(s.body) > MAX_STANZA_BODY for s in stanzas):
        raise UsageError(f"too many recipients, or too large ones (at most {MAX_STANZAS} fit)")
    parts = [_COUNT.pack(len(stanzas))]
    for s in stanzas:
        parts += [_HEAD.pack(s.kind, s.roots, len(s.body)), s.fingerprint, s.body]
    return b"".join(parts)


def decode_stanzas(data: bytes) -> list[Stanza]:
    """Inverse of `encode_stanzas`.  The whole input must be used.  Raises FileError."""
    if len(data) < _COUNT.size:
        raise FileError("header slot: recipient list is cut short")
    (count,) = _COUNT.unpack_from(data)
    if not 1 <= count <= MAX_STANZAS:
        raise FileError(f"header slot: {count} recipients (1 to {MAX_STANZAS} are allowed)")
    at, stanzas = _COUNT.size, []
    for number in range(count):
        if len(data) - at < _HEAD.size + HASH_SIZE:
            raise FileError(f"header slot: recipient {number} is cut short")
        kind, roots, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if size > MAX_STANZA_BODY or len(data) - at - HASH_SIZE < size:
            raise FileError(f"header slot: recipient {number} has an impossible length")
        try:
            stanza = Stanza(
                StanzaKind(kind),
                Roots(roots),
                data[at : at + HASH_SIZE],
                data[at + HASH_SIZE : at + HASH_SIZE + size],
            )
        except ValueError:
            raise FileError(f"header slot: recipient {number} is of an unknown kind") from None
        at += HASH_SIZE + size
        stanzas.append(stanza)
    if at != len(data):
        raise FileError("header slot: bytes after the last recipient")
    if any(s.kind is StanzaKind.SCRYPT for s in stanzas) and len(stanzas) != 1:
        raise FileError("header slot: a passphrase stands beside other recipients")
    if len({s.fingerprint for s in stanzas}) != len(stanzas):
        raise FileError("header slot: a recipient is listed twice")
    return stanzas
