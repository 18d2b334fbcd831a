"""Change who can open a sealed file, by rewriting header slots only (docs/spec.md, Header slots).

The order survives a kill between any two writes: the new slot goes into the idle place and is made durable before the
old one is zeroed.  In a store the whole head is replaced at once.  Out of scope: taking back what a removed recipient
could read before; that takes a new sealing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sealpoint.checkpoint.opening import parts
from sealpoint.checkpoint.opening.access import unwrap_with, wrap_stanzas
from sealpoint.checkpoint.opening.opener import Opening
from sealpoint.errors import (
    FileError,
    IdentityError,
    PolicyError,
    SystemEnvironmentError,
    UsageError,
)
from sealpoint.format.constants import Roots, StanzaKind
from sealpoint.format.opened import OpenFile
from sealpoint.format.preamble import Preamble
from sealpoint.format.raw import ByteSource, Descriptor, read_exactly
from sealpoint.format.reader import AuthenticFile
from sealpoint.format.slot import Slot, encode_slot, make_slot
from sealpoint.format.stanza import Stanza
from sealpoint.format.writer import Signing, sign_slot
from sealpoint.keys import Identity, Recipient, TrustPolicy
from sealpoint.keys.load import in_file
from sealpoint.store import properties
from sealpoint.store.location import is_url

if TYPE_CHECKING:
    from sealpoint.store.ranges import RemoteSource


class RekeyRequest(NamedTuple):
    """remove: fingerprints, lower-case hex, whole or at least 8 digits of the beginning."""

    identities: Sequence[Identity]
    signing: Signing
    policy: TrustPolicy
    add: Sequence[Recipient] = ()
    add_metadata: Sequence[Recipient] = ()
    remove: Sequence[str] = ()
    repair: bool = False


class RekeyResult(NamedTuple):
    """The header as it is now.  other_signer: it has other signers than the contents."""

    sequence: int
    stanzas: tuple[Stanza, ...]
    repaired: bool
    other_signer: bool = False


def rekey(path: str, request: RekeyRequest) -> RekeyResult:
    """Raises UsageError, IdentityError, FileError, PolicyError, SystemEnvironmentError."""
    changes = bool(request.add or request.add_metadata or request.remove)
    if not changes and not request.repair:
        raise UsageError(
            "nothing to change", hint="give --add, --add-metadata, --remove or --repair"
        )
    try:
        opening, repair = Opening(request.policy), request.repair
        if is_url(path):
            with opening.change_stored(path, repair=repair) as (source, authentic):
                return _rekey(_StoredHead(source), authentic, request, changes=changes)
        with opening.change(path, repair=repair) as (fd, authentic):
            return _rekey(_LocalHead(fd), authentic, request, changes=changes)
    except (FileError, PolicyError) as error:
        raise in_file(error, path) from None


def _rekey(
    head: _Head, authentic: AuthenticFile, request: RekeyRequest, *, changes: bool
) -> RekeyResult:
    if authentic.interrupted and not request.repair:
        raise UsageError("an earlier rekey of this file was interrupted", hint="add --repair")
    opened = OpenFile.unlock(authentic, unwrap_with(request.identities))
    if changes and (inside := parts.names(opened)):
        raise UsageError(
            f"it holds a sealed file, {inside[0]}, whose recipients would stay as they are",
            hint="open it, rekey that file, and seal the archive again",
        )
    preamble, current = authentic.file.preamble, authentic.slot
    if authentic.interrupted:
        head.clear(preamble, 1 - authentic.slot_number)
    if not changes:
        head.finish()
        return RekeyResult(current.sequence, tuple(current.stanzas), repaired=authentic.interrupted)
    stanzas = _changed(current.stanzas, request)
    memory_changes = bool(request.add) or _memory(stanzas) != _memory(current.stanzas)
    if memory_changes and opened.roots.memory is None:
        raise IdentityError("changing who can open the memory needs an identity that can open it")
    stanzas += wrap_stanzas(preamble, opened.roots, request.add, request.add_metadata)
    _check(stanzas)
    slot = make_slot(preamble, current.sequence + 1, stanzas, opened.roots.metadata)
    slot = sign_slot(preamble, slot, dict(authentic.origin.commitments), request.signing)
    head.replace(authentic, slot)
    return RekeyResult(
        slot.sequence,
        tuple(stanzas),
        repaired=authentic.interrupted,
        other_signer=set(request.signing.signers) != set(authentic.origin.signers),
    )


def _memory(stanzas: list[Stanza]) -> list[Stanza]:
    return [s for s in stanzas if s.roots is Roots.BOTH]


def _changed(stanzas: list[Stanza], request: RekeyRequest) -> list[Stanza]:
    kept = list(stanzas)
    for fingerprint in request.remove:
        found = [s for s in kept if s.fingerprint.hex().startswith(fingerprint)]
        if len(found) != 1:
            how = "no recipient" if not found else "more than one recipient"
            raise UsageError(f"{how} of this checkpoint has the fingerprint {fingerprint}")
        kept.remove(found[0])
    return kept


def _check(stanzas: list[Stanza]) -> None:
    if len({s.fingerprint for s in stanzas}) != len(stanzas):
        raise UsageError("the checkpoint is sealed to that recipient already")
    if not _memory(stanzas):
        raise UsageError("nobody would be able to open the memory", hint="add a recipient first")
    if len(stanzas) > 1 and any(s.kind is StanzaKind.SCRYPT for s in stanzas):
        raise UsageError("a passphrase cannot be combined with other recipients")


class _Head(Protocol):
    """The header slots of a file that is being changed."""

    def clear(self, preamble: Preamble, number: int) -> None:
        """Zero a slot that does not count."""

    def replace(self, authentic: AuthenticFile, slot: Slot) -> None:
        """Put `slot` in place of the one that counts.  Raises SystemEnvironmentError."""

    def finish(self) -> None:
        """There is no `replace` to come."""


class _LocalHead:
    """Of a file that is open for writing: slot by slot, each of them durable."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def clear(self, preamble: Preamble, number: int) -> None:
        """See _Head."""
        _write_slot(self._fd, preamble, number, bytes(preamble.slot_size))

    def replace(self, authentic: AuthenticFile, slot: Slot) -> None:
        """The old slot is zeroed only if both are what they should be: a writer elsewhere may not know of our lock."""
        preamble, old = authentic.file.preamble, authentic.slot_number
        new, size = encode_slot(slot, preamble.slot_size), preamble.slot_size
        before, idle = encode_slot(authentic.slot, size), bytes(size)
        _require_slots(self._fd, preamble, old, before, idle)
        _write_slot(self._fd, preamble, 1 - old, new)
        _require_slots(self._fd, preamble, old, before, new)
        _write_slot(self._fd, preamble, old, idle)

    def finish(self) -> None:
        """Everything is written already."""


