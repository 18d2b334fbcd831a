"""The pipeline: order, errors that reach whoever submits, and no thread that hangs."""

from __future__ import annotations

import os
import threading
import warnings

import pytest

from sealpoint.checkpoint.sealing.pipeline import Pipeline
from sealpoint.errors import SealpointError, SystemEnvironmentError
from sealpoint.format.constants import CHUNK_SIZE, Role, Suite
from sealpoint.format.derive import RootKeys
from sealpoint.format.manifest import Entry, Manifest
from sealpoint.format.writer import SealedWriter
from tests.forge import SIGNER, Buffer, Forge, read_all, toy_wrap

pytestmark = pytest.mark.timeout(30)


class Full(Buffer):
    """An output that fails after some writes."""

    def __init__(self, after, error):
        super().__init__()
        self.left, self.error = after, error

    def write(self, *buffers):
        if self.left <= 0:
            raise self.error
        self.left -= 1
        super().write(*buffers)


def new_writer(out):
    roots = RootKeys.generate()
    return SealedWriter(
        out, suite=Suite.AES_256_GCM, wrap=toy_wrap, signing=SIGNER.signing, roots=roots
    ), roots


def alive():
    return [t for t in threading.enumerate() if t.name.startswith(("seal-", "write"))]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not alive()


def test_chunks_of_several_threads_make_a_file_that_reads_back():
    out = Buffer()
    writer, roots = new_writer(out)
    pipeline = Pipeline(writer, workers=3)
    streams = [writer.stream(Role.MEMORY, CHUNK_SIZE) for _ in range(4)]
    data = [bytes([n]) * (CHUNK_SIZE + 1000 * n) for n in range(4)]

    def submit(n):
        view = memoryview(data[n])
        while True:
            part = view[:CHUNK_SIZE]
            buffer = pipeline.buffer()
            buffer[: len(part)] = part
            last = len(part) < CHUNK_SIZE
            pipeline.submit(streams[n], buffer, len(part), last=last, policy="auto")
            view = view[CHUNK_SIZE:]
            if last:
                return

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    pipeline.close()
    metadata, memory = Manifest(Role.METADATA), Manifest(Role.MEMORY)
    for n, s in enumerate(streams):
        entry = s.entry()
        memory.streams.append(entry)
        memory.entries.append(
            Entry(writer.number(), f"pages-{n}.img", Role.MEMORY, len(data[n]), entry)
        )
    metadata.memory = {e.number: e.size for e in memory.entries}
    writer.finish(metadata, memory, tool="t")
    assert read_all(bytes(out.data), roots) == {f"pages-{n}.img": d for n, d in enumerate(data)}
    assert pipeline.plain_bytes == sum(map(len, data))
    assert pipeline.zero_bytes >= len(data[0])
    assert len(Forge(bytes(out.data)).frames) == 4 * 2 + 2


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_full_disk_reaches_the_submitter_and_everybody_who_waits(after, workers):
    error = SystemEnvironmentError("no space left")
    writer, _ = new_writer(Full(after, error))
    pipeline = Pipeline(writer, workers=workers)
    raised = []

    def submit():
        try:
            stream = writer.stream(Role.MEMORY, CHUNK_SIZE)
            while True:
                buffer = pipeline.buffer()
                pipeline.submit(stream, buffer, CHUNK_SIZE, last=False, policy="none")
        except SealpointError as found:
            raised.append(found)

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert raised == [error] * 6
    with pytest.raises(SystemEnvironmentError):
        pipeline.close()


def test_an_unexpected_error_is_wrapped_and_what_follows_is_refused():
    writer, _ = new_writer(Full(1, ZeroDivisionError("a bug")))
    pipeline = Pipeline(writer, workers=1)
    stream = writer.stream(Role.MEMORY, CHUNK_SIZE)
    pipeline.submit_bytes(stream, b"x", last=True, policy="none")
    with pytest.raises(SealpointError, match="a bug"):
        pipeline.close()
    with pytest.raises(SealpointError):
        pipeline.buffer()


def test_an_error_in_a_worker_reaches_the_submitter():
    writer, _ = new_writer(Buffer())
    pipeline = Pipeline(writer, workers=2)
    stream = writer.stream(Role.MEMORY, CHUNK_SIZE)
    pipeline.submit_bytes(stream, b"x", last=True, policy="no such policy")
    with pytest.raises(SealpointError, match="unknown compression"):
        pipeline.close()


def test_abort_wakes_whoever_waits_for_a_buffer():
    writer, _ = new_writer(Buffer())
    pipeline = Pipeline(writer, workers=1)
    raised = []

    def take_all():
        try:
            while True:
                pipeline.buffer()
        except SealpointError as error:
            raised.append(error)

    threads = [threading.Thread(target=take_all) for _ in range(3)]
    for t in threads:
        t.start()
    reason = SealpointError("CRIU failed")
    pipeline.abort(reason)
    for t in threads:
        t.join(20)
    assert raised == [reason] * 3


def test_wrong_sizes_neither_lose_buffers_nor_stop_the_pipeline():
    writer, _ = new_writer(Buffer())
    pipeline = Pipeline(writer, workers=1)
    stream = writer.stream(Role.MEMORY, CHUNK_SIZE)
    for _ in range(20):
        buffer = pipeline.buffer()
        with pytest.raises(ValueError):
            pipeline.submit(stream, buffer, 5, last=False, policy="none")
        pipeline.give_back(buffer)
    pipeline.submit(stream, pipeline.buffer(), 5, last=True, policy="none")
    pipeline.close()
    assert stream.complete


def test_a_closed_pipeline_refuses_work_instead_of_waiting_for_ever():
    writer, _ = new_writer(Buffer())
    pipeline = Pipeline(writer, workers=1)
    pipeline.close()
    pipeline.close()
    stream = writer.stream(Role.MEMORY, CHUNK_SIZE)
    with pytest.raises(SealpointError):
        pipeline.buffer()
    with pytest.raises(SealpointError):
        pipeline.submit_bytes(stream, b"", last=True, policy="none")


def test_a_forked_child_is_refused_instead_of_waiting_for_threads_that_it_does_not_have():
    writer, _ = new_writer(Buffer())
    pipeline = Pipeline(writer, workers=1)
    stream = writer.stream(Role.MEMORY, CHUNK_SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        refused = 0
        for attempt in (
            pipeline.buffer,
            lambda: pipeline.submit_bytes(stream, b"", last=True, policy="none"),
        ):
            try:
                attempt()
            except SealpointError:
                refused += 1
        os._exit(40 + refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    pipeline.submit_bytes(stream, b"", last=True, policy="none")
    pipeline.close()
