"""Which X.509 certificates are accepted as recipients.  A module of its own so that raw keys need not load X.509."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sealpoint.keys.base import Recipient
    from sealpoint.keys.certificate import Certificate


class CertificatePolicy(NamedTuple):
    """Applies to X.509 recipients alone; raw keys and passphrases have neither expiry nor issuer.

    authorities: DER; if there are any, a valid path to one of them is required.  allow_expired: accept certificates
    outside of their validity period (then the path needs to be valid at a moment inside of it).  at: the unix second
    that counts, None for now.
    """

    authorities: tuple[bytes, ...] = ()
    allow_expired: bool = False
    at: int | None = None

    def check(self, chain: Sequence[Certificate]) -> None:
        """`chain`: the recipient's certificate, then intermediates.  Raises PolicyError."""
        import time

        from sealpoint.keys.certificate import validate_path, validate_path_sometime

        leaf, intermediates = chain[0], [c.der for c in chain[1:]]
        at = int(time.time()) if self.at is None else self.at
        if not self.allow_expired:
            leaf.require_valid(at)
        if self.authorities:
            validate = validate_path_sometime if self.allow_expired else validate_path
            validate(leaf, intermediates, self.authorities, at)


DEFAULT_POLICY = CertificatePolicy()


def certificate_recipient(chain: Sequence[Certificate], policy: CertificatePolicy) -> Recipient:
    """The recipient of `chain[0]`.  Raises PolicyError (policy, key usage), IdentityError (kind or size of key)."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    from sealpoint.errors import IdentityError
    from sealpoint.keys import nist, rsa

    leaf = chain[0]
    key = leaf.public_key
    recipient: Recipient
    if isinstance(key, RSAPublicKey):
        recipient = rsa.RsaRecipient(key, leaf.subject)
        leaf.require_usage("key_encipherment")
    elif isinstance(key, EllipticCurvePublicKey):
        recipient = nist.recipient_from_key(key, name=leaf.subject)
        leaf.require_usage("key_agreement")
    else:
        raise IdentityError(
            f"certificate {leaf.subject}: its key cannot receive",
            hint="the certificate of a recipient needs an RSA, P-256 or P-384 key",
        )
    policy.check(chain)
    return recipient
