"""Signers: a private key, with or without an X.509 chain, that vouches for statements."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sealpoint import arguments
from sealpoint.errors import IdentityError, SealpointError
from sealpoint.format import dsse
from sealpoint.keys import files
from sealpoint.keys.load import Passphrase, Path, ask, in_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sealpoint.keys.certificate import Certificate
    from sealpoint.keys.signature import SigningKey


@runtime_checkable
class Signer(Protocol):
    """One who signs.  name: for people; key_id: hex SHA-256 of the key's SubjectPublicKeyInfo."""

    @property
    def name(self) -> str: ...
    @property
    def key_id(self) -> str: ...

    def sign(self, pae: bytes) -> dsse.Signature:
        """A signature over the DSSE pre-authentication encoding, with what is needed to check it."""
        ...


class KeySigner:
    """A private key in this process."""

    def __init__(self, key: SigningKey, chain: Sequence[Certificate] = ()) -> None:
        """`chain`: the key's certificate first, or nothing.  Raises IdentityError for keys that cannot sign."""
        from sealpoint.keys import signature

        scheme = signature.scheme(key)
        if scheme is None:
            raise IdentityError(
                "a private key of a type or size that is not accepted for signatures",
                hint="signers are Ed25519, P-256, P-384 or RSA (2048 bits or more) keys",
            )
        self.public_key = signature.spki(key.public_key())
        self.key_id = signature.key_id(self.public_key)
        self.name = chain[0].subject if chain else signature.display_name(scheme, self.key_id)
        self._key = key
        self._chain = tuple(c.der for c in chain)

    def sign(self, pae: bytes) -> dsse.Signature:
        """See `Signer`."""
        from sealpoint.keys import signature

        sig = signature.sign(self._key, pae)
        carried = b"" if self._chain else self.public_key
        return dsse.Signature(self.key_id, sig, carried, self._chain)

    def __repr__(self) -> str:
        return f"<Signer {self.key_id[:12]}…>"


def load_signer(
    path: Path,
    *,
    passphrase: Passphrase | None = None,
    certificate: Path | None = None,
    allow_expired: bool = False,
) -> KeySigner:
    """A private key in PEM; certificates in the same file, or in `certificate`, make it an X.509 signer.

    `passphrase` is called, once, if the key is encrypted.  An expired certificate is refused, because nobody would
    accept what it signs now.  Raises UsageError (no such file), IdentityError, PolicyError (key usage, expiry).
    """
    path = arguments.path(path, "a signer")
    certificate = arguments.optional_path(certificate, "the certificate")
    blocks = files.pem_blocks(files.read_key_file(path))
    try:
        key = _private_key(blocks, passphrase)
        if certificate is None:
            return KeySigner(key, _chain(blocks, key, allow_expired=allow_expired))
    except SealpointError as error:
        raise in_file(error, path) from None
    blocks = files.pem_blocks(files.read_key_file(certificate))
    try:
        chain = _chain(blocks, key, allow_expired=allow_expired)
        if not chain:
            raise IdentityError("holds no certificate")
    except SealpointError as error:
        raise in_file(error, certificate) from None
    return KeySigner(key, chain)


def _private_key(blocks: list[files.PemBlock], passphrase: Passphrase | None) -> SigningKey:
    from sealpoint.keys import pkcs8, signature

    private = [b for b in blocks if pkcs8.is_private(b)]
    if len(private) != 1:
        raise IdentityError(
            "holds more than one private key" if private else "holds no private key to sign with",
            hint="a signer is the signer.key of sealpoint keygen --signer, or any PKCS#8 PEM key",
        )
    secret = ask(passphrase) if pkcs8.is_encrypted(private[0]) else None
    key = pkcs8.decode(private[0], secret)
    if isinstance(key, signature.SigningKey):
        return key
    raise IdentityError("a private key of a type that cannot sign")


def _chain(
    blocks: list[files.PemBlock], key: SigningKey, *, allow_expired: bool
) -> tuple[Certificate, ...]:
    """The key's certificate, then the others in their order."""
    texts = [b.text for b in blocks if b.label == "CERTIFICATE"]
    if not texts:
        return ()
    if len(texts) > dsse.MAX_CERTIFICATES:
        raise IdentityError(
            f"holds {len(texts)} certificates; a signature carries {dsse.MAX_CERTIFICATES} at most"
        )
    from sealpoint.keys import certificate, signature

    spki = signature.spki(key.public_key())
    chain = [certificate.parse_pem(t, IdentityError) for t in texts]
    leaf = next((c for c in chain if c.spki == spki), None)
    if leaf is None:
        raise IdentityError("no certificate belongs to the private key")
    leaf.require_usage("digital_signature")
    if not allow_expired:
        leaf.require_valid(int(time.time()))
    return (leaf, *(c for c in chain if c is not leaf))
