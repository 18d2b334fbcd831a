"""All single-fault mutations of a sealed file, every one of which a reader must refuse.

    for mutation in mutations(data, roots=roots, other=other, before=before):
        with pytest.raises(SealpointError):
            read(mutation.data, newest=mutation.newest)

`data`: a valid, signed, rekeyed file.  roots: its roots, for what a legitimate recipient can do who has no signing key.
other: a file of the same sealer for the same recipients, to splice from.  before: `data` as it was before the rekey.
Nothing here has the signing key: a mutation that is signed again is signed by a stranger.

Not among them, because nobody can notice: the whole file replaced by an older copy (unless the reader remembers a
sequence: `newest`), and an old header beside the new one, which is what an interrupted rekey leaves and opens with the
new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from sealpoint.format import dsse, strictjson
from sealpoint.format.constants import (
    ENVELOPE_TYPE,
    FRAME_HEAD_SIZE,
    INDEX_ENTRY_SIZE,
    PREAMBLE_SIZE,
    REFERENCE_SIZE,
    SLOT_HEAD_SIZE,
    TRAILER_SIZE,
    Role,
    Suite,
)
from sealpoint.format.derive import RootKeys
from sealpoint.format.slot import Slot, decode_slot, make_slot
from tests.forge import MANIFEST_NUMBER, STRANGER, Forge, pieces_exact

_PREAMBLE_FIELDS = (0, 7, 8, 9, 10, 11, 12, 13, 15, 16, 31, 32, 63)
_SLOT_FIELDS = (0, 3, 4, 7, 8, 15, 16, 19, 20, 31, 32, 63)
_TRAILER_FIELDS = (0, 7, *itertools.chain.from_iterable((n, n + 7) for n in range(8, 64, 8)))


@dataclass(frozen=True)
class Mutation:
    """newest: the highest header sequence that the reader remembers."""

    name: str
    data: bytes
    newest: int = 0


def mutations(
    data: bytes,
    *,
    roots: RootKeys | None = None,
    other: bytes | None = None,
    before: bytes | None = None,
) -> Iterator[Mutation]:
    """See the module.  Without an argument, the mutations that need it are left out."""
    made: Iterable[Mutation] = itertools.chain(
        bit_flips(data),
        flips_with_checksums(data),
        cuts(data),
        frame_faults(data),
        statement_faults(data),
        slot_faults(data, before),
        versions(data),
        splices(data, other) if other else (),
        recipient_faults(data, roots) if roots else (),
    )
    for mutation in made:
        if mutation.data != data:
            yield mutation


def flip(data: bytes, at: int, bit: int | None = None) -> bytes:
    bit = at % 8 if bit is None else bit
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def spread(start: int, size: int, count: int) -> list[int]:
    """`count` places in a part, first and last among them."""
    count = min(count, size)
    return sorted({start + (size - 1) * n // max(1, count - 1) for n in range(count)})


def some(positions: list[int]) -> list[int]:
    """First, second, middle, last."""
    picked = {0, 1, len(positions) // 2, len(positions) - 1}
    return [positions[n] for n in sorted(picked) if 0 <= n < len(positions)]


def frame_offsets(forge: Forge) -> list[int]:
    sizes = [FRAME_HEAD_SIZE + len(c) for _, c in forge.frames]
    return list(itertools.accumulate(sizes, initial=forge.preamble.frames_offset))


def chosen_frames(forge: Forge) -> list[int]:
    numbers = sorted({n for n, _ in forge.frames})
    return sorted({p for n in some(numbers) + numbers[:6] for p in some(forge.positions(n))})


def bit_flips(data: bytes) -> Iterator[Mutation]:
    """Every field of every structure, several places in all that is long."""
    forge, places = Forge(data), []
    places += [("preamble", at) for at in _PREAMBLE_FIELDS]
    for n, raw in enumerate(forge.slots):
        places += _slot_places(f"slot {n}", raw, forge.preamble.slot_offset(n))
    offsets = frame_offsets(forge)
    for p in chosen_frames(forge):
        start, size = offsets[p], len(forge.frames[p][1])
        places += [(f"frame {p} head", start), (f"frame {p} head", start + 7)]
        places += [(f"frame {p}", at) for at in spread(start + FRAME_HEAD_SIZE, size, 3)]
        places.append((f"frame {p} tag", start + FRAME_HEAD_SIZE + size - 16))
        entry = forge.trailer.index_offset + p * INDEX_ENTRY_SIZE
        places += [(f"index entry {p}", entry + n) for n in (0, 3, 4, 7, 8, 39)]
    start = forge.trailer.origin_offset - len(forge.references)
    for at in range(0, len(forge.references), REFERENCE_SIZE):
        places += [(f"reference {at}", start + at + n) for n in (0, 31, 32, 63, 64, 67, 68, 71)]
    places += [
        ("origin", at) for at in spread(forge.trailer.origin_offset, forge.trailer.origin_size, 150)
    ]
    places += [("trailer", len(data) - TRAILER_SIZE + at) for at in _TRAILER_FIELDS]
    for part, at in places:
        yield Mutation(f"bit flipped in {part} at {at}", flip(data, at))


def flips_with_checksums(data: bytes) -> Iterator[Mutation]:
    """Flips in what a signature covers or names, by somebody who corrects the checksums."""
    base = Forge(data)
    if not all(s.public_key for s in base.envelope().signatures):
        return  # certificates beside a signature are covered by checksums alone, and need not be more
    for at in spread(0, len(base.origin), 150):
        forge = Forge(data)
        forge.origin = flip(base.origin, at)
        yield Mutation(f"bit flipped in origin at {at}, checksum corrected", forge.build())
    for n, raw in enumerate(base.slots):
        places = _slot_places(f"slot {n}", raw, 0) if any(raw) else []
        for part, at in places:
            if not 20 <= at < 32 and "padding" not in part:
                forge = Forge(data)
                forge.slots[n] = with_checksum(flip(raw, at), used=len(raw.rstrip(b"\0")))
                yield Mutation(f"bit flipped in {part} at {at}, checksum corrected", forge.build())


def with_checksum(raw: bytes, used: int) -> bytes:
    """A slot with its checksum recomputed over its first `used` bytes."""
    checksum = blake3(raw[:20] + bytes(12) + raw[32:used]).digest(12)
    return raw[:20] + checksum + raw[32:]


def _slot_places(part: str, raw: bytes, start: int) -> list[tuple[str, int]]:
    slot = decode_slot(raw)
    if slot is None:
        return [(f"idle {part}", start + at) for at in (0, 5, SLOT_HEAD_SIZE, len(raw) - 1)]
    body = start + SLOT_HEAD_SIZE
    places = [(f"{part} head", start + at) for at in _SLOT_FIELDS]
    places += [(f"{part} count", body), (f"{part} count", body + 1)]
    at = body + 2
    for n, stanza in enumerate(slot.stanzas):
        names = ((0, "kind"), (1, "roots"), (2, "length"), (3, "length"), (4, "fingerprint"))
        places += [(f"{part} stanza {n} {name}", at + offset) for offset, name in names]
        places.append((f"{part} stanza {n} fingerprint", at + 35))
        places += [(f"{part} stanza {n} body", p) for p in spread(at + 36, len(stanza.body), 3)]
        at += 36 + len(stanza.body)
    places += [(f"{part} envelope", p) for p in spread(at, len(slot.envelope), 100)]
    end = at + len(slot.envelope)
    return places + [(f"{part} padding", p) for p in spread(end, start + len(raw) - end, 3)]


def cuts(data: bytes) -> Iterator[Mutation]:
    """Truncated at and around every boundary and inside every part; extended; shifted."""
    forge, t = Forge(data), Forge(data).trailer
    bounds = [1, 7, 8, PREAMBLE_SIZE, *map(forge.preamble.slot_offset, (0, 1))]
    offsets = frame_offsets(forge)
    bounds += [offsets[p] for p in chosen_frames(forge)]
    bounds += [t.index_offset, t.origin_offset, len(data) - TRAILER_SIZE, len(data)]
    places = {0, *(b + d for b in bounds for d in (-1, 0, 1))}
    places |= {(a + b) // 2 for a, b in itertools.pairwise(sorted(bounds))}
    for at in sorted(p for p in places if 0 <= p < len(data)):
        yield Mutation(f"truncated to {at}", data[:at])
        if at < len(data) - TRAILER_SIZE:
            yield Mutation(f"cut at {at}, trailer kept", data[:at] + data[-TRAILER_SIZE:])
    for name, tail in (("a byte", b"\0"), ("a trailer", data[-64:]), ("itself", data)):
        yield Mutation(f"extended by {name}", data + tail)
    yield Mutation("a byte before it", b"\0" + data)
    yield Mutation("a byte removed in front", data[1:])
    for part, at in (
        ("index", t.index_offset),
        ("origin", t.origin_offset),
        ("frames", offsets[1]),
    ):
        yield Mutation(f"a byte inserted before {part}", data[:at] + b"\0" + data[at:])


def dressed(name: str, forge: Forge) -> Iterator[Mutation]:
    """A change of frames, with ever more of the rest made to fit it, up to all but the sealer's signature."""
    if len(forge.stored_index) == len(forge.index()):
        yield Mutation(f"{name}; index kept", forge.build(index=forge.stored_index))
    yield Mutation(f"{name}; index fixed", forge.build())
    yield Mutation(f"{name}; re-derived, signature kept", forge.resign(None).build())
    yield Mutation(f"{name}; re-derived, signed by a stranger", forge.resign(STRANGER).build())
    payload = forge.payload() | {"signers": [STRANGER.key_id]}
    forge.set_payload(payload, STRANGER)
    yield Mutation(f"{name}; re-derived, a stranger's altogether", forge.build())
    payload["signers"] = []
    forge.origin = dsse.encode(
        dsse.Envelope(forge.envelope().payload_type, strictjson.encode(payload), ())
    )
    yield Mutation(f"{name}; re-derived, unsigned", forge.build())


