"""Private keys as PKCS#8 PEM (RFC 5958, 8018): what OpenSSL and everything else reads.

The encryption is written here because the library's own uses PBKDF2 with 2048 rounds, which is nothing against today's
guessing.  This one is PBES2 with scrypt (RFC 7914) and AES-256-CBC, N = 2^14 and p = 8: the most memory that OpenSSL
agrees to when it reads, and the time of N = 2^17.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sealpoint.errors import IdentityError
from sealpoint.keys.files import PemBlock, encode_armour

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

WritableKey: TypeAlias = (
    EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey | X25519PrivateKey
)

_LOG2_N, _R, _P = 14, 8, 8
_KEY, _BLOCK, _SALT = 32, 16, 16
_PBES2 = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_SCRYPT = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_AES_256_CBC = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42


def is_encrypted(block: PemBlock) -> bool:
    """Whether a private key block needs a passphrase."""
    return block.label == "ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block.text


def is_private(block: PemBlock) -> bool:
    """PKCS#8, PKCS#1 or SEC1."""
    return block.label.endswith("PRIVATE KEY")


def decode(block: PemBlock, passphrase: bytes | None) -> PrivateKeyTypes:
    """A private key of any type.  Raises IdentityError."""
    encrypted = is_encrypted(block)
    try:
        return load_pem_private_key(block.text, (passphrase or b"") if encrypted else None)
    except UnsupportedAlgorithm:
        raise IdentityError("a private key of an unsupported type") from None
    except Exception:  # noqa: BLE001, S110 - the library does not say what a damaged key can raise
        pass
    if encrypted:
        raise IdentityError("wrong passphrase, or the file is damaged")
    raise IdentityError("not a valid private key")


def encode(key: WritableKey, passphrase: bytes | None) -> bytes:
    """PEM, encrypted if there is a passphrase."""
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    if passphrase is None:
        return encode_armour("PRIVATE KEY", der)
    return encode_armour("ENCRYPTED PRIVATE KEY", _encrypt(der, passphrase))


def _encrypt(der: bytes, passphrase: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES256
    from cryptography.hazmat.primitives.ciphers.modes import CBC
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    salt, iv = os.urandom(_SALT), os.urandom(_BLOCK)
    key = Scrypt(salt=salt, length=_KEY, n=1 << _LOG2_N, r=_R, p=_P).derive(passphrase)
    encryptor = Cipher(AES256(key), CBC(iv)).encryptor()
    pad = _BLOCK - len(der) % _BLOCK
    ciphertext = encryptor.update(der + bytes([pad]) * pad) + encryptor.finalize()
    cost = _tlv(0x02, (1 << _LOG2_N).to_bytes(3, "big").lstrip(b"\0"))
    cost += _tlv(0x02, bytes([_R])) + _tlv(0x02, bytes([_P]))
    kdf = _sequence(_SCRYPT, _sequence(_tlv(0x04, salt), cost))
    cipher = _sequence(_AES_256_CBC, _tlv(0x04, iv))
    algorithm = _sequence(_PBES2, _sequence(kdf, cipher))
    return _sequence(algorithm, _tlv(0x04, ciphertext))


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))


def _tlv(tag: int, value: bytes) -> bytes:
    """One DER element of at most 64 KiB."""
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    if size < 0x100:
        return bytes([tag, 0x81, size]) + value
    return bytes([tag, 0x82]) + size.to_bytes(2, "big") + value
