"""Where the output of a command goes: a table of everything that a name can stand for."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from sealpoint.errors import SystemEnvironmentError, UsageError
from sealpoint.store.output import OutputFile, OutputPipe, destination, open_output

DATA = b"sealed" * 30_000
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes device nodes")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path: str, **more) -> None:
    with open_output(path, **more) as out:
        out.write(DATA)
        out.commit()


def collect(read) -> tuple[threading.Thread, bytearray]:
    """Reads in a thread until there is no more."""
    data = bytearray()

    def run():
        while piece := read(1 << 16):
            data.extend(piece)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, data


def test_a_new_name_and_an_old_file_are_files(tmp_path):
    assert not destination("f").streams
    write("f")
    with pytest.raises(UsageError, match="f exists"):
        write("f")
    write("f", force=True)
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("link", ["file", "./file", "d/../file", "other", "absolute"])
def test_a_link_leads_to_the_file_that_is_replaced(tmp_path, link):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "other").symlink_to("file")
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to(str(tmp_path / "file") if link == "absolute" else link)
    with pytest.raises(UsageError, match="exists"):
        write("l")
    write("l", force=True)
    assert (tmp_path / "l").is_symlink()
    assert (tmp_path / "file").read_bytes() == DATA
    assert sorted(os.listdir(tmp_path)) == ["d", "file", "l", "other"]


@pytest.mark.parametrize("target", ["nothing", "l", "none/f"])
def test_a_link_to_nothing_is_refused_and_stays(tmp_path, target):
    (tmp_path / "l").symlink_to(target)
    with pytest.raises(UsageError, match="l is a link to nothing"):
        write("l", force=True)
    assert os.readlink("l") == target
    assert os.listdir(tmp_path) == ["l"]


@pytest.mark.parametrize(
    "by", ["itself", "a link", "/proc/self/fd", "/dev/fd", "a link to /dev/fd"]
)
def test_a_named_pipe_gets_what_is_written_and_then_its_end(tmp_path, by):
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    writer = -1
    name = "fifo"
    if by == "a link":
        os.symlink("fifo", "l")
        name = "l"
    elif by != "itself":
        writer = os.open("fifo", os.O_WRONLY)
        name = f"/proc/self/fd/{writer}" if by == "/proc/self/fd" else f"/dev/fd/{writer}"
        if "link" in by:
            os.symlink(name, "l")
            name = "l"
    assert destination(name).streams
    with open_output(name) as out:
        assert isinstance(out, OutputPipe)
        thread, data = collect(lambda size: os.read(reader, size))
        out.write(DATA)
        out.commit()
        thread.join(30)  # the reader has seen the end, although the output is open still
        assert not thread.is_alive()
    assert bytes(data) == DATA
    os.close(reader)
    if writer >= 0:
        os.close(writer)
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)


@pytest.mark.parametrize("by", ["its name", "a descriptor"])
def test_a_socket_gets_what_is_written_and_then_its_end(tmp_path, by):
    deep = tmp_path / ("d" * 120)  # a path that no sockaddr holds
    deep.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(deep, os.O_PATH)
        server.bind(f"/proc/self/fd/{place}/s")
        os.close(place)
        server.listen()
        if by == "its name":
            name, ours = str(deep / "s"), None
        else:
            ours = socket.socket(socket.AF_UNIX)
            place = os.open(deep, os.O_PATH)
            ours.connect(f"/proc/self/fd/{place}/s")
            os.close(place)
            name = f"/dev/fd/{ours.fileno()}"
        with open_output(name) as out:
            peer, _ = server.accept()
            thread, data = collect(peer.recv)
            out.write(DATA)
            out.commit()
            thread.join(30)
            assert not thread.is_alive()
        if ours is not None:
            ours.close()
        peer.close()
    assert bytes(data) == DATA
    assert stat.S_ISSOCK(os.stat(deep / "s").st_mode)


def test_a_socket_at_which_nobody_listens_is_said():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
    with pytest.raises(SystemEnvironmentError, match="cannot open s: Connection refused"):
        write("s", force=True)
    assert stat.S_ISSOCK(os.stat("s").st_mode)


def test_a_file_behind_a_descriptor_is_written_into_where_it_is(tmp_path):
    (tmp_path / "f").write_bytes(b"before:")
    fd = os.open("f", os.O_WRONLY | os.O_APPEND)
    write(f"/dev/fd/{fd}")
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"before:" + DATA


def test_dev_null_is_written_into_and_stays():
    before = os.stat("/dev/null")
    for name in ("/dev/null", "/dev/../dev/null"):
        assert destination(name).discards
        write(name)
        write(name, force=True)
    os.symlink("/dev/null", "l")
    write("l", force=True)
    after = os.stat("/dev/null")
    assert (before.st_ino, before.st_rdev, before.st_mode) == (
        after.st_ino,
        after.st_rdev,
        after.st_mode,
    )
    assert os.path.islink("l")


def test_a_device_that_takes_nothing_is_an_error():
    with pytest.raises(SystemEnvironmentError, match="no space left for /dev/full"):
        write("/dev/full")


@root
@pytest.mark.parametrize("by", ["itself", "a link", "a descriptor"])
def test_a_block_device_is_refused_and_stays(tmp_path, by):
    os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))  # a loop device of nobody
    name, writer = "disk", -1
    if by == "a link":
        os.symlink("disk", "l")
        name = "l"
    if by == "a descriptor":
        try:
            writer = os.open("disk", os.O_WRONLY)
        except OSError as error:
            pytest.skip(f"no loop device to be opened here: {error.strerror}")
        name = f"/dev/fd/{writer}"
    with pytest.raises(UsageError, match="is a block device"):
        write(name, force=True)
    assert stat.S_ISBLK(os.stat("disk").st_mode)
    if writer >= 0:
        os.close(writer)


def test_a_terminal_is_refused_by_its_name():
    master, slave = os.openpty()
    for name in (os.ttyname(slave), f"/dev/fd/{slave}"):
        with pytest.raises(UsageError, match="would go to a terminal"):
            write(name)
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/dev/fd/999", "descriptor 999 is not open"),
        ("/proc/self/fd/999", "descriptor 999 is not open"),
        ("/proc/thread-self/fd/999", "descriptor 999 is not open"),
        ("/dev/stderr", "messages go to"),
        ("/dev/fd/2", "messages go to"),
    ],
)
def test_descriptors_that_will_not_do_are_refused(name, words):
    with pytest.raises(UsageError, match=words):
        destination(name)


def test_a_descriptor_that_is_open_for_reading_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    fd = os.open("f", os.O_RDONLY)
    with pytest.raises(UsageError, match="for reading only"):
        destination(f"/dev/fd/{fd}")
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_what_takes_the_name_meanwhile_is_not_replaced(tmp_path, kind):
    if kind == stat.S_IFCHR and os.geteuid() != 0:
        pytest.skip("needs root: it makes a device node")
    (tmp_path / "f").write_bytes(b"old")
    with OutputFile("f", force=True) as out:
        out.write(DATA)
        os.unlink("f")
        os.mknod("f", kind | 0o600, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)
        with pytest.raises(SystemEnvironmentError, match="not a regular file now"):
            out.commit()
    assert stat.S_IFMT(os.stat("f").st_mode) == kind
    assert os.listdir(tmp_path) == ["f"]
    with pytest.raises(UsageError, match="is not a regular file"):
        OutputFile("f", force=True)


def test_another_kind_of_file_in_place_of_a_pipe_is_not_written_into(tmp_path):
    os.mkfifo("f")
    where = destination("f")
    os.unlink("f")
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(UsageError, match="has become another file"):
        where.open(force=True)
    assert (tmp_path / "f").read_bytes() == b"old"


def test_no_descriptor_is_left_whatever_a_name_stands_for(tmp_path):
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    before = os.listdir("/proc/self/fd")
    for name in ("f", "fifo", "/dev/null", "none/f", "."):
        for commits in (True, False):
            try:
                with open_output(name, force=True) as out:
                    out.write(b"x")
                    if commits:
                        out.commit()
            except UsageError:
                pass
    assert os.listdir("/proc/self/fd") == before
    os.close(reader)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "雪" * 85, "a" + "🂡" * 63])
def test_names_as_long_as_can_be_are_written_replaced_and_put_aside(tmp_path, name):
    assert 253 <= len(name.encode()) <= 255
    write(name)
    write(name, force=True)
    assert os.listdir(tmp_path) == [name]
    with open_output(name, force=True) as out:
        out.write(DATA)
        out.commit()
        aside = out.mark_failed()
    assert aside is not None
    assert aside.endswith(".failed")
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(os.path.basename(aside))]


def test_standard_output_is_a_pipe_by_all_its_names(tmp_path):
    code = "from sealpoint.store.output import open_output as o\nwith o({!r}) as f:\n    f.write(b'x')\n    f.commit()"
    for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(name)], capture_output=True, check=True
        )
        assert done.stdout == b"x"
