"""Pages that a CRIU newer than 4.2 compressed: both layouts of its development branch, whatever the field numbers."""

from __future__ import annotations

import os
import random
import struct

import lz4.block
import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.errors import FileError
from sealpoint.inspect.memory import load_pages
from sealpoint.inspect.source import images
from tests.fuzz.targets import MemorySource
from tests.inspect import images_by_hand as hand, small_dump

PAGE = 4096


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def nested(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def store(plain: bytes, per_block: int) -> tuple[bytes, list[int]]:
    """Blocks as CRIU stores them, and their sizes."""
    out, sizes = bytearray(), []
    for at in range(0, len(plain), per_block * PAGE):
        block = plain[at : at + per_block * PAGE]
        packed = lz4.block.compress(block, store_size=False)
        data = b"" if not any(block) else packed if len(packed) < len(block) else block
        sizes.append(len(data))
        out += data
    return bytes(out), sizes


def pieces(source: random.Random, pages: int) -> bytes:
    kinds = (lambda: bytes(PAGE), lambda: source.randbytes(PAGE), lambda: b"text " * 819 + b"!")
    return b"".join(source.choice(kinds)() for _ in range(pages))


def entry(vaddr: int, pages: int, more: bytes = b"", flags: int = 4) -> bytes:
    fields = number(1, vaddr) + number(2, 0) + number(4, flags) + number(5, pages) + more
    return struct.pack("<I", len(fields)) + fields


def layout(sizes: list[int], per_block: int, *, kind: str, numbers: tuple[int, int, int]) -> bytes:
    """The unknown fields of an entry.  kind: "flat" or "nested", "packed" or not."""
    a, b, c = numbers
    if "packed" in kind:
        fields = nested(a, b"".join(varint(s) for s in sizes))
    else:
        fields = b"".join(number(a, s) for s in sizes)
    fields += number(b, sum(sizes))
    if per_block > 1:
        fields += number(c, per_block)
    return fields if "flat" in kind else nested(6, fields)


def load(pagemap: bytes, stored: bytes):
    head = hand.image("PAGEMAP")[:8] + hand.raw_record(
        hand.messages.message_class("pagemap_head")(pages_id=10)
    )
    objects = {**small_dump.a_tree(), "pagemap-10.img": head + pagemap, "pages-10.img": stored}
    return load_pages(images(MemorySource(objects)), "10")


def contents(pages) -> bytes:
    return b"".join(bytes(block.data) for block in pages.blocks(pages))


@pytest.mark.parametrize("kind", ["flat", "flat packed", "nested", "nested packed"])
@pytest.mark.parametrize("per_block", [1, 4, 64])
@pytest.mark.parametrize("numbers", [(6, 7, 8), (1, 2, 3), (8, 6, 7)])
def test_compressed_pages_are_read(kind, per_block, numbers):
    if "flat" in kind and min(numbers) < 6:
        pytest.skip("those numbers are taken in the entry")
    source = random.Random(f"{kind} {per_block}")
    first, second, third = (pieces(source, n) for n in (10, 3, 130))
    stored, pagemap = bytearray(), b""
    for vaddr, plain in ((0x10000, first), (0x40000, third)):
        data, sizes = store(plain, per_block)
        stored += data
        pagemap += entry(
            vaddr, len(plain) // PAGE, layout(sizes, per_block, kind=kind, numbers=numbers)
        )
    stored += bytes(-len(stored) % PAGE) + second  # plain, and aligned
    pagemap += entry(0x400000, 3, flags=4 | 8)
    pages = load(pagemap, bytes(stored))
    assert contents(pages) == first + third + second
    assert next((e.start, e.size) for e in pages) == (0x10000, len(first))
    part = b"".join(bytes(b.data) for b in pages.blocks(pages.within(0x12000, 0x15000)))
    assert part == first[2 * PAGE : 5 * PAGE]


def one(plain: bytes, per_block: int = 2, **changes):
    stored, sizes = store(plain, per_block)
    changes = {"stored": stored, "sizes": sizes, "per_block": per_block, **changes}
    more = layout(changes["sizes"], changes["per_block"], kind="nested packed", numbers=(1, 2, 3))
    return contents(load(entry(0x1000, len(plain) // PAGE, more), changes["stored"]))


def test_what_does_not_fit_is_refused():
    plain = b"text " * 819 + b"!" + os.urandom(PAGE) + b"more " * 819 + b"!"
    stored, sizes = store(plain, 2)
    assert one(plain) == plain
    with pytest.raises(FileError, match="newer CRIU"):
        one(plain, sizes=[*sizes, 0])
    with pytest.raises(FileError, match="newer CRIU"):
        one(plain, sizes=[sizes[0], 2 * PAGE])  # the last block has one page
    with pytest.raises(FileError, match="ends before"):
        one(plain, stored=stored[:-1])
    with pytest.raises(FileError, match="damaged LZ4 block at offset"):
        one(plain, stored=stored[: sizes[0]] + bytes(sizes[1]))
    with pytest.raises(FileError, match="newer CRIU"):
        load(entry(0x1000, 1, number(9, 5)), bytes(PAGE))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 40), st.binary(max_size=3 * PAGE))
def test_any_unknown_fields_are_read_or_refused(more, pages, stored):
    try:
        found = contents(load(entry(0x1000, pages, more), stored))
    except FileError:
        return
    assert len(found) in (0, pages * PAGE)  # 0: a second field of flags says that no page is there
