"""Sealed files to read: paths, pipes that are held first."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store import source
from sealpoint.store.source import hold, open_input

DATA = os.urandom(300_000)


def feed(fd: int, data: bytes) -> threading.Thread:
    def write():
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.close(fd)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.fixture
def pipe():
    """The read end of a pipe through which DATA comes."""
    reader, writer = os.pipe()
    thread = feed(writer, DATA)
    yield reader
    thread.join()
    os.close(reader)


def read(fd: int) -> bytes:
    data = os.pread(fd, 1_000_000, 0)
    os.close(fd)
    return data


def test_a_path_is_opened(tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    assert read(open_input(str(tmp_path / "f")).fd) == DATA


def test_a_named_pipe_is_held(tmp_path):
    """Whoever comes first, the writer or the reader: every byte arrives."""
    os.mkfifo(tmp_path / "f")
    for _ in range(300):
        thread = threading.Thread(target=lambda: (tmp_path / "f").write_bytes(DATA))
        thread.start()
        assert read(open_input(str(tmp_path / "f")).fd) == DATA
        thread.join()


def test_of_a_writer_who_writes_nothing_nothing_is_held(tmp_path):
    os.mkfifo(tmp_path / "f")
    thread = threading.Thread(target=lambda: (tmp_path / "f").write_bytes(b""))
    thread.start()
    assert read(open_input(str(tmp_path / "f")).fd) == b""
    thread.join()


def test_what_is_held_in_memory_cannot_be_written_any_more(pipe):
    seen = []
    fd = hold(pipe, None, seen.append)
    assert sum(seen) == len(DATA)
    for call in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 10**6),
        lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
    ):
        with pytest.raises(PermissionError):
            call()
    assert read(fd) == DATA


@pytest.mark.parametrize("unnamed", [True, False])
def test_what_is_held_in_a_directory_has_no_name(pipe, tmp_path, monkeypatch, unnamed):
    if not unnamed:
        real = os.open

        def refuse(path, flags, *args, **kwargs):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(source.os, "open", refuse)
    fd = hold(pipe, str(tmp_path))
    assert os.listdir(tmp_path) == []
    assert os.fstat(fd).st_nlink == 0
    assert read(fd) == DATA


def test_a_spool_directory_that_is_not_there_is_named(pipe, tmp_path):
    with pytest.raises(SystemEnvironmentError, match="none: No such file"):
        hold(pipe, str(tmp_path / "none"))
    os.read(pipe, 10)
    while os.read(pipe, 100_000):
        pass


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("none", UsageError, "does not exist"),
        ("", UsageError, "does not exist"),
        (".", UsageError, "is not a file"),
        ("/dev/null", UsageError, "is not a file"),
        ("/proc/self/mem/x", SystemEnvironmentError, "Not a directory"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, path, error, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        open_input(path)


def test_a_read_error_is_said():
    # Reading a directory fails; a socket or a disk can fail as well.
    fd = os.open("/", os.O_RDONLY)
    with pytest.raises(SystemEnvironmentError, match="cannot read"):
        hold(fd, None)
    os.close(fd)


def test_no_descriptor_is_lost_after_an_error():
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open("/", os.O_RDONLY)
    for _ in range(5):
        with pytest.raises(SystemEnvironmentError):
            hold(fd, None)
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_standard_input_that_is_a_file_is_read_in_place(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(DATA)
    saved = os.dup(0)
    try:
        with (tmp_path / "f").open("rb") as file:
            file.read(1000)  # where it stands does not matter
            os.dup2(file.fileno(), 0)
        fd = open_input("-").fd
        assert os.fstat(fd).st_ino == (tmp_path / "f").stat().st_ino
        assert read(fd) == DATA
    finally:
        os.dup2(saved, 0)
        os.close(saved)
