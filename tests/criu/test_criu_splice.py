"""Pages lent to a pipe arrive as they were, whatever the sizes."""

from __future__ import annotations

import os
import threading

import pytest

from sealpoint.criu.splice import PageRing

MIB = 1024 * 1024


@pytest.mark.parametrize(
    "sizes", [[0], [1], [2 * MIB, 0], [2 * MIB] * 9 + [5000], [4096, 2 * MIB, 0]]
)
def test_what_is_sent_arrives(sizes: list[int]) -> None:
    reader, writer = os.pipe()
    ring = PageRing(writer, 2 * MIB, 4)
    received = bytearray()

    def read() -> None:
        while piece := os.read(reader, MIB):
            received.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    expected = bytearray()
    for number, size in enumerate(sizes):
        buffer = ring.buffer()
        data = bytes([number + 1]) * size
        buffer[:size] = data
        expected += data
        ring.send(buffer[:size])
    ring.drain()
    os.close(writer)
    thread.join(30)
    os.close(reader)
    assert received == expected


def test_a_reader_that_left_is_an_error_and_ends_the_wait() -> None:
    reader, writer = os.pipe()
    ring = PageRing(writer, 2 * MIB, 4)
    buffer = ring.buffer()
    ring.send(buffer[: 16 * 1024])
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        ring.send(ring.buffer()[:4096])
    ring.drain()
    os.close(writer)
