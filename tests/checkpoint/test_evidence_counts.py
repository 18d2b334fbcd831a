"""How pagemaps are counted as they pass: in any pieces, with any flags, compressed or not."""

from __future__ import annotations

import random
import struct
import sys

import pytest
from hypothesis import given, strategies as st

from sealpoint.checkpoint.tables import evidence
from sealpoint.checkpoint.tables.seen import Counted, Seen
from sealpoint.criu import pagemap, schema
from sealpoint.criu.pagemap import LAZY, PAGE, PARENT, PRESENT, Pagemap

MAGIC = struct.pack("<II", 0x54564319, 0x56084025)
NAME = "pagemap-7.img"


def record(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def image(*entries: bytes, pages_id: int = 3) -> bytes:
    head = schema.message("pagemap_head")(pages_id=pages_id).SerializeToString()
    return MAGIC + b"".join(map(record, (head, *entries)))


def entry(pages: int, more: bytes = b"", **fields: int) -> bytes:
    values = {"vaddr": 0x7000, "compat_nr_pages": pages} | fields
    return schema.message("pagemap_entry")(**values).SerializeToString() + more


def passed(data: bytes, cuts: list[int] = []) -> Seen:  # noqa: B006 - never changed
    seen = Seen()
    passing = seen.image(NAME)
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        passing.add(memoryview(data)[at:cut])
        at = max(at, cut)
    passing.end()
    return seen


@given(
    st.lists(
        st.tuples(
            st.integers(1, 1 << 20), st.sampled_from([0, PARENT, LAZY, PRESENT, PRESENT | LAZY])
        ),
        max_size=40,
    ),
    st.lists(st.integers(0, 900), max_size=30),
    st.booleans(),
)
def test_sums_are_those_of_the_runs_however_the_bytes_arrive(runs, cuts, wide):
    table, start = Pagemap(3, wide), 0
    for count, flags in runs:
        table.add(start, count, flags)
        start += count + 1
    data = pagemap.encode(table)
    seen = passed(data, [cut for cut in cuts if cut < len(data)])

    def pages(*wanted: int) -> int:
        return sum(count for count, flags in runs if flags in wanted)

    present = pages(PRESENT, PRESENT | LAZY)
    assert seen.faults == []
    assert seen.counted[NAME] == Counted(
        3, present, pages(PARENT), pages(LAZY), pages(0), present * PAGE
    )
    assert seen.sizes == {NAME: len(data)}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, "present"),
        ({"in_parent": 0}, "present"),
        ({"in_parent": 1}, "parent"),
        ({"flags": 0}, "nowhere"),
    ],
)
def test_entries_of_older_versions_mean_what_they_meant(fields, wanted):
    sums = passed(image(entry(5, **fields))).counted[NAME]
    assert {n: getattr(sums, n) for n in ("present", "parent", "lazy", "nowhere")} == {
        "present": 0, "parent": 0, "lazy": 0, "nowhere": 0, wanted: 5,
    }  # fmt: skip


def packed(*sizes: int) -> bytes:
    """Fields 6 to 8 as a CRIU that compresses has them: sizes of blocks, their sum, pages of a block (left out: 1)."""
    numbers = b"".join(varint(size) for size in sizes)
    return b"\x32" + varint(len(numbers)) + numbers + b"\x38" + varint(sum(sizes))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_compressed_pages_count_as_they_are_stored():
    sizes = (100, 0, PAGE)
    data = image(
        entry(1, flags=PRESENT),
        entry(3, packed(*sizes), flags=PRESENT),
        entry(2, flags=PRESENT | 8),  # begins at the next page
    )
    stored = PAGE + sum(sizes)
    stored += -stored % PAGE + 2 * PAGE
    sums = passed(data).counted[NAME]
    assert (sums.present, sums.stored) == (6, stored)


def test_fields_of_a_newer_version_that_are_not_understood_are_a_fault():
    seen = passed(image(entry(3, b"\x58\x05", flags=PRESENT)))
    assert "not understood" in seen.faults[0]
    assert seen.counted == {}


@pytest.mark.parametrize("cut", [0, 4, 8, 11, 13, 15, 17, 25])
def test_a_pagemap_that_is_cut_is_a_fault_at_any_place_but_the_end_of_a_record(cut):
    whole = image(entry(5, flags=PRESENT))
    seen = passed(whole[:cut])
    assert seen.counted == {} or cut == len(image())
    assert seen.faults or cut == len(image())


def test_random_bytes_are_a_fault_and_take_no_memory():
    source = random.Random(4)
    for size in (1, 8, 100, 10_000):
        assert passed(source.randbytes(size)).faults
    endless = Seen()
    passing = endless.image(NAME)
    passing.add(image() + struct.pack("<I", 1 << 30))
    for _ in range(100):
        passing.add(bytes(1 << 20))
    assert sys.getsizeof(passing._rest) < 1 << 20
    passing.end()
    assert endless.faults == [f"{NAME}: record of impossible length"]


def test_an_image_that_is_not_whole_yet_is_no_evidence():
    seen = Seen()
    seen.image("inventory.img")
    assert "inventory.img is not complete" in evidence.judge(seen).problems


def test_an_image_that_passes_twice_is_no_evidence():
    seen = Seen()
    for _ in range(2):
        passing = seen.image("pages-1.img")
        passing.count(PAGE)
        passing.end()
    assert "pages-1.img passed twice" in evidence.judge(seen).problems


def test_two_pagemaps_do_not_share_their_pages():
    seen = Seen()
    for number in (1, 2):
        passing = seen.image(f"pagemap-{number}.img")
        passing.add(image(entry(1, flags=PRESENT)))
        passing.end()
    pages = seen.image("pages-3.img")
    pages.count(PAGE)
    pages.end()
    assert evidence.judge(seen).problems == ("pagemap-2.img and pagemap-1.img name the same pages",)


def test_an_error_names_three_problems_and_how_many_more():
    seen = Seen()
    for number in range(1, 7):
        pages = seen.image(f"pages-{number}.img")
        pages.count(PAGE)
        pages.end()
    with pytest.raises(evidence.NoEvidenceError, match=r"pages-3\.img; and 3 more$"):
        evidence.require(seen, (evidence.Kind.PAGES,))
