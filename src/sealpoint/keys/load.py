"""From a path or a literal string to a recipient or identity, whatever its kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sealpoint import arguments
from sealpoint.errors import IdentityError, SealpointError
from sealpoint.format.constants import StanzaKind
from sealpoint.keys import files, hybrid, identity_file, nist, text, x25519
from sealpoint.keys.recipient_policy import (
    DEFAULT_POLICY,
    CertificatePolicy,
    certificate_recipient,
)

if TYPE_CHECKING:
    from sealpoint.keys.base import Identity, Recipient
    from sealpoint.keys.certificate import Certificate

Passphrase = Callable[[], bytes]
Path = str | os.PathLike[str]


def load_recipient(text_or_path: Path, *, policy: CertificatePolicy = DEFAULT_POLICY) -> Recipient:
    """A literal `sealpoint-<kind>:…`, or a file: recipient.pub, or X.509 in PEM (intermediates may follow).

    Raises UsageError (no such file), IdentityError (not a recipient), PolicyError (certificate refused).
    """
    text_or_path = arguments.path(text_or_path, "a recipient")
    if text.is_literal(text_or_path):
        return _from_text(text_or_path)
    data = files.read_key_file(text_or_path)
    try:
        blocks = files.pem_blocks(data)
        if not blocks:
            return _from_text(_only_line(data))
        return certificate_recipient(_certificates(blocks), policy)
    except SealpointError as error:
        raise in_file(error, text_or_path) from None


def load_identity(path: Path, *, passphrase: Passphrase | None = None) -> Identity:
    """identity.key, or a private key in PEM (PKCS#8, SEC1, PKCS#1): X25519, P-256, P-384, RSA.

    `passphrase` is called, once, if the file is encrypted.  Raises UsageError (no such file), IdentityError.
    """
    path = arguments.path(path, "an identity")
    data = files.read_key_file(path)
    try:
        return _identity(data, passphrase)
    except SealpointError as error:
        raise in_file(error, path) from None


def load_authorities(paths: Iterable[str]) -> tuple[bytes, ...]:
    """Certificates of authorities (DER) out of PEM bundles, for policies.  Raises UsageError, IdentityError."""
    found: list[bytes] = []
    for path in paths:
        from sealpoint.keys.certificate import parse_pem  # only here: X.509 is slow to load

        data = files.read_key_file(path, limit=files.MAX_BUNDLE)
        certificates = [
            parse_pem(b.text, IdentityError)
            for b in files.pem_blocks(data)
            if b.label == "CERTIFICATE"
        ]
        if not certificates or not all(c.is_authority for c in certificates):
            raise IdentityError(f"{path}: holds something other than certificates of authorities")
        found += [c.der for c in certificates]
    return tuple(dict.fromkeys(found))


def in_file(error: SealpointError, path: str) -> SealpointError:
    """The same error, saying in which file; stores name theirs themselves."""
    if "://" in path and error.message.startswith(path):
        return error
    return type(error)(f"{path}: {error.message}", hint=error.hint)


def _from_text(line: str) -> Recipient:
    kind, public = text.decode_recipient(line)
    if kind is StanzaKind.HYBRID:
        return hybrid.recipient(public)
    if kind is StanzaKind.X25519:
        return x25519.recipient(public)
    return nist.recipient(kind, public)


def _only_line(data: bytes) -> str:
    """The one line of recipient.pub that is neither empty nor a comment."""
    try:
        lines = [line.removesuffix("\r") for line in data.decode().split("\n")]
    except UnicodeDecodeError:
        lines = []
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) != 1 or not text.is_literal(keys[0]):
        raise IdentityError(
            "not a recipient", hint="a recipient is a recipient.pub of sealpoint, or X.509 in PEM"
        )
    return keys[0]


def _certificates(blocks: list[files.PemBlock]) -> list[Certificate]:
    labels = {b.label for b in blocks}
    if labels != {"CERTIFICATE"}:
        private = any(label.endswith(("PRIVATE KEY", "IDENTITY")) for label in labels)
        raise IdentityError(
            "holds a private key, not a recipient" if private else "not a recipient",
            hint="a recipient is a recipient.pub of sealpoint, or X.509 in PEM",
        )
    from sealpoint.keys.certificate import parse_pem

    return [parse_pem(b.text, IdentityError) for b in blocks]


def _identity(data: bytes, passphrase: Passphrase | None) -> Identity:
    blocks = files.pem_blocks(data)
    ours = [b for b in blocks if b.label in (identity_file.PLAIN, identity_file.ENCRYPTED)]
    if ours:
        secret = ask(passphrase) if ours[0].label == identity_file.ENCRYPTED else None
        return _raw_identity(*identity_file.decode(data, ours[0], secret))
    return _pem_identity(blocks, data, passphrase)


def _raw_identity(kind: StanzaKind, private: bytes) -> Identity:
    if kind is StanzaKind.HYBRID:
        return hybrid.identity(private)
    if kind is StanzaKind.X25519:
        return x25519.identity(private)
    if kind in (StanzaKind.P256, StanzaKind.P384):
        return nist.identity(kind, private)
    raise IdentityError("an identity of an unknown kind")


def _pem_identity(
    blocks: list[files.PemBlock], data: bytes, passphrase: Passphrase | None
) -> Identity:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from sealpoint.keys import pkcs8, rsa

    private = [b for b in blocks if pkcs8.is_private(b)]
    if len(private) != 1:
        public = b"sealpoint-" in data or any(b.label == "CERTIFICATE" for b in blocks)
        raise IdentityError(
            "not an identity" if len(private) == 0 else "holds more than one private key",
            hint="this is a public key; an identity is a private key" if public else None,
        )
    secret = ask(passphrase) if pkcs8.is_encrypted(private[0]) else None
    key = pkcs8.decode(private[0], secret)
    if isinstance(key, X25519PrivateKey):
        return x25519.from_key(key)
    if isinstance(key, EllipticCurvePrivateKey):
        return nist.from_key(key)
    if isinstance(key, RSAPrivateKey):
        return rsa.RsaIdentity(key)
    raise IdentityError(
        "a private key of a type that cannot open checkpoints",
        hint="identities are hybrid, X25519, P-256, P-384 or RSA keys; Ed25519 keys sign",
    )


def ask(passphrase: Passphrase | None) -> bytes:
    """Call it.  Raises IdentityError where there is nobody to ask."""
    if passphrase is None:
        raise IdentityError(
            "encrypted, and no passphrase was given", hint="give one with --passphrase-file"
        )
    return passphrase()
