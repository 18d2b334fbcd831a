"""Writing a sealed file front to back: preamble, slots, frames, manifests, index, origin statement, trailer.

Never seeks, so the output can be a pipe.  Out of scope: where the bytes go (`Output`), how the roots are wrapped and
statements signed (callables from above), threads (`pipeline`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import blake3

from sealpoint.errors import SealpointError, UsageError
from sealpoint.format import derive, dsse, manifest
from sealpoint.format.chunks import Buffer, ChunkSealer
from sealpoint.format.codec import Coded, Coder
from sealpoint.format.constants import (
    DEFAULT_SLOT_SIZE,
    ENVELOPE_TYPE,
    FIRST_OBJECT,
    FRAME_HEAD_SIZE,
    MAX_OBJECT_NUMBER,
    MAX_STATEMENT,
    MEMORY_MANIFEST,
    METADATA_MANIFEST,
    ORIGIN_TYPE,
    PACK_CHUNK_SIZE,
    TAG_SIZE,
    Codec,
    Role,
    Suite,
)
from sealpoint.format.derive import RootKeys
from sealpoint.format.index import IndexBuilder, Reference, frame_head
from sealpoint.format.manifest import Manifest, Stream
from sealpoint.format.preamble import Preamble, Trailer
from sealpoint.format.slot import Slot, encode_slot, make_slot, slot_size_for
from sealpoint.format.stanza import Stanza
from sealpoint.format.statement import (
    EnvelopeStatement,
    ManifestRef,
    Origin,
    ParentRef,
    check_workload,
    digest,
)

Wrap = Callable[[Preamble, RootKeys], list[Stanza]]
Sign = Callable[[bytes], tuple[dsse.Signature, ...]]


class Output(Protocol):
    """Where the bytes of a sealed file go, in order."""

    def write(self, *buffers: Buffer) -> None:
        """Write all of them.  Raises SealpointError (no space, reader gone)."""


class Signing(NamedTuple):
    """How statements are signed.  sign: DSSE PAE -> signatures; signers: the hex key ids of those signatures."""

    sign: Sign
    signers: tuple[str, ...]

    def envelope(self, payload_type: str, payload: bytes) -> bytes:
        """The signed DSSE envelope as stored."""
        signatures = self.sign(dsse.pae(payload_type, payload))
        if tuple(s.keyid for s in signatures) != self.signers:
            raise SealpointError("a signer signed by another key than it announced")
        return dsse.encode(dsse.Envelope(payload_type, payload, signatures))


UNSIGNED = Signing(lambda _: (), ())


@dataclass(slots=True)
class Chunk:
    """One chunk on its way into the file.  `frame` holds head, ciphertext and tag once sealed; `nonce` is then gone."""

    stream: StreamWriter
    counter: int
    nonce: bytes
    plain_size: int
    frame: memoryview = field(default_factory=lambda: memoryview(b""))
    codec: Codec = Codec.RAW
    digest: bytes = b""


class StreamWriter:
    """One object's chunk stream.

    `begin_chunk` in chunk order, then `seal` in any thread, then `SealedWriter.append` in the order of `begin_chunk`.
    """

    def __init__(self, number: int, chunk_size: int, sealer: ChunkSealer) -> None:
        self.number = number
        self.chunk_size = chunk_size
        self.padded = 0
        self.codecs = bytearray()
        self._sealer = sealer

    def begin_chunk(self, size: int, *, last: bool) -> Chunk:
        """Consume the next counter for `size` plaintext bytes."""
        if size > self.chunk_size or (size == self.chunk_size) == last:
            raise ValueError("every chunk but the last is full, the last is not")
        counter = self._sealer.counter
        nonce = self._sealer.next_nonce(last=last)
        self.padded += size
        return Chunk(self, counter, nonce, size)

    def seal(self, chunk: Chunk, data: memoryview, coder: Coder, out: memoryview) -> None:
        """Code and encrypt `data` into `out` (at least chunk_size + 24 bytes), which the chunk then refers to."""
        chunk.codec, coded = coder.encode(data)
        chunk.frame = self._seal_frame(chunk, coded, out)
        chunk.digest = blake3.blake3(chunk.frame).digest()

    def _seal_frame(self, chunk: Chunk, coded: Coded, out: memoryview) -> memoryview:
        nonce, chunk.nonce = chunk.nonce, b""
        if not nonce:
            raise SealpointError("chunk stream: a chunk can be sealed only once")
        out[:FRAME_HEAD_SIZE] = frame_head(self.number)
        size = self._sealer.seal_into(
            out[FRAME_HEAD_SIZE:], nonce, coded, chunk.codec, chunk.plain_size
        )
        return out[: FRAME_HEAD_SIZE + size]

    @property
    def complete(self) -> bool:
        """Whether every chunk, the last included, lies in the file."""
        return self._sealer.finished and self._sealer.counter == len(self.codecs)

    def entry(self) -> Stream:
        """What the manifest records, once the last chunk was appended."""
        return Stream(self.number, self.chunk_size, self.padded, bytes(self.codecs))


class SealedWriter:
    """One sealed file in the making."""

    def __init__(
        self,
        out: Output,
        *,
        suite: Suite,
        wrap: Wrap,
        signing: Signing,
        roots: RootKeys | None = None,
    ) -> None:
        """Writes preamble and header slots at once.  Wrapping and signing happen here, before any frame."""
        self._out = out
        self._signing = signing
        self._roots = roots or RootKeys.generate()
        self._index = IndexBuilder()
        self._number = FIRST_OBJECT
        self._streams: dict[int, StreamWriter] = {}
        self._usable = True
        self.preamble, slot = _first_slot(suite, self._roots, wrap, signing)
        self._offset = 0
        self._write(
            self.preamble.encode(),
            encode_slot(slot, self.preamble.slot_size),
            bytes(self.preamble.slot_size),
        )

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._offset

    def number(self) -> int:
        """A fresh object number."""
        if self._number > MAX_OBJECT_NUMBER:
            raise ValueError("out of object numbers")
        self._number += 1
        return self._number - 1

    def stream(self, role: Role, chunk_size: int) -> StreamWriter:
        """A new chunk stream under its own key."""
        stream = self._stream(self.number(), role, chunk_size)
        self._streams[stream.number] = stream
        return stream

    def _stream(self, number: int, role: Role, chunk_size: int) -> StreamWriter:
        key = derive.object_key(self._roots.root(role), self.preamble, number, role)
        return StreamWriter(number, chunk_size, ChunkSealer(self.preamble.suite, key))

    def append(self, chunk: Chunk) -> None:
        """Write a sealed chunk as the next frame.  After an error nothing more can be written."""
        if not chunk.frame or chunk.counter != len(chunk.stream.codecs):
            raise ValueError("chunks of a stream are appended sealed and in order")
        self._index.append(chunk.stream.number, len(chunk.frame) - FRAME_HEAD_SIZE, chunk.digest)
        chunk.stream.codecs.append(chunk.codec)
        self._write(chunk.frame)

    def refer(self, reference: Reference) -> None:
        """The next of the stored chunks that this file refers to.  The caller has made them durable."""
        self._index.refer(reference)

    def finish(
        self,
        metadata: Manifest,
        memory: Manifest,
        *,
        tool: str,
        kind: str = "full",
        workload: str = "",
        parent: ParentRef | None = None,
        derived_from: ParentRef | None = None,
        captured: int | None = None,
        chain: tuple[bytes, int] | None = None,
    ) -> bytes:
        """Write manifests, index, origin statement and trailer; returns the origin digest.

        chain: id of the chain's first file and place of this one in it, for a file with a parent.  Raises FileError
        where a reader would refuse what was to be written.
        """
        check_workload(workload)
        self._check(metadata, memory)
        chain_root, chain_sequence = chain or (self.preamble.checkpoint_id, 0)
        refs = {
            Role.METADATA: self._write_manifest(METADATA_MANIFEST, metadata),
            Role.MEMORY: self._write_manifest(MEMORY_MANIFEST, memory),
        }
        index = self._index.encode()
        origin = Origin(
            suite=self.preamble.suite,
            checkpoint_id=self.preamble.checkpoint_id,
            kind=kind,
            preamble_digest=self.preamble.digest,
            commitments=commitments(self._roots, self.preamble),
            manifests=refs,
            index_root=blake3.blake3(index).digest(),
            frames=len(self._index),
            frames_size=self._offset - self.preamble.frames_offset,
            captured=int(time.time()) if captured is None else captured,
            tool=tool,
            chain_root=chain_root,
            chain_sequence=chain_sequence,
            workload=workload,
            parent=parent,
            derived_from=derived_from,
            signers=self._signing.signers,
            references=self._index.references,
        )
        payload = origin.encode()
        Origin.decode(payload)  # all that a reader checks, while the captured process still runs
        envelope = self._signing.envelope(ORIGIN_TYPE, payload)
        if len(envelope) > MAX_STATEMENT:
            raise UsageError("the signers' certificates do not fit the statement")
        trailer = Trailer.create(self._offset, len(index), envelope)
        self._write(index, envelope, trailer.encode())
        self._usable = False
        return digest(payload)

    def _check(self, metadata: Manifest, memory: Manifest) -> None:
        # What a reader would refuse must fail here, while the captured process still runs.
        tables = {Role.METADATA: metadata, Role.MEMORY: memory}
        for role, table in tables.items():
            manifest.decode(memoryview(manifest.encode(table)), role)
        manifest.check_together(tables)
        listed = {s.number: s for table in tables.values() for s in table.streams}
        written = {n: s for n, s in self._streams.items() if s.padded or s.codecs}
        if listed.keys() != written.keys() or any(
            not s.complete or s.entry() != listed[n] for n, s in written.items()
        ):
            raise SealpointError("the manifests do not list what was written")

    def _write_manifest(self, number: int, table: Manifest) -> ManifestRef:
        data = memoryview(manifest.encode(table))
        stream = self._stream(number, table.role, PACK_CHUNK_SIZE)
        coder = Coder("none")
        out = memoryview(bytearray(PACK_CHUNK_SIZE + FRAME_HEAD_SIZE + TAG_SIZE))
        state = blake3.blake3()
        frames = 0
        for at in range(0, len(data) + 1, PACK_CHUNK_SIZE):
            piece = data[at : at + PACK_CHUNK_SIZE]
            chunk = stream.begin_chunk(len(piece), last=len(piece) < PACK_CHUNK_SIZE)
            stream.seal(chunk, piece, coder, out)
            self.append(chunk)
            state.update(chunk.frame)
            frames += 1
        return ManifestRef(state.digest(), frames)

    def _write(self, *buffers: Buffer) -> None:
        if not self._usable:
            raise SealpointError("this sealed file cannot be written any further")
        self._usable = False  # until everything is out: half a write must be the last one
        self._out.write(*buffers)
        self._usable = True
        self._offset += sum(len(b) for b in buffers)


def commitments(roots: RootKeys, preamble: Preamble) -> dict[Role, bytes]:
    """The public commitments to both roots."""
    return {r: derive.commitment(roots.root(r), preamble, r) for r in Role}


def sign_slot(preamble: Preamble, slot: Slot, known: dict[Role, bytes], signing: Signing) -> Slot:
    """The slot with a signed envelope statement.  `known`: the commitments of both roots."""
    statement = EnvelopeStatement.for_slot(
        preamble, slot, known, created=int(time.time()), signers=signing.signers
    )
    payload = statement.encode()
    EnvelopeStatement.decode(payload)  # what a reader would refuse must fail here
    return slot._replace(envelope=signing.envelope(ENVELOPE_TYPE, payload))


def _first_slot(
    suite: Suite, roots: RootKeys, wrap: Wrap, signing: Signing
) -> tuple[Preamble, Slot]:
    # The slot's size is known only after wrapping and signing, and both MAC and statement cover the preamble, which
    # holds that size: so size a draft first.  Wraps do not depend on the slot size.
    preamble = Preamble.create(suite, DEFAULT_SLOT_SIZE)
    stanzas: Sequence[Stanza] = wrap(preamble, roots)
    known = commitments(roots, preamble)
    draft = sign_slot(
        preamble, make_slot(preamble, 1, list(stanzas), roots.metadata), known, signing
    )
    preamble = preamble._replace(slot_size=slot_size_for(len(draft.body), len(draft.envelope)))
    slot = make_slot(preamble, 1, list(stanzas), roots.metadata)
    return preamble, sign_slot(preamble, slot, known, signing)
