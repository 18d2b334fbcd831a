"""Pages images cut into chunks that a store keeps once, while they stream by.

Pages decide where a chunk ends, not offsets: the same pages make the same chunks wherever they are.
Pages of zeros and what cannot be referred to stay in the sealed file itself.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sealpoint.checkpoint.sealing.builder import CheckpointBuilder
from sealpoint.checkpoint.tables.chunk_table import TABLE_NAME, ChunkTable
from sealpoint.checkpoint.tables.delta import MAX_PAGES, PageRuns
from sealpoint.checkpoint.tables.pages_thread import PagesThread
from sealpoint.chunks.directory import ChunkDirectory
from sealpoint.criu.pagemap import PAGE
from sealpoint.errors import FileError, SealpointError
from sealpoint.format import stored
from sealpoint.format.codec import Coder, is_zero
from sealpoint.format.constants import MAX_REFERENCES, MAX_U64, Suite
from sealpoint.format.stored import StoredChunk, Tenant

LEAST: Final = 4  # pages of a chunk, but of the last of an image
MOST: Final = 64
_WORDS: Final = PAGE // 8
_SAMPLED: Final = (
    1,
    90,
    175,
    268,
    353,
    446,
)  # words of a page that decide whether a chunk ends behind it
_CUTS: Final = bytes(byte < 16 for byte in range(256))  # one in 16
# Each chunk is a dozen short calls, between which threads wait for the interpreter: more of them are slower.
_WORKERS: Final = max(1, min(2, (os.cpu_count() or 1) - 1))
_AHEAD: Final = 8  # chunks that are in work at a time, for each image


class Cutter:
    """Cuts one image into runs of pages, each all zero or a chunk.

    A few words of a page, summed up to one AES block and encrypted, say whether a run ends behind it: so the same pages
    are cut in the same places, and nobody without the key can tell where.
    """

    def __init__(self, key: bytes) -> None:
        """key: 32 bytes."""
        # A permutation of single blocks is what is wanted here: equal samples give equal answers.
        self._block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
        self._run = bytearray()
        self._was_zero = False

    def cut(self, data: memoryview) -> Iterator[tuple[bytes, bool]]:
        """The runs that end in `data`, whole pages, and whether they are all zero."""
        begin, length = 0, len(self._run) // PAGE
        # Only samples are looked at here: a run that seems to be zero is compared as a whole in the end.
        for number, (cut, zero) in enumerate(zip(*self._marks(data), strict=True)):
            if length >= LEAST and zero != self._was_zero:
                yield self._end(data[begin * PAGE : number * PAGE])
                begin, length = number, 0
            self._was_zero = zero
            length += 1
            if length == MOST or (cut and length >= LEAST and not zero):
                yield self._end(data[begin * PAGE : (number + 1) * PAGE])
                begin, length = number + 1, 0
        self._run += data[begin * PAGE :]

    def _marks(self, data: memoryview) -> tuple[bytes, list[bool]]:
        """Of each page: whether a run may end behind it, and whether its samples are zero."""
        words = data.cast("B").cast("Q")
        samples = [words[at::_WORDS].tolist() for at in _SAMPLED]
        halves = [
            array("Q", [(a + 3 * b + 5 * c) & MAX_U64 for a, b, c in zip(*three, strict=True)])
            for three in (samples[:3], samples[3:])
        ]
        blocks = array("Q", bytes(16 * len(halves[0])))
        blocks[::2], blocks[1::2] = halves
        cuts = self._block.update(blocks.tobytes())[::16].translate(_CUTS)
        return cuts, [not any(page) for page in zip(*samples, strict=True)]

    def rest(self) -> tuple[bytes, bool]:
        """What is left at the end of the image, maybe nothing."""
        return self._end(memoryview(b""))

    def _end(self, data: memoryview) -> tuple[bytes, bool]:
        run = bytes(data) if not self._run else b"".join((self._run, data))
        self._run.clear()
        return run, is_zero(memoryview(run))


class ChunkAdder:
    """Adds the pages of one sealed file to a store.

    pages, size: that the file refers to; added, added_size: of them chunks that are new, and bytes of their files;
    damaged: ids of chunks in the store that could not be referred to, because they do not hold what they should.
    """

    def __init__(
        self,
        directory: ChunkDirectory,
        tenant: Tenant,
        *,
        suite: Suite,
        compression: str,
        observe: Callable[[memoryview], None] | None = None,
    ) -> None:
        """observe: sees the plaintext of every page, in one thread for each image.  Raises IdentityError."""
        directory.check_tenant(tenant.identifier)
        self.directory, self.tenant = directory, tenant
        self.observe = observe
        self.pages = 0
        self.added = self.added_size = 0
        self.damaged: set[bytes] = set()
        self._suite, self._compression = suite, compression
        self._table = ChunkTable(tenant.identifier)
        self._chunks: list[StoredChunk] = []
        self._known: dict[
            bytes, int | None
        ] = {}  # place of the first page; None: not to be referred to
        self._chunk_pages = 0
        self._lock = threading.Lock()
        self._coders = threading.local()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="chunk")

    def target(
        self, builder: CheckpointBuilder, name: str, attributes: dict[str, Any] | None = None
    ) -> StoredPages:
        """Takes a pages image (`chunk_table.can_be_stored`)."""
        return StoredPages(self, builder, name, attributes)

    def submit(self, run: bytes) -> Future[tuple[bytes, StoredChunk | None]]:
        """Have a chunk added, if it is new; the id, and how to refer to it."""
        return self._pool.submit(self._add, run)

    def _add(self, run: bytes) -> tuple[bytes, StoredChunk | None]:
        digest = self.tenant.digest(run)
        identifier = self.tenant.chunk_id(digest)
        if identifier in self._known:
            return identifier, None
        plain = memoryview(run)
        try:
            data = self.directory.read(identifier)
            if data is None:
                made, chunk = stored.seal(self.tenant, digest, plain, self._coder(), self._suite)
                if self.directory.put(identifier, made):
                    with self._lock:
                        self.added, self.added_size = self.added + 1, self.added_size + len(made)
                    return identifier, chunk
                data = self.directory.read(identifier)  # somebody was faster
            if data is None:
                raise SealpointError(f"chunk {identifier.hex()} vanished while it was added")
            return identifier, stored.unwrap(self.tenant, digest, data, plain)
        except FileError:
            # Not to be signed.  Its pages go into the sealed file: nobody can keep us from sealing by spoiling a store.
            with self._lock:
                self.damaged.add(identifier)
            return identifier, None

    def _coder(self) -> Coder:
        coder: Coder | None = getattr(self._coders, "coder", None)
        if coder is None:
            coder = self._coders.coder = Coder(self._compression)
        return coder

    def refer(self, pages: int, identifier: bytes, chunk: StoredChunk | None) -> int | None:
        """Where the pages of a chunk begin, counted through all; None: they cannot be referred to."""
        with self._lock:
            if identifier not in self._known:
                fits = chunk is not None and (
                    len(self._chunks) < MAX_REFERENCES
                    and self._chunk_pages + chunk.size // PAGE <= MAX_PAGES
                )
                if chunk is None or not fits:
                    self._known[identifier] = None
                else:
                    self._known[identifier] = self._chunk_pages
                    self._chunks.append(chunk)
                    self._chunk_pages += chunk.size // PAGE
            if self._known[identifier] is not None:
                self.pages += pages
            return self._known[identifier]

    def image(self, name: str, runs: PageRuns) -> None:
        """An image is complete."""
        with self._lock:
            self._table.images[name] = runs

    @property
    def size(self) -> int:
        """Bytes of the pages that the file refers to."""
        return self.pages * PAGE

    def finish(self, builder: CheckpointBuilder) -> None:
        """Everything was added: make it durable, and have the file refer to it.  Raises SystemEnvironmentError."""
        self.close()
        if not self._chunks:
            return
        # Also if nothing is new: the chunks may be those of a dump that has not synced them, and never will.
        self.directory.sync()
        for chunk in self._chunks:
            builder.refer(chunk.reference)
            self._table.pages.append(chunk.size // PAGE)
            self._table.keys += chunk.key
        table = builder.large(TABLE_NAME)
        table.write(self._table.encode())
        table.finish()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StoredPages(PagesThread):
    """One pages image on its way into a store."""

    def __init__(
        self,
        adder: ChunkAdder,
        builder: CheckpointBuilder,
        name: str,
        attributes: dict[str, Any] | None,
    ) -> None:
        self._adder, self._builder, self._name = adder, builder, name
        self._cutter = Cutter(adder.tenant.cut_key)
        self._runs = PageRuns()
        self._waiting: deque[tuple[bytes, Future[tuple[bytes, StoredChunk | None]] | None]] = (
            deque()
        )
        super().__init__(builder.large(name, attributes), "cut")

    def take(self, data: memoryview) -> None:
        """See PagesBeside."""
        if self._adder.observe is not None:
            self._adder.observe(data)
        for run, zeros in self._cutter.cut(data):
            self._hand(run, zeros=zeros)

    def ended(self) -> None:
        """See PagesBeside."""
        run, zeros = self._cutter.rest()
        if run:
            self._hand(run, zeros=zeros)
        while self._waiting:
            self._settle()
        self.target.finish()
        if self._runs.own_pages < self._runs.pages:
            self._adder.image(self._name, self._runs)
            self._builder.summary.pages(self._name, self._runs.pages * PAGE)

    def _hand(self, run: bytes, *, zeros: bool) -> None:
        self._waiting.append((run, None if zeros else self._adder.submit(run)))
        while len(self._waiting) > _AHEAD:
            self._settle()

    def _settle(self) -> None:
        run, future = self._waiting.popleft()
        pages = len(run) // PAGE
        place = None if future is None else self._adder.refer(pages, *future.result())
        if place is None:
            self.target.write(run)
        self._runs.add(place, pages)
