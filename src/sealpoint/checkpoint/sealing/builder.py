"""Collects named objects into one sealed file: small ones share packs, large ones get a stream of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sealpoint.checkpoint.sealing.pipeline import Pipeline
from sealpoint.checkpoint.tables.summary import Summary
from sealpoint.criu.roles import SUMMARY_NAME, is_pages, role_of
from sealpoint.format.constants import (
    CHUNK_SIZE,
    PACK_CHUNK_SIZE,
    PAD_GRANULE,
    Role,
)
from sealpoint.format.index import Reference
from sealpoint.format.manifest import Entry, Manifest, check_name
from sealpoint.format.statement import ParentRef
from sealpoint.format.writer import SealedWriter, StreamWriter
from sealpoint.state.chains import ImageLayout
from sealpoint.version import __version__

# Up to this size an object is packed.  Metadata objects of nearly any size are, so that their sizes stay hidden; memory
# objects only if small, because a pack is held back until it fills a chunk.
PACK_LIMIT: Final = {Role.METADATA: 16 * 1024 * 1024, Role.MEMORY: 64 * 1024}


@dataclass(slots=True)
class _Pending:
    number: int
    name: str
    role: Role
    size: int
    stream: StreamWriter
    offset: int
    attributes: dict[str, Any] | None


class _Pack:
    """Small objects of one role, one after another.  Never compressed: that would show their sizes after all."""

    def __init__(self, writer: SealedWriter, pipeline: Pipeline, role: Role) -> None:
        self.stream = writer.stream(role, PACK_CHUNK_SIZE)
        self._pipeline = pipeline
        self._tail = bytearray()
        self._length = 0

    def add(self, data: bytes) -> int:
        """Append; returns the offset in the pack."""
        offset = self._length
        self._length += len(data)
        self._tail += data
        while len(self._tail) >= PACK_CHUNK_SIZE:
            self._submit(bytes(self._tail[:PACK_CHUNK_SIZE]), last=False)
            del self._tail[:PACK_CHUNK_SIZE]
        return offset

    def finish(self) -> None:
        self._tail += bytes(-len(self._tail) % PAD_GRANULE)
        if len(self._tail) == PACK_CHUNK_SIZE:
            self._submit(bytes(self._tail), last=False)
            self._tail.clear()
        self._submit(bytes(self._tail), last=True)

    def _submit(self, data: bytes, *, last: bool) -> None:
        self._pipeline.submit_bytes(self.stream, data, last=last, policy="none")


class LargeObject:
    """An object being written into a stream of its own: fill `space()`, say `wrote(n)`, in the end `finish()`."""

    def __init__(self, builder: CheckpointBuilder, pending: _Pending, policy: str) -> None:
        self._builder = builder
        self._pending = pending
        self._policy = policy
        self._buffer: memoryview | None = None
        self._filled = 0

    def space(self) -> memoryview:
        """The free rest of the current chunk, never empty.  Waits for a buffer; raises the pipeline's error."""
        if self._buffer is None:
            self._buffer = self._builder.pipeline.buffer()
            self._filled = 0
        return self._buffer[self._filled :]

    def wrote(self, size: int) -> None:
        """`size` bytes of `space()` are data."""
        self._filled += size
        self._pending.size += size
        if self._filled == CHUNK_SIZE:
            self._submit(last=False)

    def write(self, data: bytes | memoryview) -> None:
        """Append a copy of `data`."""
        view = memoryview(data)
        while view:
            space = self.space()
            take = min(len(space), len(view))
            space[:take] = view[:take]
            self.wrote(take)
            view = view[take:]

    def finish(self) -> None:
        """No more data."""
        if self._pending.role is Role.METADATA:
            size = self._pending.size
            self.write(bytes(-size % PAD_GRANULE))
            self._pending.size = size
        self.space()
        self._submit(last=True)
        self._builder.finished_large(self._pending)

    def abandon(self) -> None:
        """Give the buffer back after an error."""
        if self._buffer is not None:
            self._builder.pipeline.give_back(self._buffer)
            self._buffer = None

    def _submit(self, *, last: bool) -> None:
        assert self._buffer is not None
        buffer, self._buffer = self._buffer, None
        self._builder.pipeline.submit(
            self._pending.stream, buffer, self._filled, last=last, policy=self._policy
        )


