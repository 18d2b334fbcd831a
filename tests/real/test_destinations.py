"""`-o` of the commands on what is no regular file: the real commands, on a real dump."""

from __future__ import annotations

import os
import select
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.cli.dump import ack_line
from sealpoint.keys import load_trust
from tests.real import harness, sealed

StartWorkload = Callable[..., harness.Workload]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "app.sealed"


class Reader:
    """The other end of a pipe, read to its end in a thread."""

    def __init__(self, fd: int) -> None:
        self.data = bytearray()
        self._thread = threading.Thread(target=self._run, args=(fd,))
        self._thread.start()

    def _run(self, fd: int) -> None:
        while piece := os.read(fd, 1 << 16):
            self.data.extend(piece)
        os.close(fd)

    def end(self) -> bytes:
        self._thread.join(60)
        assert not self._thread.is_alive(), "no end is to be seen"
        return bytes(self.data)


COMMANDS = {
    "seal": lambda it: ("seal", it.plain, *it.keys.seal),
    "open": lambda it: ("open", it.file, *it.keys.open),
    "report": lambda it: ("report", it.file, *it.keys.open),
    "flatten": lambda it: ("flatten", it.file, *it.keys.open, *it.keys.seal),
    "crit encode": lambda it: (
        "crit", "encode", it.json, "--into", f"{it.file}:inventory.img", *it.keys.open, *it.keys.seal,
    ),
    "crit decode": lambda it: ("crit", "decode", f"{it.file}:pstree.img", *it.keys.open),
    "memparse": lambda it: ("memparse", it.file, "--pid", it.pid, *it.keys.open),
    "coredump": lambda it: ("coredump", it.file, "--pid", it.pid, *it.keys.open),
}  # fmt: skip


class Made:
    def __init__(self, sealpoint, keys, running, out: Path, ram_dir: Path) -> None:
        self.keys, self.file, self.pid = keys, out, running.pid
        self.plain, self.json = ram_dir / "plain", ram_dir / "inventory.json"
        sealpoint.run("dump", "-t", running.pid, "-o", out, "-R", *keys.seal).ok()
        sealpoint.run("open", out, "-o", self.plain, *keys.open).ok()
        decode = ("crit", "decode", f"{out}:inventory.img", "-o", self.json, *keys.open)
        sealpoint.run(*decode).ok()


@pytest.fixture
def made(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    out: Path,
    ram_dir: Path,
) -> Made:
    return Made(sealpoint, keys, workload("secret"), out, ram_dir)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_writes_into_pipes_and_null_and_leaves_devices_alone(
    made: Made, sealpoint: sealed.Sealpoint, tmp_path: Path, command: str
) -> None:
    run = COMMANDS[command](made)
    streams = command != "coredump"  # it has holes

    # a pipe by its name, and by a link
    for name in ("p", "l"):
        path = tmp_path / f"{name}.pipe"
        target = tmp_path / f"{name}.name"
        if name == "l":
            target.symlink_to(path)
        else:
            target = path
        os.mkfifo(path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        if streams:
            running = sealpoint.start(*run, "-o", target)
            sealed.wait_until(lambda fd=fd: readable(fd), "something comes")
            data = Reader(fd).end()
            running.wait().ok()
            assert data
        else:
            sealpoint.run(*run, "-o", target).fails(2, "goes into a file")
            os.close(fd)
        assert stat.S_ISFIFO(path.stat().st_mode)

    # /dev/null stays what it is, with and without --force
    null = os.stat("/dev/null")
    for more in ((), ("--force",)):
        sealpoint.run(*run, "-o", "/dev/null", *more).ok()
    assert os.stat("/dev/null").st_ino == null.st_ino

    # a block device is refused
    disk = tmp_path / "disk"
    os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(7, 250))
    for more in ((), ("--force",)):
        sealpoint.run(*run, "-o", disk, *more).fails(2, "is a block device")
    assert stat.S_ISBLK(disk.stat().st_mode)

    # a link leads to a file, or to nothing
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to("real")
    sealpoint.run(*run, "-o", link, "--force").fails(2, "is a link to nothing")
    assert not real.exists()
    if command == "open":
        return  # to a name without an ending it makes a directory
    real.write_bytes(b"old")
    sealpoint.run(*run, "-o", link).fails(2, "exists")
    sealpoint.run(*run, "-o", link, "--force").ok()
    assert link.is_symlink()
    assert real.read_bytes() != b"old"


def readable(fd: int) -> bool:
    """Whether something has come, so that a read does not take the lack of a writer for the end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


@pytest.mark.parametrize("kind", ["fifo", "descriptor", "null"])
def test_after_a_dump_into_what_is_no_file_the_tree_runs_on(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    kind: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    dump = ("dump", "-t", running.pid, *keys.seal)
    if kind == "null":
        sealpoint.run(*dump, "-o", "/dev/null").ok()
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        running.assert_continues(before)
        return
    reader, writer = os.pipe()
    if kind == "descriptor":
        # The command gets it as its standard output, and is told another name of that.
        going = sealpoint.start(*dump, "-o", "/dev/fd/1", stdout=writer)
        os.close(writer)
    else:
        os.close(reader)
        os.close(writer)
        path = tmp_path / "pipe"
        os.mkfifo(path)
        going = sealpoint.start(*dump, "-o", path)
        reader = os.open(path, os.O_RDONLY)
    data = Reader(reader).end()
    done = going.wait().ok()
    assert "still running" in done.err
    running.assert_continues(before)
    file = tmp_path / "arrived"
    file.write_bytes(data)
    sealpoint.run("verify", file, *keys.open).ok()


@pytest.mark.parametrize("answer", ["the right one", "none"])
def test_a_tree_that_is_dumped_into_a_named_pipe_ends_when_the_receiver_says_so(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    answer: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    path = tmp_path / "pipe"
    os.mkfifo(path)
    stdin, acknowledge = os.pipe()
    dump = ("dump", "-t", running.pid, "-o", path, "--kill-after", "ack", *keys.seal)
    going = sealpoint.start(*dump, stdin=stdin)
    os.close(stdin)
    file = tmp_path / "arrived"
    file.write_bytes(Reader(os.open(path, os.O_RDONLY)).end())
    if answer == "none":
        os.close(acknowledge)
        going.wait().fails(2, "closed without acknowledging")
        running.assert_continues(before)
        return
    policy = load_trust([keys.path("signer.pub")])
    with CheckedFile.open(str(file), policy) as checked:
        reference = checked.authentic.reference
    os.write(acknowledge, ack_line(reference.checkpoint_id, reference.origin_digest))
    os.close(acknowledge)
    going.wait().ok()
    running.wait_gone()
    sealpoint.run("restore", file, "--detach", *keys.open).ok()
    running.assert_continues(before)


@pytest.mark.parametrize("where", ["block", "link to nothing", "device that is full"])
def test_a_dump_that_cannot_be_written_leaves_the_tree_and_the_place_as_they_were(
    workload: StartWorkload,
    sealpoint: sealed.Sealpoint,
    keys: sealed.Keys,
    tmp_path: Path,
    where: str,
) -> None:
    running = workload("secret")
    before = running.assert_intact()
    path = tmp_path / "place"
    code = 2
    if where == "block":
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 250))
    elif where == "link to nothing":
        path.symlink_to("nothing")
    else:
        path, code = Path("/dev/full"), 6
    kind = os.lstat(path).st_mode
    dump = ("dump", "-t", running.pid, "-o", path, "--force", *keys.seal)
    sealpoint.run(*dump).fails(code)
    assert os.lstat(path).st_mode == kind
    running.assert_continues(before)
