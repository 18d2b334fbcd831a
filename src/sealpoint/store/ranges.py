"""Reading a sealed file in a store by ranges: few requests for what is small, several at a time for what is long.

The file is read in blocks.  Whoever reads one block after another gets the next ones fetched ahead, the more the longer
it goes on.  The end of the file, where index and manifests are, is fetched at once.  Only ciphertext is held, at most
`_HELD` bytes of it; whoever gets the bytes verifies them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from sealpoint.errors import FileError

if TYPE_CHECKING:
    from sealpoint.store.remote import RemoteFile, Store

BLOCK: Final = 512 * 1024
_TAIL: Final = 2  # blocks
_MOST: Final = 8  # blocks of one request that reads ahead
_AHEAD: Final = 32  # blocks that are read ahead
_PARALLEL: Final = 4
_HELD: Final = 128  # blocks: 64 MiB
_RUNS: Final = 32  # sequential readers that are told apart


class _Piece(NamedTuple):
    """Blocks that come by one request.  first: number of the first."""

    first: int
    data: Future[bytearray]


class RemoteSource:
    """A ByteSource.  store: where `file` is from; `close` closes the file."""

    def __init__(self, file: RemoteFile, store: Store) -> None:
        """Takes over `file`."""
        self.file = file
        self.store = store
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._blocks: OrderedDict[int, _Piece] = OrderedDict()
        self._next: OrderedDict[int, int] = OrderedDict()  # by block: how far to read ahead from it
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    @property
    def size(self) -> int:
        """See ByteSource."""
        return self.file.size

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ByteSource."""
        if not len(out):
            return
        if offset < 0 or offset + len(out) > self.size:
            raise FileError("the sealed file ends before it should")
        done = 0
        for number, piece in self._pieces(offset // BLOCK, (offset + len(out) - 1) // BLOCK):
            start = (number - piece.first) * BLOCK
            data = memoryview(self._result(piece))[start : start + BLOCK]
            skip = offset + done - number * BLOCK
            part = data[skip : skip + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def _pieces(self, first: int, last: int) -> list[tuple[int, _Piece]]:
        """The pieces that hold some blocks, on their way or here; and what is likely to be asked for next."""
        with self._lock:
            self._mind_fork()
            tail = max(self._count - _TAIL, 0)
            whole = last >= tail  # all of the end by one request
            own = self._start(
                min(first, tail) if whole else first, self._count - 1 if whole else last
            )
            found = [(number, self._blocks[number]) for number in range(first, last + 1)]
            for number, _ in found:
                self._blocks.move_to_end(number)
            ahead = self._look_ahead(first, last)
        for piece, count in ahead:
            self._executor().submit(self._fetch, piece, count)
        for piece, count in own:
            self._fetch(piece, count)
        return found

    @property
    def _count(self) -> int:
        return -(-self.size // BLOCK)

    def _start(self, first: int, last: int, most: int | None = None) -> list[tuple[_Piece, int]]:
        """Pieces for those blocks that nobody has asked for yet, with the number of their blocks."""
        started: list[tuple[_Piece, int]] = []
        number = first
        while number <= last:
            if number in self._blocks:
                number += 1
                continue
            end = number
            while end <= last and end not in self._blocks and (most is None or end - number < most):
                end += 1
            piece = _Piece(number, Future())
            for each in range(number, end):
                self._blocks[each] = piece
            started.append((piece, end - number))
            number = end
        while len(self._blocks) > _HELD:
            # All of a piece goes at once: one block of it would keep the bytes of the others.
            piece = next(iter(self._blocks.values()))
            held = [number for number, each in self._blocks.items() if each is piece]
            if any(first <= number <= last for number in held):
                break  # one read is larger than all that is held
            for number in held:
                del self._blocks[number]
        return started

    def _look_ahead(self, first: int, last: int) -> list[tuple[_Piece, int]]:
        """What a reader who was expected here will want next; of others nothing is known yet."""
        window = max(self._next.pop(number, 0) for number in range(first, last + 1))
        self._next[last] = window  # the same block again, by its next frame
        self._next[last + 1] = min(max(2 * window, 1), _AHEAD)
        while len(self._next) > _RUNS:
            self._next.popitem(last=False)
        end = min(last + window, self._count - 1)
        missing = [n for n in range(last + 1, end + 1) if n not in self._blocks]
        few = len(missing) < min(_MOST, window) and end < self._count - 1
        return [] if few or not missing else self._start(missing[0], missing[-1], _MOST)

    def _fetch(self, piece: _Piece, count: int) -> None:
        offset = piece.first * BLOCK
        try:
            data = bytearray(min(count * BLOCK, self.size - offset))
            self.file.read_into(memoryview(data), offset)
        except BaseException as error:  # noqa: BLE001 - raised by whoever wants the bytes
            with self._lock:
                for number in range(piece.first, piece.first + count):
                    if self._blocks.get(number) is piece:
                        del self._blocks[number]
            piece.data.set_exception(error)
        else:
            piece.data.set_result(data)

    @staticmethod
    def _result(piece: _Piece) -> bytearray:
        return piece.data.result()

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="read-ahead")
            return self._pool

    def _mind_fork(self) -> None:
        """A child has no threads of its parent: what they were about to fetch would never come."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._pool = None
            self._blocks.clear()

    def close(self) -> None:
        """See ByteSource."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._mind_fork()
            pool, self._pool = self._pool, None
            self._blocks.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with contextlib.suppress(OSError):
            self.file.close()
