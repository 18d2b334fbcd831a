"""A sealed file taken apart, so that tests can put it together again wrongly.

`sample` makes a valid file with everything in it; `Forge` edits one as an outsider (bytes), as a recipient (roots) or
as the sealer himself (roots and signing key); `read_all` is the reader that must notice.  Without `sealpoint.keys`: the
roots of a sample are wrapped by a toy stanza, and its signatures are Ed25519.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from sealpoint.errors import FileError, PolicyError
from sealpoint.format import chunks, derive, dsse, strictjson
from sealpoint.format.codec import Coder
from sealpoint.format.constants import (
    FRAME_HEAD_SIZE,
    INDEX_ENTRY_SIZE,
    MEMORY_MANIFEST,
    METADATA_MANIFEST,
    ORIGIN_TYPE,
    PACK_CHUNK_SIZE,
    PREAMBLE_SIZE,
    REFERENCE_SIZE,
    TRAILER_SIZE,
    Codec,
    Role,
    Roots,
    StanzaKind,
    Suite,
)
from sealpoint.format.derive import RootKeys
from sealpoint.format.index import Reference, frame_hash, frame_head
from sealpoint.format.manifest import Entry, Manifest
from sealpoint.format.opened import OpenFile
from sealpoint.format.preamble import Preamble, Trailer
from sealpoint.format.raw import Descriptor
from sealpoint.format.reader import SealedFile
from sealpoint.format.slot import Slot, decode_slot, encode_slot, make_slot
from sealpoint.format.stanza import Stanza
from sealpoint.format.writer import SealedWriter, Signing, StreamWriter, sign_slot

MANIFEST_NUMBER = {Role.METADATA: METADATA_MANIFEST, Role.MEMORY: MEMORY_MANIFEST}


class Signatory:
    """An Ed25519 key that signs statements."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed).digest())
        self.spki = self._key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        self.key_id = hashlib.sha256(self.spki).hexdigest()

    def sign(self, pae: bytes) -> tuple[dsse.Signature, ...]:
        return (dsse.Signature(self.key_id, self._key.sign(pae), self.spki),)

    @property
    def signing(self) -> Signing:
        return Signing(self.sign, (self.key_id,))


SIGNER = Signatory(b"the signer whom everybody trusts")
STRANGER = Signatory(b"somebody else")


def trusting(*key_ids: str):
    """What `authenticate` asks: who signed, or an error.  No key id: unsigned files are fine, too."""

    def evaluate(envelope: dsse.Envelope) -> list[str]:
        found = []
        for s in envelope.signatures:
            try:
                load_der_public_key(s.public_key).verify(s.sig, envelope.pae)
            except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, AttributeError):
                raise FileError("the signature does not verify") from None
            found.append(hashlib.sha256(s.public_key).hexdigest())
        if key_ids and not set(key_ids) & set(found):
            raise PolicyError("not signed by a trusted signer")
        return found

    return evaluate


