"""Names are bytes: no two are shown alike, JSON loses nothing of them, and /proc is never read as strict text."""

from __future__ import annotations

import ast
import base64
import json
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from sealpoint import names

SOURCES = sorted((Path(__file__).parents[1] / "src/sealpoint").rglob("*.py"))
ODD = st.one_of(
    st.binary(max_size=12),
    st.lists(
        st.sampled_from(
            [
                *(
                    b"\\",
                    b"x",
                    b"\xff",
                    b"ff",
                    b"\n",
                    b"n",
                    b"\x1b",
                    b"\xc3\xa9",
                    b"\xc3",
                    b"\xa9",
                    b"'",
                ),
                *(
                    b"\xe2\x80\xae",
                    b"\xed\xa0\x80",
                    b"\xc2\x85",
                    b" ",
                    b"\\xff",
                    b"a",
                    b"\0",
                    b"\\x20",
                ),
            ]
        ),
        max_size=8,
    ).map(b"".join),
)


@given(ODD, ODD)
@example(b"\xff", b"\\xff")
@example(b"\n", b"\\n")
@example(b"\xc2\x85", "\x85".encode())
def test_two_names_never_print_alike(one, other):
    for show in (names.printable, names.quoted, names.cell):
        assert (show(one) == show(other)) == (one == other)
        assert show(one).isprintable()


@given(ODD)
def test_what_is_shown_says_what_the_bytes_are(name):
    assert names.encode(names.text(name)) == name
    assert names.encode(names.unescape(names.printable(name))) == name


@given(ODD)
def test_nothing_in_a_name_leads_out_of_its_quotation_marks(name):
    assert "'" not in names.quoted(name)[1:-1]


@given(ODD)
def test_no_blank_of_a_name_is_lost_at_the_end_of_a_column(name):
    assert not names.cell(name).endswith(" ")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252", "koi8-r", "utf-8"])
@given(name=ODD)
def test_every_encoding_can_be_written(encoding, name):
    for text in (names.printable(name), names.text(name)):
        text.encode(encoding, errors=names.ERROR_HANDLER)


def test_what_an_encoding_lacks_is_shown_as_its_bytes():
    shown = "é\udcff€".encode("ascii", errors=names.ERROR_HANDLER)
    assert shown == rb"\xc3\xa9\xff\xe2\x82\xac"


TREE = st.recursive(
    st.one_of(ODD.map(names.text), st.integers(), st.none(), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(ODD.map(names.text), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREE)
def test_json_is_text_for_every_reader(value):
    said = json.dumps(names.for_json({"value": value}), ensure_ascii=False)
    said.encode()  # no half surrogates, which other readers refuse
    assert json.loads(said) == names.for_json({"value": value})


@given(ODD)
def test_a_member_has_its_bytes_beside_it_where_they_are_no_utf8(name):
    told = names.for_json({"path": names.text(name)})
    try:
        assert told == {"path": name.decode()}
    except UnicodeDecodeError:
        assert told["path"] == names.printable(name)
        assert base64.b64decode(told["path_base64"]) == name


@given(st.dictionaries(ODD, ODD, max_size=5))
def test_no_variable_is_lost_where_two_names_could_be_one_member(variables):
    told = names.for_json({"e": {names.text(k): names.text(v) for k, v in variables.items()}})
    if any(not names.is_utf8(names.text(k)) for k in variables):
        pairs = told["e_base64"]
        assert {base64.b64decode(k): base64.b64decode(v) for k, v in pairs} == variables
        shown = [key for key in told["e"] if not key.endswith("_base64")]
        assert {names.printable(k) for k in variables} >= set(shown)
        assert len({names.printable(k) for k in variables}) == len(variables)


def test_lists_have_one_entry_per_name():
    told = names.for_json({"names": ["a", "\udcff"]})
    assert told == {"names": ["a", "\\xff"], "names_base64": [None, "/w=="]}


@given(ODD.filter(lambda name: b"\n" not in name))
def test_lines_of_proc_end_at_line_feeds_only(tmp_path_factory, name):
    file = tmp_path_factory.mktemp("proc") / "status"
    file.write_bytes(b"Name:\t" + name + b"\nNSpid:\t1\n")
    assert len(names.proc_lines(str(file))) == 2


@given(ODD)
def test_a_path_of_mountinfo_is_what_it_was(name):
    escaped = b"".join(b"\\%03o" % c if c in b" \t\n\\#" else bytes([c]) for c in name)
    assert names.unmangle(names.text(escaped)).encode(errors="surrogateescape") == name


def _strict_reads(tree: ast.AST):
    """Calls of open and read_text that name a file of the kernel and read it as text."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        written = ast.unparse(node)
        if called == "read_text" and ("/proc" in written or "/sys" in written):
            yield node
        if called != "open" or isinstance(node.func, ast.Attribute) or not node.args:
            continue
        of_kernel = any(
            word in ast.unparse(node.args[0]) for word in ("/proc", "/sys", "PROC", "SYS}")
        )
        mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
        if of_kernel and "b" not in mode and "w" not in mode:
            yield node


def test_nothing_of_proc_is_read_as_strict_text():
    found = [
        f"{path.name}:{call.lineno}"
        for path in SOURCES
        for call in _strict_reads(ast.parse(path.read_text()))
    ]
    assert found == []
    assert list(_strict_reads(ast.parse("open(f'/proc/{pid}/stat')")))
    assert not list(_strict_reads(ast.parse("open('/proc/self/stat', 'rb')")))


def test_strings_of_images_are_bytes_to_us():
    """protobuf gives a string field as str or as bytes, depending on what is in it."""
    from sealpoint.criu import schema

    for message, fields in schema._MESSAGES.items():
        if not message.startswith("criu_"):
            assert "string" not in {kind.rstrip("*") for _, _, kind in fields}, message
