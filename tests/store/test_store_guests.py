"""Whoever connects: strangers keep nobody out, each has one deadline, and only who was admitted counts."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sealpoint.errors import PolicyError, SystemEnvironmentError
from sealpoint.store import guests
from sealpoint.store.guests import Guest, Guests

PASS = b"friend"


def serve(guest: Guest, admit: Callable[[], bool]) -> None:
    """Admits who says the word, and answers."""
    said = b""
    while len(said) < len(PASS):
        piece = guest.connection.recv(1)
        if not piece:
            raise SystemEnvironmentError("it went away")
        said += piece
    if said != PASS:
        raise PolicyError("a stranger")
    if admit():
        guest.connection.sendall(b"come in")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with guests.listen("", 0) as made:
        yield made


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2])


def start(
    listener: socket.socket, patience: float = 60.0, *, single: bool = True
) -> tuple[threading.Thread, list[Guest], list[str]]:
    said: list[str] = []
    found: list[Guest] = []
    crowd = Guests(listener, serve, patience=patience, say=said.append, single=single)
    thread = threading.Thread(target=lambda: found.extend(crowd.run(60)), daemon=True)
    thread.start()
    return thread, found, said


def wait_for(said: list[str]) -> None:
    """Until something was said: the end of a test comes otherwise."""
    while not said:
        time.sleep(0.002)


def test_the_address_is_loopback_unless_one_is_named(listener: socket.socket) -> None:
    assert listener.getsockname()[0] == "127.0.0.1"


def test_many_who_say_nothing_keep_nobody_out(listener: socket.socket) -> None:
    thread, found, _ = start(listener)
    idle = [connect(listener) for _ in range(200)]
    with connect(listener) as friend:
        friend.sendall(PASS)
        assert friend.recv(100) == b"come in"
    thread.join(60)
    assert len(found) == 1
    for each in idle:
        each.close()


@pytest.mark.parametrize("drip", [b"", b"f"], ids=["idle", "slow"])
def test_who_proves_nothing_in_time_has_to_go(drip: bytes, listener: socket.socket) -> None:
    thread, found, said = start(listener, patience=0.2)
    with connect(listener) as stranger:
        stranger.sendall(drip)
        stranger.settimeout(15)
        assert stranger.recv(1) == b""  # it was ended
    wait_for(said)
    with connect(listener) as friend:
        friend.sendall(PASS)
        assert friend.recv(100) == b"come in"
    thread.join(60)
    assert len(found) == 1
    assert "went away" in said[0]


def test_a_stranger_does_not_use_up_the_only_admission_and_is_told_of(
    listener: socket.socket,
) -> None:
    thread, found, said = start(listener)
    with connect(listener) as stranger:
        stranger.sendall(b"foeman")
        assert stranger.recv(1) == b""
    wait_for(said)
    with connect(listener) as friend:
        friend.sendall(PASS)
        assert friend.recv(100) == b"come in"
    thread.join(60)
    assert len(found) == 1
    assert "a stranger" in said[0]


def test_refusals_do_not_fill_a_log(listener: socket.socket) -> None:
    thread, _, said = start(listener)
    for _ in range(100):
        with connect(listener) as stranger:
            stranger.sendall(b"foeman")
            assert stranger.recv(1) == b""
    with connect(listener) as friend:
        friend.sendall(PASS)
        friend.recv(100)
    thread.join(60)
    assert len(said) <= 32


def test_several_are_served_at_once_and_it_ends_when_none_is_left(listener: socket.socket) -> None:
    both = threading.Barrier(2)

    def together(guest: Guest, admit: Callable[[], bool]) -> None:
        if not guest.connection.recv(1) or not admit():
            return
        both.wait(60)  # neither could get here if they came one after the other

    found: list[Guest] = []
    crowd = Guests(listener, together, patience=60, say=print, single=False)
    thread = threading.Thread(target=lambda: found.extend(crowd.run(60)), daemon=True)
    thread.start()
    with connect(listener), connect(listener) as first, connect(listener) as second:  # one is idle
        first.sendall(b"1")
        second.sendall(b"2")
        thread.join(60)
    assert [g.error for g in found] == [None, None]


def test_nobody_comes(listener: socket.socket) -> None:
    with pytest.raises(SystemEnvironmentError, match="no trusted sender connected"):
        Guests(listener, serve, patience=1, say=print, single=True).run(0.1)
