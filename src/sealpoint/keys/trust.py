"""Trust: which signatures make a statement acceptable.

A signature is trusted if its key is pinned, or if its certificate has a valid path to an authority.  Any one grant is
enough, and a pinned key has no expiry unless it was pinned as a certificate.  What a file says of its signer is a
claim: names of trusted signers come from the pin or from the validated certificate, never from elsewhere in the file.

Out of scope: revocation (see `certificate`), timestamps.  Without a timestamp, whoever steals the key of an expired
certificate can still sign with a capture time of before; remove such a signer from the trusted ones.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from sealpoint.errors import FileError, IdentityError, PolicyError
from sealpoint.keys import files, text
from sealpoint.keys.load import in_file, load_authorities

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealpoint.format import dsse
    from sealpoint.keys.certificate import Certificate

_KEY_ID = re.compile(r"[0-9a-fA-F]{64}")


class TrustedKey(NamedTuple):
    """A pinned key.

    key_id: as in signatures; name: for people; certificate: if it was pinned as one, whose validity period then counts.
    """

    key_id: str
    name: str
    certificate: Certificate | None = None


class VerifiedSignature(NamedTuple):
    """A signature that verifies.

    name: of a trusted signer the one that trust gave it, else what the file claims; certificate: the one that the
    signature carries, if any; intermediates: DER; problem: why it is not trusted, empty if it is.
    """

    key_id: str
    name: str
    trusted: bool
    certificate: Certificate | None = None
    intermediates: tuple[bytes, ...] = ()
    problem: str = ""


class Verified(NamedTuple):
    """The signatures of one statement, all of which verify."""

    signatures: tuple[VerifiedSignature, ...]

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Of all signers, trusted or not."""
        return tuple(s.key_id for s in self.signatures)

    @property
    def trusted(self) -> tuple[VerifiedSignature, ...]:
        """The trusted ones."""
        return tuple(s for s in self.signatures if s.trusted)


class TrustPolicy(NamedTuple):
    """Whom to trust.

    pinned: keys; authorities: certificates (DER) that issue signers' certificates; extended_key_usage: dotted OID that
    those must then have; allow_unsigned: accept statements that nobody trusted signed (a signature that does not verify
    is an error all the same); allow_expired: do not look at validity periods; names_only: trust nobody and refuse
    nothing, to learn who signed; at: the unix second that counts for certificates instead of the signed capture time.
    """

    pinned: tuple[TrustedKey, ...] = ()
    authorities: tuple[bytes, ...] = ()
    extended_key_usage: str | None = None
    allow_unsigned: bool = False
    allow_expired: bool = False
    names_only: bool = False
    at: int | None = None

    def evaluate(self, envelope: dsse.Envelope) -> Verified:
        """Check every signature once.  The time is not known before the payload is read: call `check_time` then.

        Raises FileError where a signature does not verify by the key that it names, PolicyError where no signature is
        trusted.
        """
        pae = envelope.pae
        found = [self._check(s, pae) for s in envelope.signatures]
        if len({v.key_id for v in found}) != len(found):
            raise FileError("a key has signed the same statement twice")
        verified = Verified(tuple(found))
        if not verified.trusted and not self.allow_unsigned and not self.names_only:
            raise self._refusal(found)
        return verified

    def check_time(self, verified: Verified, captured: int) -> None:
        """At least one trusted signer must have been valid at `captured` (unix seconds, from the signed payload).

        Does nothing where no trusted signer is asked for.  Raises PolicyError.
        """
        if self.allow_expired or self.allow_unsigned or self.names_only:
            return
        at = captured if self.at is None else self.at
        problems: list[str] = []
        for signature in verified.trusted:
            problem = self._problem_at(signature, at)
            if problem is None:
                return
            problems.append(problem)
        raise PolicyError(
            f"no trusted signer was valid when this was signed: {'; '.join(problems) or 'there is none'}",
            hint="pin the signer's key, or give --allow-expired",
        )

    def _check(self, signature: dsse.Signature, pae: bytes) -> VerifiedSignature:
        from sealpoint.keys.signature import display_name, key_id, load_public, verify

        certificate = None
        if bool(signature.certificates) == bool(signature.public_key):
            raise FileError("a signature carries either its key or certificates")
        if signature.certificates:
            from sealpoint.keys.certificate import parse

            certificate = parse(signature.certificates[0], FileError)
            spki = certificate.spki
        else:
            spki = signature.public_key
        key, scheme = load_public(spki, FileError)
        name = key_id(spki)
        if name != signature.keyid:
            raise FileError("a signature names another key than the one that it carries")
        if not verify(key, signature.sig, pae):
            raise FileError(
                f"the signature by {display_name(scheme, name)} does not verify",
                hint="the file was changed or damaged after it was signed",
            )
        claimed = certificate.subject if certificate else display_name(scheme, name)
        intermediates = signature.certificates[1:]
        for pin in self.pinned:
            if pin.key_id == name:
                return VerifiedSignature(name, pin.name, True, certificate, intermediates)
        problem = self._problem_ever(certificate, intermediates)
        return VerifiedSignature(
            name, claimed, problem is None, certificate, intermediates, problem or ""
        )

    def _problem_ever(
        self, certificate: Certificate | None, intermediates: tuple[bytes, ...]
    ) -> str | None:
        """Why no authority vouches for a certificate at any time; None if one does."""
        if certificate is None or not self.authorities:
            return "its key is not trusted"
        from sealpoint.keys.certificate import validate_path_sometime

        now = int(time.time()) if self.at is None else self.at
        try:
            certificate.require_usage("digital_signature")
            validate_path_sometime(
                certificate,
                intermediates,
                self.authorities,
                now,
                extended_usage=self.extended_key_usage,
            )
        except PolicyError as error:
            return error.message
        return None

    def _problem_at(self, signature: VerifiedSignature, at: int) -> str | None:
        """Why a trusted signer was not valid at `at`; None if it was."""
        problems: list[str] = []
        for pin in self.pinned:
            if pin.key_id == signature.key_id:
                try:
                    if pin.certificate is not None:
                        pin.certificate.require_valid(at)
                except PolicyError as error:
                    problems.append(error.message)
                else:
                    return None
        if signature.certificate is not None and self.authorities:
            from sealpoint.keys.certificate import validate_path

            try:
                signature.certificate.require_usage("digital_signature")
                validate_path(
                    signature.certificate,
                    signature.intermediates,
                    self.authorities,
                    at,
                    extended_usage=self.extended_key_usage,
                )
            except PolicyError as error:
                problems.append(error.message)
            else:
                return None
        return problems[0] if problems else f"{signature.name}: not trusted"

    def _refusal(self, found: list[VerifiedSignature]) -> PolicyError:
        if not found:
            return PolicyError(
                "nobody known signed this",
                hint="only --allow-unsigned accepts it; then nothing says who made it or what it does",
            )
        who = "; ".join(f"{v.name} (key id {v.key_id}): {v.problem}" for v in found)
        return PolicyError(
            f"signed by nobody who is trusted: {who}",
            hint="if you know this key for the signer's, trust it by --trust KEYID or --trust signer.pub",
        )


