"""Pages images that CRIU compressed (`sealpoint.criu.compressed`), shown as if they were not."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sealpoint.errors import FileError

if TYPE_CHECKING:
    from sealpoint.inspect.source import Images, Source

_PAGE: Final = 4096


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
