"""Makes keys, certificates and signed envelopes for the tests of `sealpoint.keys`."""

from __future__ import annotations

import datetime as dt
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from sealpoint.format.constants import ORIGIN_TYPE, StanzaKind
from sealpoint.format.dsse import Envelope
from sealpoint.keys import hybrid, nist, rsa as rsa_keys, scrypt, x25519
from sealpoint.keys.trust import SIGNER_USAGE

NOW = int(dt.datetime.now(dt.UTC).timestamp())
DAY = 24 * 3600
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@cache
def rsa_key(number: int = 0, bits: int = 2048):
    """RSA keys take long to make: the same number is the same key."""
    return rsa.generate_private_key(65537, bits)


def ec_key(curve=ec.SECP256R1):
    return ec.generate_private_key(curve())


def ed_key():
    return ed25519.Ed25519PrivateKey.generate()


def pem(key, passphrase: bytes | None = None) -> bytes:
    encryption = ser.BestAvailableEncryption(passphrase) if passphrase else ser.NoEncryption()
    return key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, encryption)


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)


class Issued:
    """A certificate with its private key, and what it issues."""

    def __init__(self, cert: x509.Certificate, key) -> None:
        self.cert, self.key = cert, key
        self.pem = cert.public_bytes(ser.Encoding.PEM)
        self.der = cert.public_bytes(ser.Encoding.DER)

    def issue(self, name: str, key, **options) -> Issued:
        return make_cert(name, key, issuer=self, **options)


def make_cert(
    name,
    key,
    *,
    issuer: Issued | None = None,
    usage: tuple[str, ...] | None = None,
    ca: bool | None = False,
    path_length: int | None = None,
    start: int = -DAY,
    end: int = DAY,
    extended: str | None = "",
    alternatives: tuple[x509.GeneralName, ...] = (),
    subject: str = "",
    critical_unknown: bool = False,
) -> Issued:
    """A certificate for `key`, valid from NOW + start to NOW + end; `ca=None` leaves basicConstraints out.

    extended: "" is that of signers for what is no authority; None leaves it out.
    """

    def rdn(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    signing_key = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(subject) if subject else rdn(name))
        .issuer_name(issuer.cert.subject if issuer else rdn(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(NOW + start, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(NOW + end, dt.UTC))
    )
    if ca is not None:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True
        )
    if usage is not None:
        builder = builder.add_extension(
            x509.KeyUsage(**{u: u in usage for u in USAGES}), critical=True
        )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if extended == "":
        extended = None if ca else SIGNER_USAGE
    if extended is not None:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ObjectIdentifier(extended)]), critical=False
        )
    if critical_unknown:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4.5"), b"\5\0"), critical=True
        )
    algorithm = None if isinstance(signing_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Issued(builder.sign(signing_key, algorithm), key)


def make_ca(name: str = "Test CA", key=None, **options) -> Issued:
    return make_cert(name, key or ec_key(), **{"ca": True, "usage": ("key_cert_sign",), **options})


IDENTITIES = {
    "hybrid": lambda: hybrid.identity(hybrid.generate()),
    "x25519": lambda: x25519.identity(x25519.generate()),
    "p256": lambda: nist.identity(StanzaKind.P256, nist.generate(StanzaKind.P256)),
    "p384": lambda: nist.identity(StanzaKind.P384, nist.generate(StanzaKind.P384)),
    "rsa": lambda: rsa_keys.RsaIdentity(rsa_key()),
}


class CheapPassphrase(scrypt.PassphraseIdentity):
    """A passphrase whose recipient takes the least cost that a reader accepts."""

    def recipient(self):
        return scrypt.passphrase_recipient(self._passphrase, log2_n=scrypt.MIN_LOG2_N)


def signed(*signers, payload: bytes = b'{"x":"1"}') -> Envelope:
    """An envelope with a signature of each signer."""
    bare = Envelope(ORIGIN_TYPE, payload, ())
    return Envelope(ORIGIN_TYPE, payload, tuple(s.sign(bare.pae) for s in signers))


SIGNING_KEYS = {
    "ed25519": ed_key,
    "ecdsa-p256": ec_key,
    "ecdsa-p384": lambda: ec_key(ec.SECP384R1),
    "rsa-pss": rsa_key,
}
"""Private keys of every scheme that signs."""


def change(envelope, **changes):
    """The envelope with its first signature changed."""
    first = envelope.signatures[0]._replace(**changes)
    return envelope._replace(signatures=(first, *envelope.signatures[1:]))
