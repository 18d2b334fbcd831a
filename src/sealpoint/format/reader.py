"""Reading a sealed file, in the one order that the specification allows.

`SealedFile(source)` parses trailer, bounds and slots; `authenticate` checks signatures and trust before it looks into a
statement; `OpenFile.unlock` (in `opened`) unwraps, checks commitments and MAC and decrypts the manifests.  Each step
returns a new object that can do more, so nothing can be read before it was checked.

Out of scope: trust (a callable), keys (a callable), anything that CRIU means by the objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blake3

from sealpoint.errors import FileError, SealpointError
from sealpoint.format import dsse, statement
from sealpoint.format.constants import (
    ENVELOPE_TYPE,
    FRAME_HEAD_SIZE,
    INDEX_ENTRY_SIZE,
    MAX_FRAMES,
    MEMORY_MANIFEST,
    METADATA_MANIFEST,
    ORIGIN_TYPE,
    PREAMBLE_SIZE,
    PRUNE_MAGIC,
    PRUNE_TAIL_SIZE,
    PRUNE_TYPE,
    REFERENCE_SIZE,
    TRAILER_SIZE,
    Role,
)
from sealpoint.format.derive import RootKeys
from sealpoint.format.index import Index
from sealpoint.format.preamble import Preamble, Trailer
from sealpoint.format.prune import PruneStatement, PruneTail
from sealpoint.format.raw import ByteSource, read_exactly
from sealpoint.format.slot import Slot, decode_slot
from sealpoint.format.statement import EnvelopeStatement, Origin, ParentRef

if TYPE_CHECKING:
    pass

Evaluate = Callable[[dsse.Envelope], Sequence[str]]
Unwrap = Callable[[Preamble, Slot], RootKeys]


class SealedFile:
    """The public structure of a sealed file.  Nothing in it is authentic yet."""

    def __init__(self, source: ByteSource, size: int | None = None) -> None:
        """`source` stays the caller's; size: of the part that counts, all of it if None.  Raises FileError.

        sealed_size: bytes up to the end of the trailer; what follows are prune records.
        """
        self.source = source
        now = source.size
        self.size = now if size is None else size
        if self.size < PREAMBLE_SIZE + TRAILER_SIZE:
            raise FileError("not a sealed checkpoint", hint="it is too short to be one")
        self.preamble = Preamble.decode(read_exactly(source, PREAMBLE_SIZE, 0))
        if self.size < self.preamble.frames_offset + TRAILER_SIZE:
            raise FileError("the sealed file is incomplete")
        self.prune_tail: PruneTail | None = None
        self.prune_envelope: dsse.Envelope | None = None
        self.sealed_size = self._read_prune_record()
        self.trailer = Trailer.decode(
            read_exactly(source, TRAILER_SIZE, self.sealed_size - TRAILER_SIZE),
            self.preamble,
            self.sealed_size,
        )
        self.slots: list[Slot | FileError | None] = [self._read_slot(n) for n in (0, 1)]
        origin = read_exactly(source, self.trailer.origin_size, self.trailer.origin_offset)
        self.trailer.check_origin(origin)
        self.origin_envelope = dsse.decode(origin, ORIGIN_TYPE, "origin statement")

    def _read_prune_record(self) -> int:
        """The last prune record, if there is one; returns where the sealed file proper ends."""
        last = read_exactly(self.source, PRUNE_TAIL_SIZE, self.size - PRUNE_TAIL_SIZE)
        if last[: len(PRUNE_MAGIC)] != PRUNE_MAGIC:
            return self.size
        tail = PruneTail.decode(last, self.size)
        if tail.sealed_size < self.preamble.frames_offset + TRAILER_SIZE:
            raise FileError("the prune record contradicts the file")
        statement = read_exactly(self.source, tail.statement_size, tail.statement_offset)
        tail.check(statement)
        self.prune_envelope = dsse.decode(statement, PRUNE_TYPE, "prune statement")
        self.prune_tail = tail
        return tail.sealed_size

    def _read_slot(self, number: int) -> Slot | FileError | None:
        offset = self.preamble.slot_offset(number)
        try:
            return decode_slot(read_exactly(self.source, self.preamble.slot_size, offset))
        except FileError as error:
            return error

    def authenticate(
        self, evaluate: Evaluate, *, repair: bool = False, newest: int = 0
    ) -> AuthenticFile:
        """Check signatures, trust and all that the statements say of the public parts.

        `evaluate` raises PolicyError or FileError, else returns the hex key ids that signed.  `repair`: accept a file
        whose rekey was interrupted.  `newest`: the highest header sequence that the caller has ever seen of this
        checkpoint.  Raises FileError and what `evaluate` raises.
        """
        signed_by = evaluate(self.origin_envelope)
        origin = Origin.decode(self.origin_envelope.payload)
        _check_signers(self.origin_envelope, signed_by, origin.signers, "origin statement")
        chosen, interrupted = self._choose_slot(evaluate, origin, repair=repair)
        if chosen[1].sequence < newest:
            raise FileError(
                f"the header is number {chosen[1].sequence}, but number {newest} exists: an older copy was put back"
            )
        index = self._read_index(origin)
        prune = self._check_prune(evaluate, index)
        return AuthenticFile(
            self, origin, chosen[0], chosen[1], chosen[2], index, interrupted, prune
        )

    def _check_prune(self, evaluate: Evaluate, index: Index) -> PruneStatement | None:
        envelope, tail = self.prune_envelope, self.prune_tail
        if envelope is None or tail is None:
            return None
        what = "prune statement"
        signed_by = evaluate(envelope)
        found = PruneStatement.decode(envelope.payload)
        _check_signers(envelope, signed_by, found.signers, what)
        earlier = read_exactly(
            self.source, tail.statement_offset - self.sealed_size, self.sealed_size
        )
        if (
            found.checkpoint_id != self.preamble.checkpoint_id
            or found.origin_digest != statement.digest(self.origin_envelope.payload)
            or found.earlier != blake3.blake3(earlier).digest()
        ):
            raise FileError("the prune statement does not belong to this file")
        found.check_index(index)
        return found

    def _choose_slot(
        self, evaluate: Evaluate, origin: Origin, *, repair: bool
    ) -> tuple[tuple[int, Slot, EnvelopeStatement], bool]:
        valid: list[tuple[int, Slot, EnvelopeStatement]] = []
        failures: list[SealpointError] = []
        for number, slot in enumerate(self.slots):
            if slot is None:
                continue
            try:
                if isinstance(slot, FileError):
                    raise slot
                valid.append((number, slot, self._check_slot(slot, evaluate, origin)))
            except SealpointError as error:
                failures.append(error)
        if failures and not valid:
            raise failures[0]
        if failures and not repair:
            raise FileError(
                f"one of the two headers is not valid: an interrupted rekey, or tampering ({failures[0]})",
                hint="if a rekey of this file was interrupted, run: sealpoint rekey FILE --repair",
            )
        if not valid:
            raise FileError("the sealed file has no header: nobody can open it")
        if len({slot.sequence for _, slot, _ in valid}) != len(valid):
            raise FileError("both headers claim the same sequence number")
        return max(valid, key=lambda v: v[1].sequence), len(valid) + len(failures) > 1

    def _check_slot(self, slot: Slot, evaluate: Evaluate, origin: Origin) -> EnvelopeStatement:
        what = "envelope statement"
        envelope = dsse.decode(slot.envelope, ENVELOPE_TYPE, what)
        signed_by = evaluate(envelope)
        found = EnvelopeStatement.decode(envelope.payload)
        _check_signers(envelope, signed_by, found.signers, what)
        if (
            found.checkpoint_id != self.preamble.checkpoint_id
            or found.sequence != slot.sequence
            or found.slot_digest != slot.digest(self.preamble)
            or found.commitments != origin.commitments
            or found.recipients != statement.recipients_of(slot.stanzas)
        ):
            raise FileError("the header does not belong to its envelope statement")
        return found

    def claimed_index(self) -> Index:
        """The index, as far as the file agrees with itself: it proves nothing.  Raises FileError."""
        return self._read_index(Origin.decode(self.origin_envelope.payload))

    def _read_index(self, origin: Origin) -> Index:
        trailer, preamble = self.trailer, self.preamble
        frames_size = trailer.index_offset - preamble.frames_offset
        size = origin.frames * INDEX_ENTRY_SIZE + origin.references * REFERENCE_SIZE
        if not 0 < origin.frames <= MAX_FRAMES or trailer.index_size != size:
            raise FileError("the origin statement does not belong to this file")
        data = read_exactly(self.source, trailer.index_size, trailer.index_offset)
        if (
            origin.suite is not preamble.suite
            or origin.checkpoint_id != preamble.checkpoint_id
            or origin.preamble_digest != preamble.digest
            or origin.frames_size != frames_size
            or origin.index_root != blake3.blake3(data).digest()
        ):
            raise FileError("the origin statement does not belong to this file")
        index = Index(data, preamble.frames_offset, frames_size, references=origin.references)
        for number, role in ((METADATA_MANIFEST, Role.METADATA), (MEMORY_MANIFEST, Role.MEMORY)):
            if len(index.frames_of(number)) != origin.manifests[role].frames:
                raise FileError(f"the {role.value} manifest is missing or incomplete")
        return index


def _check_signers(
    envelope: dsse.Envelope, signed_by: Sequence[str], claimed: tuple[str, ...], what: str
) -> None:
    # The payload names its signing keys: nobody can add or drop a signature, or have it seem another's.
    carried = tuple(s.keyid for s in envelope.signatures)
    if carried != claimed or not set(signed_by) <= set(claimed):
        raise FileError(f"{what}: not signed by exactly the keys that it names")
    for signature in envelope.signatures:
        key = signature.public_key
        if key and hashlib.sha256(key).hexdigest() != signature.keyid:
            raise FileError(f"{what}: a signature carries another key than it names")


@dataclass(frozen=True)
class AuthenticFile:
    """A sealed file whose statements are signed and trusted (as far as `evaluate` asks) and agree with its bytes.

    interrupted: a rekey was interrupted and the other slot is not idle.  prune: which frames were freed, if any.
    """

    file: SealedFile
    origin: Origin
    slot_number: int
    slot: Slot
    envelope: EnvelopeStatement
    index: Index
    interrupted: bool
    prune: PruneStatement | None = None

    @property
    def reference(self) -> ParentRef:
        """By which other files name this one."""
        return ParentRef(
            self.origin.checkpoint_id, statement.digest(self.file.origin_envelope.payload)
        )

    def check_frames(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Read every frame and compare it with the index.  `progress` gets bytes read.  Raises FileError."""
        for frame in self.frames():
            progress(len(frame))

    def frames(self) -> Iterator[memoryview]:
        """Every frame as it lies in the file, compared with the index; each is overwritten by the next.

        Frames that were freed are empty, or as they were.  Raises FileError.
        """
        largest = max(self.index.entry(p)[2] for p in range(len(self.index)))
        buffer = memoryview(bytearray(FRAME_HEAD_SIZE + largest))
        for position in range(len(self.index)):
            if self.is_freed(position):
                frame = self._read(position, buffer)
                if any(frame):  # not emptied yet, then as it was
                    self.index.check(position, frame)
            else:
                frame = self.read_frame(position, buffer)
            yield frame

    def is_freed(self, position: int) -> bool:
        """Whether a frame was given up, because a later file of the chain holds its pages anew."""
        return self.prune is not None and self.prune.frees(position)

    def read_frame(self, position: int, buffer: memoryview) -> memoryview:
        """One whole frame, compared with the index.  Raises FileError."""
        if self.is_freed(position):
            raise FileError(
                f"frame {position} was freed when a later increment replaced it",
                hint="the file can be restored only in its chain",
            )
        frame = self._read(position, buffer)
        self.index.check(position, frame)
        return frame

    def _read(self, position: int, buffer: memoryview) -> memoryview:
        _, offset, size, _ = self.index.entry(position)
        frame = buffer[: FRAME_HEAD_SIZE + size]
        self.file.source.read_into(frame, offset)
        return frame
