"""A task's memory drawn to scale: one long band, broken into rows like text.

Width is bytes.  What is mapped has a pale colour, what the checkpoint stores a full one; what lies in a parent is
hatched, and a line below says where chunks were compressed.  Gaps between mappings are left out.  A large part of a
mapping of which nothing is stored (a reserved arena) is shortened, and a jagged mark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sealpoint.inspect.markup import Element, number
from sealpoint.inspect.memory import Layer

if TYPE_CHECKING:
    from sealpoint.inspect.memory import AddressSpace, Mapping

WIDTH: Final = 960.0  # of a row
_ROW: Final = 26.0
_STEP: Final = 36.0  # from one row to the next
_LABEL: Final = 118.0  # for the address at which a row begins
_BREAK: Final = 14.0  # width of what is shortened
_SMALLEST: Final = 0.35  # parts that are narrower are drawn together
_SEEN: Final = 8.0  # width from which a mapping is worth a stop of the Tab key
_MAX_ROWS: Final = 14
_BYTES_PER_ROW: Final = 64 * 1024  # at least
_RESERVED: Final = 16 * 1024 * 1024  # bytes without a page that may be shortened

KINDS: Final = {  # kind of mapping: class of its colour
    "heap": "heap",
    "stack": "stack",
    "anonymous": "anon",
    "file": "file",
    "memfd": "shared",
    "sysv": "shared",
    "shared": "shared",
}
# (layer, offset, size) to (bytes, codec) of what lies there: raw, zero, lz4, zstd, or "" where nothing is sealed.
Codecs = Callable[[Layer, int, int], Iterator[tuple[int, str]]]


@dataclass(slots=True)
class Part:
    """A piece of a mapping, `size` bytes from `start`; state: stored, parent, empty or reserved; codec: as stored."""

    mapping: int
    start: int
    size: int
    state: str
    codec: str = ""


@dataclass(slots=True)
class Band:
    """What is drawn of a task.  unit: bytes per unit of width."""

    parts: list[Part] = field(default_factory=list)
    stored: int = 0
    parent: int = 0
    shown: int = 0

    @property
    def rows(self) -> int:
        """How many the band takes."""
        return max(1, min(_MAX_ROWS, -(-self.shown // _BYTES_PER_ROW)))


def band(space: AddressSpace, codecs: Codecs) -> Band:
    """What of a task is drawn, and how much of it there is."""
    found = Band()
    for number_, mapping in enumerate(space.mappings):
        if mapping.kind == "vsyscall":
            continue  # at the other end of the address space, the same in every process
        for part in _parts(space, mapping, number_, codecs):
            found.parts.append(part)
    total = sum(p.size for p in found.parts if p.state in ("stored", "parent"))
    limit = max(_RESERVED, total // 4)
    for part in found.parts:
        if part.state == "empty" and part.size > limit:
            part.state = "reserved"
        elif part.state != "reserved":
            found.shown += part.size
        if part.state == "stored":
            found.stored += part.size
        elif part.state == "parent":
            found.parent += part.size
    return found


def _parts(
    space: AddressSpace,
    mapping: Mapping,
    index: int,
    codecs: Codecs,
) -> Iterator[Part]:
    at, pages = mapping.start, space.pages_of(mapping)
    for extent in space.stored(mapping):
        if at < extent.start:
            yield Part(index, at, extent.start - at, "empty")
        at = extent.start
        state = "stored" if extent.layer == 0 else "parent"
        assert pages is not None
        for size, codec in codecs(pages.layers[extent.layer], extent.offset, extent.size):
            yield Part(index, at, size, state, codec)
            at += size
        at = extent.end
    if at < mapping.end:
        yield Part(index, at, mapping.end - at, "empty")


class _Pen:
    """Puts widths one after another into rows; joins what cannot be told apart."""

    def __init__(self, per_unit: float) -> None:
        self.per_unit = per_unit
        self.x = 0.0
        self.row = 0
        self.labels: list[Element] = []

    def pieces(self, width: float) -> Iterator[tuple[float, float, int]]:
        """(x, width, row) of rectangles that together are `width` wide."""
        while width > 1e-6:
            if self.x >= WIDTH - 1e-6:
                self.x, self.row = 0.0, self.row + 1
            take = min(width, WIDTH - self.x)
            yield self.x, take, self.row
            self.x += take
            width -= take


def draw(
    space: AddressSpace, found: Band, describe: Callable[[Mapping], str], anchor: str
) -> Element:
    """The band as SVG.  describe: what is said of a mapping; anchor: prefix of the ids of the mappings' rows."""
    breaks = sum(p.state == "reserved" for p in found.parts)
    room = WIDTH * found.rows
    gap = min(_BREAK, room / 4 / breaks) if breaks else 0.0
    pen = _Pen(max(1.0, found.shown / max(1.0, room - breaks * gap)))
    groups: dict[int, list[Element]] = {}
    labels: dict[int, int] = {}
    widths: dict[int, float] = {}
    for part in _joined(found.parts, pen.per_unit):
        width = gap if part.state == "reserved" else part.size / pen.per_unit
        address = part.start
        widths[part.mapping] = widths.get(part.mapping, 0.0) + width
        for x, piece, row in pen.pieces(width):
            labels.setdefault(row, address)
            address += int(piece * pen.per_unit)
            groups.setdefault(part.mapping, []).extend(_shapes(part, x, piece, row))
    rows = pen.row + 1
    content = [
        Element(
            "text",
            f"{address:x}",
            x=_LABEL - 10,
            y=number(row * _STEP + _ROW * 0.66),
            class_="address",
        )
        for row, address in labels.items()
    ]
    links = []
    for index, shapes in groups.items():
        mapping = space.mappings[index]
        links.append(
            Element(
                "a",
                Element("title", describe(mapping)),
                Element("g", *shapes, class_=f"k-{KINDS.get(mapping.kind, 'other')}"),
                href=f"#{anchor}{index}",
                # The table has them all: with the keyboard one goes through those that can be seen.
                tabindex=None if widths[index] >= _SEEN else "-1",
            )
        )
    height = rows * _STEP
    return Element(
        "svg",
        content,
        Element("g", links, transform=f"translate({number(_LABEL)} 0)"),
        viewBox=f"0 0 {number(WIDTH + _LABEL + 4)} {number(height)}",
        class_="band",
        role="group",
        aria_label=f"Memory map of process {space.pid}",
    )


