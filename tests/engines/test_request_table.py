"""The table of CRIU's requests: complete, and nothing beside it passes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.dropin import request_table as table
from sealpoint.dropin.criu_config import RefusedError
from sealpoint.dropin.requests import Requests, memory_file
from tests.engines import rpc

HERE = Path(__file__).resolve().parent
FACTS = json.loads((HERE / "criu_facts.json").read_text())
SENT = sorted((HERE / "requests").glob("*.bin"))
"""What engines sent to the drop-in, as it came."""


def key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("version", FACTS)
def test_the_table_has_every_field_of_every_version_and_no_other(version: str) -> None:
    ours = {
        name: {
            str(number): [field.name, field.kind]
            for number, field in fields.items()
            if key(field.since) <= key(version)
        }
        for name, fields in table.MESSAGES.items()
    }
    assert ours == FACTS[version]["messages"]


def test_the_table_has_every_value_and_every_kind_of_request_and_no_other() -> None:
    newest = FACTS[max(FACTS, key=key)]["enums"]
    assert {name: set(values) for name, values in table.ENUMS.items()} == {
        name: set(values.values()) for name, values in newest.items()
    }
    assert {number: name for name, number in newest["criu_req_type"].items()} == table.TYPES


def test_there_is_a_reason_for_what_is_done_with_each_field() -> None:
    for fields in table.MESSAGES.values():
        for field in fields.values():
            assert field.role in ("pass", "ours", "refuse")
            assert field.why


@pytest.mark.parametrize("file", SENT, ids=lambda path: path.stem)
def test_what_engines_send_passes(file: Path) -> None:
    assert table.check(file.read_bytes()) == []


def test_there_are_requests_of_every_engine() -> None:
    engines = {file.stem.partition("-")[0] for file in SENT}
    assert engines >= {"containerd", "podman", "runc"}


UNKNOWN = [
    ({1: 1, 2: {1: -1, 72: 1}}, "72", "field 72 of criu_opts"),
    ({1: 1, 2: {1: -1, 40: b"x"}}, "40", "field 40 of criu_opts"),
    ({1: 1, 2: {1: -1, 11: {5: b"host"}}}, "11.5", "field 5 of criu_page_server_info"),
    ({1: 2, 2: {1: -1, 27: [{1: b"k", 2: 3}, {1: b"k", 2: 3, 3: 1}]}}, "27.3", "field 3 of inh"),
    ({1: 9, 5: {1: 1, 4: 1}}, "req.5.4", "field 4 of criu_features"),
    ({1: 10, 7: b"x"}, "req.7", "field 7 of criu_req"),
    ({1: 1, 2: {1: -1, 64: 4}}, "64", "value 4"),
    ({1: 1, 2: {1: -1, 34: 7}}, "34", "value 7"),
    ({1: 6, 3: 1, 2: {1: -1, 99: 1}}, "99", "field 99 of criu_opts"),
]


@pytest.mark.parametrize(("request_", "path", "said"), UNKNOWN, ids=[p for _, p, _ in UNKNOWN])
def test_what_is_not_in_the_table_is_refused_unless_it_is_allowed(
    request_: dict[int, object], path: str, said: str
) -> None:
    data = rpc.encode(request_)
    with pytest.raises(table.UnknownFieldError, match=said) as raised:
        table.check(data)
    assert f"allow_criu_fields: {path}" in str(raised.value)
    assert table.check(data, {path}) == [path]
    with pytest.raises(table.UnknownFieldError):
        table.check(data, {path + "0", "1"})


@pytest.mark.parametrize(
    "options",
    [
        {58: 1},
        {57: b"/key"},
        {59: 1},
        {51: b"/a\0b"},
        {22: [b"a", b"b\0"]},
        {23: {1: b"\0", 2: b""}},
        {3: b"\x01"},  # not as CRIU knows it
        {11: 7},
        {10: 1},
    ],
    ids=str,
)
def test_what_criu_could_read_otherwise_is_refused_whatever_is_allowed(
    options: dict[int, object],
) -> None:
    data = rpc.encode({1: 1, 2: options})
    with pytest.raises(table.UnknownFieldError):
        table.check(data, [str(number) for number in options])


def test_tls_that_is_off_is_no_obstacle() -> None:
    assert table.check(rpc.encode({1: 1, 2: {1: -1, 58: 0, 59: 0, 57: b""}})) == []


@pytest.mark.parametrize("kind", [14, 15, 100, 127])
def test_a_kind_of_request_that_is_not_known_is_refused(kind: int) -> None:
    with pytest.raises(RefusedError, match=f"request type {kind}"):
        Requests(real="/nowhere/criu").prepare(rpc.encode({1: kind}), kind)


def test_the_settings_are_sealed_before_the_request_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "criu.conf"
    file.write_text('tcp-established # yes\nexternal  "mnt[a b]:c"\nlog-file own.log\n')
    memory = memory_file()
    try:
        data = rpc.encode({1: 1, 2: {1: 3, 51: str(file)}})
        prepared, _ = Requests(memory).prepare(data, 1)
        options = rpc.decode(rpc.decode(prepared)[2])
        assert options[51].decode() == f"/proc/self/fd/{memory}"
        assert options[10] == b"own.log"
        content = Path(f"/proc/self/fd/{memory}").read_text()
        assert content == 'tcp-established\nexternal "mnt[a b]:c"\n'
        for attempt in (lambda: os.write(memory, b"x"), lambda: os.ftruncate(memory, 0)):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.close(memory)


@pytest.mark.parametrize(
    ("text", "fields", "left"),
    [
        ("leave-running", {3: 1}, ""),
        ("leave-stopped", {69: 1}, "leave-stopped\n"),
        ("leave-running\nleave-stopped", {69: 1}, "leave-stopped\n"),
        ("leave-stopped\nleave-running", {3: 1}, ""),
        ("track-mem\nno-track-mem\nauto-dedup", {15: 0, 16: 1}, ""),
        ("lazy-pages\nfreeze-cgroup=/x", {48: 1, 44: b"/x"}, ""),
        ("verbosity=4\nno-tcp-close", {}, "verbosity=4\nno-tcp-close\n"),
    ],
)
def test_settings_that_we_must_see_become_fields(
    tmp_path: Path, text: str, fields: dict[int, object], left: str
) -> None:
    file = tmp_path / "criu.conf"
    file.write_text(text)
    memory = memory_file()
    try:
        data = rpc.encode({1: 1, 2: {1: 3, 51: str(file)}})
        prepared, _ = Requests(memory).prepare(data, 1)
        options = rpc.decode(rpc.decode(prepared)[2])
        assert Path(f"/proc/self/fd/{memory}").read_text() == left
    finally:
        os.close(memory)
    assert {n: v for n, v in options.items() if n not in (1, 51)} == fields
    assert (51 in options) == bool(left)


@settings(max_examples=500)
@given(st.binary(max_size=80))
def test_garbage_is_refused_or_holds_nothing_unknown(data: bytes) -> None:
    try:
        table.check(data)
    except table.UnknownFieldError:
        return
    for number, _, _ in table.fields(data):
        assert number in table.MESSAGES["criu_req"]
