"""Telling a dump from other requests: as CRIU's own parser does, or not at all."""

from __future__ import annotations

import os
import socket
import struct
import threading
from unittest import mock

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings, strategies as st

from sealpoint.criu import schema
from sealpoint.dropin import criu_config
from sealpoint.dropin.descriptors import Freezer, Journal
from sealpoint.dropin.proxy import Proxy, request_type
from sealpoint.process import Held
from tests.engines import rpc


def meant(data: bytes) -> int:
    """What a real protobuf parser makes of a request's type; -1 if nothing."""
    try:
        parsed = schema.message("criu_req").FromString(data)
    except DecodeError:
        return -1
    return parsed.type if parsed.HasField("type") and 0 <= parsed.type < 0x80 else -1


FIELDS = st.one_of(
    st.tuples(st.just(0), st.integers(1, 70), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(0), st.just(1), st.integers(0, 14)),
    st.tuples(st.just(2), st.integers(3, 70), st.binary(max_size=20)),
    st.tuples(st.just(5), st.integers(2, 70), st.binary(min_size=4, max_size=4)),
    st.tuples(st.just(1), st.integers(2, 70), st.binary(min_size=8, max_size=8)),
)


def field(wire: int, number: int, value: int | bytes) -> bytes:
    out = rpc.varint(number << 3 | wire)
    if isinstance(value, int):
        return out + rpc.varint(value)
    return out + (rpc.varint(len(value)) if wire == 2 else b"") + value


@settings(max_examples=500)
@given(st.lists(FIELDS, max_size=8), st.binary(max_size=3))
def test_every_request_that_criu_understands_is_told_by_its_type(
    fields: list[tuple[int, int, int | bytes]], tail: bytes
) -> None:
    data = b"".join(field(*f) for f in fields) + tail
    found = request_type(data)
    assert found in (-1, meant(data))
    if not tail and all(number not in (2, 3) for _, number, _ in fields):
        assert found == meant(data)


@settings(max_examples=500)
@given(st.binary(max_size=60))
def test_garbage_is_no_request(data: bytes) -> None:
    assert request_type(data) in (-1, meant(data))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", -1),
        (b"\x08", -1),
        (b"\x08\x01", 1),
        (b"\x08\x81\x00", 1),
        (b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00", 1),
        (b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", -1),
        (b"\x88\x80\x00\x01", 1),
        (b"\x08\x02\x08\x01", 1),
        (b"\x0d\x01\x00\x00\x00", -1),
        (b"\x12\xff\xff\xff\xff\x0f\x08\x01", -1),
        (b"\x0b\x08\x01\x0c", -1),
        (b"\x00\x00\x08\x01", -1),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", -1),
        (b"\x12\x00" * 100_000 + b"\x08\x01", 1),
    ],
)  # fmt: skip
def test_the_type_is_found_wherever_and_however_it_is_written(data: bytes, wanted: int) -> None:
    assert request_type(data) == wanted


class Ends:
    """A proxy in a thread, with its engine's and its CRIU's end."""

    def __init__(self) -> None:
        self.engine, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.criu, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.engine, self.criu):
            end.settimeout(10)
        self.ended = os.pidfd_open(os.getpid())
        proxy = Proxy(near, far, self.ended)
        self.thread = threading.Thread(target=proxy.run)
        self.thread.start()

    def close(self) -> None:
        self.engine.close()
        self.criu.close()
        self.thread.join(30)
        assert not self.thread.is_alive()
        os.close(self.ended)


@pytest.fixture
def ends():
    made = Ends()
    yield made
    made.close()


def test_other_messages_pass_both_ways_with_their_descriptors(ends: Ends) -> None:
    version = rpc.encode({1: rpc.VERSION, 4: True})
    answer = os.urandom(100_000)
    for _ in range(3):
        with open(os.devnull) as null:
            socket.send_fds(ends.engine, [version], [null.fileno()])
        data, fds, _, _ = socket.recv_fds(ends.criu, 1 << 20, 4)
        assert data == version
        assert len(fds) == 1
        os.close(fds[0])
        ends.criu.send(answer)
        assert ends.engine.recv(1 << 20) == answer


