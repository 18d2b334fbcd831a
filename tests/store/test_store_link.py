"""Links between two machines: whatever the other side sends or does not send, a wait ends and memory is bounded."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.cli import endpoint
from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store.link import Link, LinkError, LinkInput, LinkOutput, MessageKind
from sealpoint.store.source import hold_from

PATIENCE = 0.3


def pair() -> tuple[Link, socket.socket]:
    ours, theirs = socket.socketpair()
    return Link.of_socket(ours, peer="there", patience=PATIENCE), theirs


@pytest.fixture
def linked() -> Iterator[tuple[Link, socket.socket]]:
    link, theirs = pair()
    with theirs:
        yield link, theirs
    link.close()


def test_a_file_arrives_as_it_was_written() -> None:
    a, b = socket.socketpair()
    sender, receiver = (Link.of_socket(s, peer="there", patience=5) for s in (a, b))
    data = os.urandom(5_000_001)

    def send() -> None:
        out = LinkOutput(sender)
        out.write(data[:10], b"", memoryview(data)[10:])
        out.commit()

    thread = threading.Thread(target=send)
    thread.start()
    held = hold_from(LinkInput(receiver).read_into, None)
    thread.join()
    with open(held, "rb") as file:
        assert os.pread(held, len(data) + 1, 0) == data
        assert not file.closed
    sender.send(MessageKind.HAVE)
    assert receiver.expect(MessageKind.HAVE) == b""
    sender.close()
    receiver.close()


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_whatever_comes_only_our_own_error_comes_of_it(data: bytes) -> None:
    link, theirs = pair()
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            for _ in range(100):
                link.receive()
        except LinkError:
            pass
        else:
            pytest.fail("it never ended")
    link.close()


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_a_file_of_whatever_comes_ends_or_fails(data: bytes) -> None:
    link, theirs = pair()
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            os.close(hold_from(LinkInput(link).read_into, None))
        except LinkError:
            pass
    link.close()


def test_a_length_that_nobody_needs_is_refused_before_anything_is_allocated(linked) -> None:
    link, theirs = linked
    theirs.sendall(bytes([MessageKind.READY]) + (1 << 31).to_bytes(4, "little"))
    with pytest.raises(LinkError, match="does not speak"):
        link.receive()


def test_silence_is_taken_for_a_cut(linked) -> None:
    link, _ = linked
    with pytest.raises(LinkError, match="silent"):
        link.receive()


def test_a_peer_who_takes_nothing_is_taken_for_a_cut(linked) -> None:
    link, _ = linked
    with pytest.raises(LinkError, match="silent"):
        link.send(MessageKind.DATA, bytes(50_000_000))
    with pytest.raises(
        LinkError, match="in the middle of a message"
    ):  # nothing that follows could be understood
        link.send(MessageKind.STOP, b"")


def test_a_wait_can_be_ended_from_another_thread() -> None:
    ours, theirs = socket.socketpair()
    link = Link.of_socket(ours, peer="there", patience=60)
    with theirs:
        timer = threading.Timer(0.1, link.cancel)
        timer.start()
        with pytest.raises(LinkError, match="given up"):
            link.receive()
        timer.join()
        link.send(MessageKind.STOP, b"why")  # it can still be told why
        assert theirs.recv(100)[5:] == b"why"
    link.close()


def test_the_reason_of_the_other_side_is_told(linked) -> None:
    link, theirs = linked
    theirs.sendall(bytes([MessageKind.STOP]) + (4).to_bytes(4, "little") + b"full")
    with pytest.raises(LinkError, match="gave up: full"):
        link.expect(MessageKind.READY)


@pytest.mark.parametrize(
    "text",
    ["", "host", "tcp://host", "tcp://host:0x1", "tcp://host:99999", "http://host:1", "ssh://-oProxyCommand=x",
     "ssh://-l@host", "tcp://user@host:1", "tcp://host:1/path", "ssh://", "ssh://host:1?x", "ssh://user:word@host"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="address"):
        endpoint.parse(text, schemes=("tcp", "ssh"))


def test_addresses() -> None:
    both = ("tcp", "ssh")
    assert endpoint.parse("tcp://[::1]:7", schemes=both) == endpoint.Endpoint("tcp", "::1", 7)
    assert endpoint.parse("ssh://root@there", schemes=both) == endpoint.Endpoint(
        "ssh", "there", None, "root"
    )
    with pytest.raises(UsageError):
        endpoint.parse("ssh://there", schemes=("tcp",))


def test_nobody_there_is_an_error_of_the_environment() -> None:
    address = endpoint.parse("tcp://127.0.0.1:1", schemes=("tcp",))
    with pytest.raises(SystemEnvironmentError, match="cannot connect"):
        endpoint.Connection(address, patience=1, ssh="ssh", remote="x")
    there = endpoint.parse("ssh://there", schemes=("ssh",))
    with pytest.raises(SystemEnvironmentError, match="cannot run"):
        endpoint.Connection(there, patience=1, ssh="/nowhere/ssh", remote="x")
