"""X.509: what of a certificate counts here, and path validation.

Paths are built and checked by `cryptography.x509.verification`, with a policy of our own: no subject alternative name
is demanded (these certificates name no web server), an extended key usage only where the caller names some; every
issuer needs basicConstraints CA:TRUE, its path length and, if it has a keyUsage, keyCertSign; where a usage is asked
for, one that came with the file and has usages needs it, too; all must be valid at the given time.  The library wants
authorities with RSA (>= 2048) or EC keys; a certificate that an Ed25519 authority issued can be pinned instead.

Out of scope for now: revocation.  No CRL and no OCSP is looked at; a stolen key is kept out by no longer trusting it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification

from sealpoint.errors import PolicyError, SealpointError
from sealpoint.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

_E = TypeVar("_E", bound=x509.ExtensionType)
Usage = Literal["digital_signature", "key_encipherment", "key_agreement"]
_USAGE_NAMES = {
    "digital_signature": "digitalSignature",
    "key_encipherment": "keyEncipherment",
    "key_agreement": "keyAgreement",
}
ANY_USAGE = "2.5.29.37.0"  # anyExtendedKeyUsage: made for nothing in particular, so not for signing checkpoints
_NAME_KINDS = (
    (x509.DNSName, "dns"),
    (x509.UniformResourceIdentifier, "uri"),
    (x509.RFC822Name, "email"),
    (x509.IPAddress, "ip"),
)
_MAX_SUBJECT = 120


class Certificate(NamedTuple):
    """The parsed facts of one certificate.

    der: as received; subject: RFC 4514, fit for a terminal; not_before, not_after: unix seconds, both inclusive;
    usages: what keyUsage allows, None where it is absent (all is allowed); spki: the public key in canonical DER;
    full_subject: to be compared, not shown; names: alternative names, as `dns:node1.example.org`.
    """

    der: bytes
    subject: str
    not_before: int
    not_after: int
    is_authority: bool
    usages: frozenset[str] | None
    extended_usages: frozenset[str] | None
    public_key: CertificatePublicKeyTypes
    spki: bytes
    full_subject: str = ""
    names: tuple[str, ...] = ()

    def allows(self, usage: Usage) -> bool:
        """Whether keyUsage permits it."""
        return self.usages is None or usage in self.usages

    def require_usage(self, usage: Usage) -> None:
        """Raises PolicyError."""
        if not self.allows(usage):
            raise PolicyError(
                f"certificate {self.subject}: its keyUsage does not allow {_USAGE_NAMES[usage]}"
            )

    def require_valid(self, at: int) -> None:
        """Raises PolicyError."""
        if at < self.not_before:
            raise PolicyError(
                f"certificate {self.subject} is not valid before {show_time(self.not_before)}"
            )
        if at > self.not_after:
            raise PolicyError(f"certificate {self.subject} expired on {show_time(self.not_after)}")


def parse(der: bytes, error: type[SealpointError]) -> Certificate:
    """One certificate.  `error`: what to raise, which depends on where it came from."""
    try:
        return _parse(x509.load_der_x509_certificate(der))
    except Exception:  # noqa: BLE001, S110 - the library does not say what a damaged one can raise
        pass
    raise error("a damaged or unsupported X.509 certificate")


def parse_pem(text: bytes, error: type[SealpointError]) -> Certificate:
    """The same from one PEM block."""
    try:
        return _parse(x509.load_pem_x509_certificate(text))
    except Exception:  # noqa: BLE001, S110 - the library does not say what a damaged one can raise
        pass
    raise error("a damaged or unsupported X.509 certificate")


def _parse(cert: x509.Certificate) -> Certificate:
    constraints = _extension(cert, x509.BasicConstraints)
    usage = _extension(cert, x509.KeyUsage)
    extended = _extension(cert, x509.ExtendedKeyUsage)
    key = cert.public_key()
    return Certificate(
        der=cert.public_bytes(Encoding.DER),
        subject=_printable(cert.subject.rfc4514_string()),
        not_before=int(cert.not_valid_before_utc.timestamp()),
        not_after=int(cert.not_valid_after_utc.timestamp()),
        is_authority=constraints is not None and constraints.ca,
        usages=None if usage is None else frozenset(u for u in _USAGE_NAMES if getattr(usage, u)),
        extended_usages=None if extended is None else frozenset(o.dotted_string for o in extended),
        public_key=key,
        spki=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        full_subject=cert.subject.rfc4514_string(),
        names=_alternative_names(cert),
    )


def _alternative_names(cert: x509.Certificate) -> tuple[str, ...]:
    try:
        names = _extension(cert, x509.SubjectAlternativeName)
    except ValueError:
        return ()  # they only matter where they are asked for
    return tuple(
        f"{kind}:{name.value}"
        for name in names or ()
        for type_, kind in _NAME_KINDS
        if isinstance(name, type_)
    )


def _extension(cert: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _printable(subject: str) -> str:
    """A stranger chose it: no control characters, no text direction marks, bounded."""
    text = printable(subject) or "(no subject)"
    return text if len(text) <= _MAX_SUBJECT else text[:_MAX_SUBJECT] + "…"


def validate_path(
    leaf: Certificate,
    intermediates: Iterable[bytes],
    authorities: Sequence[bytes],
    at: int,
    *,
    extended_usages: Sequence[str] = (),
) -> None:
    """Find a valid path from `leaf` over `intermediates` to one of `authorities` (DER) at unix second `at`.

    extended_usages: dotted OIDs of which the leaf's extendedKeyUsage must hold one, if there are any; that it has no
    such extension, or anyExtendedKeyUsage, is not enough.  An intermediate that was made for other usages alone issues
    no such leaf.  The usage of the leaf's key is the caller's to check.

    Raises PolicyError.
    """
    leaf.require_valid(at)
    if extended_usages and not (leaf.extended_usages or frozenset()) & set(extended_usages):
        raise PolicyError(
            f"certificate {leaf.subject}: its extendedKeyUsage does not have {' or '.join(extended_usages)}",
            hint="an authority vouches for signers of checkpoints by that usage alone: issue a certificate with "
            "it, pin this one with --trust, or name the usage that yours have in signer_usages",
        )
    try:
        verifier = (
            verification.PolicyBuilder()
            .time(datetime.fromtimestamp(at, UTC))
            .store(verification.Store([x509.load_der_x509_certificate(a) for a in authorities]))
            .extension_policies(
                ca_policy=_ca_policy(extended_usages, authorities), ee_policy=_PERMIT_ALL
            )
            .build_client_verifier()
        )
        verifier.verify(
            x509.load_der_x509_certificate(leaf.der),
            [x509.load_der_x509_certificate(i) for i in intermediates],
        )
    except Exception as error:  # noqa: BLE001 - VerificationError, and what a damaged one can raise
        reason = _printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
    else:
        return
    raise PolicyError(
        f"certificate {leaf.subject}: no valid path to a trusted authority ({reason})",
        hint="authorities need RSA or EC keys; intermediate certificates belong in the same file",
    )


def validate_path_sometime(
    leaf: Certificate,
    intermediates: Iterable[bytes],
    authorities: Sequence[bytes],
    preferred: int,
    *,
    extended_usages: Sequence[str] = (),
) -> None:
    """The same at some moment of the leaf's validity: the one nearest to `preferred`, else its first.

    For when the moment that counts is not known yet, or expiry is to be overlooked.  Raises PolicyError.
    """
    nearest = min(max(preferred, leaf.not_before), leaf.not_after)
    try:
        validate_path(leaf, intermediates, authorities, nearest, extended_usages=extended_usages)
    except PolicyError:
        if nearest == leaf.not_before:
            raise
        validate_path(
            leaf, intermediates, authorities, leaf.not_before, extended_usages=extended_usages
        )


_PERMIT_ALL = verification.ExtensionPolicy.permit_all()


def _ca_policy(
    extended_usages: Sequence[str], authorities: Sequence[bytes]
) -> verification.ExtensionPolicy:
    allowed = {*extended_usages, ANY_USAGE}

    def check_extended_usage(
        _policy: verification.Policy,
        cert: x509.Certificate,
        usage: x509.ExtendedKeyUsage | None,
    ) -> None:
        # An authority that a user named is believed as it is; one that came with the file is what its issuer made it.
        if not extended_usages or usage is None or cert.public_bytes(Encoding.DER) in authorities:
            return
        if not allowed & {oid.dotted_string for oid in usage}:
            raise ValueError("an issuer has other usages")

    return (
        _PERMIT_ALL.require_present(
            x509.BasicConstraints, verification.Criticality.AGNOSTIC, _check_constraints
        )
        .may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _check_ca_usage)
        .may_be_present(
            x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, check_extended_usage
        )
    )


def _check_constraints(
    _policy: verification.Policy, _cert: x509.Certificate, constraints: x509.BasicConstraints
) -> None:
    if not constraints.ca:
        raise ValueError("an issuer is not an authority")


def _check_ca_usage(
    _policy: verification.Policy, _cert: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def show_time(at: int) -> str:
    """For instance `2026-03-01 12:00 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
