"""A file in a store is read by few requests, ahead of whoever reads on, and with bounded memory."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.store import ranges
from sealpoint.store.location import open_remote
from sealpoint.store.ranges import BLOCK
from tests.store import memory_store
from tests.store.memory_store import Stored

URL = "mem://here/file"


@pytest.fixture
def world(monkeypatch):
    return memory_store.install(monkeypatch)


def put(world, size):
    data = os.urandom(1 << 16) * (size // (1 << 16) + 1)
    data = data[:size]
    world.files[URL] = Stored(data[:100], data[100:], {})
    return data


def read(source, offset, size):
    out = memoryview(bytearray(size))
    source.read_into(out, offset)
    return bytes(out)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_every_range_of_every_size_is_right(world, size):
    data = put(world, size)
    source = open_remote(URL)
    for offset, length in [(0, size), (size - 1, 1), (0, 1), (size // 2, size - size // 2), (3, 0)]:
        assert read(source, offset, length) == data[offset : offset + length]
    source.close()
    assert world.open == 0


def test_readers_in_many_threads_get_their_own_bytes(world):
    data = put(world, 40 * BLOCK + 11)
    source = open_remote(URL)
    chance = random.Random(7)
    jobs = [
        (offset, min(chance.choice([10, 70_000, BLOCK + 5, 3 * BLOCK]), len(data) - offset))
        for offset in (chance.randrange(len(data)) for _ in range(400))
    ]
    with ThreadPoolExecutor(8) as pool:
        for (offset, size), got in zip(
            jobs, pool.map(lambda j: read(source, *j), jobs), strict=True
        ):
            assert got == data[offset : offset + size]
    source.close()


def test_whoever_reads_on_gets_what_follows_ahead_by_several_requests_at_a_time(world):
    data = put(world, 200 * BLOCK)
    source = open_remote(URL)
    now, together = 0, threading.Event()

    def meet(*_):
        nonlocal now
        with world.lock:
            now += 1
            if now > 1:
                together.set()
        # A request waits for another one: without any in parallel this would be an error below.
        if len(world.reads) > 20:
            together.wait(60)
        with world.lock:
            now -= 1

    world.before_read = meet
    step = 100_000
    for offset in range(0, len(data), step):
        size = min(step, len(data) - offset)
        assert read(source, offset, size) == data[offset : offset + size]
    source.close()
    assert together.is_set()
    assert sum(size for _, size in world.reads) == len(data), "nothing is fetched twice"
    assert len(world.reads) < 60


def test_single_reads_fetch_nothing_ahead(world):
    put(world, 400 * BLOCK)
    source = open_remote(URL)
    for number in range(0, 390, 13):
        read(source, number * BLOCK + 5, 1000)
    source.close()
    assert len(world.reads) == 30
    assert {size for _, size in world.reads} == {BLOCK}


def test_the_end_comes_by_one_request(world):
    data = put(world, 400 * BLOCK + 9)
    source = open_remote(URL)
    for size in (192, 300_000, 10, 1):
        assert read(source, len(data) - size, size) == data[-size:]
    source.close()
    assert len(world.reads) == 1


def test_no_more_is_held_than_the_limit(world):
    data = put(world, 3 * ranges._HELD * BLOCK)
    source = open_remote(URL)
    for offset in range(0, len(data), BLOCK):
        read(source, offset, BLOCK)
        assert len(source._blocks) <= ranges._HELD + ranges._AHEAD
    source.close()
    assert not source._blocks


def test_what_went_wrong_is_told_and_the_next_read_asks_again(world):
    data = put(world, 30 * BLOCK)
    source = open_remote(URL)
    broken = threading.Event()
    broken.set()

    def fail(*_):
        if broken.is_set():
            raise SystemEnvironmentError("the connection was cut")

    world.before_read = fail
    for _ in range(2):
        with pytest.raises(SystemEnvironmentError, match="cut"):
            read(source, 0, 2 * BLOCK)
    broken.clear()
    assert read(source, 0, 2 * BLOCK) == data[: 2 * BLOCK]
    source.close()


def test_a_file_that_changes_or_is_shorter_than_it_said_is_an_error(world):
    put(world, 30 * BLOCK)
    source = open_remote(URL)
    read(source, 0, 10)
    world.files[URL].body = world.files[URL].body[:-1]
    with pytest.raises(FileError, match="changed"):
        read(source, 10 * BLOCK, 10)
    source.close()
    source = open_remote(URL)
    source.file.size += 5
    with pytest.raises(FileError, match="shorter"):
        read(source, source.size - 10, 10)
    source.close()


@pytest.mark.parametrize(("offset", "size"), [(-1, 5), (2 * BLOCK, 1), (BLOCK, BLOCK + 1)])
def test_beyond_the_end_nothing_is_asked_for(world, offset, size):
    put(world, 2 * BLOCK)
    source = open_remote(URL)
    with pytest.raises(FileError, match="ends before"):
        read(source, offset, size)
    source.close()
    assert world.reads == []


def test_a_child_process_reads_anew(world):
    data = put(world, 60 * BLOCK)
    source = open_remote(URL)
    for number in range(10):
        read(source, number * BLOCK, BLOCK)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(read(source, 0, 60 * BLOCK) != data)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert read(source, 5, 60 * BLOCK - 5) == data[5:]
    source.close()