class CheckpointBuilder:
    """Thread-safe: objects may be added from several threads."""

    def __init__(
        self,
        writer: SealedWriter,
        *,
        compression: str,
        workers: int | None = None,
        observe: Callable[[memoryview], None] | None = None,
    ) -> None:
        """observe: see Pipeline."""
        self.pipeline = Pipeline(writer, workers, observe)
        self.summary = Summary()
        self._writer = writer
        self._compression = compression
        self._lock = threading.Lock()
        self._packs: dict[Role, _Pack] = {}
        self._pending: list[_Pending] = []
        self._names: set[str] = set()
        self.finished = False  # all is written, the trailer included

    @property
    def checkpoint_id(self) -> bytes:
        """Of the file that is being made."""
        return self._writer.preamble.checkpoint_id

    @property
    def count(self) -> int:
        """Objects so far."""
        return len(self._pending)

    @property
    def size(self) -> int:
        """Bytes of all objects so far, without padding."""
        return sum(p.size for p in self._pending)

    def add(self, name: str, data: bytes, attributes: dict[str, Any] | None = None) -> None:
        """A small object (at most the role's PACK_LIMIT)."""
        role = role_of(name)
        self.summary.observe(name, data)
        self.summary.pages(name, len(data))
        with self._lock:
            self._claim(name)
            if role not in self._packs:
                self._packs[role] = _Pack(self._writer, self.pipeline, role)
            pack = self._packs[role]
            offset = pack.add(data)
            number = self._writer.number()
            self._pending.append(
                _Pending(number, name, role, len(data), pack.stream, offset, attributes)
            )

    def large(self, name: str, attributes: dict[str, Any] | None = None) -> LargeObject:
        """An object of unknown or large size."""
        role = role_of(name)
        with self._lock:
            self._claim(name)
            stream = self._writer.stream(role, CHUNK_SIZE)
            pending = _Pending(self._writer.number(), name, role, 0, stream, 0, attributes)
        policy = "none" if role is Role.METADATA else self._compression
        return LargeObject(self, pending, policy)

    def refer(self, reference: Reference) -> None:
        """See SealedWriter."""
        self._writer.refer(reference)

    def finished_large(self, pending: _Pending) -> None:
        """Called by LargeObject."""
        self.summary.pages(pending.name, pending.size)
        with self._lock:
            self._pending.append(pending)

    def _claim(self, name: str) -> None:
        check_name(name)
        if name in self._names:
            raise ValueError(f"object {name!r} was already added")
        self._names.add(name)

    def finish(
        self,
        *,
        kind: str = "",
        workload: str = "",
        parent: ParentRef | None = None,
        chain: tuple[bytes, int] | None = None,
        derived_from: ParentRef | None = None,
        properties: dict[str, str] | None = None,
        captured: int | None = None,
    ) -> bytes:
        """Write packs, manifests and all that follows; returns the origin digest.

        kind: by default `increment` with a parent, else `full`.  chain: as of `SealedWriter.finish`.
        """
        if SUMMARY_NAME not in self._names:
            self.add(SUMMARY_NAME, self.summary.encode())
        for pack in self._packs.values():
            pack.finish()
        self.pipeline.close()
        tables = {role: self._manifest(role) for role in Role}
        tables[Role.METADATA].memory = {e.number: e.size for e in tables[Role.MEMORY].entries}
        tables[Role.METADATA].properties = properties or {}
        digest = self._writer.finish(
            tables[Role.METADATA],
            tables[Role.MEMORY],
            tool=f"sealpoint {__version__}",
            kind=kind or ("full" if parent is None else "increment"),
            workload=workload,
            parent=parent,
            chain=chain,
            derived_from=derived_from,
            captured=captured,
        )
        self.finished = True
        return digest

    def layout(self) -> dict[str, ImageLayout]:
        """Where the pages images are that have a stream of their own."""
        return {
            p.name: ImageLayout(p.stream.number, p.stream.chunk_size, p.size)
            for p in self._pending
            if is_pages(p.name)
            and all(p.stream is not pack.stream for pack in self._packs.values())
        }

    def _manifest(self, role: Role) -> Manifest:
        table = Manifest(role)
        mine = [p for p in self._pending if p.role is role]
        streams = {p.stream.number: p.stream.entry() for p in mine}
        table.streams = list(streams.values())
        table.entries = [
            Entry(p.number, p.name, role, p.size, streams[p.stream.number], p.offset, p.attributes)
            for p in mine
        ]
        return table

    def abort(self, error: BaseException) -> None:
        """Give up; whoever still adds gets `error`."""
        self.pipeline.abort(error)
