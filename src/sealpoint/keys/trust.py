"""Trust: which signatures make a statement acceptable.

A signature is trusted if its key is pinned, or if its certificate has a valid path to an authority and was made for
signing checkpoints (SIGNER_USAGE).  Any one grant is enough, and a pinned key has no expiry unless it was pinned as a
certificate.  A grant may be limited to a part of all checkpoints (`scope`).  What a file says of its signer is a
claim: names of trusted signers come from the pin or from the validated certificate, never from elsewhere in the file.

Out of scope: revocation (see `certificate`), timestamps.  Without a timestamp, whoever steals the key of an expired
certificate can still sign with a capture time of before; remove such a signer from the trusted ones.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from sealpoint import arguments
from sealpoint.errors import FileError, IdentityError, PolicyError
from sealpoint.keys import files, text
from sealpoint.keys.load import Path, in_file, load_authorities
from sealpoint.keys.scope import Claim, Scope, TrustTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sealpoint.format import dsse
    from sealpoint.keys.certificate import Certificate

# The extended key usage of certificates that sign checkpoints: 2.25 and a UUID (X.667),
# a87134e8-939b-457b-8c82-e6d043d9904e.
SIGNER_USAGE = "2.25.223898105948795403434191639562428190798"
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


class Grant(NamedTuple):
    """Signers that are believed, and for which checkpoints.  authorities: certificates (DER) that issue them."""

    pinned: tuple[TrustedKey, ...] = ()
    authorities: tuple[bytes, ...] = ()
    scope: Scope = Scope()


class Reason(NamedTuple):
    """Why one grant believes one signature, or does not.

    signer: its name; grant: what names it there, empty where nothing does; text: what speaks against it, else the
    limits.
    """

    believed: bool
    signer: str
    key_id: str
    grant: str
    text: str


class TrustPolicy(NamedTuple):
    """Whom to trust.

    pinned: keys; authorities: certificates (DER) that issue signers' certificates; usages: dotted OIDs of which the
    extended key usage of such a certificate must hold one; allow_unsigned: accept statements that nobody trusted signed
    (a signature that does not verify is an error all the same); allow_expired: do not look at validity periods;
    names_only: trust nobody and refuse nothing, to learn who signed; at: the unix second that counts for certificates
    instead of the signed capture time; limited: signers that are trusted for a part of all checkpoints.
    """

    pinned: tuple[TrustedKey, ...] = ()
    authorities: tuple[bytes, ...] = ()
    usages: tuple[str, ...] = (SIGNER_USAGE,)
    allow_unsigned: bool = False
    allow_expired: bool = False
    names_only: bool = False
    at: int | None = None
    limited: tuple[Grant, ...] = ()

    @property
    def grants(self) -> tuple[Grant, ...]:
        """All of them; the first has no limits, and may be empty."""
        return (Grant(self.pinned, self.authorities), *self.limited)

    @property
    def names_somebody(self) -> bool:
        """Whether there is anybody to believe."""
        return any(grant.pinned or grant.authorities for grant in self.grants)

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

    def check(self, verified: Verified, claim: Claim, at: int) -> None:
        """All that `evaluate` could not know: when a statement says that it was signed, and about which checkpoint.

        Raises PolicyError.
        """
        self.check_time(verified, at)
        self.check_scope(verified, claim, at)

    def check_scope(self, verified: Verified, claim: Claim, at: int) -> None:
        """At least one grant must believe a signer for this very checkpoint.  Raises PolicyError.

        A grant that did not hold at `at`, when the statement says that it was signed, does not count, unless the policy
        overlooks that.
        """
        if self.allow_unsigned or self.names_only:
            return
        reasons = self.reasons(verified, claim, at)
        if any(reason.believed for reason in reasons):
            return
        told = "; ".join(f"{r.signer}: {r.text}" for r in reasons if r.grant) or "nobody"
        raise PolicyError(
            f"no signer is trusted for this checkpoint: {told}",
            hint="sealpoint policy check FILE shows each reason; the tables of `trust` in config.toml limit signers",
        )

    def reasons(self, verified: Verified, claim: Claim, at: int) -> list[Reason]:
        """For each signature and each grant that names its signer; one without a grant where none does.

        at: when the statement says that it was signed.
        """
        found: list[Reason] = []
        for signature in verified.signatures:
            of_this: list[Reason] = []
            for grant in self.grants:
                if (named := _named_by(grant, signature)) is None:
                    continue
                problem = self._problem_with(grant, signature, claim, at)
                text = problem or grant.scope.text
                of_this.append(
                    Reason(problem is None, signature.name, signature.key_id, named, text)
                )
            nobody = Reason(False, signature.name, signature.key_id, "", "its key is not trusted")
            found += of_this or [nobody]
        return found

    def _problem_with(
        self, grant: Grant, signature: VerifiedSignature, claim: Claim, at: int
    ) -> str | None:
        """Why a grant that names a signer does not believe this statement of a checkpoint; None if it does."""
        if self.allow_expired:
            problem = self._problem_ever(grant, signature)
        else:
            problem = self._problem_in(grant, signature, at if self.at is None else self.at)
        return problem or grant.scope.problem_with(claim, int(time.time()))

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
        plain = VerifiedSignature(name, claimed, True, certificate, intermediates)
        problems: list[str] = []
        for grant in self.grants:
            problem = self._problem_ever(grant, plain)
            if problem is None:
                return plain._replace(name=_pinned_name(grant, name) or claimed)
            if grant.authorities:
                problems.append(problem)
        problem = problems[0] if problems else "its key is not trusted"
        return plain._replace(trusted=False, problem=problem)

    def _problem_ever(self, grant: Grant, signature: VerifiedSignature) -> str | None:
        """Why a grant believes a signer at no time; None if it does at some."""
        if _pinned_name(grant, signature.key_id):
            return None
        certificate = signature.certificate
        if certificate is None or not grant.authorities:
            return "its key is not trusted"
        from sealpoint.keys.certificate import validate_path_sometime

        now = int(time.time()) if self.at is None else self.at
        try:
            certificate.require_usage("digital_signature")
            validate_path_sometime(
                certificate,
                signature.intermediates,
                grant.authorities,
                now,
                extended_usages=self._usages(grant, certificate),
            )
        except PolicyError as error:
            return _with_hint(error)
        return grant.scope.problem_of(certificate)

    def _usages(self, grant: Grant, certificate: Certificate) -> tuple[str, ...]:
        """Which a certificate needs; none where it is itself what the grant names, as `openssl req -x509` makes it."""
        return () if certificate.der in grant.authorities else self.usages

    def _problem_at(self, signature: VerifiedSignature, at: int) -> str | None:
        """Why a trusted signer was not valid at `at`; None if it was."""
        problems: list[str] = []
        for grant in self.grants:
            problem = self._problem_in(grant, signature, at)
            if problem is None:
                return None
            if _named_by(grant, signature) is not None:
                problems.append(problem)
        return problems[0] if problems else f"{signature.name}: not trusted"

    def _problem_in(self, grant: Grant, signature: VerifiedSignature, at: int) -> str | None:
        """Why a grant does not believe a signer at `at`; None if it does."""
        problems: list[str] = []
        for pin in grant.pinned:
            if pin.key_id == signature.key_id:
                try:
                    if pin.certificate is not None:
                        pin.certificate.require_valid(at)
                except PolicyError as error:
                    problems.append(error.message)
                else:
                    return None
        if signature.certificate is not None and grant.authorities:
            from sealpoint.keys.certificate import validate_path

            try:
                signature.certificate.require_usage("digital_signature")
                validate_path(
                    signature.certificate,
                    signature.intermediates,
                    grant.authorities,
                    at,
                    extended_usages=self._usages(grant, signature.certificate),
                )
            except PolicyError as error:
                problems.append(error.message)
            else:
                problem = grant.scope.problem_of(signature.certificate)
                if problem is None:
                    return None
                problems.append(problem)
        return problems[0] if problems else f"{signature.name}: not trusted"

    def _refusal(self, found: list[VerifiedSignature]) -> PolicyError:
        if not found:
            return PolicyError(
                "the file is not signed",
                hint="--allow-unsigned accepts it anyway; but then nothing tells you who made it or what it does",
            )
        who = "; ".join(f"{v.name} (key id {v.key_id}): {v.problem}" for v in found)
        return PolicyError(
            f"no trusted signer signed this: {who}",
            hint="if you know that this is the signer's key, trust it with --trust KEYID or --trust signer.pub",
        )


def _pinned_name(grant: Grant, key_id: str) -> str:
    """What a grant calls a key that it pins; empty if it does not."""
    return next((pin.name for pin in grant.pinned if pin.key_id == key_id), "")


def _named_by(grant: Grant, signature: VerifiedSignature) -> str | None:
    """What in a grant is about a signer; None if nothing is."""
    if name := _pinned_name(grant, signature.key_id):
        return f"the key {name}"
    if grant.authorities and signature.certificate is not None:
        return f"{len(grant.authorities)} {'authorities' if len(grant.authorities) > 1 else 'authority'}"
    return None


def _with_hint(error: PolicyError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def load_trust(
    paths: Iterable[Path | TrustTable],
    *,
    ca_bundles: Iterable[Path] = (),
    usages: Sequence[str] = (),
    allow_unsigned: bool = False,
    allow_expired: bool = False,
    names_only: bool = False,
    at: int | None = None,
) -> TrustPolicy:
    """A policy from what a user names; see `TrustPolicy` for the options.

    Each path is signer.pub (SubjectPublicKeyInfo PEM), a certificate file, a literal key id (64 hex digits) or a
    literal `sealpoint-signer:…`.  A file with certificates that are no authorities pins those, and the authorities
    beside them (the chain of a signer) gain no trust by that; a file of authorities alone makes them issuers of
    signers.  All that `ca_bundles` hold must be authorities.  A table limits what it names.  usages: instead of
    SIGNER_USAGE.

    Raises UsageError (no such file), IdentityError, PolicyError (key usage).
    """
    named = [
        p if isinstance(p, TrustTable) else arguments.path(p, "each trusted signer")
        for p in arguments.items(paths, "the trusted signers")
    ]
    ca_bundles = arguments.paths(ca_bundles, "the authorities")
    usages = arguments.texts(usages, "the usages")
    allow_unsigned = arguments.flag(allow_unsigned, "allow_unsigned")
    allow_expired = arguments.flag(allow_expired, "allow_expired")
    pinned, authorities = _load([p for p in named if isinstance(p, str)])
    limited = []
    for table in named:
        if isinstance(table, str):
            continue
        keys, issuers = _load(table.keys)
        if issuers:
            raise IdentityError(
                f"{table.keys[0]}: holds authorities, not a signer", hint="name it as authority"
            )
        limited.append(Grant(tuple(keys), load_authorities(table.authorities), table.scope))
    return TrustPolicy(
        tuple(pinned),
        tuple(dict.fromkeys([*load_authorities(ca_bundles), *authorities])),
        tuple(usages) or (SIGNER_USAGE,),
        allow_unsigned,
        allow_expired,
        names_only,
        at,
        tuple(limited),
    )


def _load(paths: Iterable[str]) -> tuple[list[TrustedKey], list[bytes]]:
    """Pinned keys and authorities."""
    pinned: list[TrustedKey] = []
    authorities: list[bytes] = []
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
    return pinned, authorities


def _from_file(data: bytes) -> tuple[list[TrustedKey], list[bytes]]:
    """Pinned keys and authorities."""
    blocks = files.pem_blocks(data)
    labels = {b.label for b in blocks}
    if labels == {"PUBLIC KEY"}:
        return [_pin_key(b.text) for b in blocks], []
    if labels != {"CERTIFICATE"}:
        private = any(label.endswith("PRIVATE KEY") for label in labels)
        raise IdentityError(
            "not the public key of a signer" + (", but a private key" if private else ""),
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
