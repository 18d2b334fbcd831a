"""P-256 and P-384 keys (HPKE), bare or from an X.509 certificate.

Public: the uncompressed X9.62 point, 65 or 97 bytes.  Private: the scalar, big-endian, 32 or 48 bytes.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from sealpoint.errors import IdentityError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys.base import KIND_NAMES
from sealpoint.keys.hpke import HpkeIdentity, HpkeRecipient

_CURVES: dict[StanzaKind, ec.EllipticCurve] = {
    StanzaKind.P256: ec.SECP256R1(),
    StanzaKind.P384: ec.SECP384R1(),
}


def recipient(kind: StanzaKind, public: bytes) -> HpkeRecipient:
    """From an uncompressed point.  Raises IdentityError, also for a point that is not on the curve."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[kind], public)
        if _point(key) == public:  # not the compressed form: one key, one fingerprint
            return HpkeRecipient(kind, public, key)
    except ValueError:
        pass
    raise IdentityError(f"not a {KIND_NAMES[kind]} public key")


def recipient_from_key(key: ec.EllipticCurvePublicKey, *, name: str | None = None) -> HpkeRecipient:
    """From the key of a certificate.  Raises IdentityError for other curves."""
    return HpkeRecipient(_kind_of(key.curve), _point(key), key, name)


def identity(kind: StanzaKind, private: bytes) -> HpkeIdentity:
    """From a scalar.  Raises IdentityError, also for one outside the order of the curve."""
    curve = _CURVES[kind]
    if len(private) == (curve.key_size + 7) // 8:
        try:
            return from_key(ec.derive_private_key(int.from_bytes(private, "big"), curve))
        except ValueError:
            pass
    raise IdentityError(f"not a {KIND_NAMES[kind]} private key")


def from_key(key: ec.EllipticCurvePrivateKey) -> HpkeIdentity:
    """From a private key that was read from PKCS#8 or SEC1.  Raises IdentityError for other curves."""
    return HpkeIdentity(key, recipient_from_key(key.public_key()))


def generate(kind: StanzaKind) -> bytes:
    """A new private key, 32 or 48 bytes."""
    curve = _CURVES[kind]
    scalar = ec.generate_private_key(curve).private_numbers().private_value
    return scalar.to_bytes((curve.key_size + 7) // 8, "big")


def _kind_of(curve: ec.EllipticCurve) -> StanzaKind:
    for kind, known in _CURVES.items():
        if type(known) is type(curve):
            return kind
    raise IdentityError(
        f"keys on the curve {curve.name} are not supported", hint="use P-256 or P-384"
    )


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
