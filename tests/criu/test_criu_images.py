"""Roles of images, and the few records that sealpoint reads from them."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.checkpoint.tables import summary
from sealpoint.criu import roles, schema
from sealpoint.errors import FileError, OmissionWarning
from sealpoint.format.constants import Role
from sealpoint.format.manifest import check_name

MAGIC = struct.pack("<II", 0x54564319, 0x12345678)


def image(*records: bytes, magic: bytes = MAGIC) -> bytes:
    return magic + b"".join(struct.pack("<I", len(r)) + r for r in records)


def message(name: str, **fields) -> bytes:
    return schema.message(name)(**fields).SerializeToString()


TREE = image(
    message("pstree_entry", pid=1, ppid=0, threads=[1, 5]),
    message("pstree_entry", pid=7, ppid=1),
)


def core(command: bytes) -> bytes:
    return image(message("core_entry", tc={"comm": command}))


def test_records_are_parsed_one_by_one():
    found = list(schema.records(TREE, "pstree_entry", "pstree.img"))
    assert [(e.pid, e.ppid, list(e.threads)) for e in found] == [(1, 0, [1, 5]), (7, 1, [])]
    assert list(schema.records(MAGIC, "pstree_entry", "x")) == []
    service = struct.pack("<II", 0x55105940, 1)
    assert len(list(schema.records(image(b"", magic=service), "stats_entry", "x"))) == 1


def test_unknown_fields_do_no_harm():
    newer = message("pstree_entry", pid=3) + b"\xfa\x3f\x03abc"
    [entry] = schema.records(image(newer), "pstree_entry", "x")
    assert entry.pid == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a CRIU image"),
        (MAGIC[:7], "not a CRIU image"),
        (bytes(100), "not a CRIU image"),
        (MAGIC + b"\1\0", "cut short at offset 8"),
        (MAGIC + struct.pack("<I", 5) + b"1234", "impossible length at offset 8"),
        (MAGIC + struct.pack("<I", 2**32 - 1), "impossible length at offset 8"),
        (image(b"\xff" * 5), "malformed record at offset 12"),
        (TREE + b"\0", "cut short"),
    ],
)
def test_damaged_images_are_named_with_the_offset(data, words):
    with pytest.raises(FileError, match=f"core-1.img: .*{words}"):
        list(schema.records(data, "core_entry", "core-1.img"))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["pstree_entry", "core_entry", "pagemap_head", "stats_entry"]),
    st.binary(max_size=200),
    st.booleans(),
)
def test_any_bytes_are_records_or_an_error(name, data, framed):
    tracemalloc.start()
    try:
        list(schema.records(image(data) if framed else MAGIC + data, name, "x"))
    except FileError:
        pass
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@given(st.text(max_size=60))
def test_every_name_has_a_role_and_metadata_only_by_the_table(name):
    if roles.role_of(name) is Role.METADATA:
        assert name.rpartition("/")[0] in ("", "checkpoint", "pre-checkpoint")


@pytest.mark.parametrize("name", ["ids-1.img\n", "ids-١.img", "Inventory.img", "ids-.img", "ids-1"])
def test_what_only_looks_like_metadata_is_memory(name):
    assert roles.role_of(name) is Role.MEMORY


def test_pages_are_told_from_pagemaps():
    assert roles.is_pages("pages-1.img")
    assert not roles.is_pages("pagemap-1.img")
    assert not roles.is_pages("pages-shmem-1.img")


def observed(**images: bytes) -> dict:
    found = summary.Summary()
    for name, data in images.items():
        found.observe(name.replace("_", "-") + ".img", data)
    found.pages("pages-4.img", 8192)
    return summary.decode(found.encode())


def test_the_summary_joins_tree_names_and_sizes():
    pagemap = image(message("pagemap_head", pages_id=4))
    tasks = observed(pstree=TREE, core_1=core(b"init"), core_7=core(b"sh"), pagemap_7=pagemap)
    assert tasks == {
        "tasks": [
            {"pid": "1", "parent": "0", "command": "init", "memory": "0"},
            {"pid": "7", "parent": "1", "command": "sh", "memory": "8192"},
        ],
        "container": {},
    }


def test_a_command_name_may_be_any_bytes():
    tasks = observed(pstree=TREE, core_1=core(b"\xff\xfe\x1b[31m"), core_7=core(b"x" * 5000))
    first, second = tasks["tasks"]
    assert first["command"] == "\udcff\udcfe\x1b[31m"
    assert second["command"] == "x" * 256


def test_the_number_of_tasks_is_bounded():
    many = image(*[b""] * 70_000)
    with pytest.warns(OmissionWarning, match="ends after 65536"):
        assert len(observed(pstree=many)["tasks"]) == 65536


def test_the_engine_is_found_in_whichever_file_has_it():
    found = summary.Summary()
    found.observe("status.dump", b'{"runtime": "runc", "name": "late"}')
    found.observe("config.dump", b'{"id": "c", "name": "n", "rootfsImageName": "i", "x": {}}')
    for junk in (b"", b"5", b"[]", b"\xff", b"{" * 100_000, b'{"id": {"a": 1}}'):
        found.observe("config.dump", junk)
    container = summary.decode(found.encode())["container"]
    assert container == {"container": "c", "name": "late", "image": "i", "runtime": "runc"}
    assert list(container) == ["container", "name", "image", "runtime"]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        ["pstree.img", "core-1.img", "pagemap-1.img", "config.dump", "checkpoint/pstree.img"]
    ),
    st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda t: t.encode())),
    st.booleans(),
)
def test_whatever_is_observed_the_summary_can_be_written_and_read(name, data, framed):
    found = summary.Summary()
    found.observe(name, image(data) if framed else data)
    found.observe("core-1.img", TREE)
    summary.decode(found.encode())


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=100), st.text(max_size=100).map(lambda t: t.encode())))
def test_any_summary_is_read_or_refused(data):
    try:
        summary.decode(data)
    except FileError:
        pass


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=300), st.text("./ab\0\udcff", max_size=12)))
def test_any_name_is_a_plain_relative_path_or_refused(name):
    try:
        assert check_name(name) == name
    except FileError:
        return
    parts = name.split("/")
    assert not name.startswith("/")
    assert all(p not in ("", ".", "..") and "\0" not in p for p in parts)
    assert all(len(p.encode()) <= 255 for p in parts)
