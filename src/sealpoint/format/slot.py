"""Header slots: who can open the file, rewritable without touching the frames (docs/spec.md, Header slots)."""

from __future__ import annotations

import hmac
import struct
from typing import TYPE_CHECKING, NamedTuple

import blake3

from sealpoint.errors import FileError, UsageError
from sealpoint.format import derive
from sealpoint.format.constants import (
    DEFAULT_SLOT_SIZE,
    LABEL,
    MAX_SEQUENCE,
    MAX_STANZA_BODY,
    MAX_STANZAS,
    SLOT_HEAD_SIZE,
    SLOT_SIZES,
)
from sealpoint.format.stanza import Stanza, decode_stanzas, encode_stanzas

if TYPE_CHECKING:
    from sealpoint.format.preamble import Preamble

_HEAD = struct.Struct("<4sIQI12s32s")
_MAGIC = b"SLOT"
_CHECKSUM = 12
_ROOM = 3  # a new file's slot is at least this many times as large as its first contents: room for rekey


class Slot(NamedTuple):
    """One decoded header slot.

    sequence: 1 at creation, one more at each rekey; body: encoded stanzas; mac: HMAC-SHA-256 from the metadata root;
    envelope: the DSSE envelope statement as stored.
    """

    sequence: int
    body: bytes
    mac: bytes
    envelope: bytes

    @property
    def stanzas(self) -> list[Stanza]:
        """The recipients.  Raises FileError."""
        return decode_stanzas(self.body)

    def digest(self, preamble: Preamble) -> bytes:
        """BLAKE3 over what the envelope statement vouches for."""
        return blake3.blake3(_covered(preamble, self.sequence, self.body) + self.mac).digest()

    def check_mac(self, preamble: Preamble, metadata_root: bytes) -> None:
        """Raises FileError unless a holder of the metadata root wrote this slot."""
        expected = derive.header_mac(
            metadata_root, preamble, _covered(preamble, self.sequence, self.body)
        )
        if not hmac.compare_digest(expected, self.mac):
            raise FileError("the header was changed by someone who cannot open the checkpoint")


def _covered(preamble: Preamble, sequence: int, body: bytes) -> bytes:
    return b"".join(
        (LABEL, b" slot", preamble.encode(), struct.pack("<QI", sequence, len(body)), body)
    )


def make_slot(
    preamble: Preamble, sequence: int, stanzas: list[Stanza], metadata_root: bytes
) -> Slot:
    """A slot that still lacks its envelope statement.  Raises UsageError where no reader would accept it."""
    if not 0 < sequence <= MAX_SEQUENCE:
        raise UsageError("the header of this file cannot be changed any more")
    body = encode_stanzas(stanzas)
    try:
        decode_stanzas(body)
    except FileError as error:
        raise UsageError(f"these recipients cannot stand in one header ({error})") from None
    mac = derive.header_mac(metadata_root, preamble, _covered(preamble, sequence, body))
    return Slot(sequence, body, mac, b"")


def slot_size_for(stanzas_size: int, envelope_size: int) -> int:
    """Size of the slots of a new file: the default, or more where that would leave little room for later recipients."""
    need = max(DEFAULT_SLOT_SIZE, _ROOM * (SLOT_HEAD_SIZE + stanzas_size + envelope_size))
    step = SLOT_SIZES.step
    return min(-(-need // step) * step, SLOT_SIZES[-1])


def encode_slot(slot: Slot, size: int) -> bytes:
    """The whole slot, padded with zeros.  Raises UsageError where it does not fit."""
    data = _encode(slot, _checksum(slot))
    if len(data) > size:
        raise UsageError(
            f"{len(slot.stanzas)} recipients need {len(data)} bytes of header, this file has room for {size}",
            hint="remove a recipient, or open and seal the checkpoint again",
        )
    return data.ljust(size, b"\0")


def _encode(slot: Slot, checksum: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, len(slot.body), slot.sequence, len(slot.envelope), checksum, slot.mac)
    return head + slot.body + slot.envelope


def _checksum(slot: Slot) -> bytes:
    # Finds damage in what neither MAC nor signature covers, such as certificates beside a signature.
    return blake3.blake3(_encode(slot, bytes(_CHECKSUM))).digest(_CHECKSUM)


def decode_slot(data: bytes) -> Slot | None:
    """A slot as stored; None if it is idle (all zero).  Raises FileError if it is neither valid nor idle."""
    if not any(data):
        return None
    if len(data) < SLOT_HEAD_SIZE:
        raise FileError("header slot: malformed")
    magic, body_size, sequence, envelope_size, checksum, mac = _HEAD.unpack_from(data)
    end = SLOT_HEAD_SIZE + body_size + envelope_size
    if (
        magic != _MAGIC
        or not 0 < sequence <= MAX_SEQUENCE
        or body_size > MAX_STANZAS * (MAX_STANZA_BODY + 64)
        or end > len(data)
        or any(data[end:])
    ):
        raise FileError("header slot: malformed")
    body = data[SLOT_HEAD_SIZE : SLOT_HEAD_SIZE + body_size]
    slot = Slot(sequence, body, mac, data[SLOT_HEAD_SIZE + body_size : end])
    if _checksum(slot) != checksum:
        raise FileError("header slot: damaged, or written only in part")
    decode_stanzas(body)
    return slot
