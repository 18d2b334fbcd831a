"""What tests of uploads into any store need: a spool in memory, heads, and faults that several of them inject."""

from __future__ import annotations

import os

from sealpoint.format.preamble import Preamble, Suite

MIB = 1024 * 1024


class Spool:
    """In memory; `reads` says what was asked for."""

    def __init__(self, data):
        self.data = data
        self.reads = []

    def read(self, offset, size):
        assert offset + size <= len(self.data)
        self.reads.append(offset)
        return memoryview(self.data)[offset : offset + size]


def new_head(old=None):
    preamble = old[:64] if old else Preamble.create(Suite(1), 8192).encode()
    return preamble + os.urandom(2 * 8192)


def content(store):
    file = store.open()
    try:
        out = memoryview(bytearray(file.size))
        file.read_into(out, 0)
        return bytes(out)
    finally:
        file.close()


def assert_cut_ranges_go_on(store, proxy, is_range, body):
    """Two answers to ranges of the body are cut after 100,000 bytes each: the rest is asked for, and nothing twice."""
    file = store.open()
    asked = []

    def half(exchange):
        if not is_range(exchange):
            return False
        asked.append(exchange.headers["Range"])
        if len(asked) > 2:
            return False
        exchange.start(exchange.status, exchange.answer)
        exchange.handler.wfile.write(exchange.content[:100_000])
        exchange.handler.wfile.flush()
        return exchange.cut()

    proxy.after = half
    out = memoryview(bytearray(len(body)))
    file.read_into(out, file.head_size)
    assert bytes(out) == body
    assert asked == [f"bytes={start}-299999" for start in (0, 100_000, 200_000)]
