"""The streaming protocol, spoken by something that is not CRIU."""

from __future__ import annotations

import array
import os
import socket
import struct
import tracemalloc

import pytest
from hypothesis import example, given, settings, strategies as st

from sealpoint.criu import stream
from sealpoint.errors import CriuError


def request(name: bytes) -> bytes:
    size = len(name)
    varint = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
    body = b"\x0a" + varint + name
    return struct.pack("<I", len(body)) + body


def ask(data: bytes) -> list[str]:
    """All requests that the bytes hold, then the end."""
    one, two = socket.socketpair()
    with one, two:
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        names = []
        while (name := stream.read_request(two)) is not None:
            names.append(name)
        return names


def test_requests_are_read_until_the_end():
    names = ["inventory.img", "pages-1.img", "x" * 127, "y" * 128, "z" * 200]
    assert ask(b"".join(request(n.encode()) for n in names)) == names
    assert ask(b"") == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        struct.pack("<I", 0),
        struct.pack("<I", 1) + b"\x0a",
        struct.pack("<I", 2**32 - 1),
        struct.pack("<I", 5000) + bytes(5000),
        request(b""),
        request(b"a/b"),
        request(b"../x"),
        request(b"a\0b"),
        request(b"abc")[:-1],
        struct.pack("<I", 4) + b"\x0a\x01ab",
        struct.pack("<I", 4) + b"\x0a\x03ab",
        struct.pack("<I", 4) + b"\x12\x02ab",
        struct.pack("<I", 2) + b"\x0a\x80",
        struct.pack("<I", 2) + b"\x0a\xff",
    ],
)
def test_what_criu_would_never_send_is_refused(data):
    with pytest.raises(CriuError, match="streaming"):
        ask(data)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
@example(struct.pack("<I", 3) + b"\x0a\x80\x00")
def test_any_bytes_are_requests_or_an_error(data):
    try:
        names = ask(data)
    except CriuError:
        return
    assert all(n and "/" not in n and "\0" not in n for n in names)


def test_a_large_announcement_allocates_nothing():
    tracemalloc.start()
    with pytest.raises(CriuError):
        ask(struct.pack("<I", 2**31) + bytes(100))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def send_pipes(socket_: socket.socket, data: bytes, fds: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    socket_.sendmsg([data], ancillary)


def test_a_pipe_is_received_and_not_inherited():
    one, two = socket.socketpair()
    reader, writer = os.pipe()
    with one, two:
        send_pipes(one, b"\0more", [writer])
        received = stream.receive_pipe(two)
        assert two.recv(10) == b"more"
    assert not os.get_inheritable(received)
    os.close(writer)
    os.write(received, b"x")
    os.close(received)
    assert os.read(reader, 10) == b"x"
    os.close(reader)


@pytest.mark.parametrize("count", [0, 2, 5])
def test_not_exactly_one_pipe_is_refused_and_none_is_kept(count):
    pipes = [os.pipe() for _ in range(count)]
    before = len(os.listdir("/proc/self/fd"))
    one, two = socket.socketpair()
    with one, two:
        send_pipes(one, b"\0", [writer for _, writer in pipes])
        with pytest.raises(CriuError, match="broke"):
            stream.receive_pipe(two)
    assert len(os.listdir("/proc/self/fd")) == before
    for ends in pipes:
        for fd in ends:
            os.close(fd)


def test_an_end_in_place_of_a_pipe_is_refused():
    one, two = socket.socketpair()
    one.close()
    with two, pytest.raises(CriuError, match="broke"):
        stream.receive_pipe(two)


def test_answers():
    one, two = socket.socketpair()
    with one, two:
        stream.answer(one, exists=True)
        stream.answer(one, exists=False)
        assert two.recv(100) == b"\2\0\0\0\x08\1\2\0\0\0\x08\0"


def test_criu_finds_the_socket_by_its_directory(tmp_path):
    with stream.listen(str(tmp_path), stream.CAPTURE_SOCKET):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "streamer-capture.sock"))


def test_pipes_are_enlarged_as_far_as_allowed():
    reader, writer = os.pipe()
    assert stream.enlarge_pipe(writer) >= 65536
    os.close(reader)
    os.close(writer)
