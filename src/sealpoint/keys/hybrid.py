"""Hybrid post-quantum keys: ML-KEM-768 with X25519 (HPKE), the default kind.

Safe as long as either of the two holds.  The library has no serialisation for the pair; ours is concatenation:
public = ML-KEM encapsulation key 1184 || X25519 32, private = ML-KEM seed 64 || X25519 32.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

from sealpoint.errors import IdentityError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys.hpke import HpkeIdentity, HpkeRecipient

_PUBLIC = 1184
_SEED = 64
_X25519 = 32


def recipient(public: bytes) -> HpkeRecipient:
    """From 1216 bytes.  Raises IdentityError."""
    if len(public) != _PUBLIC + _X25519:
        raise IdentityError(f"a hybrid public key has {_PUBLIC + _X25519} bytes, not {len(public)}")
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_PUBLIC]),
            X25519PublicKey.from_public_bytes(public[_PUBLIC:]),
        )
    except ValueError:
        raise IdentityError("not a hybrid public key") from None
    return HpkeRecipient(StanzaKind.HYBRID, public, key)


def identity(private: bytes) -> HpkeIdentity:
    """From 96 bytes.  Raises IdentityError."""
    if len(private) != _SEED + _X25519:
        raise IdentityError("not a hybrid private key")
    mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:_SEED])
    x25519 = X25519PrivateKey.from_private_bytes(private[_SEED:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return HpkeIdentity(MLKEM768X25519PrivateKey(mlkem, x25519), recipient(public))


def generate() -> bytes:
    """A new private key, 96 bytes."""
    return (
        MLKEM768PrivateKey.generate().private_bytes_raw()
        + X25519PrivateKey.generate().private_bytes_raw()
    )
