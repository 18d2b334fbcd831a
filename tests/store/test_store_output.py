"""Output files appear complete or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store import output
from sealpoint.store.output import OutputFile, OutputPipe, open_output, write_all


@pytest.fixture(params=["unnamed", "named", "named, without links"])
def kind(request, monkeypatch):
    """File systems with O_TMPFILE, without it, and without hard links either."""
    if request.param != "unnamed":
        real = os.open

        def refuse(path, flags, *args, **kwargs):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(output.os, "open", refuse)
    if request.param == "named, without links":

        def no_link(*_, **__):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(output.os, "link", no_link)
    return request.param


def test_a_file_appears_when_it_is_committed(kind, tmp_path):
    with OutputFile(str(tmp_path / "f")) as out:
        out.write(b"one", memoryview(b"two"))
        out.write(bytearray(b"three"))
        assert not (tmp_path / "f").exists()
        assert not out.committed
        out.commit()
        assert out.committed
    assert (tmp_path / "f").read_bytes() == b"onetwothree"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["f"]


def test_without_a_commit_nothing_is_left(kind, tmp_path):
    with OutputFile(str(tmp_path / "f")) as out:
        out.write(b"x")
    with pytest.raises(ValueError):
        with OutputFile(str(tmp_path / "f")) as out:
            out.write(b"x")
            raise ValueError
    assert os.listdir(tmp_path) == []


def test_what_exists_is_kept_unless_forced(kind, tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(UsageError, match="exists"):
        OutputFile(str(tmp_path / "f"))
    with OutputFile(str(tmp_path / "f"), force=True) as out:
        out.write(b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    with OutputFile(str(tmp_path / "f"), force=True) as out:
        out.write(b"new")
        out.commit()
    assert (tmp_path / "f").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]


def test_what_appears_meanwhile_is_kept(kind, tmp_path):
    with OutputFile(str(tmp_path / "f")) as out:
        (tmp_path / "f").write_bytes(b"somebody else's")
        with pytest.raises(UsageError, match="exists"):
            out.commit()
    assert (tmp_path / "f").read_bytes() == b"somebody else's"
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_in_the_way_is_not_followed(kind, tmp_path):
    (tmp_path / "f").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="exists"):
        OutputFile(str(tmp_path / "f"))
    with OutputFile(str(tmp_path / "f"), force=True) as out:
        out.write(b"x")
        out.commit()
    assert not (tmp_path / "f").is_symlink()
    assert os.listdir(tmp_path) == ["f"]


def test_a_reader_of_the_old_file_is_not_disturbed(kind, tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    with (tmp_path / "f").open("rb") as reader:
        with OutputFile(str(tmp_path / "f"), force=True) as out:
            out.write(b"new")
            out.commit()
        assert reader.read() == b"old"


def test_a_failure_after_the_commit_takes_the_name_away(kind, tmp_path):
    with OutputFile(str(tmp_path / "f")) as out:
        out.write(b"x")
        assert out.mark_failed() is None
        out.commit()
        assert out.mark_failed() == str(tmp_path / "f.failed")
    assert os.listdir(tmp_path) == ["f.failed"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "is a directory"),
        ("d", "is a directory"),
        ("d/", "directory"),
        ("none/f", "no directory"),
    ],
)
def test_a_path_that_cannot_be_is_refused_at_once(tmp_path, path, words):
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError, match=words):
        OutputFile(f"{tmp_path}/{path}", force=True)


def test_a_directory_that_cannot_be_written_is_named():
    with pytest.raises(SystemEnvironmentError, match=r"cannot create /proc/"):
        OutputFile("/proc/f")


def test_everything_is_durable_before_the_name_appears(kind, tmp_path, monkeypatch):
    events = []
    real = os.fsync

    def fsync(fd):
        events.append((os.fstat(fd).st_mode & 0o170000, (tmp_path / "f").exists()))
        real(fd)

    monkeypatch.setattr(output.os, "fsync", fsync)
    with OutputFile(str(tmp_path / "f")) as out:
        out.write(b"x")
        out.commit()
    assert events == [(stat.S_IFREG, False), (stat.S_IFDIR, True)]


def test_an_error_while_making_it_durable_leaves_nothing(kind, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with OutputFile(str(tmp_path / "f")) as out:
        out.write(b"x")
        monkeypatch.setattr(output.os, "fsync", fail)
        with pytest.raises(SystemEnvironmentError, match="Input/output error"):
            out.commit()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def tiny(tmp_path):
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("takes root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", tmp_path], capture_output=True
    )
    if done.returncode:
        pytest.skip("cannot mount here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_said_and_leaves_nothing(kind, tiny):
    with OutputFile(str(tiny / "f")) as out:
        with pytest.raises(SystemEnvironmentError, match="no space left") as caught:
            for _ in range(100):
                out.write(bytes(100_000))
        assert "another target" in caught.value.hint
    assert os.listdir(tiny) == []


STEP = 16 << 20


def test_a_large_file_starts_its_way_to_the_disk_early_and_waits_for_a_slow_one(
    tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(output, "_sync_range", lambda fd, *request: asked.append(request))
    monkeypatch.setattr(output, "_WRITE_BACK_AHEAD", 1)
    with OutputFile(str(tmp_path / "f")) as out:
        for _ in range(40):
            out.write(bytes(1024 * 1024))
    write, wait = output._SYNC_FILE_RANGE_WRITE, output._SYNC_FILE_RANGE_WAIT_BEFORE
    assert asked == [(0, STEP, write), (STEP, STEP, write), (0, STEP, wait)]


def test_an_error_of_the_disk_that_write_back_tells_fails_the_write(tmp_path, monkeypatch):
    class Broken:
        def sync_file_range(self, *_):
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Broken())
    with OutputFile(str(tmp_path / "f")) as out:
        with pytest.raises(SystemEnvironmentError, match="cannot write"):
            for _ in range(17):
                out.write(bytes(1024 * 1024))


def test_a_pipe_gets_everything_even_if_it_is_slow():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = bytearray()

    def receive():
        while data := os.read(reader, 70_000):
            received.extend(data)

    thread = threading.Thread(target=receive)
    thread.start()
    data = os.urandom(1_000_000)
    with OutputPipe(writer) as out:
        out.write(b"", data[:10], b"", memoryview(data)[10:])
        out.commit()
        assert out.mark_failed() is None
    os.close(writer)
    thread.join()
    os.close(reader)
    assert received == data


def test_a_reader_that_leaves_is_said():
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(SystemEnvironmentError, match="reader of standard output went away"):
        OutputPipe(writer).write(b"x")
    os.close(writer)


def test_a_terminal_is_refused():
    master, slave = os.openpty()
    with pytest.raises(UsageError, match="terminal"):
        OutputPipe(slave)
    os.close(master)
    os.close(slave)


def test_the_dash_is_standard_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_output("-"), OutputPipe)
    with open_output("f") as out:
        assert isinstance(out, OutputFile)
    with open_output("./-") as out:
        assert isinstance(out, OutputFile)


def test_write_all_goes_on_after_short_writes(monkeypatch, tmp_path):
    real = os.writev
    monkeypatch.setattr(output.os, "writev", lambda fd, v: real(fd, [bytes(v[0][:3])]))
    with (tmp_path / "f").open("wb") as file:
        write_all(file.fileno(), [b"abcdefgh", b"", b"ij"], "f")
    assert Path(tmp_path / "f").read_bytes() == b"abcdefghij"
