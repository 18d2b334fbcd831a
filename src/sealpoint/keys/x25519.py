"""X25519 keys (HPKE).  Both sides are the 32 raw bytes of RFC 7748."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from sealpoint.errors import IdentityError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys.hpke import HpkeIdentity, HpkeRecipient

_SIZE = 32


def recipient(public: bytes) -> HpkeRecipient:
    """From 32 bytes.  Raises IdentityError."""
    if len(public) != _SIZE:
        raise IdentityError(f"an X25519 public key has {_SIZE} bytes, not {len(public)}")
    return HpkeRecipient(StanzaKind.X25519, public, X25519PublicKey.from_public_bytes(public))


def identity(private: bytes) -> HpkeIdentity:
    """From 32 bytes.  Raises IdentityError."""
    if len(private) != _SIZE:
        raise IdentityError("not an X25519 private key")
    return from_key(X25519PrivateKey.from_private_bytes(private))


def from_key(key: X25519PrivateKey) -> HpkeIdentity:
    """From a private key that was read from PKCS#8."""
    return HpkeIdentity(key, recipient(key.public_key().public_bytes_raw()))


def generate() -> bytes:
    """A new private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()
