"""A sealed file whose contents its holder may read: chunk by chunk, each checked and decrypted when it is read.

Made from a `reader.AuthenticFile` with keys.  Out of scope: statements, anything that CRIU means by the objects.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Self

import blake3

from sealpoint.errors import FileError
from sealpoint.format import derive, manifest
from sealpoint.format.chunks import ChunkOpener
from sealpoint.format.codec import decode_into
from sealpoint.format.constants import (
    FRAME_HEAD_SIZE,
    MAX_MANIFEST,
    MEMORY_MANIFEST,
    METADATA_MANIFEST,
    PACK_CHUNK_SIZE,
    TAG_SIZE,
    Codec,
    Role,
)
from sealpoint.format.derive import RootKeys
from sealpoint.format.reader import AuthenticFile, Unwrap

if TYPE_CHECKING:
    from sealpoint.format.manifest import Entry, Manifest, Stream


class OpenFile:
    """A sealed file whose contents its holder may read, as far as the unwrapped roots reach."""

    def __init__(
        self, authentic: AuthenticFile, roots: RootKeys, manifests: Mapping[Role, Manifest]
    ) -> None:
        """Raises FileError where the manifests contradict the index or each other."""
        self.authentic = authentic
        self.roots = roots
        self.manifests = manifests
        self.entries: dict[str, Entry] = manifest.check_together(manifests)
        self._streams: dict[int, tuple[Stream, Role]] = {}
        self._openers: dict[int, ChunkOpener] = {}
        for role, table in manifests.items():
            for stream in table.streams:
                self._streams[stream.number] = (stream, role)
                self._check_stream(stream)
        self._check_complete()

    @classmethod
    def unlock(cls, authentic: AuthenticFile, unwrap: Unwrap) -> Self:
        """Unwrap the roots and decrypt the manifests.  Raises IdentityError, FileError."""
        preamble = authentic.file.preamble
        roots = unwrap(preamble, authentic.slot)
        held = (Role.METADATA,) if roots.memory is None else tuple(Role)
        for role in held:
            expected = derive.commitment(roots.root(role), preamble, role)
            if not hmac.compare_digest(expected, authentic.origin.commitments[role]):
                raise FileError("the header opens to keys that are not those of this checkpoint")
        authentic.slot.check_mac(preamble, roots.metadata)
        manifests = {role: _read_manifest(authentic, role, roots) for role in held}
        return cls(authentic, roots, manifests)

    @property
    def has_memory(self) -> bool:
        """Whether the memory root was unwrapped, too."""
        return Role.MEMORY in self.manifests

    def streams(self) -> Iterator[Stream]:
        """Every stream within reach, packs included."""
        return (stream for stream, _ in self._streams.values())

    def is_freed(self, stream: Stream, counter: int) -> bool:
        """Whether a chunk was given up for a later file of the chain."""
        authentic = self.authentic
        return authentic.prune is not None and authentic.is_freed(
            authentic.index.frames_of(stream.number)[counter]
        )

    def stored_size(self, stream: Stream) -> int:
        """Bytes of a stream's frames, as they lie in the file."""
        index = self.authentic.index
        return sum(index.entry(position)[2] for position in index.frames_of(stream.number))

    def is_whole(self, entry: Entry) -> bool:
        """Whether no byte of an object was given up."""
        size = entry.stream.chunk_size
        chunks = range(entry.offset // size, (entry.offset + max(entry.size, 1) - 1) // size + 1)
        return not any(self.is_freed(entry.stream, counter) for counter in chunks)

    def _check_stream(self, stream: Stream) -> None:
        index = self.authentic.index
        frames = index.frames_of(stream.number)
        if len(frames) != stream.chunks:
            raise FileError(f"stream {stream.number} has frames missing or too many")
        for counter, position in enumerate(frames):
            size = index.entry(position)[2] - TAG_SIZE
            plain, codec = stream.plain_size(counter), stream.codecs[counter]
            fits = size == plain if codec == Codec.RAW else size < plain
            if not fits or (codec == Codec.ZERO and size):
                raise FileError(f"stream {stream.number}: chunk {counter} has an impossible length")

    def _check_complete(self) -> None:
        if not self.has_memory:
            return
        known = self._streams.keys() | {METADATA_MANIFEST, MEMORY_MANIFEST}
        if unknown := set(self.authentic.index.numbers()) - known:
            raise FileError(
                f"the file holds frames of an object {min(unknown)} that no manifest lists"
            )

    def entry(self, name: str) -> Entry:
        """The object of that name.  Raises FileError."""
        try:
            return self.entries[name]
        except KeyError:
            raise FileError(f"the checkpoint has no object {name!r}") from None

    def read_chunk_into(
        self, stream: Stream, counter: int, out: memoryview, scratch: Scratch
    ) -> int:
        """Check and decrypt one chunk into `out` (at least its plaintext size), which it returns.  Raises FileError."""
        plain_size = stream.plain_size(counter)
        position = self.authentic.index.frames_of(stream.number)[counter]
        frame = self.authentic.read_frame(position, scratch.frame(stream))
        codec = Codec(stream.codecs[counter])
        opener = self._opener(stream)
        target = out[:plain_size] if codec is Codec.RAW else scratch.coded(stream)
        size = opener.open_into(
            target,
            counter,
            frame[FRAME_HEAD_SIZE:],
            codec,
            plain_size,
            last=counter == stream.chunks - 1,
        )
        if codec is not Codec.RAW:
            decode_into(out[:plain_size], codec, target[:size])
        return plain_size

    def _opener(self, stream: Stream) -> ChunkOpener:
        opener = self._openers.get(stream.number)
        if opener is None:
            _, role = self._streams[stream.number]
            preamble = self.authentic.file.preamble
            key = derive.object_key(self.roots.root(role), preamble, stream.number, role)
            opener = self._openers[stream.number] = ChunkOpener(preamble.suite, key)
        return opener

    def read(
        self,
        entry: Entry,
        scratch: Scratch | None = None,
        *,
        start: int = 0,
        size: int | None = None,
    ) -> Iterator[memoryview]:
        """Plaintext of an object (or of `size` bytes from `start`), piece by piece.

        Each piece lies in a buffer of `scratch` and is overwritten by the next.  Raises FileError.
        """
        scratch = scratch or Scratch()
        stream = entry.stream
        begin = entry.offset + min(start, entry.size)
        end = entry.offset + (entry.size if size is None else min(entry.size, start + size))
        while begin < end:
            counter, skip = divmod(begin, stream.chunk_size)
            out = scratch.plain(stream)  # each time: another reader may have replaced the buffer
            chunk = (self, stream.number, counter)
            if scratch.holds != chunk:  # neighbours in a pack share a chunk
                scratch.holds = None
                self.read_chunk_into(stream, counter, out, scratch)
                scratch.holds = chunk
            have = stream.plain_size(counter)
            take = min(have - skip, end - begin)
            yield out[skip : skip + take]
            begin += take

    def read_bytes(self, entry: Entry, limit: int = 64 * 1024 * 1024) -> bytes:
        """A whole small object.  Raises FileError if it is larger than `limit` bytes."""
        if entry.size > limit:
            raise FileError(f"object {entry.name!r} is larger than {limit} bytes")
        data = bytearray()  # b"".join would first collect the pieces, which share one buffer
        for piece in self.read(entry):
            data += piece
        return bytes(data)

    def verify_all(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Authenticate and decode every chunk within reach, objects and padding.  Raises FileError.

        All but those that were freed: they are for `AuthenticFile.check_frames`.
        """
        scratch = Scratch()
        for stream in self.streams():
            out = scratch.plain(stream)
            scratch.holds = None
            for counter in range(stream.chunks):
                if not self.is_freed(stream, counter):
                    progress(self.read_chunk_into(stream, counter, out, scratch))


class Scratch:
    """Reused buffers of one reading thread.  Sized by the largest chunk met, at most 16 MiB each."""

    def __init__(self) -> None:
        self._buffers: dict[str, memoryview] = {}
        self.holds: tuple[OpenFile, int, int] | None = None  # whose chunk lies in `plain`
        self._inner: Scratch | None = None

    def _buffer(self, name: str, size: int) -> memoryview:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = memoryview(bytearray(size))
            self.holds = None
        return buffer

    def inner(self) -> Scratch:
        """For reading something else while `plain` and the others are in use."""
        if self._inner is None:
            self._inner = Scratch()
        return self._inner

    def other(self, name: str, size: int) -> memoryview:
        """For whatever an OpenFile of another kind needs."""
        return self._buffer("other " + name, size)

    def frame(self, stream: Stream) -> memoryview:
        """For a frame as stored."""
        return self._buffer("frame", FRAME_HEAD_SIZE + stream.chunk_size + TAG_SIZE)

    def coded(self, stream: Stream) -> memoryview:
        """For decrypted bytes that are still compressed."""
        return self._buffer("coded", stream.chunk_size)

    def plain(self, stream: Stream) -> memoryview:
        """For plaintext."""
        return self._buffer("plain", stream.chunk_size)


def _read_manifest(authentic: AuthenticFile, role: Role, roots: RootKeys) -> Manifest:
    number = METADATA_MANIFEST if role is Role.METADATA else MEMORY_MANIFEST
    frames = authentic.index.frames_of(number)
    sizes = [authentic.index.entry(p)[2] - TAG_SIZE for p in frames]
    last = len(sizes) - 1
    if sum(sizes) > MAX_MANIFEST or any(
        (s != PACK_CHUNK_SIZE) if n < last else (s >= PACK_CHUNK_SIZE) for n, s in enumerate(sizes)
    ):
        raise FileError(f"the {role.value} manifest has an impossible length")
    opener = ChunkOpener(
        authentic.file.preamble.suite,
        derive.object_key(roots.root(role), authentic.file.preamble, number, role),
    )
    buffer = memoryview(bytearray(FRAME_HEAD_SIZE + PACK_CHUNK_SIZE + TAG_SIZE))
    plain = memoryview(bytearray(sum(sizes)))
    state, at = blake3.blake3(), 0
    for counter, (position, size) in enumerate(zip(frames, sizes, strict=True)):
        frame = authentic.read_frame(position, buffer)
        state.update(frame)
        opener.open_into(
            plain[at:], counter, frame[FRAME_HEAD_SIZE:], Codec.RAW, size, last=counter == last
        )
        at += size
    if state.digest() != authentic.origin.manifests[role].digest:
        raise FileError(f"the {role.value} manifest is not the one that was signed")
    return manifest.decode(plain, role)
