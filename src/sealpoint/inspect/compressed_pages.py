"""Pages images that CRIU compressed (versions after 4.2), shown as if they were not.

A present entry of a pagemap then lists stored sizes of blocks of `pages_per_block` pages (1 if it is not said), the
last block perhaps shorter: 0 is a block of zeros, the plain size a block stored as it is, anything between an LZ4 block
without a frame.  Flag 8 of an entry says that its data begins at the next multiple of a page.

Two layouts were in CRIU's development branch: the list, its sum and the pages per block as fields of the entry, and the
same in a message of its own.  No released version has settled the field numbers, so the fields are recognised by what
has to hold of them: as many sizes as there are blocks, a sum that is right.  What does not fit is refused, not guessed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.unknown_fields import UnknownFieldSet

from sealpoint.errors import FileError

if TYPE_CHECKING:
    from sealpoint.inspect.source import Images, Source

ALIGNED: Final = 8  # PE_PAYLOAD_ALIGNED
_PAGE: Final = 4096
_MAX_BLOCK: Final = 4 * 1024 * 1024  # bytes of a block: CRIU's own limit
_VARINT, _BYTES = 0, 2


def sizes_of(record: Any, pages: int, where: str) -> tuple[Sequence[int], int] | None:
    """Stored sizes of an entry's blocks and pages per block, None if it is not compressed.  Raises FileError."""
    found: Any = UnknownFieldSet(record)
    if not len(found):
        return None
    fields = [(f.field_number, f.wire_type, f.data) for f in found]
    for candidate in (fields, _nested(fields)):
        layout = _layout(candidate, pages)
        if layout is not None:
            return layout
    raise FileError(
        f"{where}: an entry has fields of a newer CRIU that are not understood",
        hint="if its pages are compressed, let that CRIU's own crit decompress them",
    )