def load_trust(
    paths: Iterable[str],
    *,
    ca_bundles: Iterable[str] = (),
    extended_key_usage: str | None = None,
    allow_unsigned: bool = False,
    allow_expired: bool = False,
    names_only: bool = False,
    at: int | None = None,
) -> TrustPolicy:
    """A policy from what a user names; see `TrustPolicy` for the options.

    Each path is signer.pub (SubjectPublicKeyInfo PEM), a certificate file, a literal key id (64 hex digits) or a
    literal `sealpoint-signer:…`.  A file with certificates that are no authorities pins those, and the authorities
    beside them (the chain of a signer) gain no trust by that; a file of authorities alone makes them issuers of
    signers.  All that `ca_bundles` hold must be authorities.

    Raises UsageError (no such file), IdentityError, PolicyError (key usage).
    """
    pinned: list[TrustedKey] = []
    authorities = list(load_authorities(ca_bundles))
    for path in paths:
        if _KEY_ID.fullmatch(path):
            pinned.append(TrustedKey(path.lower(), f"key id {path[:12].lower()}…"))
        elif text.is_literal(path):
            pinned.append(_pin_key(text.decode_signer(path)))
        else:
            try:
                keys, issuers = _from_file(files.read_key_file(path, limit=files.MAX_BUNDLE))
            except (IdentityError, PolicyError) as error:
                raise in_file(error, path) from None
            pinned += keys
            authorities += issuers
    return TrustPolicy(
        tuple(pinned),
        tuple(dict.fromkeys(authorities)),
        extended_key_usage,
        allow_unsigned,
        allow_expired,
        names_only,
        at,
    )


def _from_file(data: bytes) -> tuple[list[TrustedKey], list[bytes]]:
    """Pinned keys and authorities."""
    blocks = files.pem_blocks(data)
    labels = {b.label for b in blocks}
    if labels == {"PUBLIC KEY"}:
        return [_pin_key(b.text) for b in blocks], []
    if labels != {"CERTIFICATE"}:
        private = any(label.endswith("PRIVATE KEY") for label in labels)
        raise IdentityError(
            "not the public side of a signer" + (", but a private key" if private else ""),
            hint="trust the signer.pub of sealpoint keygen --signer, or a certificate in PEM",
        )
    from sealpoint.keys.certificate import parse_pem

    certificates = [parse_pem(b.text, IdentityError) for b in blocks]
    leaves = [c for c in certificates if not c.is_authority]
    if leaves:
        return [_pin_certificate(c) for c in leaves], []
    return [], [c.der for c in certificates]


def _pin_key(data: bytes) -> TrustedKey:
    """From SubjectPublicKeyInfo, PEM or DER."""
    from sealpoint.keys import signature

    key, scheme = signature.load_public(data, IdentityError)
    spki = signature.spki(key)
    key_id = signature.key_id(spki)
    return TrustedKey(key_id, signature.display_name(scheme, key_id))


def _pin_certificate(certificate: Certificate) -> TrustedKey:
    from sealpoint.keys import signature

    certificate.require_usage("digital_signature")
    if signature.scheme(certificate.public_key) is None:
        raise IdentityError(f"certificate {certificate.subject}: its key cannot sign")
    key_id = signature.key_id(certificate.spki)
    return TrustedKey(key_id, certificate.subject, certificate)