def test_the_end_of_either_side_is_the_end_of_the_other(ends: Ends) -> None:
    ends.criu.close()
    assert ends.engine.recv(100) == b""
    other = Ends()
    other.engine.close()
    assert other.criu.recv(100) == b""
    other.close()


def test_what_cannot_be_understood_reaches_criu_never(ends: Ends) -> None:
    ends.engine.send(b"\xff" * 100)
    fields = rpc.decode(ends.engine.recv(8192))
    assert fields[2] == 0
    assert fields[9].startswith(b"sealpoint: ")
    assert ends.criu.recv(100) == b""


def test_a_reason_is_one_line_in_the_log_and_follows_no_link(tmp_path) -> None:
    target = tmp_path / "target"
    target.write_text("safe")
    (tmp_path / "link.log").symlink_to(target)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for name in ("dump.log", "link.log", "../outside.log", "", "\0"):
            journal = Journal()
            journal.open(fd, name)
            journal.say("first\nsecond \udcff ☃")
    finally:
        os.close(fd)
    assert (tmp_path / "dump.log").read_text() == "Error (sealpoint): first second \\xff ☃\n"
    assert target.read_text() == "safe"
    assert not (tmp_path.parent / "outside.log").exists()
    assert sorted(os.listdir(tmp_path)) == ["criu.log", "dump.log", "link.log", "target"]


@pytest.mark.parametrize(
    ("name", "before", "frozen", "wanted"),
    [
        ("freezer.state", "THAWED\n", "FROZEN\n", "THAWED"),
        ("freezer.state", "THAWED\n", "FREEZING\n", "THAWED"),
        ("freezer.state", "FROZEN\n", "FROZEN\n", "FROZEN\n"),
        ("cgroup.freeze", "0\n", "1\n", "0"),
        ("cgroup.freeze", "1\n", "1\n", "1\n"),
    ],
)
def test_a_cgroup_is_thawed_if_it_was_not_frozen_before(
    tmp_path, name: str, before: str, frozen: str, wanted: str
) -> None:
    file = tmp_path / name
    file.write_text(before)
    freezer = Freezer(str(tmp_path))
    file.write_text(frozen)
    freezer.restore()
    assert file.read_text() == wanted
    Freezer("").restore()
    Freezer(str(tmp_path / "nowhere")).restore()


def test_a_configuration_file_of_criu_is_looked_through(tmp_path) -> None:
    file = tmp_path / "runc.conf"
    for text in ("tcp-established\n# images-dir x\n", ""):
        file.write_bytes(text.encode("latin-1"))
        criu_config.read(str(file))
    for text in (
        "images-dir /tmp",
        "  --stream",
        "lazy-pages x y\n",
        "\n\npage-server=1",
        "\xff\0",
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(criu_config.RefusedError, match="line "):
            criu_config.read(str(file))


@settings(max_examples=200)
@given(st.binary(max_size=100), st.integers(1, 2))
def test_options_that_are_garbage_do_no_more_than_be_refused(junk: bytes, kind: int) -> None:
    from sealpoint.dropin import session

    data = rpc.encode({1: kind, 2: junk})
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended = os.pidfd_open(os.getpid())
    here = os.getcwd()
    try:
        with (
            near,
            far,
            mock.patch.object(session.process, "protect"),  # this is not a process of its own
            mock.patch.object(session.configuration, "SYSTEM_PATH", "/nowhere/config.toml"),
            pytest.raises(session.RefusedRequestError),
        ):
            session.start(data + struct.pack("<B", 0x18) + b"\x01", Held(2**22 + 1), near, ended)
    finally:
        os.close(ended)
        os.chdir(here)
