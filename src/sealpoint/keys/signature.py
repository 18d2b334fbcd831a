"""The signature schemes: Ed25519; ECDSA on P-256 with SHA-256 and on P-384 with SHA-384; RSA-PSS.

RSA-PSS is SHA-256 with MGF1-SHA-256 and a salt of 32 bytes, keys of 2048 to 16384 bits.  A key is named by its key id,
the lower-case hex SHA-256 of its SubjectPublicKeyInfo in DER.  The key decides the scheme: nothing is negotiated.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from sealpoint.keys.rsa import MAX_BITS, MIN_BITS

if TYPE_CHECKING:
    from sealpoint.errors import SealpointError

SigningKey: TypeAlias = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | RSAPrivateKey
VerifyingKey: TypeAlias = Ed25519PublicKey | ec.EllipticCurvePublicKey | RSAPublicKey

_SALT = 32
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
}


def scheme(key: Any) -> str | None:
    """Short name of the scheme of a public or private key, None for keys that are not accepted."""
    if isinstance(key, Ed25519PublicKey | Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384"}.get(key.curve.name)
    if isinstance(key, RSAPublicKey | RSAPrivateKey) and MIN_BITS <= key.key_size <= MAX_BITS:
        return "rsa-pss"
    return None


def sign(key: SigningKey, data: bytes) -> bytes:
    """The raw signature (DER for ECDSA).  `key` is one that `scheme` accepts."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(_HASHES[key.curve.name]))
    return key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), _SALT), hashes.SHA256())


def verify(key: VerifyingKey, sig: bytes, data: bytes) -> bool:
    """Whether `sig` is by `key`, which is one that `scheme` accepts."""
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(sig, data)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(sig, data, ec.ECDSA(_HASHES[key.curve.name]))
        else:
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), _SALT)
            key.verify(sig, data, pss, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def spki(key: Any) -> bytes:
    """SubjectPublicKeyInfo in DER of a public key."""
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def key_id(spki_der: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(spki_der).hexdigest()


def display_name(scheme_name: str, key: str) -> str:
    """For instance `ed25519 3f2a9c01d2e4…`."""
    return f"{scheme_name} {key[:12]}…"


def load_public(data: bytes, error: type[SealpointError]) -> tuple[VerifyingKey, str]:
    """Key and scheme out of SubjectPublicKeyInfo, PEM or DER.

    DER must be the canonical spelling, because the key id is its hash.  Raises `error`.
    """
    is_pem = data.startswith(b"-----BEGIN")
    try:
        key = load_pem_public_key(data) if is_pem else load_der_public_key(data)
        if not is_pem and spki(key) != data:
            raise ValueError("not canonical")
    except UnsupportedAlgorithm:
        raise error("a public key of an unsupported type") from None
    except Exception:  # noqa: BLE001 - the library does not say what a damaged key can raise
        raise error("not a valid public key") from None
    name = scheme(key)
    if name is None or not isinstance(key, VerifyingKey):
        raise error("a public key of a type or size that is not accepted for signatures")
    return key, name
