"""The two signed statements: origin (what was captured, made once) and envelope (who can open it, made at each rekey).

Here are their payloads, strict JSON inside DSSE.  Signing and trust are matters of `sealpoint.keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import blake3

from sealpoint.errors import FileError, UsageError
from sealpoint.format import strictjson
from sealpoint.format.constants import (
    HASH_SIZE,
    ID_SIZE,
    MAX_STANZAS,
    VERSION,
    Role,
    Roots,
    Suite,
)
from sealpoint.format.dsse import MAX_SIGNATURES
from sealpoint.format.strictjson import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealpoint.format.preamble import Preamble
    from sealpoint.format.slot import Slot
    from sealpoint.format.stanza import Stanza

# merged: the same images as those of `derivedFrom`, with pages of its parents put in; it may stand for that file.
KINDS = ("full", "increment", "derived", "merged")
MAX_WORKLOAD = 4096  # characters


def check_workload(workload: str) -> None:
    """Raises UsageError for a name that a reader would refuse."""
    if len(workload) > MAX_WORKLOAD:
        raise UsageError(f"the name of a workload has at most {MAX_WORKLOAD} characters")
    try:
        workload.encode()
    except UnicodeEncodeError:
        raise UsageError("the name of a workload must be UTF-8") from None


class ParentRef(NamedTuple):
    """The sealed file that this one continues or was derived from: its checkpoint id and origin digest."""

    checkpoint_id: bytes
    origin_digest: bytes


class ManifestRef(NamedTuple):
    """Digest (BLAKE3 over the frames, heads included) and number of frames of one manifest."""

    digest: bytes
    frames: int


class Origin(NamedTuple):
    """What the sealer vouches for.  Digests are BLAKE3, 32 bytes; `captured` is in seconds since 1970, UTC.

    signers: hex key ids that this statement says it is signed by; binds certificates and keys carried beside it.
    references: number of stored chunks that the index refers to behind its entries.
    """

    suite: Suite
    checkpoint_id: bytes
    kind: str
    preamble_digest: bytes
    commitments: Mapping[Role, bytes]
    manifests: Mapping[Role, ManifestRef]
    index_root: bytes
    frames: int
    frames_size: int
    captured: int
    tool: str
    chain_root: bytes
    chain_sequence: int = 0
    workload: str = ""
    parent: ParentRef | None = None
    derived_from: ParentRef | None = None
    signers: tuple[str, ...] = ()
    references: int = 0

    @property
    def stands_for(self) -> ParentRef | None:
        """The file whose place this one can take in a chain, if it was made to."""
        return self.derived_from if self.kind == "merged" else None

    def encode(self) -> bytes:
        """The payload to be signed."""
        return strictjson.encode(
            {
                "version": str(VERSION),
                "suite": self.suite.label,
                "checkpoint": self.checkpoint_id.hex(),
                "kind": self.kind,
                "preamble": self.preamble_digest.hex(),
                "commitments": {r.value: c.hex() for r, c in self.commitments.items()},
                "manifests": {
                    r.value: {"digest": m.digest.hex(), "frames": str(m.frames)}
                    for r, m in self.manifests.items()
                },
                "index": {
                    "root": self.index_root.hex(),
                    "frames": str(self.frames),
                    "size": str(self.frames_size),
                    **({"references": str(self.references)} if self.references else {}),
                },
                "roles": [r.value for r in self.manifests],
                "parent": _encode_ref(self.parent),
                "derivedFrom": _encode_ref(self.derived_from),
                "chain": {"root": self.chain_root.hex(), "sequence": str(self.chain_sequence)},
                "workload": self.workload,
                "captured": str(self.captured),
                "tool": self.tool,
                "signers": list(self.signers),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> Origin:
        """Raises FileError."""
        f = Fields(strictjson.decode(payload, "origin statement"), "origin statement")
        if f.u64("version") != VERSION:
            raise FileError("origin statement: of an unknown version")
        label = f.text("suite")
        suite = next((s for s in Suite if s.label == label), None)
        if suite is None:
            raise FileError("origin statement: unknown suite")
        checkpoint_id = f.hex("checkpoint", ID_SIZE)
        kind = f.text("kind")
        preamble_digest = f.hex("preamble", HASH_SIZE)
        commitments = _decode_commitments(f)
        nested = f.fields("manifests")
        manifests = {r: _decode_manifest_ref(nested.fields(r.value)) for r in Role}
        nested.done()
        index = f.fields("index")
        root, frames, size = index.hex("root", HASH_SIZE), index.u64("frames"), index.u64("size")
        references = index.u64("references") if "references" in index.keys() else 0  # noqa: SIM118 - no dict
        index.done()
        if f.array("roles", limit=2) != [r.value for r in Role]:
            raise FileError("origin statement: a role is missing")
        parent, derived_from = _decode_ref(f, "parent"), _decode_ref(f, "derivedFrom")
        chain = f.fields("chain")
        chain_root, sequence = chain.hex("root", ID_SIZE), chain.u64("sequence")
        chain.done()
        workload, captured, tool = (
            f.text("workload", limit=MAX_WORKLOAD),
            f.time("captured"),
            f.text("tool", limit=256),
        )
        signers = decode_signers(f)
        f.done()
        origin = cls(
            suite=suite,
            checkpoint_id=checkpoint_id,
            kind=kind,
            preamble_digest=preamble_digest,
            commitments=commitments,
            manifests=manifests,
            index_root=root,
            frames=frames,
            frames_size=size,
            captured=captured,
            tool=tool,
            chain_root=chain_root,
            chain_sequence=sequence,
            workload=workload,
            parent=parent,
            derived_from=derived_from,
            signers=signers,
            references=references,
        )
        origin.check()
        if origin.encode() != payload:
            raise FileError("origin statement: not in canonical form")
        return origin

    def check(self) -> None:
        """Kind, parent and place in the chain must agree.  Raises FileError."""
        first = self.chain_sequence == 0
        if (
            self.kind not in KINDS
            or (self.kind in ("derived", "merged")) != (self.derived_from is not None)
            or (self.kind == "full" and self.parent is not None)
            or (self.kind == "increment" and self.parent is None)
            or first != (self.parent is None)
            or first != (self.chain_root == self.checkpoint_id)
        ):
            raise FileError("origin statement: kind, parent and chain contradict each other")


class EnvelopeStatement(NamedTuple):
    """What the one who set the recipients vouches for.  `created` is in seconds since 1970, UTC."""

    checkpoint_id: bytes
    sequence: int
    slot_digest: bytes
    commitments: Mapping[Role, bytes]
    recipients: Mapping[Role, tuple[bytes, ...]]
    created: int
    signers: tuple[str, ...] = ()

    @classmethod
    def for_slot(
        cls,
        preamble: Preamble,
        slot: Slot,
        commitments: Mapping[Role, bytes],
        *,
        created: int,
        signers: tuple[str, ...],
    ) -> EnvelopeStatement:
        """The statement about a slot made by `make_slot`."""
        return cls(
            preamble.checkpoint_id,
            slot.sequence,
            slot.digest(preamble),
            commitments,
            recipients_of(slot.stanzas),
            created,
            signers,
        )

    def encode(self) -> bytes:
        """The payload to be signed."""
        return strictjson.encode(
            {
                "version": str(VERSION),
                "checkpoint": self.checkpoint_id.hex(),
                "sequence": str(self.sequence),
                "slot": self.slot_digest.hex(),
                "commitments": {r.value: c.hex() for r, c in self.commitments.items()},
                "recipients": {r.value: [x.hex() for x in self.recipients[r]] for r in Role},
                "created": str(self.created),
                "signers": list(self.signers),
            }
        )

    @classmethod
    def decode(cls, payload: bytes) -> EnvelopeStatement:
        """Raises FileError."""
        what = "envelope statement"
        f = Fields(strictjson.decode(payload, what), what)
        if f.u64("version") != VERSION:
            raise FileError(f"{what}: of an unknown version")
        checkpoint_id, sequence = f.hex("checkpoint", ID_SIZE), f.u64("sequence")
        slot_digest = f.hex("slot", HASH_SIZE)
        commitments = _decode_commitments(f)
        nested = f.fields("recipients")
        recipients = {
            r: tuple(
                strictjson.parse_hex(x, HASH_SIZE, what)
                for x in nested.array(r.value, limit=MAX_STANZAS)
            )
            for r in Role
        }
        nested.done()
        created, signers = f.time("created"), decode_signers(f)
        f.done()
        found = cls(checkpoint_id, sequence, slot_digest, commitments, recipients, created, signers)
        if found.encode() != payload:
            raise FileError(f"{what}: not in canonical form")
        return found


def recipients_of(stanzas: list[Stanza]) -> dict[Role, tuple[bytes, ...]]:
    """Fingerprints of those who can unwrap each root, in stanza order."""
    return {
        Role.METADATA: tuple(s.fingerprint for s in stanzas),
        Role.MEMORY: tuple(s.fingerprint for s in stanzas if s.roots is Roots.BOTH),
    }


def digest(payload: bytes) -> bytes:
    """The origin digest by which other files name this one: BLAKE3 over the signed payload bytes."""
    return blake3.blake3(payload).digest()


def _encode_ref(ref: ParentRef | None) -> dict[str, str] | None:
    if ref is None:
        return None
    return {"checkpoint": ref.checkpoint_id.hex(), "origin": ref.origin_digest.hex()}


def _decode_ref(fields: Fields, key: str) -> ParentRef | None:
    if fields.null(key):
        return None
    nested = fields.fields(key)
    ref = ParentRef(nested.hex("checkpoint", ID_SIZE), nested.hex("origin", HASH_SIZE))
    nested.done()
    return ref


def _decode_commitments(fields: Fields) -> dict[Role, bytes]:
    nested = fields.fields("commitments")
    result = {r: nested.hex(r.value, HASH_SIZE) for r in Role}
    nested.done()
    return result


def _decode_manifest_ref(fields: Fields) -> ManifestRef:
    ref = ManifestRef(fields.hex("digest", HASH_SIZE), fields.u64("frames"))
    fields.done()
    return ref


def decode_signers(fields: Fields) -> tuple[str, ...]:
    """The member `signers`, which every payload has.  Raises FileError."""
    values = fields.array("signers", limit=MAX_SIGNATURES)
    signers = tuple(strictjson.parse_hex(v, HASH_SIZE, fields.what).hex() for v in values)
    if len(set(signers)) != len(signers):
        raise FileError(f"{fields.what}: a signer is named twice")
    return signers
