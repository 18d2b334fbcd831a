"""What a slow link has not taken yet waits in memory; whoever writes waits at the limit alone, while the link lives."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from sealpoint.store.limits import available_memory
from sealpoint.store.link import LinkError
from sealpoint.store.queued import HeldOutput


class Slow:
    """An output that takes nothing until it may. taken: what it got; ends: how often it was completed."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.taken = bytearray()
        self.ends = 0
        self.error: Exception | None = None
        self._cancelled = threading.Event()
        self.committed = False

    def write(self, *buffers: bytes) -> None:
        while not self.may.wait(0.01):
            if self._cancelled.is_set():
                raise LinkError("cancelled")
        if self.error:
            raise self.error
        for each in buffers:
            self.taken += each

    def sync(self) -> None: ...

    def commit(self) -> None:
        self.ends += 1

    def cancel(self) -> None:
        self._cancelled.set()

    def mark_failed(self) -> None: ...


def started(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_a_whole_file_is_written_before_the_link_takes_any_of_it() -> None:
    slow = Slow()
    held = HeldOutput(slow, 10_000_000)
    data = os.urandom(3_000_000)
    buffer = bytearray(data)
    view = memoryview(buffer)
    held.write(view[:1], view[1:1_000_000])
    held.write(view[1_000_000:])
    buffer[:] = bytes(len(buffer))  # whoever writes uses its buffers again
    held.sync()
    held.commit()
    assert held.committed
    assert not slow.taken
    slow.may.set()
    held.drain()
    held.close()
    assert slow.taken == data
    assert slow.ends == 1


def test_at_the_limit_the_link_is_waited_for() -> None:
    slow = Slow()
    held = HeldOutput(slow, 1000)
    held.write(bytes(600))
    thread = started(lambda: held.write(bytes(600)))
    thread.join(0.1)
    assert thread.is_alive()
    slow.may.set()
    thread.join(20)
    assert not thread.is_alive()
    held.commit()
    held.drain()
    held.close()
    assert len(slow.taken) == 1200


def test_what_is_larger_than_the_limit_passes_alone() -> None:
    slow = Slow()
    slow.may.set()
    held = HeldOutput(slow, 0)
    held.write(bytes(5000))
    held.write(bytes(5000))
    held.commit()
    held.drain()
    held.close()
    assert len(slow.taken) == 10_000


def test_an_error_of_the_link_comes_to_whoever_writes_and_whoever_waits() -> None:
    slow = Slow()
    slow.error = LinkError("the link was cut")
    slow.may.set()
    held = HeldOutput(slow, 1000)
    held.write(bytes(10))
    with pytest.raises(LinkError, match="cut"):
        held.drain()
    for call in (lambda: held.write(b"more"), held.commit, held.drain):
        with pytest.raises(LinkError, match="cut"):
            call()
    held.close()
    assert not held.committed
    assert slow.ends == 0


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_giving_up_ends_every_wait_and_nothing_counts_as_complete(how: str) -> None:
    slow = Slow()
    held = HeldOutput(slow, 1000)
    held.write(bytes(600))
    errors: list[BaseException] = []

    def write() -> None:
        try:
            held.write(bytes(600))
        except LinkError as error:
            errors.append(error)

    thread = started(write)
    getattr(held, how)()
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1
    held.close()
    assert slow.ends == 0
    assert not slow.taken


def test_the_end_that_was_said_is_not_sent_after_it_was_given_up() -> None:
    slow = Slow()
    held = HeldOutput(slow, 1000)
    held.write(bytes(10))
    held.commit()
    held.close()
    assert slow.ends == 0
    with pytest.raises(LinkError):
        held.drain()


def test_the_limit_is_part_of_the_memory_that_is_free() -> None:
    assert available_memory() > 1 << 20
