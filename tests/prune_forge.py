"""Prune records as a sealer makes them, and all single faults of a pruned file, every one of which must be refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from sealpoint.format import dsse
from sealpoint.format.constants import (
    FRAME_HEAD_SIZE,
    ORIGIN_TYPE,
    PRUNE_MAGIC,
    PRUNE_TAIL_SIZE,
    PRUNE_TYPE,
)
from sealpoint.format.opened import OpenFile
from sealpoint.format.prune import PruneStatement, PruneTail, bitmap
from sealpoint.format.statement import ParentRef, digest
from tests.adversary import Mutation, flip, spread
from tests.forge import SIGNER, STRANGER, Forge, Signatory

CHILD = ParentRef(blake3(b"child").digest(16), blake3(b"origin of the child").digest())
OTHER_CHILD = ParentRef(blake3(b"another child").digest(16), CHILD.origin_digest)


def split(data: bytes) -> tuple[bytes, bytes]:
    """The sealed file proper, and its prune records."""
    if data[-PRUNE_TAIL_SIZE:][:8] != PRUNE_MAGIC:
        return data, b""
    size = PruneTail.decode(data[-PRUNE_TAIL_SIZE:], len(data)).sealed_size
    return data[:size], data[size:]


def statement_of(data: bytes) -> PruneStatement:
    tail = PruneTail.decode(data[-PRUNE_TAIL_SIZE:], len(data))
    stored = data[tail.statement_offset :][: tail.statement_size]
    return PruneStatement.decode(dsse.decode(stored, PRUNE_TYPE, "prune").payload)


def frame_range(data: bytes, position: int) -> tuple[int, int]:
    forge = Forge(split(data)[0])
    at = forge.preamble.frames_offset
    for _, ciphertext in forge.frames[:position]:
        at += FRAME_HEAD_SIZE + len(ciphertext)
    return at, at + FRAME_HEAD_SIZE + len(forge.frames[position][1])


def emptied(data: bytes, positions: Iterable[int]) -> bytes:
    made = bytearray(data)
    for position in positions:
        begin, end = frame_range(data, position)
        made[begin:end] = bytes(end - begin)
    return bytes(made)


def pruned(
    data: bytes,
    positions: Iterable[int],
    *,
    signer: Signatory | None = SIGNER,
    empty: bool = True,
    payload_type: str = PRUNE_TYPE,
    **changes,
) -> bytes:
    """Free frames, in addition to those that are freed already; `changes` are of the statement."""
    positions = set(positions)
    body, records = split(data)
    forge = Forge(body)
    before = statement_of(data) if records else None
    wanted = positions | set(before.positions() if before else ())
    envelope = forge.envelope()
    statement = PruneStatement(
        checkpoint_id=forge.preamble.checkpoint_id,
        origin_digest=digest(envelope.payload),
        sequence=before.sequence + 1 if before else 1,
        child=CHILD,
        frames=bitmap(wanted, len(forge.frames)),
        freed=sum(FRAME_HEAD_SIZE + len(forge.frames[p][1]) for p in wanted),
        earlier=blake3(records).digest(),
        created=1_700_000_000,
        signers=(signer.key_id,) if signer else (),
    )
    statement = statement._replace(**changes)
    made = emptied(body, positions) + records if empty else data
    return append(made, statement.encode(), signer, payload_type)


def append(
    data: bytes, payload: bytes, signer: Signatory | None, payload_type: str = PRUNE_TYPE
) -> bytes:
    signatures = signer.sign(dsse.pae(payload_type, payload)) if signer else ()
    stored = dsse.encode(dsse.Envelope(payload_type, payload, signatures))
    return with_statement(data, stored)


def with_statement(data: bytes, stored: bytes, *, sealed_size: int | None = None) -> bytes:
    size = len(split(data)[0]) if sealed_size is None else sealed_size
    return data + stored + PruneTail.create(size, len(data), stored).encode()


def memory_frames(data: bytes, names: Iterable[int]) -> list[int]:
    """Positions of the frames of the streams `names`."""
    forge = Forge(split(data)[0])
    return [p for p, (n, _) in enumerate(forge.frames) if n in set(names)]


def whole_objects(opened: OpenFile) -> list[str]:
    return [name for name, entry in opened.entries.items() if opened.is_whole(entry)]


def mutations(data: bytes, first: bytes, unpruned: bytes, other: bytes) -> Iterator[Mutation]:
    """data: pruned twice; first: once, unpruned: before; other: another pruned file of the same sealer."""
    body, records = split(data)
    tail = PruneTail.decode(data[-PRUNE_TAIL_SIZE:], len(data))
    stored = data[tail.statement_offset :][: tail.statement_size]
    envelope = dsse.decode(stored, PRUNE_TYPE, "prune")
    statement = PruneStatement.decode(envelope.payload)
    head = data[: tail.statement_offset]
    places = [("tail", p) for p in range(len(data) - PRUNE_TAIL_SIZE, len(data))]
    places += [("statement", p) for p in spread(tail.statement_offset, len(stored), 200)]
    places += [("earlier record", p) for p in spread(len(body), len(head) - len(body), 60)]
    for part, at in places:
        yield Mutation(f"bit flipped in {part} at {at}", flip(data, at))
    for at in spread(tail.statement_offset, len(stored), 100):
        changed = flip(stored, at - tail.statement_offset)
        yield Mutation(
            f"bit flipped in statement at {at}, checksum corrected", with_statement(head, changed)
        )
    for at in sorted({*spread(len(body) + 1, len(records) - 1, 40)} - {len(head)}):
        yield Mutation(f"record truncated to {at}", data[:at])
    yield Mutation("records gone", body)
    yield Mutation("record gone, the first stays", head)
    yield Mutation("record twice", data + data[tail.statement_offset :])
    yield Mutation("record extended", data + b"\0")
    yield Mutation("a byte before the record", with_statement(head + b"\0", stored))
    yield Mutation("the first record alone", emptied(body, statement.positions()) + split(first)[1])
    yield Mutation("the statement without the first record", with_statement(body, stored))
    for size in (0, 1, len(body) - 64, len(body) - 1, len(body) + 1, len(data)):
        yield Mutation(f"sealed size {size}", with_statement(head, stored, sealed_size=size))
    freed = sorted(statement.positions())
    begin, end = frame_range(data, freed[0])
    for at in (begin, (begin + end) // 2, end - 1):
        yield Mutation(f"a byte in a freed frame at {at}", flip(data, at))
    forge = Forge(body)
    for number in sorted({n for n, _ in forge.frames}):
        position = next(p for p, (n, _) in enumerate(forge.frames) if n == number)
        if not statement.frees(position):
            yield Mutation(f"a frame of object {number} emptied, too", emptied(data, [position]))
    yield Mutation("another's record", body + split(other)[1])
    yield Mutation("signed by a stranger", append(head, envelope.payload, STRANGER))
    own = statement._replace(signers=(STRANGER.key_id,))
    yield Mutation("a stranger's altogether", append(head, own.encode(), STRANGER))
    unsigned = statement._replace(signers=())
    yield Mutation("unsigned", append(head, unsigned.encode(), None))
    more = statement._replace(frames=bitmap({*freed, *range(len(forge.frames))}, len(forge.frames)))
    for name, changed in (
        ("child exchanged", statement._replace(child=OTHER_CHILD)),
        ("all frames freed", more),
        ("sequence raised", statement._replace(sequence=9)),
        ("created later", statement._replace(created=1_800_000_000)),
    ):
        kept = envelope._replace(payload=changed.encode())
        yield Mutation(f"{name}, signature kept", with_statement(head, dsse.encode(kept)))
    for name, value in (
        ("a space", stored.replace(b":", b": ", 1)),
        ("a newline after it", stored + b"\n"),
        ("a member twice", stored.replace(b'"payloadType"', b'"payload":"","payloadType"', 1)),
        ("no JSON", b"\xff" * len(stored)),
        ("nothing", b""),
        ("the origin", forge.origin),
    ):
        yield Mutation(f"statement: {name}", with_statement(head, value))
    yield Mutation("a record for nothing", unpruned + split(other)[1])


SIGNED_FAULTS = {
    "of another checkpoint": {"checkpoint_id": bytes(16)},
    "of another origin": {"origin_digest": bytes(32)},
    "child is itself": "itself",
    "earlier records wrong": {"earlier": bytes(32)},
    "freed wrong": {"freed": 1},
    "number 0": {"sequence": 0},
    "another signs, too": {"signers": (SIGNER.key_id, STRANGER.key_id)},
    "no frame": {"frames": "none"},
    "a frame too many": {"frames": "beyond"},
    "too short": {"frames": "short"},
    "a manifest": {"frames": "manifest"},
}


def signed_fault(data: bytes, positions: list[int], fault: str) -> bytes:
    """A prune record that the sealer himself signed, and that a reader must refuse all the same."""
    forge = Forge(split(data)[0])
    count = len(forge.frames)
    value = SIGNED_FAULTS[fault]
    if value == "itself":
        reference = ParentRef(forge.preamble.checkpoint_id, bytes(32))
        return pruned(data, positions, child=reference)
    if "frames" not in value:
        return pruned(data, positions, **value)
    manifest = next(p for p, (n, _) in enumerate(forge.frames) if n in (1, 2))
    right = bitmap(positions, count)
    frames = {
        "none": bytes(len(right)),
        "beyond": right + b"\1",
        "short": right[:-1],
        "manifest": bitmap({*positions, manifest}, count),
    }[value["frames"]]
    freed = sum(
        FRAME_HEAD_SIZE + len(c)
        for p, (_, c) in enumerate(forge.frames)
        if p < len(frames) * 8 and frames[p >> 3] >> (p & 7) & 1
    )
    return pruned(data, positions, frames=frames, freed=freed)


def wrong_type(data: bytes, positions: list[int]) -> bytes:
    return pruned(data, positions, payload_type=ORIGIN_TYPE)
