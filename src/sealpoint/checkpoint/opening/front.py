"""The front of a sealed file, judged while it arrives: nothing is held for somebody whom nobody trusts.

The preamble and both header slots come first, and a slot holds the signed envelope statement.  So the first wrong byte
of the magic ends it, then the first bad field, then the first signature that is not trusted.  What follows is verified
when all is there, this front included.
"""

from __future__ import annotations

from sealpoint.errors import FileError, SealpointError
from sealpoint.format import dsse
from sealpoint.format.constants import ENVELOPE_TYPE, MAGIC, PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.format.slot import decode_slot
from sealpoint.format.statement import EnvelopeStatement
from sealpoint.keys import TrustPolicy


class Front:
    """Call `feed` with every piece; call `end` after the last."""

    def __init__(self, policy: TrustPolicy) -> None:
        self._policy = policy
        self._head = bytearray()
        self._preamble: Preamble | None = None
        self._needed = PREAMBLE_SIZE
        self._done = False

    @property
    def checkpoint_id(self) -> bytes | None:
        """As the preamble claims, once it is there."""
        return None if self._preamble is None else self._preamble.checkpoint_id

    def feed(self, piece: memoryview) -> None:
        """Raises FileError, PolicyError: this is nothing to be held."""
        at = 0
        while not self._done and at < len(piece):
            take = min(self._needed - len(self._head), len(piece) - at)
            self._head += piece[at : at + take]
            at += take
            self._look()

    def end(self) -> None:
        """Raises FileError: it ended before its front was there."""
        if not self._done:
            raise FileError("not a sealed checkpoint", hint="it is too short to be one")

    def _look(self) -> None:
        head = bytes(self._head)
        if head[: len(MAGIC)] != MAGIC[: len(head)]:
            raise FileError("not a sealed checkpoint", hint="it does not begin as one")
        if len(head) < self._needed:
            return
        if self._preamble is None:
            self._preamble = Preamble.decode(head[:PREAMBLE_SIZE])
            self._needed = self._preamble.frames_offset
            return
        self._check_slots(self._preamble, head)
        self._done = True
        self._head = bytearray()

    def _check_slots(self, preamble: Preamble, head: bytes) -> None:
        """One slot that is signed by somebody trusted is enough: a rekey may have been interrupted."""
        failure: SealpointError = FileError("the sealed file has no header: nobody can open it")
        for number in (0, 1):
            offset = preamble.slot_offset(number)
            try:
                slot = decode_slot(head[offset : offset + preamble.slot_size])
                if slot is None:
                    continue
                envelope = dsse.decode(slot.envelope, ENVELOPE_TYPE, "envelope statement")
                verified = self._policy.evaluate(envelope)
                found = EnvelopeStatement.decode(envelope.payload)
                self._policy.check_time(verified, found.created)
                if (
                    found.checkpoint_id != preamble.checkpoint_id
                    or found.sequence != slot.sequence
                    or found.slot_digest != slot.digest(preamble)
                ):
                    raise FileError("the header does not belong to its envelope statement")
            except SealpointError as error:
                failure = error
            else:
                return
        raise failure
