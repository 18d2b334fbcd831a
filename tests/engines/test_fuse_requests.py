"""The FUSE request parser without a kernel: whatever a request holds, the answer is an answer or an OSError."""

from __future__ import annotations

import errno
import os
import stat
import struct
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st

from sealpoint.checkpoint.live.mount_capture import CaptureFilesystem
from sealpoint.checkpoint.opening.flat import Flat
from sealpoint.checkpoint.opening.view import View
from sealpoint.criu.fuse import MAX_IO, ROOT, Attributes, Filesystem, dispatch
from sealpoint.format.constants import Role
from sealpoint.format.manifest import Entry, Stream

LOOKUP, GETATTR, READLINK, SYMLINK, UNLINK, OPEN, READ, WRITE = 1, 3, 5, 6, 10, 14, 15, 16
STATFS, RELEASE, INIT, OPENDIR, READDIR, CREATE = 17, 18, 26, 27, 28, 35
CHUNK = 64 * 1024


class Checkpoint:
    """An open sealed file, as far as a view asks: three objects in one stream, whose bytes tell where they are."""

    def __init__(self) -> None:
        self.stream = Stream(5, CHUNK, 3 * CHUNK - 7, bytes(3))
        self.content = bytes(i * 7 % 251 for i in range(3 * CHUNK - 7))
        self.broken = False

        def entry(number: int, name: str, size: int, at: int, **attributes: str) -> Entry:
            return Entry(number, name, Role.MEMORY, size, self.stream, at, attributes or None)

        entries = [
            entry(6, "pages-1.img", 2 * CHUNK, 0),
            entry(7, "a/b/core-1.img", 1000, 2 * CHUNK),
            entry(8, "link", 0, 0, type="symlink", link="a/b"),
            entry(9, "empty", 0, 2 * CHUNK),
        ]
        self.entries = {e.name: e for e in entries}

    def read_chunk_into(
        self, stream: Stream, counter: int, out: memoryview, scratch: object
    ) -> int:
        if self.broken:
            raise RuntimeError("not an error that anybody expects")
        size = stream.plain_size(counter)
        out[:size] = self.content[counter * CHUNK : counter * CHUNK + size]
        return size

    def streams(self) -> list[Stream]:
        return [self.stream]


