"""Chunks sealed by worker threads, written in order by one writer thread.

The crypto and the compressors release the GIL, so reading, sealing and writing overlap.  Memory is bounded by the two
buffer pools whatever the size of the checkpoint.  The first error stops everything and is raised to whoever comes next.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
from typing import TYPE_CHECKING

from sealpoint.checkpoint.sealing.adapt import LEVELS, Adaptive
from sealpoint.errors import SealpointError
from sealpoint.format.codec import Coder
from sealpoint.format.constants import CHUNK_SIZE, FRAME_HEAD_SIZE, TAG_SIZE, Codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from sealpoint.format.writer import Chunk, SealedWriter, StreamWriter

_SPARE = 2  # buffers beyond one per worker: one being filled or written, one waiting


class _Task:
    __slots__ = ("chunk", "coder_policy", "compressible", "data", "done", "out", "release")

    def __init__(
        self,
        chunk: Chunk,
        data: memoryview,
        out: memoryview,
        policy: str,
        release: Callable[[], None] | None,
    ) -> None:
        self.chunk = chunk
        self.data = data
        self.coder_policy = policy
        self.release = release
        self.out = out
        self.compressible = False
        self.done = threading.Event()


class Pipeline:
    """Seals chunks of one file.  Any thread may submit; the frames of one stream keep their order."""

    def __init__(
        self,
        writer: SealedWriter,
        workers: int | None = None,
        observe: Callable[[memoryview], None] | None = None,
    ) -> None:
        """observe: sees the plaintext of every chunk, in the threads that seal; must not raise, nor keep it."""
        count = workers or min(4, os.cpu_count() or 1)
        self._writer = writer
        self._observe = observe
        self._error: BaseException | None = None
        self._closed = False
        self._pid = os.getpid()
        self._plain: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(count + _SPARE):
            self._plain.put(memoryview(mmap.mmap(-1, CHUNK_SIZE)))
            self._out.put(memoryview(mmap.mmap(-1, CHUNK_SIZE + FRAME_HEAD_SIZE + TAG_SIZE)))
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._order: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._submit_lock = threading.Lock()
        self._adaptive = Adaptive()
        self._threads = [
            threading.Thread(target=self._work, name=f"seal-{n}", daemon=True) for n in range(count)
        ]
        self._threads.append(threading.Thread(target=self._write, name="write", daemon=True))
        self._workers = count
        for thread in self._threads:
            thread.start()
        self.plain_bytes = 0
        self.zero_bytes = 0
        self.compressed_bytes = 0

    def buffer(self) -> memoryview:
        """A free buffer of CHUNK_SIZE bytes, page-aligned; waits for one.  Raises the pipeline's error."""
        self._check_usable()
        buffer = self._plain.get()
        if self._error is not None:
            self._plain.put(buffer)  # wake the next one, too
        self._raise()
        return buffer

    def give_back(self, buffer: memoryview) -> None:
        """Return a buffer that will not be submitted."""
        self._plain.put(buffer)

    def submit(
        self, stream: StreamWriter, buffer: memoryview, size: int, *, last: bool, policy: str
    ) -> None:
        """Seal the first `size` bytes of a buffer from `buffer()`, which thereby returns to the pool.

        If this raises, the buffer is still the caller's.
        """
        self._submit(stream, buffer[:size], last, policy, lambda: self._plain.put(buffer))

    def submit_bytes(self, stream: StreamWriter, data: bytes, *, last: bool, policy: str) -> None:
        """Seal bytes that the caller will not touch again."""
        self._submit(stream, memoryview(data), last, policy, None)

    def _submit(
        self,
        stream: StreamWriter,
        data: memoryview,
        last: bool,
        policy: str,
        release: Callable[[], None] | None,
    ) -> None:
        self._check_usable()
        # Counters, output buffers and places in the file are given out in one order: a chunk that others wait for
        # then never waits for a buffer that they hold.
        with self._submit_lock:
            self._check_usable()
            # It may raise, so before an output buffer is taken.
            chunk = stream.begin_chunk(len(data), last=last)
            task = _Task(chunk, data, self._out.get(), policy, release)
            self._order.put(task)
            self._tasks.put(task)

    def close(self) -> None:
        """Wait until everything submitted was written.  Raises the first error."""
        self._stop()
        self._raise()

    def abort(self, error: BaseException) -> None:
        """Give up: whoever waits for a buffer is woken with `error`."""
        self._fail(error)
        self._stop()

    def _check_usable(self) -> None:
        self._raise()
        if self._closed or os.getpid() != self._pid:  # no thread is left that would take the work
            raise SealpointError("the pipeline was closed, or belongs to another process")

    def _stop(self) -> None:
        with self._submit_lock:
            self._closed = True
        for _ in range(self._workers):
            self._tasks.put(None)
        for thread in self._threads[: self._workers]:
            thread.join()
        self._order.put(None)
        self._threads[-1].join()

    def _raise(self) -> None:
        if self._error is not None:
            if isinstance(self._error, SealpointError):
                raise self._error
            raise SealpointError(f"sealing failed: {self._error!r}") from self._error

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._plain.put(memoryview(b""))  # wake a thread that waits for a buffer

    def _work(self) -> None:
        coders: dict[str, Coder] = {}
        while (task := self._tasks.get()) is not None:
            try:
                if self._error is None:
                    coder = coders.get(task.coder_policy) or Coder(
                        task.coder_policy, lambda: LEVELS[self._adaptive.level]
                    )
                    coders[task.coder_policy] = coder
                    if self._observe is not None:
                        self._observe(task.data)
                    task.chunk.stream.seal(task.chunk, task.data, coder, task.out)
                    task.compressible = coder.compressible
            except BaseException as error:  # noqa: BLE001 - must reach the submitting thread
                self._fail(error)
            finally:
                try:
                    task.data.release()
                    if task.release is not None:
                        task.release()
                finally:
                    task.done.set()  # whatever happens: the writer waits for it

    def _write(self) -> None:
        while (task := self._order.get()) is not None:
            self._adaptive.began()
            task.done.wait()
            self._adaptive.sealed()
            chunk = task.chunk
            try:
                if self._error is None:
                    self._writer.append(chunk)
                    self._count(chunk)
                    self._adaptive.wrote(
                        chunk.plain_size, len(chunk.frame), counts=task.compressible
                    )
            except BaseException as error:  # noqa: BLE001 - must reach the submitting thread
                self._fail(error)
            finally:
                chunk.frame.release()
                self._out.put(task.out)

    def _count(self, chunk: Chunk) -> None:
        self.plain_bytes += chunk.plain_size
        if chunk.codec is Codec.ZERO:
            self.zero_bytes += chunk.plain_size
        elif chunk.codec:
            self.compressed_bytes += chunk.plain_size
