"""Who may open and who is believed: connects recipients, identities, signers and policy with the format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from sealpoint.checkpoint.opening.front import Front
from sealpoint.checkpoint.opening.stored_pages import WithChunks, refers
from sealpoint.chunks.directory import ChunkFinder
from sealpoint.errors import FileError, IdentityError, PolicyError, UsageError
from sealpoint.format import dsse
from sealpoint.format.constants import ENVELOPE_TYPE, Roots, StanzaKind
from sealpoint.format.derive import RootKeys
from sealpoint.format.opened import OpenFile
from sealpoint.format.preamble import Preamble
from sealpoint.format.raw import ByteSource, Descriptor
from sealpoint.format.reader import AuthenticFile, SealedFile, Unwrap
from sealpoint.format.slot import Slot
from sealpoint.format.stanza import Stanza, WrapContext
from sealpoint.format.writer import UNSIGNED, Signing, Wrap
from sealpoint.keys import (
    Identity,
    Recipient,
    Signer,
    TrustPolicy,
    Verified,
    VerifiedSignature,
)
from sealpoint.keys.base import KIND_NAMES
from sealpoint.keys.load import in_file
from sealpoint.keys.scope import Claim
from sealpoint.keys.trust import Reason
from sealpoint.store.location import is_url
from sealpoint.store.locks import read_settled
from sealpoint.store.source import open_input


def wrap_for(
    recipients: Sequence[Recipient], metadata_recipients: Sequence[Recipient] = ()
) -> Wrap:
    """How a new file's roots are wrapped: both for `recipients`, the metadata root for the others.

    Raises UsageError: nobody could open the memory, or somebody is named twice.
    """
    require_recipient(recipients)
    everyone = [*recipients, *metadata_recipients]
    if len({r.fingerprint for r in everyone}) != len(everyone):
        raise UsageError("a recipient is given twice")
    if len(everyone) > 1 and any(r.kind is StanzaKind.SCRYPT for r in everyone):
        raise UsageError("a passphrase cannot be combined with other recipients")

    def wrap(preamble: Preamble, roots: RootKeys) -> list[Stanza]:
        return wrap_stanzas(preamble, roots, recipients, metadata_recipients)

    return wrap


def require_recipient(recipients: Sequence[object]) -> None:
    """Raises UsageError: nobody could open the memory."""
    if not recipients:
        raise UsageError("no recipient given", hint="name one with -r, or in config.toml")


def wrap_stanzas(
    preamble: Preamble,
    roots: RootKeys,
    recipients: Sequence[Recipient],
    metadata_recipients: Sequence[Recipient],
) -> list[Stanza]:
    """One stanza for each."""
    pairs = [(r, Roots.BOTH) for r in recipients] + [
        (r, Roots.METADATA) for r in metadata_recipients
    ]
    return [
        recipient.wrap(
            roots.wrappable(which), WrapContext(preamble.suite, preamble.checkpoint_id, which)
        )
        for recipient, which in pairs
    ]


def signing_by(signer: Signer | None) -> Signing:
    """How statements are signed; None leaves them unsigned."""
    if signer is None:
        return UNSIGNED
    return Signing(lambda pae: (signer.sign(pae),), (signer.key_id,))


def unwrap_with(identities: Sequence[Identity]) -> Unwrap:
    """Tries each identity on the stanzas that name it; prefers one that opens memory.

    Raises IdentityError, naming to whom the file is sealed.
    """

    def unwrap(preamble: Preamble, slot: Slot) -> RootKeys:
        stanzas = sorted(slot.stanzas, key=lambda s: s.roots, reverse=True)
        for stanza in stanzas:
            for identity in identities:
                if identity.matches(stanza):
                    context = WrapContext(preamble.suite, preamble.checkpoint_id, stanza.roots)
                    return RootKeys.from_wrapped(identity.unwrap(stanza, context), stanza.roots)
        sealed_to = ", ".join(describe_stanza(s) for s in slot.stanzas)
        raise IdentityError(
            f"the checkpoint is not sealed to this identity, but to: {sealed_to}",
            hint="give the identity of one of them with -i",
        )

    return unwrap


def describe_stanza(stanza: Stanza) -> str:
    """Kind and shortened fingerprint of a recipient, and whether it opens memory."""
    text = KIND_NAMES[stanza.kind]
    if stanza.kind is not StanzaKind.SCRYPT:
        text += " " + stanza.fingerprint.hex()[:16]
    return text if stanza.roots is Roots.BOTH else text + " (metadata only)"


@dataclass(frozen=True)
class CheckedFile:
    """A sealed file whose statements were checked against a policy.  A context manager: closes `source`.

    Opened by `opener` alone, which asks for trust, finds parents and pages, and knows what is expected.

    signers: who signed the prune statement, if there is one, the envelope statement, and the origin statement.  path:
    None where it has none; stores: where else than beside it the chunks may lie to which it refers.
    """

    source: ByteSource
    authentic: AuthenticFile
    signers: tuple[VerifiedSignature, ...]
    path: str | None = None
    stores: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        path: str,
        policy: TrustPolicy,
        *,
        spool: str | None = None,
        repair: bool = False,
        progress: Callable[[int], None] = lambda _: None,
        stores: Sequence[str] = (),
        limit: int | None = None,
    ) -> CheckedFile:
        """`path` may be "-"; limit: bytes that are held of what comes from a pipe.

        Raises FileError, PolicyError, UsageError.
        """
        try:
            source = open_input(
                path, spool=spool, progress=progress, limit=limit, admit=Front(policy).feed
            )
        except (FileError, PolicyError) as error:
            raise in_file(error, "standard input" if path == "-" else path) from None
        try:
            where = None if path == "-" or is_url(path) else path
            return cls.of(source, policy, repair=repair, path=where, stores=stores)
        except (FileError, PolicyError) as error:
            source.close()
            raise in_file(error, "standard input" if path == "-" else path) from None
        except BaseException:
            source.close()
            raise

    @classmethod
    def of(
        cls,
        source: ByteSource,
        policy: TrustPolicy,
        *,
        repair: bool = False,
        path: str | None = None,
        stores: Sequence[str] = (),
    ) -> CheckedFile:
        """From `source`, which it takes over if it succeeds.  Raises FileError, PolicyError."""
        authentic, signers = read_settled(
            source.fd if isinstance(source, Descriptor) else None,
            lambda: authenticate(source, policy, repair=repair),
            lambda found: found[0].interrupted,
        )
        return cls(source, authentic, signers, path, tuple(stores))

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()

    def unlock(self, identities: Sequence[Identity]) -> OpenFile:
        """Raises IdentityError, FileError."""
        if not identities:
            raise UsageError("no identity given", hint="name one with -i, or in config.toml")
        opened = OpenFile.unlock(self.authentic, unwrap_with(identities))
        return WithChunks(opened, self.chunk_finder()) if refers(opened) else opened

    def chunk_finder(self) -> ChunkFinder:
        """Finds the stored chunks to which the file refers.  Raises UsageError."""
        return ChunkFinder(self.path, self.stores)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.source.close()


class Opinion(NamedTuple):
    """What a policy says of one statement of a file.  statement: "contents", "header" or "prune record"."""

    statement: str
    reasons: tuple[Reason, ...]

    @property
    def believed(self) -> bool:
        """One reason is enough."""
        return any(r.believed for r in self.reasons)


class _Statements(NamedTuple):
    """The public parts of a file with what verifies; `at` says when each statement claims to have been signed."""

    authentic: AuthenticFile
    claim: Claim
    prune: tuple[Verified, int] | None
    envelope: tuple[Verified, int]
    origin: tuple[Verified, int]


def authenticate(
    source: ByteSource, policy: TrustPolicy, *, repair: bool = False
) -> tuple[AuthenticFile, tuple[VerifiedSignature, ...]]:
    """Check the public parts of a sealed file and who signed them.  Raises FileError, PolicyError.

    Every statement needs a signer who is trusted for the checkpoint that the origin statement describes.
    """
    authentic, claim, prune, (envelope, created), (origin, captured) = _statements(
        source, policy, repair=repair
    )
    policy.check(origin, claim, captured)
    policy.check(envelope, claim, created)
    signatures = [*envelope.signatures, *origin.signatures]
    if prune is not None:
        record, freed = prune
        policy.check(record, claim, freed)
        signatures[:0] = record.signatures
    unique = {s.key_id: s for s in signatures}
    return authentic, tuple(unique.values())


class Judgement(NamedTuple):
    """What `authenticate` decides of a file, and why.  refusal: its error, None where it believes the file."""

    authentic: AuthenticFile
    opinions: tuple[Opinion, ...]
    refusal: PolicyError | None


def explain(source: ByteSource, policy: TrustPolicy) -> Judgement:
    """Ask `authenticate`, and for every reason.  Raises FileError."""
    refusal = None
    try:
        authenticate(source, policy)
    except PolicyError as error:
        refusal = error
    found = _statements(source, policy._replace(names_only=True), repair=False)
    statements = {"contents": found.origin, "header": found.envelope}
    if found.prune is not None:
        statements["prune record"] = found.prune
    opinions = tuple(
        Opinion(name, tuple(policy.reasons(verified, found.claim, at)))
        for name, (verified, at) in statements.items()
    )
    return Judgement(found.authentic, opinions, refusal)


def _statements(source: ByteSource, policy: TrustPolicy, *, repair: bool) -> _Statements:
    seen: dict[bytes, Verified] = {}

    def evaluate(envelope: dsse.Envelope) -> tuple[str, ...]:
        verified = seen[envelope.payload] = policy.evaluate(envelope)
        return verified.key_ids

    authentic = SealedFile(source).authenticate(evaluate, repair=repair)
    origin = authentic.origin
    signed = seen[authentic.file.origin_envelope.payload]
    envelope = seen[dsse.decode(authentic.slot.envelope, ENVELOPE_TYPE, "envelope").payload]
    prune = None
    if authentic.prune is not None and authentic.file.prune_envelope is not None:
        prune = seen[authentic.file.prune_envelope.payload], authentic.prune.created
    return _Statements(
        authentic,
        Claim(origin.workload, origin.kind, origin.captured),
        prune,
        (envelope, authentic.envelope.created),
        (signed, origin.captured),
    )


def require_trust(policy: TrustPolicy) -> None:
    """Raises PolicyError where no policy says whom to believe."""
    if not (policy.names_somebody or policy.allow_unsigned):
        raise PolicyError(
            "no trusted signer is given: anyone who can write the file could have made it",
            hint="name the signer with --trust, or in config.toml; --allow-unsigned takes the risk",
        )
