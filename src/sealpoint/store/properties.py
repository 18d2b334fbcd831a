"""What a store says of a sealed file without opening it: names and values of its properties.

They are copied from the file's public statements.  A store can change them, so nobody believes them: they help to find
a file, and whoever opens it verifies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sealpoint.errors import FileError
from sealpoint.format import dsse
from sealpoint.format.constants import ENVELOPE_TYPE, ID_SIZE
from sealpoint.format.raw import ByteSource
from sealpoint.format.reader import SealedFile
from sealpoint.format.slot import Slot
from sealpoint.format.statement import EnvelopeStatement, Origin, ParentRef, digest

_PREFIX: Final = "dev.sealpoint.checkpoint."
ID: Final = f"{_PREFIX}id"  # hex
ORIGIN_DIGEST: Final = f"{_PREFIX}origin"  # hex; what identifies a checkpoint wherever it lies
SEQUENCE: Final = f"{_PREFIX}sequence"  # of the header, decimal
KIND: Final = f"{_PREFIX}kind"
WORKLOAD: Final = f"{_PREFIX}workload"
CAPTURED: Final = f"{_PREFIX}captured"  # seconds since 1970, decimal
PARENT: Final = f"{_PREFIX}parent"  # id in hex; absent where there is none
STANDS_FOR: Final = f"{_PREFIX}stands-for"  # id of the file whose place it can take in a chain
SIGNERS: Final = f"{_PREFIX}signers"  # hex key ids, commas between
RECIPIENTS: Final = f"{_PREFIX}recipients"  # hex fingerprints, commas between


def describe(source: ByteSource) -> dict[str, str]:
    """The properties of a sealed file, as it says itself.  Raises FileError, SystemEnvironmentError."""
    file = SealedFile(source)
    payload = file.origin_envelope.payload
    origin = Origin.decode(payload)
    slots = [s for s in file.slots if isinstance(s, Slot)]
    if not slots:
        raise FileError("the sealed file has no header: nobody can open it")
    slot = max(slots, key=lambda s: s.sequence)
    envelope = dsse.decode(slot.envelope, ENVELOPE_TYPE, "envelope statement")
    signers = (*origin.signers, *EnvelopeStatement.decode(envelope.payload).signers)
    found = {
        ID: origin.checkpoint_id.hex(),
        ORIGIN_DIGEST: digest(payload).hex(),
        SEQUENCE: str(slot.sequence),
        KIND: origin.kind,
        WORKLOAD: origin.workload,
        CAPTURED: str(origin.captured),
        PARENT: _id(origin.parent),
        STANDS_FOR: _id(origin.stands_for),
        SIGNERS: ",".join(dict.fromkeys(signers)),
        RECIPIENTS: ",".join(s.fingerprint.hex() for s in slot.stanzas),
    }
    return {name: value for name, value in found.items() if value}


def _id(reference: ParentRef | None) -> str:
    return "" if reference is None else reference.checkpoint_id.hex()


def checkpoint_id(properties: Mapping[str, str], name: str = ID) -> bytes | None:
    """The id under one of the names above; None where there is none, or nothing that is one."""
    try:
        found = bytes.fromhex(properties.get(name, ""))
    except ValueError:
        return None
    return found if len(found) == ID_SIZE else None
