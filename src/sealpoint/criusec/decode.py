"""An encrypted image as the plain image that it stands for.

`scan` goes through a file once, front to back: it authenticates every message and notes where which plain byte comes
from.  Afterwards any part can be read; nothing but that index is kept.  Sizes in the file are clear text that anybody
may have changed: each is compared with what is left of the file before a byte is read for it.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sealpoint.criu import schema
from sealpoint.criusec import grammar
from sealpoint.criusec.cipher import NONCE, PAGE, TAG, TRAILER, DecryptionError, Messages, Pages
from sealpoint.criusec.grammar import Data, Dictionary, DictionaryEntry, FieldLayout, Map
from sealpoint.errors import FileError

Pread = Callable[[int, int], bytes]

GHOST_HEAD: Final = struct.Struct("<16s12sq")  # tag, nonce, size; then as much ciphertext
OUTPUT_HEAD: Final = struct.Struct("<16s12s4xq")  # the same, and then always RECORD_DATA bytes
OUTPUT_RECORD: Final = OUTPUT_HEAD.size + grammar.RECORD_DATA
NETLINK_HEAD: Final = 16  # bytes of struct nlmsghdr, which begins with the length of all
_STEP: Final = 1024 * 1024
_AHEAD: Final = 64 * 1024

# How a segment of the plain image lies in the file.
_CLEAR, _MESSAGE, _GHOST, _OUTPUT, _LITERAL = range(5)
_HEADS: Final = {_GHOST: GHOST_HEAD, _OUTPUT: OUTPUT_HEAD}


class Segments:
    """Where the bytes of a plain image come from, in order."""

    def __init__(self) -> None:
        self.size = 0
        self.literals: list[bytes] = []
        self.starts = array("Q")  # in the plain image
        self._places = array("Q")  # in the file, times 8, and how

    def add(self, how: int, place: int, size: int) -> None:
        """`size` plain bytes more.  Clear bytes that follow one another are one segment."""
        if not size:
            return
        if how == _CLEAR and self.starts:
            last, kind = divmod(self._places[-1], 8)
            if kind == _CLEAR and last + self.size - self.starts[-1] == place:
                self.size += size
                return
        self.starts.append(self.size)
        self._places.append(place * 8 + how)
        self.size += size

    def literal(self, data: bytes) -> None:
        """Bytes that stand in no file in this order."""
        self.add(_LITERAL, len(self.literals), len(data))
        self.literals.append(data)

    def at(self, offset: int) -> tuple[int, int, int, int]:
        """The segment in which a plain byte lies: (how, place, size, where it starts)."""
        n = bisect_right(self.starts, offset) - 1
        end = self.starts[n + 1] if n + 1 < len(self.starts) else self.size
        place, how = divmod(self._places[n], 8)
        return how, place, end - self.starts[n], self.starts[n]


class PlainImage:
    """The plain image.  size: bytes; where: what to call it in messages.

    clear: whether some of the data in it is not encrypted in the file; encrypted: whether some is.
    """

    def __init__(
        self, pread: Pread, segments: Segments, messages: Messages, where: str, *, clear: bool
    ) -> None:
        self.size = segments.size
        self.where = where
        self.clear = clear
        self._pread = pread
        self._segments = segments
        self._messages = messages
        self._kept: tuple[int, bytes] = (-1, b"")

    def pread(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only where the image ends.  Raises FileError."""
        end = min(offset + size, self.size)
        out = bytearray()
        while offset < end:
            how, place, length, start = self._segments.at(offset)
            skip = offset - start
            take = min(length - skip, end - offset)
            if how == _CLEAR:
                piece = _exactly(self._pread, place + skip, take, self.where)
            elif how == _LITERAL:
                piece = self._segments.literals[place][skip : skip + take]
            else:
                piece = self._message(how, place, length)[skip : skip + take]
            out += piece
            offset += take
        return bytes(out)

    def chunks(self, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """The same piece by piece."""
        end = self.size if size is None else min(offset + size, self.size)
        while offset < end:
            piece = self.pread(offset, min(_STEP, end - offset))
            yield memoryview(piece)
            offset += len(piece)

    def _message(self, how: int, place: int, size: int) -> bytes:
        if self._kept[0] == place:
            return self._kept[1]
        data = _open(self._pread, self._messages, how, place, size, self.where)
        self._kept = (place, data)
        return data


class DecodedPages:
    """A pages image, decrypted where it is read.  size: bytes."""

    clear = False

    def __init__(self, pread: Pread, size: int, pages: Pages, where: str) -> None:
        """Raises FileError."""
        if size % PAGE:
            raise FileError(f"{where}: {size} bytes are not a whole number of pages")
        self.size = size
        self.where = where
        self._pread = pread
        self._pages = pages

    def pread(self, offset: int, size: int) -> bytes:
        """See PlainImage."""
        return b"".join(bytes(piece) for piece in self.chunks(offset, size))

    def chunks(self, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """See PlainImage; each piece lies in a buffer that the next one reuses."""
        end = self.size if size is None else min(offset + size, self.size)
        if offset >= end:
            return
        at = offset - offset % PAGE
        buffer = memoryview(bytearray(min(_STEP, end - at + -end % PAGE)))
        while at < end:
            wanted = min(len(buffer), end + -end % PAGE - at)
            self._pages.decrypt(_exactly(self._pread, at, wanted, self.where), buffer[:wanted])
            yield buffer[max(0, offset - at) : min(wanted, end - at)]
            at += wanted


class ClearFile:
    """A file that the format does not encrypt."""

    clear = True

    def __init__(self, pread: Pread, size: int, where: str) -> None:
        self.size = size
        self.where = where
        self._pread = pread

    def pread(self, offset: int, size: int) -> bytes:
        """See PlainImage."""
        return self._pread(offset, max(0, min(size, self.size - offset)))

    def chunks(self, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """See PlainImage."""
        end = self.size if size is None else min(offset + size, self.size)
        while offset < end:
            piece = _exactly(self._pread, offset, min(_STEP, end - offset), self.where)
            yield memoryview(piece)
            offset += len(piece)


Plain = PlainImage | DecodedPages | ClearFile


def scan(
    pread: Pread,
    size: int,
    layout: FieldLayout,
    messages: Messages,
    where: str,
    capacities: Callable[[], Mapping[int, tuple[int, int]]],
) -> PlainImage:
    """Authenticate a file of RECORDS, OUTPUT or NETLINK and index it.

    capacities: called for BPF maps, whose keys and values are padded to it: map id to (bytes of keys, of values).
    Raises FileError, naming the offset.
    """
    scanner = _Scanner(pread, size, messages, where, capacities)
    {
        FieldLayout.RECORDS: scanner.records,
        FieldLayout.OUTPUT: scanner.output,
        FieldLayout.NETLINK: scanner.netlink,
    }[layout]()
    return PlainImage(pread, scanner.segments, messages, where, clear=scanner.clear)


class _Scanner:
    """One pass through a file."""

    def __init__(
        self,
        pread: Pread,
        size: int,
        messages: Messages,
        where: str,
        capacities: Callable[[], Mapping[int, tuple[int, int]]],
    ) -> None:
        self.segments = Segments()
        self.clear = False
        self._pread = pread
        self._size = size
        self._messages = messages
        self._where = where
        self._capacities = capacities
        self._at = 0
        self._ahead = b""
        self._ahead_at = 0

    @property
    def _left(self) -> int:
        return self._size - self._at

    def _error(self, what: str, at: int) -> FileError:
        return FileError(f"{self._where}: {what}, at offset {at}")

    def _peek(self, at: int, size: int, what: str) -> bytes:
        """`size` bytes from `at`, read ahead: most messages are small."""
        if size > self._size - at:
            raise self._error(
                f"{what} says {size} bytes, but only {max(0, self._size - at)} are left", at
            )
        start = at - self._ahead_at
        if start < 0 or start + size > len(self._ahead):
            self._ahead = self._pread(at, max(size, min(_AHEAD, self._size - at)))
            self._ahead_at, start = at, 0
            if len(self._ahead) < size:
                raise self._error("the file ends before it should", at)
        return self._ahead[start : start + size]

    def _take_clear(self, size: int, what: str) -> bytes:
        data = self._peek(self._at, size, what)
        self.segments.add(_CLEAR, self._at, size)
        self._at += size
        return data

    def _open_message(self, size: int, what: str) -> bytes:
        """The message at the present place.  Raises FileError; moves nothing."""
        data = memoryview(self._peek(self._at, size + TRAILER, what))
        try:
            return self._messages.open(
                data[:size], bytes(data[size : size + TAG]), bytes(data[size + TAG :])
            )
        except DecryptionError:
            raise self._error(f"{what} is not authentic", self._at) from None

    def _take_message(self, size: int, what: str) -> bytes:
        plain = self._open_message(size, what)
        self.segments.add(_MESSAGE, self._at, size)
        self._at += size + TRAILER
        return plain

    def records(self) -> None:
        (magic,) = struct.unpack("<I", self._take_clear(4, "the magic number"))
        if magic != grammar.INVENTORY_MAGIC:
            (magic,) = struct.unpack("<I", self._take_clear(4, "the magic number"))
        walk = grammar.steps(magic)
        answer: Any = None
        while True:
            step = walk.send(answer)
            answer = None
            if isinstance(step, DictionaryEntry):
                if not self._left:
                    return
                answer = self._entry(step.kind)
            elif isinstance(step, Data):
                self._data(step)
            elif isinstance(step, Map):
                self._map(step)
            else:
                self._contents(step)

    def _entry(self, kind: str) -> Any:
        start = self._at
        (size,) = struct.unpack("<I", self._take_clear(4, "the length of a record"))
        if size > grammar.MAX_RECORD:
            raise self._error(f"a record is absurdly long ({size} bytes)", start)
        plain = self._take_message(size, "a record") if size else b""
        if not kind:
            return None
        from google.protobuf.message import DecodeError

        try:
            return schema.message(kind).FromString(plain)
        except DecodeError:
            raise self._error(f"not a well-formed {kind}", start) from None

    def _data(self, step: Data) -> None:
        if not step.size:
            return
        if not step.sealed:
            if step.size > self._left:
                raise self._error(
                    f"{step.what} says {step.size} bytes, but only {self._left} are left", self._at
                )
            self.clear = True
            self.segments.add(_CLEAR, self._at, step.size)
            self._at += step.size
            return
        if step.size > grammar.MAX_PAYLOAD:
            raise self._error(f"{step.what} is absurdly long ({step.size} bytes)", self._at)
        self._take_message(step.size, step.what)

    def _map(self, step: Map) -> None:
        """Padded or not: the writer pads, but what reads it in the reference expects it not to be."""
        what, wanted = "a BPF map", step.keys + step.values
        padded = self._capacities().get(step.map_id)
        if padded is None or sum(padded) == wanted:
            self._data(Data(wanted, what))
            return
        keys, values = padded
        if step.keys > keys or step.values > values or keys + values > grammar.MAX_PAYLOAD:
            raise self._error(f"{what} has more in it than files.img allows", self._at)
        try:
            plain = self._open_message(keys + values, what)
        except FileError:
            self._data(Data(wanted, what))
            return
        self._at += keys + values + TRAILER
        self.segments.literal(plain[: step.keys] + plain[keys : keys + step.values])

    def _contents(self, _: Dictionary) -> None:
        while self._left:
            head = self._peek(self._at, GHOST_HEAD.size, "a piece of an unlinked file")
            tag, nonce, size = GHOST_HEAD.unpack(head)
            self._piece(_GHOST, tag, nonce, size)
            self._at += GHOST_HEAD.size + size

    def output(self) -> None:
        """What a tool printed."""
        while self._left:
            data = self._peek(self._at, OUTPUT_RECORD, "a piece of a tool's output")
            tag, nonce, size = OUTPUT_HEAD.unpack_from(data)
            self._piece(_OUTPUT, tag, nonce, size)
            self._at += OUTPUT_RECORD

    def _piece(self, how: int, tag: bytes, nonce: bytes, size: int) -> None:
        if not 0 <= size <= grammar.RECORD_DATA:
            raise self._error(f"a piece has an impossible length ({size} bytes)", self._at)
        start = self._at + _HEADS[how].size
        try:
            self._messages.open(self._peek(start, size, "a piece"), tag, nonce)
        except DecryptionError:
            raise self._error("a piece is not authentic", self._at) from None
        self.segments.add(how, self._at, size)

    def netlink(self) -> None:
        """Messages of netlink: head and body are encrypted on their own."""
        while self._left:
            start = self._at
            head = self._take_message(NETLINK_HEAD, "the head of a netlink message")
            (size,) = struct.unpack_from("<I", head)
            if not NETLINK_HEAD <= size <= grammar.MAX_PAYLOAD:
                raise self._error(f"a netlink message has an impossible length ({size})", start)
            if size > NETLINK_HEAD:
                self._take_message(size - NETLINK_HEAD, "a netlink message")


def _open(pread: Pread, messages: Messages, how: int, place: int, size: int, where: str) -> bytes:
    """A segment of the plain image, decrypted again."""
    if how == _MESSAGE:
        data = _exactly(pread, place, size + TRAILER, where)
        body, tag, nonce = data[:size], data[size : size + TAG], data[size + TAG :]
    else:
        head = _HEADS[how]
        data = _exactly(pread, place, head.size + size, where)
        tag, nonce, body = data[:TAG], data[TAG : TAG + NONCE], data[head.size :]
    try:
        return messages.open(body, tag, nonce)
    except DecryptionError:
        raise FileError(f"{where} changed while it was read, at offset {place}") from None


def _exactly(pread: Pread, offset: int, size: int, where: str) -> bytes:
    data = pread(offset, size)
    if len(data) != size:
        raise FileError(f"{where} has become shorter while it was read")
    return data