def frame_faults(data: bytes) -> Iterator[Mutation]:
    """Frames and index entries swapped, repeated, dropped, renamed, by somebody without a key."""
    base = Forge(data)
    numbers = sorted({n for n, _ in base.frames})
    several = next((n for n in numbers if len(base.positions(n)) > 1), None)
    changes: list[tuple[str, list[tuple[int, bytes]]]] = []
    if several is not None:
        a, b = base.positions(several)[:2]
        changes.append(("chunks of one object swapped", _swapped(base.frames, a, b)))
        changes.append(("last chunk dropped", _without(base.frames, base.positions(several)[-1])))
    a, b = base.positions(numbers[0])[0], base.positions(numbers[-1])[0]
    changes.append(("frames of two objects swapped", _swapped(base.frames, a, b)))
    for n in some(numbers):
        p = base.positions(n)[0]
        changes.append((f"frame {p} repeated", [*base.frames[: p + 1], *base.frames[p:]]))
        changes.append((f"frame {p} dropped", _without(base.frames, p)))
        gone = [f for f in base.frames if f[0] != n]
        changes.append((f"object {n} dropped", gone))
        renamed = [(max(numbers) + 1 if f[0] == n else f[0], f[1]) for f in base.frames]
        changes.append((f"object {n} renumbered", renamed))
    for x, y in itertools.pairwise(numbers):
        exchange = {x: y, y: x}
        swapped = [(exchange.get(n, n), c) for n, c in base.frames]
        changes.append((f"objects {x} and {y} swapped", swapped))
    for name, frames in changes:
        if frames:
            forge = Forge(data)
            forge.frames = frames
            yield from dressed(name, forge)
    size = len(base.stored_index) - len(base.references)
    entries = pieces_exact(base.stored_index[:size], INDEX_ENTRY_SIZE)
    for name, made in (
        ("index sorted by object", sorted(entries)),
        ("index entries swapped", _swapped(entries, a, b)),
        ("index entry repeated", [*entries, entries[-1]]),
        ("index entry dropped", entries[:-1]),
    ):
        yield Mutation(name, base.build(index=b"".join([*made, base.references])))
    references = pieces_exact(base.references, REFERENCE_SIZE)
    if references:
        for name, made in (
            ("references swapped", _swapped(references, 0, -1)),
            ("reference repeated", [*references, references[-1]]),
            ("reference dropped", references[:-1]),
            ("references dropped", []),
            ("entry for a reference", [*references[:-1], entries[-1] + bytes(32)]),
        ):
            forge = Forge(data)
            forge.references = b"".join(made)
            yield from dressed(name, forge)


