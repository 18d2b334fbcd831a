"""Recipients that use HPKE (RFC 9180, base mode); the modules of the kinds say how their keys are spelt.

`info` is `WrapContext.info`, there is no AAD, and the stanza's body is what the library makes: enc || ciphertext.
P-384 runs with HKDF-SHA-384 to match its strength, all others with HKDF-SHA-256; the AEAD is always AES-256-GCM.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from sealpoint.errors import IdentityError
from sealpoint.format.constants import StanzaKind
from sealpoint.format.stanza import Stanza, WrapContext
from sealpoint.keys import base

PublicKey: TypeAlias = MLKEM768X25519PublicKey | X25519PublicKey | EllipticCurvePublicKey
PrivateKey: TypeAlias = MLKEM768X25519PrivateKey | X25519PrivateKey | EllipticCurvePrivateKey

_SUITES = {
    StanzaKind.HYBRID: Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    StanzaKind.X25519: Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    StanzaKind.P256: Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    StanzaKind.P384: Suite(KEM.P384, KDF.HKDF_SHA384, AEAD.AES_256_GCM),
}


class HpkeRecipient:
    """The public key of one of the HPKE kinds."""

    def __init__(
        self, kind: StanzaKind, public: bytes, key: PublicKey, name: str | None = None
    ) -> None:
        """`public`: the key's bytes, which are hashed into the fingerprint; `name`: a certificate's subject."""
        self.kind = kind
        self.public = public
        self.fingerprint = hashlib.sha256(public).digest()
        self.name = name or base.display_name(kind, self.fingerprint)
        self._key = key

    def wrap(self, roots: bytes, context: WrapContext) -> Stanza:
        """See `Recipient`."""
        base.check_roots(roots, context)
        info = context.info(self.kind, self.fingerprint)
        try:
            body = _SUITES[self.kind].encrypt(roots, self._key, info=info)
        except ValueError:  # an X25519 point of small order
            raise IdentityError(f"{self.name}: not a usable public key") from None
        return Stanza(self.kind, context.roots, self.fingerprint, body)

    def __repr__(self) -> str:
        return f"<Recipient {base.display_name(self.kind, self.fingerprint)}>"


class HpkeIdentity:
    """The private key of one of the HPKE kinds."""

    def __init__(self, key: PrivateKey, recipient: HpkeRecipient) -> None:
        """`recipient`: the public side of `key`."""
        self.kind = recipient.kind
        self.fingerprint = recipient.fingerprint
        self.name = base.display_name(self.kind, self.fingerprint)
        self._key = key
        self._recipient = recipient

    def matches(self, stanza: Stanza) -> bool:
        """See `Identity`."""
        return base.claims(self, stanza)

    def unwrap(self, stanza: Stanza, context: WrapContext) -> bytes:
        """See `Identity`."""
        return base.open_stanza(
            self,
            stanza,
            context,
            lambda body, info: _SUITES[self.kind].decrypt(body, self._key, info=info),
        )

    def recipient(self) -> HpkeRecipient:
        """See `Identity`."""
        return self._recipient

    def __repr__(self) -> str:
        return f"<Identity {self.name}>"