def _joined(parts: list[Part], per_unit: float) -> Iterator[Part]:
    """Neighbours that would be narrower than a hair, as one part of the state that most of it has."""
    at = 0
    while at < len(parts):
        first = parts[at]
        sizes = {(first.state, first.codec): first.size}
        size, end = first.size, at + 1
        while (
            end < len(parts)
            and parts[end].mapping == first.mapping
            and "reserved" not in (first.state, parts[end].state)
            and (
                (parts[end].state, parts[end].codec) == (first.state, first.codec)
                or min(size, parts[end].size) < _SMALLEST * per_unit
            )
        ):
            key = (parts[end].state, parts[end].codec)
            sizes[key] = sizes.get(key, 0) + parts[end].size
            size += parts[end].size
            end += 1
        state, codec = max(sizes, key=lambda k: sizes[k])
        yield Part(first.mapping, first.start, size, state, codec)
        at = end


def _shapes(part: Part, x: float, width: float, row: int) -> Iterator[Element]:
    y = row * _STEP
    box = {"x": number(x), "width": number(max(width, 0.25))}
    if part.state == "reserved":
        points = []
        for n in range(int(_ROW // 4) + 1):
            side = x + width * (0.3 if n % 2 else 0.7)
            points.append(f"{number(side)},{number(y + n * 4)}")
        yield Element("rect", y=number(y), height=number(_ROW), class_="reserved", **box)
        yield Element("polyline", points=" ".join(points), class_="jagged")
        return
    yield Element("rect", y=number(y), height=number(_ROW), class_="mapped", **box)
    if part.state in ("stored", "parent"):
        yield Element("rect", y=number(y), height=number(_ROW), class_=part.state, **box)
    if part.codec in ("lz4", "zstd", "zero"):
        kind = "zero" if part.codec == "zero" else "packed"
        yield Element("rect", y=number(y + _ROW + 1.5), height="3", class_=kind, **box)