def _swapped(items: list, a: int, b: int) -> list:
    items = list(items)
    items[a], items[b] = items[b], items[a]
    return items


def _without(items: list, position: int) -> list:
    return items[:position] + items[position + 1 :]


def statement_faults(data: bytes) -> Iterator[Mutation]:
    """The origin statement, by somebody without the signing key."""
    forge = Forge(data)
    envelope, stored = forge.envelope(), forge.origin
    (first, *_), payload = envelope.signatures, forge.payload()
    stranger = STRANGER.sign(envelope.pae)[0]
    signatures = {
        "no signature": (),
        "a stranger's signature": (stranger,),
        "a stranger's signature added": (*envelope.signatures, stranger),
        "a signature repeated": (first, first),
        "a stranger's signature under the signer's key": (first._replace(sig=stranger.sig),),
        "the signer's key under a stranger's name": (first._replace(keyid=stranger.keyid),),
        "a stranger's key under the signer's name": (stranger._replace(keyid=first.keyid),),
        "an empty signature": (first._replace(sig=b""),),
    }  # fmt: skip
    changed = [
        (name, dsse.encode(envelope._replace(signatures=s))) for name, s in signatures.items()
    ]
    changed += [
        ("origin of another type", dsse.encode(envelope._replace(payload_type=ENVELOPE_TYPE))),
        ("a space in the origin", stored.replace(b":", b": ", 1)),
        ("a newline after the origin", stored + b"\n"),
        ("an escape in the origin", stored.replace(b"payload", b"p\\u0061yload", 1)),
        ("half a surrogate in the origin", stored.replace(first.keyid.encode(), b"\\ud800", 1)),
        ("a member twice", stored.replace(b'"payloadType"', b'"payload":"","payloadType"', 1)),
        ("a member more", stored.replace(b'"payloadType"', b'"x":"","payloadType"', 1)),
        ("no JSON", b"\xff" * len(stored)),
        ("deep JSON", b"[" * 60000),
    ]  # fmt: skip
    for name, value in changed:
        forge.origin = value
        yield Mutation(f"origin: {name}", forge.build())
    for key in payload:
        forge = Forge(data)
        forge.set_payload({k: v for k, v in payload.items() if k != key}, None)
        yield Mutation(f"origin without {key}, signature kept", forge.build())


