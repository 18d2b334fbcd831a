"""Finds bytes in the memory of a checkpoint, decrypted piece by piece in RAM.

A match lies in bytes that follow each other in memory: one that straddles chunks, page runs, mappings without a gap, or
pages of an increment and of its parent is found; bytes that are neighbours only in a pages image are no match.
Memory is bounded by one chunk and `MAX_MATCH`, whatever the size of the task.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sealpoint.errors import UsageError
from sealpoint.inspect.memory import PAGE

if TYPE_CHECKING:
    from sealpoint.inspect.memory import AddressSpace, Block, Mapping

MAX_MATCH: Final = (
    4096  # bytes: longer matches of an expression are cut, longer plain strings refused
)
LOOK_BEHIND: Final = 64  # bytes before a place that \\b and lookbehinds can see
_FIRST: Final = 2 * 1024 * 1024  # bytes of a piece for which there is room from the beginning


@dataclass(frozen=True, slots=True)
class Match:
    """address: of its first byte; data: what matched; before, after: what stands around it, as far as it is stored;
    mapping: where it begins.
    """

    pid: int
    address: int
    data: bytes
    before: bytes
    after: bytes
    mapping: Mapping


class Buffer:
    """Bytes to be scanned, where they stay: `view`, and its address for C functions."""

    def __init__(self, size: int) -> None:
        data = bytearray(size)
        self.view = memoryview(data)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(data))


# Yields (start, end, what the scanner has to say of it) of the matches that begin in [from, to) of a buffer, in order.
Scan = Callable[[Buffer, int, int], Iterator[tuple[int, int, Any]]]


@dataclass(frozen=True, slots=True)
class Pattern:
    """What to look for.  overlap: a match that begins in the last `overlap` bytes of a piece may need the next one.

    longest: bytes of a match that are handed out.
    """

    scan: Scan
    overlap: int
    longest: int = MAX_MATCH


def literal(needle: bytes) -> Pattern:
    """A plain string.  Raises UsageError."""
    if not needle:
        raise UsageError("there is nothing to search for")
    size = len(needle)
    if size > MAX_MATCH:
        raise UsageError(f"a plain string to search for has at most {MAX_MATCH} bytes")
    # memmem: twice as fast as bytes.find, and other threads run meanwhile.
    memmem = ctypes.CDLL(None).memmem
    memmem.restype = ctypes.c_void_p
    memmem.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)

    def scan(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, None]]:
        while (rest := end - start) >= size:
            found = memmem(buffer.address + start, rest, needle, size)
            if found is None:
                return
            start = found - buffer.address + size
            yield start - size, start, None

    return Pattern(scan, size - 1)


def expression(text: str) -> Pattern:
    """A regular expression of Python's `re`, over bytes.  Raises UsageError."""
    try:
        compiled = re.compile(text.encode(errors="surrogateescape"))
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"not a regular expression: {error}") from None

    def scan(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, None]]:
        for found in compiled.finditer(buffer.view, start, end):
            if found.end() > found.start():  # what matches nothing is found everywhere
                yield *found.span(), None

    return Pattern(scan, MAX_MATCH)


def search(
    space: AddressSpace,
    pattern: Pattern,
    *,
    context: int = 0,
    mappings: Sequence[Mapping] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Match]:
    """Matches in ascending order of address.  `progress` gets bytes that were searched.  Raises FileError.

    context: bytes before and after; mappings: only these (default: all that have stored pages).
    """
    window = Window(pattern)
    for mapping in space.mappings if mappings is None else mappings:
        for block in space.blocks(mapping):
            for address, data, _ in window.feed(block):
                yield _match(space, address, data, context)
            progress(len(block.data))
    for address, data, _ in window.flush():
        yield _match(space, address, data, context)


def _match(space: AddressSpace, address: int, data: bytes, context: int) -> Match:
    mapping = space.at(address)
    assert mapping is not None
    before = after = b""
    if context:
        before = _before(space, address, context)
        after = space.peek(address + len(data), context)
    return Match(space.pid, address, data, before, after, mapping)


def _before(space: AddressSpace, address: int, size: int) -> bytes:
    """What is stored right before an address, up to the last gap."""
    start = max(0, address - size)
    while start < address:
        data = space.peek(start, address - start)
        if len(data) == address - start:
            return data
        start = (start + len(data)) // PAGE * PAGE + PAGE
    return b""


class Window:
    """Joins pieces that follow each other in memory.

    The last bytes of a piece are kept, and matches that begin in them are looked for when it is known what follows.
    """

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._buffer = Buffer(_FIRST + pattern.overlap + LOOK_BEHIND)
        self._kept = 0  # bytes at the beginning of the buffer
        self._from = 0  # where in it the next match may begin
        self._next = -1  # address of what follows them

    def feed(self, block: Block) -> Iterator[tuple[int, bytes, Any]]:
        """(address, bytes, what was said of it) of every match that needs nothing of what comes next."""
        for position, size, address in islands(block.spans):
            if address != self._next:
                yield from self.flush()
            end = self._kept + size
            self._make_room(end)
            self._buffer.view[self._kept : end] = block.data[position : position + size]
            self._next = address + size
            yield from self._scan(end, end - self._pattern.overlap)
            self._keep(end)

    def flush(self) -> Iterator[tuple[int, bytes, Any]]:
        """The rest: nothing follows."""
        yield from self._scan(self._kept, self._kept)
        self._kept = self._from = 0

    def _scan(self, end: int, defer: int) -> Iterator[tuple[int, bytes, Any]]:
        """Matches that begin before `defer`."""
        if self._from < defer:
            base = self._next - end
            for low, high, what in self._pattern.scan(self._buffer, self._from, end):
                if low >= defer:
                    break
                cut = min(high, low + self._pattern.longest)
                yield base + low, bytes(self._buffer.view[low:cut]), what
                self._from = high
            self._from = max(self._from, defer)

    def _keep(self, end: int) -> None:
        begin = max(0, self._from - LOOK_BEHIND)
        kept = bytes(self._buffer.view[begin:end])
        self._buffer.view[: len(kept)] = kept
        self._kept, self._from = len(kept), self._from - begin

    def _make_room(self, size: int) -> None:
        if len(self._buffer.view) < size:
            old = self._buffer.view[: self._kept]
            self._buffer = Buffer(size)
            self._buffer.view[: len(old)] = old


def islands(spans: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Spans of a block that follow each other in memory, as one."""
    position, size, address = 0, 0, 0
    for at, length, start in spans:
        if size and start == address + size:
            size += length
            continue
        if size:
            yield position, size, address
        position, size, address = at, length, start
    if size:
        yield position, size, address
