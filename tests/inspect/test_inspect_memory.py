"""The address space of a task: mappings, stored pages, parents, and what is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.criu import schema
from sealpoint.errors import FileError, IdentityError, SealpointError, UsageError
from sealpoint.inspect import memory
from sealpoint.inspect.finding import open_source
from sealpoint.inspect.memory import PAGE, AddressSpace
from sealpoint.inspect.source import Access, images
from tests.checkpoint.checkpoint_helpers import seal_objects
from tests.inspect.made import LAZY, PARENT, PRESENT, Made, image, message, page, space, vma

A = 0x10000


def contents(found: AddressSpace, mapping) -> bytes:
    """Stored bytes, holes as dashes."""
    out = bytearray(b"-" * mapping.size)
    for block in found.blocks(mapping):
        assert sum(size for _, size, _ in block.spans) == len(block.data)
        for position, size, address in block.spans:
            at = address - mapping.start
            out[at : at + size] = block.data[position : position + size]
    return bytes(out)


@pytest.mark.parametrize("old", [False, True], ids=["as of 4.2", "before 4.2"])
def test_pages_lie_where_the_pagemap_says(tmp_path, old):
    one, two, three = page(b"one"), page(b"two"), page(b"three")
    runs = [(A, PRESENT, one), (A + 2 * PAGE, PRESENT | LAZY, two), (A + 4 * PAGE, PRESENT, three)]
    made = Made().task(1, [vma(A, 3), vma(A + 4 * PAGE, 1)], runs, old=old)
    found = space(made.write(tmp_path))
    assert contents(found, found.mappings[0]) == one + b"-" * PAGE + two
    assert contents(found, found.mappings[1]) == three
    assert found.private.stored() == 3 * PAGE
    assert found.at(A + 3 * PAGE) is None
    assert found.at(A + 3 * PAGE - 1) is found.mappings[0]
    assert found.peek(A + 2 * PAGE, 3) == b"two"
    assert found.peek(A + PAGE, 3) == b""
    assert found.peek(A + 5 * PAGE - 2, 10) == b".."


def test_peek_goes_on_where_mappings_touch(tmp_path):
    made = Made().task(1, [vma(A, 1), vma(A + PAGE, 1)], [(A, PRESENT, page() + page(b"next"))])
    found = space(made.write(tmp_path))
    assert found.peek(A + PAGE - 1, 6) == b".next."


def test_an_entry_of_an_old_version_without_flags_is_present(tmp_path):
    made = Made().task(1, [vma(A, 1)], [])
    made.files["pagemap-1.img"] = image(
        message("pagemap_head", pages_id=1),
        message("pagemap_entry", vaddr=A, compat_nr_pages=1),
    )
    made.files["pages-1.img"] = page(b"old")
    found = space(made.write(tmp_path))
    assert contents(found, found.mappings[0]) == page(b"old")


def test_pages_of_parents_are_found_through_two_generations(tmp_path):
    first = Made().task(1, [vma(A, 4)], [(A, PRESENT, page(b"a1") + page(b"b1") + page(b"c1"))])
    second = Made().task(
        1,
        [vma(A, 4)],
        [(A, PARENT, 1), (A + PAGE, PRESENT, page(b"b2")), (A + 2 * PAGE, PARENT, 1)],
    )
    third = Made().task(
        1,
        [vma(A, 4)],
        [(A, PRESENT, page(b"a3")), (A + PAGE, PARENT, 2), (A + 3 * PAGE, PRESENT, page(b"d3"))],
    )
    for name, made in {"1": first, "2": second, "3": third}.items():
        made.write(tmp_path / name)
    (tmp_path / "2/parent").symlink_to("../1")
    (tmp_path / "3/parent").symlink_to("../2")
    found = space(tmp_path / "3")
    whole = page(b"a3") + page(b"b2") + page(b"c1") + page(b"d3")
    assert contents(found, found.mappings[0]) == whole
    assert found.private.stored_in(own=True) == 2 * PAGE
    assert found.private.stored_in(own=False) == 2 * PAGE
    assert found.peek(A + PAGE - 1, PAGE + 3) == b"." + page(b"b2") + b"c1"


def test_a_page_that_the_parent_lacks_is_named(tmp_path):
    Made().task(1, [vma(A, 2)], [(A, PRESENT, page())]).write(tmp_path / "1")
    Made().task(1, [vma(A, 2)], [(A, PARENT, 2)]).write(tmp_path / "2")
    with pytest.raises(FileError, match="0x10000 should be in the parent, which has none"):
        space(tmp_path / "2")  # no link to it
    (tmp_path / "2/parent").symlink_to("../1")
    with pytest.raises(FileError, match="0x11000 should be in the parent, which has none"):
        space(tmp_path / "2")


def test_what_a_lazy_dump_left_behind_is_counted_and_not_read(tmp_path):
    made = Made().task(1, [vma(A, 3)], [(A, LAZY, 2), (A + 2 * PAGE, PRESENT, page(b"here"))])
    found = space(made.write(tmp_path))
    assert found.private.missing == 2 * PAGE
    assert contents(found, found.mappings[0]) == b"-" * 2 * PAGE + page(b"here")


def test_shared_memory_shows_at_the_addresses_of_each_mapping(tmp_path):
    shared = vma(A, 2, memory.ANON_SHARED, shmid=7, pgoff=PAGE)
    memfd = vma(A + 4 * PAGE, 1, memory.MEMFD | memory.FILE_SHARED, shmid=33)
    made = Made().task(1, [shared, memfd], [])
    made.pagemap(
        "shmem-7", [(0, PRESENT, page(b"zero") + page(b"one")), (2 * PAGE, PRESENT, page(b"two"))]
    )
    made.pagemap("shmem-9", [(0, PRESENT, page(b"memfd"))])
    made.files["memfd.img"] = image(
        message("memfd_inode_entry", name=b"cache", shmid=9, inode_id=5)
    )
    made.files["files.img"] = image(
        message("file_entry", type=18, id=33, memfd={"id": 33, "inode_id": 5})
    )
    found = space(made.write(tmp_path))
    assert contents(found, found.mappings[0]) == page(b"one") + page(b"two")
    assert contents(found, found.mappings[1]) == page(b"memfd")
    assert [m.name for m in found.mappings] == ["[shared] 7", "memfd:cache"]
    assert found.mappings[0].access == "rw-s"


def test_mappings_are_named_as_the_kernel_names_them(tmp_path):
    vmas = [
        vma(A, 1, memory.FILE_PRIVATE, shmid=4, prot=5, flags=2, pgoff=PAGE),
        vma(A + 2 * PAGE, 2),
        vma(A + 8 * PAGE, 1, flags=0x122),
        vma(A + 9 * PAGE, 1, memory.VDSO),
        vma(A + 20 * PAGE, 1, memory.FILE_SHARED, shmid=99),
    ]
    made = Made().task(1, vmas, [], mm_start_brk=A + 3 * PAGE, mm_brk=A + 4 * PAGE)
    made.files["files.img"] = image(
        message("file_entry", type=1, id=4, reg={"id": 4, "name": b"/usr/bin/app"})
    )
    found = space(made.write(tmp_path))
    assert [(m.kind, m.name, m.access) for m in found.mappings] == [
        ("file", "/usr/bin/app", "r-xp"),
        ("heap", "[heap]", "rw-p"),
        ("stack", "[stack]", "rw-p"),
        ("vdso", "[vdso]", "rw-p"),
        ("file", "?", "rw-s"),
    ]


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([(A + 1, PRESENT, page())], "impossible run of 1 pages at 0x10001"),
        ([(A, PRESENT, page()), (A, PRESENT, page())], "impossible run"),
        ([(A + PAGE, PRESENT, page()), (A, PRESENT, page())], "impossible run"),
        ([(A, LAZY, 1 << 60)], "impossible run"),
    ],
    ids=["unaligned", "twice", "descending", "beyond the end of memory"],
)
def test_an_impossible_pagemap_is_refused(tmp_path, runs, reason):
    made = Made().task(1, [vma(A, 2)], runs)
    with pytest.raises(FileError, match=reason) as error:
        space(made.write(tmp_path))
    assert "pagemap-1.img" in str(error.value)


def test_a_pages_image_that_is_too_short_is_named(tmp_path):
    made = Made().task(1, [vma(A, 2)], [(A, PRESENT, page() + page())])
    made.files["pages-1.img"] = page() + b"half"
    with pytest.raises(FileError, match=r"pages-1\.img: has no page for address 0x10000"):
        space(made.write(tmp_path))


def test_a_run_of_absurd_length_allocates_nothing(tmp_path):
    made = Made().task(1, [vma(A, 2)], [(A, PRESENT, page())])
    entry = message("pagemap_entry", vaddr=A, compat_nr_pages=0, nr_pages=1 << 50, flags=PRESENT)
    made.files["pagemap-1.img"] = image(message("pagemap_head", pages_id=1), entry)
    with pytest.raises(FileError, match="has no page for address"):
        space(made.write(tmp_path))


@pytest.mark.parametrize(
    "vmas",
    [
        [vma(A, 2), vma(A + PAGE, 2)],
        [vma(A + 1, 1)],
        [vma(A, 0)],
    ],
    ids=["overlapping", "unaligned", "empty"],
)
def test_impossible_mappings_are_refused(tmp_path, vmas):
    made = Made().task(1, vmas, [])
    with pytest.raises(FileError, match=r"mm-1\.img: impossible mapping"):
        space(made.write(tmp_path))


def test_a_task_that_is_not_there_is_a_mistake_of_the_caller(tmp_path):
    made = Made().task(1, [vma(A, 1)], [])
    with pytest.raises(UsageError, match="no memory of a process 2") as error:
        space(made.write(tmp_path), 2)
    assert error.value.hint == "it has that of: 1"


def test_a_metadata_identity_is_told_whose_identity_it_takes(tmp_path, keys, analyst):
    made = Made().task(1, [vma(A, 1)], [(A, PRESENT, page())])
    made.files["inventory.img"] = b"inventory"
    objects = {name: (data, None) for name, data in made.files.items()}
    seal_objects(keys, tmp_path / "s.sealed", objects, metadata=[analyst])
    access = Access.of([analyst.identity], keys.policy)
    with open_source(str(tmp_path / "s.sealed"), access) as source:
        with pytest.raises(IdentityError) as error:
            AddressSpace.load(images(source), 1)
    assert keys.fingerprint[:16] in str(error.value.hint)


def test_sealed_memory_is_read_across_chunks(tmp_path, keys, access):
    data = os.urandom(5 << 20)
    made = Made().task(1, [vma(A, len(data) // PAGE)], [(A, PRESENT, data)])
    made.write(tmp_path / "images")
    from tests.checkpoint.checkpoint_helpers import seal_path

    made.files["inventory.img"] = b""
    made.write(tmp_path / "images")
    seal_path(keys, tmp_path / "images", tmp_path / "s.sealed")
    with open_source(str(tmp_path / "s.sealed"), access) as source:
        found = AddressSpace.load(images(source), 1)
        assert contents(found, found.mappings[0]) == data


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_images_give_our_errors_only(tmp_path_factory, data):
    made = Made().task(1, [vma(A, 2)], [(A, PRESENT, page() + page())])
    name = data.draw(st.sampled_from(sorted(made.files)))
    raw = bytearray(made.files[name])
    at = data.draw(st.integers(0, len(raw)))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    made.files[name] = bytes(raw)
    directory = made.write(tmp_path_factory.mktemp("damaged"))
    try:
        found = space(directory)
        for mapping in found.mappings[:4]:
            if mapping.size < 1 << 20:
                contents(found, mapping)
    except SealpointError:
        pass


def test_the_messages_have_the_fields_that_criu_gives_them():
    # 3.0: flags and in_parent, 4.2: nr_pages of 64 bits
    entry = schema.message("pagemap_entry").FromString(
        bytes.fromhex("08808002 1000 2004 28808080808001")
    )
    assert (entry.vaddr, entry.flags, entry.nr_pages) == (0x8000, 4, 1 << 35)