def slot_faults(data: bytes, before: bytes | None) -> Iterator[Mutation]:
    """Headers, by somebody without any key."""
    forge = Forge(data)
    current = next(n for n in (0, 1) if decode_slot(forge.slots[n]))
    raw, size = forge.slots[current], forge.preamble.slot_size
    slot = decode_slot(raw)
    assert slot is not None

    def with_slots(*pairs: tuple[int, bytes | Slot], newest: int = 0, name: str) -> Mutation:
        changed = Forge(data)
        for number, value in pairs:
            if isinstance(value, Slot):
                changed.set_slot(number, value)
            else:
                changed.slots[number] = value
        return Mutation(f"header: {name}", changed.build(), newest)

    idle = 1 - current
    yield with_slots((current, bytes(size)), name="removed")
    yield with_slots((idle, raw), name="twice")
    yield with_slots((idle, raw[: size // 2].ljust(size, b"\0")[:-1] + b"\1"), name="half written")
    yield with_slots((idle, raw[:100].ljust(size, b"\0")), name="half written, torn")
    yield with_slots((idle, b"\xff" * size), name="noise in the idle slot")
    changes = {
        "sequence raised": slot._replace(sequence=slot.sequence + 1),
        "sequence lowered": slot._replace(sequence=max(1, slot.sequence - 1)),
        "MAC of zeros": slot._replace(mac=bytes(32)),
        "no statement": slot._replace(envelope=b""),
        "origin for a statement": slot._replace(envelope=forge.origin),
        "no recipients": slot._replace(body=b"\0\0"),
    }
    envelope = dsse.decode(slot.envelope, ENVELOPE_TYPE, "envelope")
    unsigned = envelope._replace(signatures=())
    changes["unsigned"] = slot._replace(envelope=dsse.encode(unsigned))
    by_stranger = envelope._replace(signatures=STRANGER.sign(envelope.pae))
    changes["signed by a stranger"] = slot._replace(envelope=dsse.encode(by_stranger))
    for name, changed in changes.items():
        if changed != slot:
            yield with_slots((current, changed), name=name)
            yield with_slots((idle, changed), name=f"{name}, in the idle slot")
    if before is not None:
        old_forge = Forge(before)
        number = next(n for n in (0, 1) if decode_slot(old_forge.slots[n]))
        old = decode_slot(old_forge.slots[number])
        assert old is not None
        zero = bytes(size)
        yield with_slots(
            (number, old), (1 - number, zero), newest=slot.sequence, name="the older one put back"
        )
        raised = old._replace(sequence=slot.sequence + 1)
        yield with_slots((idle, raised), name="the older one, its sequence raised")
        mixed = slot._replace(body=old.body)
        yield with_slots((current, mixed), name="recipients of the older one")
        mixed = slot._replace(body=old.body, mac=old.mac)
        yield with_slots((current, mixed), name="recipients and MAC of the older one")


def versions(data: bytes) -> Iterator[Mutation]:
    """Unknown version, unknown or other suite, other sizes of slots."""
    forge = Forge(data)
    for version in (0, 2, 0xFFFF):
        yield Mutation(f"version {version}", data[:8] + version.to_bytes(2, "little") + data[10:])
    for suite in (0, 3, 0xFFFF, *(s for s in Suite if s is not forge.preamble.suite)):
        yield Mutation(f"suite {suite:d}", data[:10] + int(suite).to_bytes(2, "little") + data[12:])
    for size in (0, 8191, 8192, forge.preamble.slot_size + 8192, 1 << 31):
        yield Mutation(f"slots of {size}", data[:12] + size.to_bytes(4, "little") + data[16:])


def splices(data: bytes, other: bytes) -> Iterator[Mutation]:
    """Parts of another checkpoint of the same sealer."""
    theirs = Forge(other)

    def spliced(name: str, **parts) -> Mutation:
        forge = Forge(data)
        index, trailer = parts.pop("index", None), parts.pop("trailer", None)
        for key, value in parts.items():
            setattr(forge, key, value)
        return Mutation(f"another's {name}", forge.build(index=index, trailer=trailer))

    yield spliced("preamble", preamble=theirs.preamble)
    yield spliced("slots", slots=theirs.slots)
    yield spliced("origin", origin=theirs.origin)
    yield spliced("index", index=theirs.stored_index)
    yield spliced("trailer", trailer=other[-TRAILER_SIZE:])
    yield spliced("frames", frames=theirs.frames)
    yield spliced("frames, index and origin", frames=theirs.frames, origin=theirs.origin)
    yield spliced("preamble and slots", preamble=theirs.preamble, slots=theirs.slots)
    for role, number in MANIFEST_NUMBER.items():
        forge = Forge(data)
        mine, from_there = forge.positions(number), theirs.positions(number)
        forge.frames = [f for f in forge.frames if f[0] != number]
        forge.frames[mine[0] : mine[0]] = [theirs.frames[p] for p in from_there]
        yield from dressed(f"another's {role.value} manifest", forge)


def recipient_faults(data: bytes, roots: RootKeys) -> Iterator[Mutation]:
    """What somebody can do who can open everything and sign nothing."""
    base = Forge(data, roots)
    for role in Role:
        table = base.manifest(role)
        for stream in table["streams"][:3]:
            number = int(stream["number"])
            positions = base.positions(number)
            for counter in some(list(range(len(positions)))):
                yield from _resealed(data, roots, role, stream, counter)
        yield from _edited_manifest(data, roots, role)
    yield from _stripped_role(data, roots)
    current = next(n for n in (0, 1) if decode_slot(base.slots[n]))
    slot = decode_slot(base.slots[current])
    assert slot is not None
    new = make_slot(base.preamble, slot.sequence + 1, slot.stanzas[:1], roots.metadata)
    for name, envelope in (("its old", slot.envelope), ("no", b"")):
        for place in (current, 1 - current):
            forge = Forge(data)
            forge.set_slot(place, new._replace(envelope=envelope))
            yield Mutation(f"header by a recipient, {name} statement, slot {place}", forge.build())


def _resealed(data: bytes, roots: RootKeys, role: Role, stream: dict, counter: int):
    """A chunk encrypted again under the right key, with other contents of the same length."""
    forge = Forge(data, roots)
    number = int(stream["number"])
    positions = forge.positions(number)
    place, last = positions[counter], counter == len(positions) - 1
    size = len(forge.frames[place][1]) - 16
    sealed = forge.seal_chunk(role, number, counter, b"\x5a" * size, last=last)
    forge.frames[place] = (number, sealed)
    name = f"chunk {counter} of {role.value} stream {number} encrypted again by a recipient"
    yield from dressed(name, forge)


def _edited_manifest(data: bytes, roots: RootKeys, role: Role) -> Iterator[Mutation]:
    def edit(name: str, change) -> Iterator[Mutation]:
        forge = Forge(data, roots)
        table = forge.manifest(role)
        change(table)
        forge.set_manifest(role, table)
        yield from dressed(f"{role.value} manifest: {name}", forge)

    table = Forge(data, roots).manifest(role)
    if not table["objects"]:
        return

    def codec(t: dict) -> None:  # "Ag==" is one LZ4 chunk, "AA==" a raw one
        t["streams"][0]["codecs"] = "Ag==" if t["streams"][0]["codecs"] != "Ag==" else "AA=="

    def swap_names(t: dict) -> None:
        a, b = t["objects"][0], t["objects"][-1]
        a["name"], b["name"] = b["name"], a["name"]

    yield from edit("an object renamed", lambda t: t["objects"][0].update(name="core-9.img"))
    yield from edit("names swapped", swap_names)
    yield from edit("an object removed", lambda t: t["objects"].pop())
    yield from edit("a size changed", lambda t: t["objects"][0].update(size="1"))
    yield from edit("a codec changed", codec)
    yield from edit("a property added", lambda t: t["properties"].update(x="y"))
    if role is Role.METADATA:
        yield from edit("memory objects hidden", lambda t: t.update(memory=[]))


def _stripped_role(data: bytes, roots: RootKeys) -> Iterator[Mutation]:
    forge = Forge(data, roots)
    gone = {int(s["number"]) for s in forge.manifest(Role.MEMORY)["streams"]}
    forge.frames = [f for f in forge.frames if f[0] not in gone | {MANIFEST_NUMBER[Role.MEMORY]}]
    table = forge.manifest(Role.METADATA)
    table["memory"] = []
    forge.set_manifest(Role.METADATA, table)
    payload = forge.rederived()
    for name, change in (
        ("role listed", {}),
        ("role not listed", {"roles": ["metadata"]}),
        (
            "role gone",
            {
                "roles": ["metadata"],
                "manifests": {"metadata": payload["manifests"]["metadata"]},
                "commitments": {"metadata": payload["commitments"]["metadata"]},
            },
        ),
    ):
        for who, signer in (("signature kept", None), ("signed by a stranger", STRANGER)):
            forge.set_payload(payload | change, signer)
            yield Mutation(f"memory stripped, {name}, {who}", forge.build())
