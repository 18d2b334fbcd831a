"""A plain image in the form that a CRIU with the patch series reads.

Random nonces, as there; padding is zero, where the reference leaves parts of its own stack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from sealpoint.criu import schema
from sealpoint.criusec import grammar
from sealpoint.criusec.cipher import PAGE, Messages, Pages
from sealpoint.criusec.decode import GHOST_HEAD, NETLINK_HEAD, OUTPUT_HEAD, Pread
from sealpoint.criusec.grammar import Data, DictionaryEntry, Map
from sealpoint.errors import FileError

_STEP: Final = 1024 * 1024


class Encoder:
    """Encrypts one plain image of `size` bytes; each method gives the file piece by piece.  Raises FileError.

    left_clear: whether data between records stayed in the clear, as the format has it.
    """

    def __init__(self, pread: Pread, size: int, messages: Messages, where: str) -> None:
        self._pread = pread
        self._size = size
        self._messages = messages
        self._where = where
        self._at = 0
        self.left_clear = False

    @property
    def _left(self) -> int:
        return self._size - self._at

    def _take(self, size: int, what: str) -> bytes:
        if size > self._left:
            raise FileError(
                f"{self._where}: {what} says {size} bytes, but only {self._left} are left, at offset {self._at}"
            )
        data = self._pread(self._at, size)
        if len(data) != size:
            raise FileError(f"{self._where} has become shorter while it was read")
        self._at += size
        return data

    def clear(self) -> Iterator[bytes]:
        """As it is."""
        while self._left:
            yield self._take(min(_STEP, self._left), "the file")

    def records(self) -> Iterator[bytes]:
        """An image of records."""
        head = self._take(4, "the magic number")
        (magic,) = struct.unpack("<I", head)
        if magic != grammar.INVENTORY_MAGIC:
            second = self._take(4, "the magic number")
            (magic,) = struct.unpack("<I", second)
            head += second
        yield head
        walk = grammar.steps(magic)
        answer: Any = None
        while True:
            step = walk.send(answer)
            answer = None
            if isinstance(step, DictionaryEntry):
                if not self._left:
                    return
                sealed, answer = self._entry(step.kind)
                yield sealed
            elif isinstance(step, Map):
                yield from self._data(Data(step.keys + step.values, "a BPF map"))
            elif isinstance(step, Data):
                yield from self._data(step)
            else:
                yield from self._pieces(GHOST_HEAD, pad=False)

    def _entry(self, kind: str) -> tuple[bytes, Any]:
        start = self._at
        (size,) = struct.unpack("<I", self._take(4, "the length of a record"))
        if size > grammar.MAX_RECORD:
            raise FileError(f"{self._where}: absurdly long record at offset {start}")
        plain = self._take(size, "a record")
        sealed = struct.pack("<I", size)
        if size:  # an empty record has no tag
            sealed += b"".join(self._messages.seal(plain))
        if not kind:
            return sealed, None
        from google.protobuf.message import DecodeError

        try:
            return sealed, schema.message(kind).FromString(plain)
        except DecodeError:
            raise FileError(f"{self._where}: not a well-formed {kind}, at offset {start}") from None

    def _data(self, step: Data) -> Iterator[bytes]:
        if step.sealed:
            if step.size > grammar.MAX_PAYLOAD:
                raise FileError(f"{self._where}: {step.what} is absurdly long")
            if step.size:
                yield from self._messages.seal(self._take(step.size, step.what))
            return
        left = step.size
        self.left_clear |= left > 0
        while left:
            piece = self._take(min(_STEP, left), step.what)
            left -= len(piece)
            yield piece

    def output(self) -> Iterator[bytes]:
        """What a tool printed."""
        return self._pieces(OUTPUT_HEAD, pad=True)

    def _pieces(self, head: struct.Struct, *, pad: bool) -> Iterator[bytes]:
        while self._left:
            plain = self._take(min(grammar.RECORD_DATA, self._left), "a piece")
            body, tag, nonce = self._messages.seal(plain)
            padding = bytes(grammar.RECORD_DATA - len(plain)) if pad else b""
            yield b"".join((head.pack(tag, nonce, len(plain)), body, padding))

    def netlink(self) -> Iterator[bytes]:
        """Messages of netlink."""
        while self._left:
            head = self._take(NETLINK_HEAD, "the head of a netlink message")
            (size,) = struct.unpack_from("<I", head)
            if not NETLINK_HEAD <= size <= grammar.MAX_PAYLOAD:
                raise FileError(f"{self._where}: a netlink message of impossible length ({size})")
            yield b"".join(self._messages.seal(head))
            if size > NETLINK_HEAD:
                body = self._take(size - NETLINK_HEAD, "a netlink message")
                yield b"".join(self._messages.seal(body))

    def pages(self, pages: Pages) -> Iterator[memoryview]:
        """Memory; each piece lies in a buffer that the next one reuses."""
        if self._size % PAGE:
            raise FileError(f"{self._where}: {self._size} bytes are not a whole number of pages")
        buffer = memoryview(bytearray(min(_STEP, self._size)))
        while self._left:
            plain = self._take(min(_STEP, self._left), "the file")
            pages.encrypt(plain, buffer[: len(plain)])
            yield buffer[: len(plain)]
