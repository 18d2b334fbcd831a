"""Search finds what follows each other in memory, wherever the pieces of it lie, and nothing else."""

from __future__ import annotations

import os
import re
import tracemalloc

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.errors import UsageError
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.memory import PAGE, AddressSpace
from sealpoint.inspect.search import MAX_MATCH, expression, literal, search
from sealpoint.inspect.source import images
from tests.checkpoint.checkpoint_helpers import seal_path
from tests.inspect.made import PARENT, PRESENT, Made, page, space, vma

A = 0x10000
CHUNK = 2 << 20


def found(where, pattern, **options) -> list[tuple[int, bytes]]:
    return [(m.address, m.data) for m in search(where, pattern, **options)]


def both(text: bytes):
    return literal(text), expression("".join(rf"\x{byte:02x}" for byte in text))


def sealed_space(made: Made, tmp_path, keys, access) -> AddressSpace:
    made.files["inventory.img"] = b""
    made.write(tmp_path / "images")
    seal_path(keys, tmp_path / "images", tmp_path / "s.sealed")
    source = open_source(str(tmp_path / "s.sealed"), access).source
    return AddressSpace.load(images(source), 1)


def test_matches_that_straddle_chunks_and_pages_are_found(tmp_path, keys, access):
    data = bytearray(os.urandom(3 * CHUNK))
    places = [0, PAGE - 5, CHUNK - 9, CHUNK - 1, 2 * CHUNK - 3, 3 * CHUNK - 11, 5 * PAGE]
    places = [p for p in places if p != CHUNK - 1]
    for place in places:
        data[place : place + 11] = b"needle-1234"
    made = Made().task(1, [vma(A, len(data) // PAGE)], [(A, PRESENT, bytes(data))])
    where = sealed_space(made, tmp_path, keys, access)
    for pattern in both(b"needle-1234"):
        assert [a - A for a, _ in found(where, pattern)] == sorted(places)


def test_neighbours_in_the_pages_image_are_not_neighbours_in_memory(tmp_path):
    runs = [(A, PRESENT, page(b"secr", PAGE - 4)), (A + 2 * PAGE, PRESENT, page(b"et!"))]
    where = space(Made().task(1, [vma(A, 3)], runs).write(tmp_path))
    for pattern in both(b"secret!"):
        assert found(where, pattern) == []
    assert found(where, expression("[a-z]+")) == [(A + PAGE - 4, b"secr"), (A + 2 * PAGE, b"et")]


def test_a_match_may_lie_partly_in_the_parent(tmp_path):
    first = [(A, PRESENT, page() + page(b"two", fill=b"2") + page())]
    Made().task(1, [vma(A, 3)], first).write(tmp_path / "1")
    second = [
        (A, PRESENT, page(b"one-", PAGE - 4)),
        (A + PAGE, PARENT, 1),
        (A + 2 * PAGE, PRESENT, page(b"three")),
    ]
    Made().task(1, [vma(A, 3)], second).write(tmp_path / "2")
    (tmp_path / "2/parent").symlink_to("../1")
    where = space(tmp_path / "2")
    for pattern in both(b"one-two2"):
        assert found(where, pattern) == [(A + PAGE - 4, b"one-two2")]
    for pattern in both(b"222three"):
        assert found(where, pattern) == [(A + 2 * PAGE - 3, b"222three")]
    assert len(found(where, expression("2+three"))) == 1


def test_a_match_may_reach_over_mappings_that_touch(tmp_path):
    runs = [(A, PRESENT, page(b"ab", PAGE - 2) + page(b"cd"))]
    where = space(Made().task(1, [vma(A, 1), vma(A + PAGE, 1, prot=1)], runs).write(tmp_path))
    matches = list(search(where, literal(b"abcd"), context=4))
    assert [(m.address, m.before, m.after) for m in matches] == [(A + PAGE - 2, b"....", b"....")]
    assert matches[0].mapping == where.mappings[0]


def test_a_match_of_many_small_islands(tmp_path):
    data = page(b"xy", PAGE - 2) + page(b"z")
    runs = [(A + 3 * n * PAGE, PRESENT, data) for n in range(50)]
    where = space(Made().task(1, [vma(A, 150)], runs).write(tmp_path))
    assert len(found(where, literal(b"xyz"))) == 50
    assert found(where, literal(b"z.........xy")) == []


def test_context_ends_at_gaps(tmp_path):
    runs = [(A + PAGE, PRESENT, page(b"key", PAGE - 5))]
    where = space(Made().task(1, [vma(A, 3)], runs).write(tmp_path))
    (match,) = search(where, literal(b"key"), context=2 * PAGE)
    assert match.before == b"." * (PAGE - 5)
    assert match.after == b".."


def test_expressions_see_what_stands_before_them(tmp_path):
    data = bytearray(page(fill=b"x") * 600)
    data[CHUNK - 3 : CHUNK] = b" ab"
    data[CHUNK : CHUNK + 3] = b"cd "
    where = space(Made().task(1, [vma(A, 600)], [(A, PRESENT, bytes(data))]).write(tmp_path))
    assert found(where, expression(r"\babcd\b")) == [(A + CHUNK - 2, b"abcd")]
    assert found(where, expression(r"\bcd")) == []
    assert found(where, expression(r"(?<= a)bcd")) == [(A + CHUNK - 1, b"bcd")]


def test_long_matches_of_an_expression_are_cut(tmp_path):
    where = space(Made().task(1, [vma(A, 4)], [(A, PRESENT, page(fill=b"a") * 4)]).write(tmp_path))
    matches = found(where, expression("a+"))
    assert matches[0] == (A, b"a" * MAX_MATCH)


def test_what_cannot_be_searched_for_is_refused():
    for wrong in (b"", b"x" * (MAX_MATCH + 1)):
        with pytest.raises(UsageError):
            literal(wrong)
    for wrong in ("(", "[z-a]", "a{9999999999999}"):
        with pytest.raises(UsageError, match="not a regular expression"):
            expression(wrong)


def test_only_some_mappings(tmp_path):
    runs = [(A, PRESENT, page(b"here")), (A + 4 * PAGE, PRESENT, page(b"here"))]
    where = space(Made().task(1, [vma(A, 1), vma(A + 4 * PAGE, 1)], runs).write(tmp_path))
    assert found(where, literal(b"here"), mappings=where.mappings[1:]) == [(A + 4 * PAGE, b"here")]


def test_memory_is_bounded_by_a_chunk(tmp_path, keys, access):
    data = bytes(24 << 20)
    made = Made().task(1, [vma(A, len(data) // PAGE)], [(A, PRESENT, data)])
    where = sealed_space(made, tmp_path, keys, access)
    tracemalloc.start()
    try:
        assert found(where, literal(b"nothing")) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=3)), max_size=12),
    st.data(),
)
def test_the_result_is_that_of_a_search_in_the_memory_itself(tmp_path_factory, pieces, data):
    """Against a model: islands as separate bytes, searched by Python."""
    runs, islands, at = [], [], A
    for gap, text in pieces:
        at += gap * PAGE
        content = page(text, data.draw(st.sampled_from([0, 5, PAGE - 1])), fill=text)
        if islands and islands[-1][0] + len(islands[-1][1]) == at:
            islands[-1][1].extend(content)
        else:
            islands.append((at, bytearray(content)))
        runs.append((at, PRESENT, content))
        at += PAGE
    made = Made().task(1, [vma(A, (at - A) // PAGE + 1)], runs)
    where = space(made.write(tmp_path_factory.mktemp("model")))
    needle = data.draw(st.sampled_from([text for _, text in pieces] or [b"x"])) * 2
    expected = [
        (start + m.start(), m[0])
        for start, content in islands
        for m in re.finditer(re.escape(needle), content)
    ]
    for pattern in both(needle):
        assert found(where, pattern) == expected
