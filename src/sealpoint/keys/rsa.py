"""RSA keys, as X.509 recipients have them: OAEP with SHA-256 and MGF1-SHA-256, label = `WrapContext.info`.

Never PKCS#1 v1.5, except for `sealpoint.criusec`, whose format has nothing else.  The fingerprint is over the
SubjectPublicKeyInfo in DER.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealpoint.errors import IdentityError
from sealpoint.format.constants import StanzaKind
from sealpoint.format.stanza import Stanza, WrapContext
from sealpoint.keys import base

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

MIN_BITS = 2048  # below that a key is within reach of those who would want a checkpoint
MAX_BITS = 16384  # OpenSSL's own limit; bounds the time that a stranger's certificate can cost


def check_size(key: RSAPublicKey | RSAPrivateKey) -> None:
    """Raises IdentityError outside of 2048 to 16384 bits."""
    if not MIN_BITS <= key.key_size <= MAX_BITS:
        raise IdentityError(
            f"an RSA key of {key.key_size} bits is not accepted",
            hint=f"use one of {MIN_BITS} to {MAX_BITS} bits",
        )


def _oaep(info: bytes) -> padding.OAEP:
    return padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), info)


class RsaRecipient:
    """An RSA public key."""

    kind = StanzaKind.RSA_OAEP

    def __init__(self, key: RSAPublicKey, name: str | None = None) -> None:
        """`name`: a certificate's subject.  Raises IdentityError for a size that is not accepted."""
        check_size(key)
        self.public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = hashlib.sha256(self.public).digest()
        self.name = name or base.display_name(self.kind, self.fingerprint)
        self._key = key

    def wrap(self, roots: bytes, context: WrapContext) -> Stanza:
        """See `Recipient`."""
        base.check_roots(roots, context)
        info = context.info(self.kind, self.fingerprint)
        try:
            body = self._key.encrypt(roots, _oaep(info))
        except ValueError:
            raise IdentityError(f"{self.name}: not a usable public key") from None
        return Stanza(self.kind, context.roots, self.fingerprint, body)

    def wrap_pkcs1v15(self, secret: bytes) -> bytes:
        """For the CRIUsec format alone.  Raises IdentityError."""
        try:
            return self._key.encrypt(secret, padding.PKCS1v15())
        except ValueError:
            raise IdentityError(f"{self.name}: not a usable public key") from None

    def __repr__(self) -> str:
        return f"<Recipient {base.display_name(self.kind, self.fingerprint)}>"


class RsaIdentity:
    """An RSA private key."""

    kind = StanzaKind.RSA_OAEP

    def __init__(self, key: RSAPrivateKey) -> None:
        """Raises IdentityError for a size that is not accepted."""
        self._recipient = RsaRecipient(key.public_key())
        self.fingerprint = self._recipient.fingerprint
        self.name = self._recipient.name
        self._key = key

    def matches(self, stanza: Stanza) -> bool:
        """See `Identity`."""
        return base.claims(self, stanza)

    def unwrap(self, stanza: Stanza, context: WrapContext) -> bytes:
        """See `Identity`."""
        return base.open_stanza(
            self, stanza, context, lambda body, info: self._key.decrypt(body, _oaep(info))
        )

    def unwrap_pkcs1v15(self, body: bytes, size: int) -> bytes:
        """For the CRIUsec format alone: the secret of `size` bytes, or as many random bytes.

        Never an error: that of a wrong padding would answer Bleichenbacher's question.
        """
        instead = os.urandom(size)
        try:
            secret = self._key.decrypt(body, padding.PKCS1v15())
        except Exception:  # noqa: BLE001 - whatever the reason
            secret = b""
        return secret if len(secret) == size else instead

    def recipient(self) -> RsaRecipient:
        """See `Identity`."""
        return self._recipient

    def __repr__(self) -> str:
        return f"<Identity {self.name}>"