class _StoredHead:
    """Of a file in a store, which exchanges the whole head at once."""

    def __init__(self, source: RemoteSource) -> None:
        self._source = source
        self._data = bytearray(read_exactly(source, source.file.head_size, 0))

    def clear(self, preamble: Preamble, number: int) -> None:
        """See _Head."""
        self._put(preamble, number, bytes(preamble.slot_size))

    def replace(self, authentic: AuthenticFile, slot: Slot) -> None:
        """See _Head."""
        preamble, old = authentic.file.preamble, authentic.slot_number
        self._put(preamble, 1 - old, encode_slot(slot, preamble.slot_size))
        self.clear(preamble, old)
        self.finish()

    def _put(self, preamble: Preamble, number: int, slot: bytes) -> None:
        offset = preamble.slot_offset(number)
        self._data[offset : offset + len(slot)] = slot

    def finish(self) -> None:
        """Hand it to the store."""
        source = self._source
        told = properties.describe(_WithHead(source, self._data))
        source.store.replace_head(source.file, bytes(self._data), told)


class _WithHead:
    """A ByteSource: another with a new head."""

    def __init__(self, source: ByteSource, head: bytearray) -> None:
        self._source, self._head = source, head
        self.size = source.size

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ByteSource."""
        self._source.read_into(out, offset)
        new = self._head[offset : offset + len(out)]
        out[: len(new)] = new

    def close(self) -> None:
        """The other stays open."""


def _require_slots(fd: int, preamble: Preamble, old: int, before: bytes, other: bytes) -> None:
    file, size = Descriptor(fd), preamble.slot_size
    found = [read_exactly(file, size, preamble.slot_offset(n)) for n in (old, 1 - old)]
    if found != [before, other]:
        raise SystemEnvironmentError("the header was changed by another process meanwhile")


def _write_slot(fd: int, preamble: Preamble, number: int, data: bytes) -> None:
    """Write one whole slot and make it durable."""
    offset = preamble.slot_offset(number)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        os.fsync(fd)
    except OSError as error:
        raise SystemEnvironmentError(
            f"cannot write the header: {error.strerror}", hint="afterwards run rekey --repair"
        ) from None
