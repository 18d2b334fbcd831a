"""identity.key of the kinds that have no standard file: one PEM-like block in a file of its own.

"SEALPOINT IDENTITY" holds u8 version = 1 || u8 kind || key bytes.  "SEALPOINT ENCRYPTED IDENTITY" holds
u8 version = 1 || salt 16 || u8 log2 N || AES-256-GCM of that, as a passphrase stanza does (`scrypt`); the AAD is the
label || version, and salt and N enter the key.  Lines that start with # may stand before the block.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag

from sealpoint.errors import IdentityError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys import scrypt
from sealpoint.keys.files import PemBlock, decode_armour, encode_armour

PLAIN = "SEALPOINT IDENTITY"
ENCRYPTED = "SEALPOINT ENCRYPTED IDENTITY"
_VERSION = 1
_AAD = ENCRYPTED.encode() + bytes([_VERSION])


def encode(
    kind: StanzaKind,
    private: bytes,
    passphrase: bytes | None,
    *,
    log2_n: int = scrypt.DEFAULT_LOG2_N,
) -> bytes:
    """The block.  `private`: key bytes of `kind`."""
    payload = bytes([_VERSION, kind]) + private
    if passphrase is None:
        return encode_armour(PLAIN, payload)
    sealed = scrypt.seal(passphrase, payload, _AAD, log2_n)
    return encode_armour(ENCRYPTED, bytes([_VERSION]) + sealed)


def decode(data: bytes, block: PemBlock, passphrase: bytes | None) -> tuple[StanzaKind, bytes]:
    """Kind and key bytes out of a file `data` whose only block is `block`.

    `passphrase` is used if the block is encrypted.  Raises IdentityError.
    """
    before, _, after = data.partition(block.text)
    if after.strip() or any(line and not line.startswith(b"#") for line in before.splitlines()):
        raise IdentityError("the file holds something besides the key")
    payload = decode_armour(block)
    if payload[:1] != bytes([_VERSION]):
        raise IdentityError("an identity of an unknown version")
    if block.label == ENCRYPTED:
        payload = _decrypt(payload[1:], passphrase or b"")
    if len(payload) < 2 or payload[0] != _VERSION:
        raise IdentityError("an identity of an unknown version")
    try:
        return StanzaKind(payload[1]), payload[2:]
    except ValueError:
        raise IdentityError("an identity of an unknown kind") from None


def _decrypt(body: bytes, passphrase: bytes) -> bytes:
    try:
        return scrypt.unseal(passphrase, body, _AAD)
    except (InvalidTag, ValueError):
        pass
    raise IdentityError("wrong passphrase, or the file is damaged")
