"""New keys: `sealpoint keygen`.  Files are created, never overwritten: a lost identity cannot be had back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from sealpoint import ownership
from sealpoint.errors import SealpointError, UsageError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys import hybrid, identity_file, nist, scrypt, text, x25519
from sealpoint.keys.files import write_new_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from sealpoint.keys.hpke import HpkeIdentity

KINDS = ("hybrid", "x25519", "p256", "x509-rsa", "x509-ec")
RSA_BITS = 3072  # 128-bit strength; 2048 is the least that is accepted
CERTIFICATE_YEARS = 10


class GeneratedKeys(NamedTuple):
    """What was made.

    private, public: paths; fingerprint: 64 hex digits, of the recipient or the signer's key id; text: the public side
    as one line, for -r or --trust, None for X.509.
    """

    private: str
    public: str
    fingerprint: str
    text: str | None


def generate(
    kind: str,
    directory: str,
    *,
    passphrase: bytes | None = None,
    log2_n: int = scrypt.DEFAULT_LOG2_N,
) -> GeneratedKeys:
    """`identity.key` (0600) and `recipient.pub`, or `recipient.pem` for the X.509 kinds, in `directory`.

    kind: one of KINDS; log2_n: scrypt cost for the raw kinds.  Raises UsageError (file exists, unknown kind, empty
    passphrase), SystemEnvironmentError.
    """
    if passphrase is not None:
        scrypt.check_passphrase(passphrase)
    if kind in ("x509-rsa", "x509-ec"):
        return _generate_x509(kind, directory, passphrase)
    identity: HpkeIdentity
    if kind == "hybrid":
        private = hybrid.generate()
        identity = hybrid.identity(private)
    elif kind == "x25519":
        private = x25519.generate()
        identity = x25519.identity(private)
    elif kind == "p256":
        private = nist.generate(StanzaKind.P256)
        identity = nist.identity(StanzaKind.P256, private)
    else:
        raise UsageError(f"unknown kind of key {kind!r}", hint=f"kinds are {', '.join(KINDS)}")
    recipient = identity.recipient()
    line = text.encode_recipient(recipient.kind, recipient.public)
    head = f"# sealpoint identity of {recipient.name}: keep it secret\n".encode()
    return _write_pair(
        directory,
        (
            "identity.key",
            head + identity_file.encode(identity.kind, private, passphrase, log2_n=log2_n),
        ),
        ("recipient.pub", f"# sealpoint recipient {recipient.name}\n{line}\n".encode()),
        recipient.fingerprint.hex(),
        line,
    )


def generate_signer(directory: str, *, passphrase: bytes | None = None) -> GeneratedKeys:
    """`signer.key` (0600, PKCS#8) and `signer.pub` (SubjectPublicKeyInfo PEM), Ed25519.  Raises as `generate`."""
    from sealpoint.keys import signature

    private, spki = new_signer(passphrase)
    return _write_pair(
        directory,
        ("signer.key", private),
        ("signer.pub", public_pem(spki)),
        signature.key_id(spki),
        text.encode_signer(spki),
    )


def new_signer(passphrase: bytes | None = None) -> tuple[bytes, bytes]:
    """A new Ed25519 key: the private one as PKCS#8 in PEM, and its SubjectPublicKeyInfo in DER.  Raises UsageError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from sealpoint.keys import pkcs8, signature

    if passphrase is not None:
        scrypt.check_passphrase(passphrase)
    key = Ed25519PrivateKey.generate()
    return pkcs8.encode(key, passphrase), signature.spki(key.public_key())


def public_pem(spki: bytes) -> bytes:
    """A SubjectPublicKeyInfo in PEM, as `signer.pub` holds it."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_der_public_key,
    )

    key = load_der_public_key(spki)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _generate_x509(kind: str, directory: str, passphrase: bytes | None) -> GeneratedKeys:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    from sealpoint.keys import pkcs8
    from sealpoint.keys.rsa import RsaRecipient

    key: RSAPrivateKey | EllipticCurvePrivateKey
    if kind == "x509-rsa":
        key = rsa.generate_private_key(65537, RSA_BITS)
        fingerprint = RsaRecipient(key.public_key()).fingerprint
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        fingerprint = nist.recipient_from_key(key.public_key()).fingerprint
    return _write_pair(
        directory,
        ("identity.key", pkcs8.encode(key, passphrase)),
        ("recipient.pem", _self_signed(key)),
        fingerprint.hex(),
        None,
    )


def _self_signed(key: RSAPrivateKey | EllipticCurvePrivateKey) -> bytes:
    """A certificate in PEM that says what the key is for and nothing of its owner."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    is_rsa = isinstance(key, RSAPrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sealpoint recipient")])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=is_rsa,
        data_encipherment=False,
        key_agreement=not is_rsa,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of two machines differ
        .not_valid_after(now + timedelta(days=round(365.25 * CERTIFICATE_YEARS)))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def _write_pair(
    directory: str,
    private: tuple[str, bytes],
    public: tuple[str, bytes],
    fingerprint: str,
    line: str | None,
) -> GeneratedKeys:
    """Both files or neither, the private one first: a public key without it would seal for nobody."""
    ownership.make_private(directory, "the directory", exact=False)
    private_path, public_path = (os.path.join(directory, n) for n, _ in (private, public))
    write_new_file(private_path, private[1], mode=0o600)
    try:
        write_new_file(public_path, public[1], mode=0o644)
    except SealpointError:
        os.unlink(private_path)  # made a moment ago, nothing was sealed to it
        raise
    _sync_directory(directory)
    return GeneratedKeys(private_path, public_path, fingerprint, line)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