def _nested(fields: list[tuple[int, int, Any]]) -> list[tuple[int, int, Any]]:
    """The fields of the message that is the only field."""
    if len(fields) != 1 or fields[0][1] != _BYTES:
        return []
    found: list[tuple[int, int, Any]] = []
    data, at = bytes(fields[0][2]), 0
    value: Any
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == _VARINT:
            value, at = _varint(data, at)
        elif tag & 7 == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            return []
        if at > len(data) or at < 0:
            return []
        found.append((tag >> 3, tag & 7, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; -1 where it does not end."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
    return 0, -1


def _layout(fields: list[tuple[int, int, Any]], pages: int) -> tuple[Sequence[int], int] | None:
    lists: dict[int, list[int]] = {}
    for number, kind, data in fields:
        if kind == _VARINT:
            lists.setdefault(number, []).append(int(data))
        elif kind == _BYTES and number not in lists:
            packed = _packed(bytes(data))
            if packed is None:
                return None
            lists[number] = packed
        else:
            return None
    for number, sizes in lists.items():
        others = [values for n, values in lists.items() if n != number]
        if len(others) > 2 or any(len(values) != 1 for values in others):
            continue
        numbers = [values[0] for values in others]
        for per_block in [*numbers, 1]:
            rest = list(numbers)
            if per_block in rest:
                rest.remove(per_block)
            fits = 0 < per_block <= _MAX_BLOCK // _PAGE and len(sizes) == -(-pages // per_block)
            if fits and rest == [sum(sizes)] and _bounded(sizes, pages, per_block):
                return array("I", sizes), per_block
    return None


def _packed(data: bytes) -> list[int] | None:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        if at < 0:
            return None
        found.append(value)
    return found


def _bounded(sizes: Sequence[int], pages: int, per_block: int) -> bool:
    last = len(sizes) - 1
    return all(
        size <= (per_block if n < last else pages - last * per_block) * _PAGE
        for n, size in enumerate(sizes)
    )


@dataclass(slots=True)
class _Run:
    """One present entry: where it begins in the plain and in the stored image; sizes is None where it is plain."""

    plain: int
    stored: int
    pages: int
    sizes: Sequence[int] | None
    per_block: int
    offsets: array[int] = field(default_factory=lambda: array("Q"))


class PlainPages:
    """A compressed pages image as a plain one: what `Images` offers, for this one name."""

    def __init__(self, images: Images, name: str) -> None:
        self._images = images
        self._name = name
        self._runs: list[_Run] = []
        self._starts: list[int] = []
        self._size = 0
        self._stored = 0
        self._block: tuple[int, int, bytes] = (-1, -1, b"")

    def add(
        self, pages: int, sizes: Sequence[int] | None, per_block: int, *, aligned: bool
    ) -> None:
        """The next present entry of the pagemap."""
        if aligned:
            self._stored += -self._stored % _PAGE
        last = self._runs[-1] if self._runs else None
        if sizes is None and not aligned and last is not None and last.sizes is None:
            last.pages += pages
            self._stored += pages * _PAGE
            self._size += pages * _PAGE
            return
        run = _Run(self._size, self._stored, pages, sizes, per_block)
        for size in sizes if sizes is not None else ():
            run.offsets.append(self._stored)
            self._stored += size
        if sizes is None:
            self._stored += pages * _PAGE
        self._runs.append(run)
        self._starts.append(self._size)
        self._size += pages * _PAGE

    @property
    def source(self) -> Source:
        """As Images.source."""
        return self._images.source

    @property
    def prefix(self) -> str:
        """As Images.prefix."""
        return self._images.prefix

    def where(self, name: str) -> str:
        """As Images.where."""
        return self._images.where(name)

    def size(self, name: str) -> int:
        """Bytes of the plain image.  Raises FileError if the stored one is shorter than its pagemap says."""
        if self._images.size(name) < self._stored:
            raise FileError(f"{self.where(name)}: ends before its compressed pages do")
        return self._size

    def pread(self, name: str, offset: int, size: int) -> bytes:
        """As Images.pread."""
        return b"".join(bytes(piece) for piece in self.chunks(name, offset, size))

    def chunks(self, name: str, offset: int = 0, size: int | None = None) -> Iterator[memoryview]:  # noqa: ARG002
        """As Images.chunks."""
        end = self._size if size is None else min(self._size, offset + size)
        while offset < end:
            at = bisect_right(self._starts, offset) - 1
            run = self._runs[at]
            skip = offset - run.plain
            if run.sizes is None:
                length = min(end, run.plain + run.pages * _PAGE) - offset
                for piece in self._images.chunks(self._name, run.stored + skip, length):
                    yield piece
                    offset += len(piece)
                    length -= len(piece)
                if length:
                    raise FileError(f"{self.where(self._name)}: ends before its pages do")
                continue
            number, within = divmod(skip, run.per_block * _PAGE)
            block = self._decode(at, run, number)
            piece = memoryview(block)[within : within + end - offset]
            yield piece
            offset += len(piece)

    def _decode(self, at: int, run: _Run, number: int) -> bytes:
        if self._block[:2] == (at, number):
            return self._block[2]
        assert run.sizes is not None
        plain = min(run.per_block, run.pages - number * run.per_block) * _PAGE
        stored = run.sizes[number]
        if stored == 0:
            data = bytes(plain)
        else:
            data = self._images.pread(self._name, run.offsets[number], stored)
            if stored < plain:
                data = self._decompress(data, plain, run.offsets[number])
        if len(data) != plain:
            raise FileError(f"{self.where(self._name)}: ends before its compressed pages do")
        self._block = (at, number, data)
        return data

    def _decompress(self, data: bytes, plain: int, offset: int) -> bytes:
        import lz4.block

        try:
            found: bytes = lz4.block.decompress(data, uncompressed_size=plain)
        except lz4.block.LZ4BlockError:
            found = b""
        if len(found) != plain:
            raise FileError(f"{self.where(self._name)}: damaged LZ4 block at offset {offset}")
        return found