class Buffer:
    """An output in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, *buffers) -> None:
        for b in buffers:
            self.data += b


def toy_wrap(preamble: Preamble, roots: RootKeys) -> list[Stanza]:
    """Two stanzas that wrap nothing: the tests pass the roots by themselves."""
    return [
        Stanza(StanzaKind.X25519, Roots.BOTH, b"m" * 32, b"both roots would be here"),
        Stanza(StanzaKind.P256, Roots.METADATA, b"a" * 32, b"one root would be here"),
    ]


@dataclass
class Sealed:
    """A valid sealed file and what its makers know.  chunks: of a vector, the store that it refers to."""

    data: bytes
    roots: RootKeys
    contents: dict[str, bytes]
    signer: Signatory = SIGNER
    chunks: dict[str, str | None] = field(default_factory=dict)


def append(
    writer: SealedWriter, stream: StreamWriter, data: bytes, *, last: bool, policy: str
) -> None:
    out = memoryview(bytearray(stream.chunk_size + 64))
    chunk = stream.begin_chunk(len(data), last=last)
    stream.seal(chunk, memoryview(data), Coder(policy), out)
    writer.append(chunk)


def pieces(data: bytes, size: int) -> list[bytes]:
    """Cut as a stream is cut: the last piece is shorter than the others."""
    return [data[at : at + size] for at in range(0, len(data) + 1, size)]


def contents() -> dict[str, bytes]:
    """Objects of every sort; chunks of 4096 bytes."""
    noise = hashlib.shake_256(b"noise").digest
    return {
        "inventory.img": b"inventory",
        "pstree.img": b"",
        "sealpoint-summary.json": b'{"tasks":[],"container":{}}',
        "core-1.img": b"a secret in a register",
        "empty.img": b"",
        "pages-1.img": noise(4096) + bytes(4096) + b"text " * 819 + b"." + noise(100),
        "pages-2.img": b"zstd " * 819 + b"." + bytes(4096),
        "pages-3.img": b"",
    }


@functools.cache
def _sample(suite: Suite, seed: bytes, signer: Signatory | None, toy: Any) -> Sealed:
    return build_sample(suite=suite, signer=signer, wrap=toy)


def sample(*, suite: Suite = Suite.AES_256_GCM, seed: bytes = b"") -> Sealed:
    """The same file each time for the same arguments (within one run)."""
    return copy.copy(_sample(suite, seed, SIGNER, toy_wrap))


def build_sample(
    *,
    suite: Suite,
    wrap=toy_wrap,
    signer: Signatory | None = SIGNER,
    objects: dict[str, bytes] | None = None,
    references: Sequence[Reference] = (),
    **finish: Any,
) -> Sealed:
    """Two packs, three memory streams whose chunks interleave, all codecs."""
    objects = contents() if objects is None else objects
    out, roots = Buffer(), RootKeys.generate()
    signing = signer.signing if signer else Signing(lambda _: (), ())
    writer = SealedWriter(out, suite=suite, wrap=wrap, signing=signing, roots=roots)
    tables = {role: Manifest(role) for role in Role}
    large = {n: d for n, d in objects.items() if n.startswith("pages-")}
    streams = {n: writer.stream(Role.MEMORY, 4096) for n in large}
    packs = {role: s for role in Role if (s := _small(objects, role))}
    packed = {role: writer.stream(role, 4096) for role in packs}
    cut = {n: pieces(d, 4096) for n, d in large.items()}
    for turn in range(max((len(c) for c in cut.values()), default=0)):
        for name, parts in cut.items():
            if turn < len(parts):
                policy = "zstd" if name == "pages-2.img" else "auto"
                append(
                    writer, streams[name], parts[turn], last=turn == len(parts) - 1, policy=policy
                )
    for role, small in packs.items():
        pack = packed[role]
        joined = b"".join(small.values())
        parts = pieces(joined + bytes(-len(joined) % 256), 4096)
        for n, part in enumerate(parts):
            append(writer, pack, part, last=n == len(parts) - 1, policy="none")
        offset = 0
        for name, data in small.items():
            entry = Entry(writer.number(), name, role, len(data), pack.entry(), offset)
            tables[role].entries.append(entry)
            offset += len(data)
        tables[role].streams.append(pack.entry())
    for name, data in large.items():
        stream = streams[name].entry()
        tables[Role.MEMORY].streams.append(stream)
        tables[Role.MEMORY].entries.append(
            Entry(writer.number(), name, Role.MEMORY, len(data), stream)
        )
    tables[Role.METADATA].memory = {e.number: e.size for e in tables[Role.MEMORY].entries}
    for reference in references:
        writer.refer(reference)
    writer.finish(
        tables[Role.METADATA], tables[Role.MEMORY], tool="a test", captured=1_700_000_000, **finish
    )
    return Sealed(bytes(out.data), roots, objects, signer or SIGNER)


METADATA_NAMES = ("inventory.img", "pstree.img", "sealpoint-summary.json")


def _small(objects: dict[str, bytes], role: Role) -> dict[str, bytes]:
    return {
        n: d
        for n, d in objects.items()
        if not n.startswith("pages-") and (n in METADATA_NAMES) == (role is Role.METADATA)
    }


def rekeyed(sealed: Sealed, *, finish: bool = True) -> bytes:
    """The file after a rekey; without `finish`, after one that was interrupted before the old slot was zeroed."""
    forge = Forge(sealed.data)
    for old in (0, 1):
        slot = decode_slot(forge.slots[old])
        if slot is not None:
            forge.set_slot(1 - old, forge.new_slot(sealed, slot.sequence + 1, slot.stanzas[:1]))
            if finish:
                forge.slots[old] = bytes(forge.preamble.slot_size)
            return forge.build()
    raise AssertionError


def read_all(
    data: bytes,
    roots: RootKeys | None,
    *,
    trust: tuple[str, ...] = (SIGNER.key_id,),
    newest: int = 0,
    repair: bool = False,
) -> dict[str, bytes]:
    """Everything that a careful reader does: authenticate, unlock, verify all, read all.  `roots` None: no key."""
    fd = os.memfd_create("sealed")
    try:
        os.write(fd, data)
        authentic = SealedFile(Descriptor(fd)).authenticate(
            trusting(*trust), repair=repair, newest=newest
        )
        authentic.check_frames()
        if roots is None:
            return {}
        opened: OpenFile = OpenFile.unlock(authentic, lambda preamble, slot: roots)
        opened.verify_all()
        return {name: opened.read_bytes(entry) for name, entry in opened.entries.items()}
    finally:
        os.close(fd)


@dataclass
class Forge:
    """The parts of a sealed file.  `build` recomputes all that everybody can: index and trailer."""

    data: bytes
    roots: RootKeys | None = None
    preamble: Preamble = field(init=False)
    slots: list[bytes] = field(init=False)
    frames: list[tuple[int, bytes]] = field(init=False)
    origin: bytes = field(init=False)
    trailer: Trailer = field(init=False)
    references: bytes = field(init=False)

    def __post_init__(self) -> None:
        data = self.data
        self.preamble = Preamble.decode(data[:PREAMBLE_SIZE])
        self.trailer = Trailer.decode(data[-TRAILER_SIZE:], self.preamble, len(data))
        size = self.preamble.slot_size
        self.slots = [data[at : at + size] for at in map(self.preamble.slot_offset, (0, 1))]
        self.origin = data[self.trailer.origin_offset :][: self.trailer.origin_size]
        self.frames, at = [], self.preamble.frames_offset
        end = len(self.stored_index) - REFERENCE_SIZE * self._references()
        self.references = self.stored_index[end:]
        for entry in pieces_exact(self.stored_index[:end], INDEX_ENTRY_SIZE):
            number, length = (int.from_bytes(entry[n : n + 4], "little") for n in (0, 4))
            at += FRAME_HEAD_SIZE
            self.frames.append((number, data[at : at + length]))
            at += length

    def _references(self) -> int:
        try:
            return int(self.payload()["index"].get("references", "0"))
        except FileError:  # of a mutation
            return 0

    @property
    def stored_index(self) -> bytes:
        return self.data[self.trailer.index_offset :][: self.trailer.index_size]

    def index(self) -> bytes:
        """As it should be for the frames as they are."""
        return (
            b"".join(
                number.to_bytes(4, "little")
                + len(c).to_bytes(4, "little")
                + frame_hash(frame_head(number), c)
                for number, c in self.frames
            )
            + self.references
        )

    def frames_size(self) -> int:
        return sum(FRAME_HEAD_SIZE + len(c) for _, c in self.frames)

    def build(self, *, index: bytes | None = None, trailer: bytes | None = None) -> bytes:
        index = self.index() if index is None else index
        body = b"".join((self.preamble.encode(), *self.slots))
        body += b"".join(frame_head(number) + c for number, c in self.frames)
        made = Trailer.create(len(body), len(index), self.origin).encode()
        return body + index + self.origin + (made if trailer is None else trailer)

    # What a recipient can do: decrypt and encrypt.

    def _key(self, role: Role, number: int) -> bytes:
        assert self.roots is not None
        return derive.object_key(self.roots.root(role), self.preamble, number, role)

    def positions(self, number: int) -> list[int]:
        return [p for p, (n, _) in enumerate(self.frames) if n == number]

    def seal_chunk(
        self, role: Role, number: int, counter: int, coded: bytes, *, last: bool, codec: Codec = Codec.RAW,
        plain: int | None = None,
    ) -> bytes:  # fmt: skip
        cipher = chunks.aead(self.preamble.suite, self._key(role, number))
        aad = chunks.aad(codec, len(coded) if plain is None else plain)
        return cipher.encrypt(chunks.nonce(counter, last), coded, aad)

    def manifest_bytes(self, role: Role) -> bytes:
        number = MANIFEST_NUMBER[role]
        positions = self.positions(number)
        cipher = chunks.aead(self.preamble.suite, self._key(role, number))
        plain = b""
        for counter, p in enumerate(positions):
            c = self.frames[p][1]
            nonce = chunks.nonce(counter, p == positions[-1])
            plain += cipher.decrypt(nonce, c, chunks.aad(Codec.RAW, len(c) - 16))
        return plain

    def manifest(self, role: Role) -> dict[str, Any]:
        data = self.manifest_bytes(role)
        return strictjson.decode(data[8 : 8 + int.from_bytes(data[:8], "little")], "manifest")

    def set_manifest(self, role: Role, value: dict[str, Any] | bytes) -> None:
        """JSON, or the plaintext as it is; the frames take the place of the old ones."""
        if isinstance(value, dict):
            text = strictjson.encode(value)
            value = len(text).to_bytes(8, "little") + text
            value += bytes(-len(value) % 4096)
        number = MANIFEST_NUMBER[role]
        at = self.positions(number)[0]
        self.frames = [f for f in self.frames if f[0] != number]
        cut = pieces(value, PACK_CHUNK_SIZE)
        self.frames[at:at] = [
            (number, self.seal_chunk(role, number, n, part, last=n == len(cut) - 1))
            for n, part in enumerate(cut)
        ]

    # What only a signer can do, or somebody who hopes that nobody looks.

    def payload(self) -> dict[str, Any]:
        return strictjson.decode(self.envelope().payload, "origin")

    def envelope(self) -> dsse.Envelope:
        return dsse.decode(self.origin, ORIGIN_TYPE, "origin")

    def set_payload(self, value: dict[str, Any] | bytes, signer: Signatory | None) -> None:
        """`signer` None: the signatures stay as they are, and are wrong."""
        payload = strictjson.encode(value) if isinstance(value, dict) else value
        pae = dsse.pae(ORIGIN_TYPE, payload)
        signatures = signer.sign(pae) if signer else self.envelope().signatures
        self.origin = dsse.encode(dsse.Envelope(ORIGIN_TYPE, payload, signatures))

    def rederived(self) -> dict[str, Any]:
        """The origin's payload for the frames as they are now."""
        payload = self.payload()
        for role in Role:
            mine = self.positions(MANIFEST_NUMBER[role])
            joined = b"".join(frame_head(self.frames[p][0]) + self.frames[p][1] for p in mine)
            payload["manifests"][role.value] = {
                "digest": blake3(joined).hexdigest(),
                "frames": str(len(mine)),
            }
        payload["index"] = {
            "root": blake3(self.index()).hexdigest(),
            "frames": str(len(self.frames)),
            "size": str(self.frames_size()),
        }
        if self.references:
            payload["index"]["references"] = str(len(self.references) // REFERENCE_SIZE)
        return payload

    def resign(self, signer: Signatory | None) -> Forge:
        """Make the origin fit the frames; signed by `signer`, or with the old signatures."""
        self.set_payload(self.rederived(), signer)
        return self

    def set_slot(self, number: int, slot: Slot) -> None:
        self.slots[number] = encode_slot(slot, self.preamble.slot_size)

    def new_slot(self, sealed: Sealed, sequence: int, stanzas: list[Stanza], signer=None) -> Slot:
        known = {r: derive.commitment(sealed.roots.root(r), self.preamble, r) for r in Role}
        slot = make_slot(self.preamble, sequence, stanzas, sealed.roots.metadata)
        return sign_slot(self.preamble, slot, known, (signer or sealed.signer).signing)


def pieces_exact(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