class Builder:
    """Takes what a dump writes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.summary = SimpleNamespace(observe=lambda name, data: None)

    def add(self, name: str, data: bytes) -> None:
        if "/" in name or not name:
            raise ValueError("bad name")
        self.objects[name] = data

    def large(self, name: str) -> Large:
        return Large(self, name)


class Large:
    def __init__(self, builder: Builder, name: str) -> None:
        self.builder, self.name, self.data = builder, name, bytearray()
        self.buffer = memoryview(bytearray(1000))

    def space(self) -> memoryview:
        return self.buffer

    def wrote(self, size: int) -> None:
        self.data += self.buffer[:size]

    def write(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> None:
        self.builder.objects[self.name] = bytes(self.data)

    def abandon(self) -> None:
        pass


def ask(fs: Filesystem, opcode: int, node: int = ROOT, body: bytes = b"") -> bytes:
    """The whole body of an answer; the request lies in memory as it does in the server."""
    view = memoryview(bytearray(body))
    answer = dispatch(fs, opcode, node, view[:40], [view[40:]])
    assert answer is not None
    return b"".join(bytes(part) for part in answer)


def entry_of(answer: bytes) -> Attributes:
    node, _, _, _, _, _ = struct.unpack_from("<QQQQII", answer)
    fields = struct.unpack_from("<QQQQQQIIIIIIIIII", answer, 40)
    assert fields[0] == node
    return Attributes(node, fields[9], fields[1])


def read(fs: Filesystem, node: int, offset: int, size: int) -> bytes:
    return ask(fs, READ, node, struct.pack("<QQIIQII", node, offset, size, 0, 0, 0, 0))


FILESYSTEMS = [
    Filesystem,
    lambda: View(Flat([Checkpoint()])),
    lambda: CaptureFilesystem(Builder()),
    lambda: CaptureFilesystem(Builder(), parent={"inventory.img": b"x" * 99}, keep=True),
]


@settings(max_examples=400, deadline=None)
@given(
    which=st.integers(0, 3),
    requests=st.lists(
        st.tuples(
            st.integers(0, 60) | st.integers(0, 2**32 - 1),
            st.integers(0, 8) | st.integers(0, 2**64 - 1),
            st.binary(max_size=200),
        ),
        max_size=12,
    ),
)
def test_garbage_raises_nothing_but_oserror(
    which: int, requests: list[tuple[int, int, bytes]]
) -> None:
    fs = FILESYSTEMS[which]()
    for opcode, node, body in requests:
        view = memoryview(bytearray(body))
        try:
            answer = dispatch(fs, opcode, node, view[:40], [view[40:]])
        except OSError as error:
            assert 0 < (error.errno or 0) < 512  # noqa: PT017 - one of two outcomes
        else:
            assert answer is None or all(isinstance(part, bytes | memoryview) for part in answer)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_well_formed_requests_with_any_numbers_raise_nothing_but_oserror(
    data: st.DataObject,
) -> None:
    fs = FILESYSTEMS[data.draw(st.integers(0, 3))]()
    number = st.integers(0, 10) | st.integers(0, 2**64 - 1)
    for _ in range(8):
        node, handle, offset = data.draw(number), data.draw(number), data.draw(number)
        size = data.draw(st.integers(0, 3000) | st.integers(0, 2**32 - 1))
        opcode = data.draw(
            st.sampled_from([READ, READDIR, WRITE, RELEASE, OPEN, GETATTR, OPENDIR, READLINK])
        )
        body = struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)
        if opcode == WRITE:
            body += bytes(min(size, 5000))
        try:
            answer = ask(fs, opcode, node, body)
        except OSError:
            continue
        if opcode == READ:
            assert len(answer) <= min(size, MAX_IO)


@settings(max_examples=200, deadline=None)
@given(offset=st.integers(0, 2 * CHUNK + 10), size=st.integers(0, MAX_IO))
def test_reads_give_the_bytes_of_the_object_and_no_neighbours(offset: int, size: int) -> None:
    checkpoint = Checkpoint()
    fs = View(Flat([checkpoint]))
    node = entry_of(ask(fs, LOOKUP, ROOT, b"pages-1.img\0")).node
    assert read(fs, node, offset, size) == checkpoint.content[: 2 * CHUNK][offset : offset + size]
    directory = entry_of(ask(fs, LOOKUP, ROOT, b"a\0")).node
    inner = entry_of(ask(fs, LOOKUP, directory, b"b\0")).node
    small = entry_of(ask(fs, LOOKUP, inner, b"core-1.img\0"))
    assert small.size == 1000
    wanted = checkpoint.content[2 * CHUNK :][:1000]
    assert read(fs, small.node, offset % 1200, size) == wanted[offset % 1200 :][:size]


def test_whatever_goes_wrong_in_a_read_is_kept_for_the_gate() -> None:
    checkpoint = Checkpoint()
    checkpoint.broken = True
    fs = View(Flat([checkpoint]))
    node = entry_of(ask(fs, LOOKUP, ROOT, b"pages-1.img\0")).node
    with pytest.raises(OSError) as caught:
        read(fs, node, 0, 10)
    assert caught.value.errno == errno.EIO
    assert isinstance(fs.error, RuntimeError)
    checkpoint.broken = False
    assert read(fs, node, 0, 10) == checkpoint.content[:10]
    assert fs.error is not None


@settings(max_examples=100, deadline=None)
@given(size=st.integers(24, 5000), step=st.integers(0, 5))
def test_a_directory_is_listed_whole_whatever_the_size_of_the_pages(size: int, step: int) -> None:
    fs = View(Flat([Checkpoint()]))
    names: list[str] = []
    offset = 0
    while True:
        answer = ask(fs, READDIR, ROOT, struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0))
        assert len(answer) <= size
        if not answer:
            break
        at = 0
        while at < len(answer):
            _, offset, length, kind = struct.unpack_from("<QQII", answer, at)
            names.append(answer[at + 24 : at + 24 + length].decode())
            at += -(-(24 + length) // 8) * 8
            assert kind in (stat.S_IFDIR >> 12, stat.S_IFREG >> 12, stat.S_IFLNK >> 12)
    wanted = [".", "..", "pages-1.img", "a", "link", "empty"]
    assert names == wanted[: len(names)]
    assert names == wanted or size < 48


def create(fs: Filesystem, name: str) -> int:
    answer = ask(
        fs, CREATE, ROOT, struct.pack("<IIII", os.O_WRONLY, 0o600, 0, 0) + name.encode() + b"\0"
    )
    return entry_of(answer).node


def write(fs: Filesystem, node: int, offset: int, data: bytes) -> None:
    """As the server does: the kernel's bytes land in the space that the file system offered."""
    space = fs.space()
    space[: len(data)] = data[: len(space)]
    head = memoryview(struct.pack("<QQIIQII", node, offset, len(data), 0, 0, 0, 0))
    rest = memoryview(data[len(space) :])
    dispatch(fs, WRITE, node, head, [space[: len(data)], rest])


@settings(max_examples=150, deadline=None)
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 2), st.binary(max_size=50) | st.integers(0, 9000)), max_size=25
    )
)
def test_images_that_are_written_in_turns_arrive_whole(writes: list[tuple[int, object]]) -> None:
    builder = Builder()
    fs = CaptureFilesystem(builder)
    names = ["pages-1.img", "core-1.img", "pages-2.img"]
    nodes = [create(fs, name) for name in names]
    wanted = [b"", b"", b""]
    for which, given_data in writes:
        data = given_data if isinstance(given_data, bytes) else os.urandom(given_data)
        write(fs, nodes[which], len(wanted[which]), data)
        wanted[which] += data
    for node in nodes:
        ask(fs, RELEASE, node, struct.pack("<QII", node, 0, 0))
    fs.wait_closed()
    assert [builder.objects.get(name, b"") for name in names] == wanted


def test_what_a_sealer_cannot_undo_fails_the_dump() -> None:
    for offset in (0, 2, 100):
        fs = CaptureFilesystem(Builder())
        node = create(fs, "core-1.img")
        write(fs, node, 0, b"abc")
        with pytest.raises(OSError):
            write(fs, node, offset, b"x")
        with pytest.raises(Exception, match="out of order"):
            fs.wait_closed()
    fs = CaptureFilesystem(Builder())
    create(fs, "a.img")
    with pytest.raises(OSError):
        create(fs, "a.img")
    assert fs.error is not None


def test_a_kernel_that_is_too_old_is_told_so() -> None:
    fs = Filesystem()
    with pytest.raises(OSError):
        ask(fs, INIT, 0, struct.pack("<IIII", 7, 8, 0, 0))
    answer = ask(fs, INIT, 0, struct.pack("<IIII", 7, 38, 131072, 0xFFFFFFFF))
    assert struct.unpack_from("<II", answer) == (7, 31)
    assert len(answer) == 64
