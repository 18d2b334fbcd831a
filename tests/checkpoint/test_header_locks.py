"""Who can only read a sealed file keeps nobody from reading, rekeying or pruning it; writers keep each other away."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import threading
import time

import pytest

from sealpoint.checkpoint.history import rekey as rekeying
from sealpoint.checkpoint.history.rekey import RekeyRequest, rekey
from sealpoint.checkpoint.opening.access import CheckedFile
from sealpoint.errors import FileError, SystemEnvironmentError
from sealpoint.format.constants import PREAMBLE_SIZE
from sealpoint.format.preamble import Preamble
from sealpoint.store import locks
from tests.checkpoint.checkpoint_helpers import attributes, seal_objects

OBJECTS = {"pages-1.img": (os.urandom(50_000), attributes())}


def bytes_lock(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))


READERS_LOCKS = {
    "shared flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_SH),
    "exclusive flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_EX),
    "read lock of a description": bytes_lock,
    "both": lambda fd: (fcntl.flock(fd, fcntl.LOCK_EX), bytes_lock(fd)),
}


@pytest.fixture
def file(keys, tmp_path):
    seal_objects(keys, tmp_path / "s", OBJECTS)
    return str(tmp_path / "s")


@pytest.fixture(params=READERS_LOCKS)
def held(request, file):
    """A lock on the file through a descriptor that can only read."""
    fd = os.open(file, os.O_RDONLY)
    READERS_LOCKS[request.param](fd)
    yield file
    os.close(fd)


def change(keys, file, **options):
    return rekey(file, RekeyRequest([keys.identity], keys.signing, keys.policy, **options))


def test_a_lock_of_a_reader_blocks_neither_reader_nor_rekey(keys, others, held):
    with CheckedFile.open(held, keys.policy) as checked:
        assert checked.authentic.slot.sequence == 1
    assert change(keys, held, add=[others.recipient]).sequence == 2
    with CheckedFile.open(held, keys.policy) as checked:
        assert checked.authentic.slot.sequence == 2


def test_writers_keep_each_other_away_whatever_a_reader_holds(keys, others, held):
    fd = os.open(held, os.O_RDWR)
    with locks.writing(fd, held):
        with pytest.raises(SystemEnvironmentError, match="another process"):
            change(keys, held, add=[others.recipient])
    os.close(fd)
    assert change(keys, held, add=[others.recipient]).sequence == 2


def test_writers_of_other_users_keep_each_other_away_by_the_file_itself(file, monkeypatch):
    monkeypatch.setattr(locks, "_private_directory", lambda: None)
    one, two = (os.open(file, os.O_RDWR) for _ in range(2))
    with locks.writing(one, file):
        with pytest.raises(SystemEnvironmentError, match="another process"):
            with locks.writing(two, file):
                pass
    with locks.writing(two, file):
        pass
    os.close(one)
    os.close(two)


def slots(file):
    with open(file, "rb") as stream:
        return Preamble.decode(stream.read(PREAMBLE_SIZE))


def test_a_reader_amid_a_rekey_reads_again(keys, others, file, tmp_path):
    """The states between the writes of a rekey, each held for a while and then completed."""
    shutil.copy(file, tmp_path / "new")
    change(keys, str(tmp_path / "new"), add=[others.recipient])
    preamble = slots(file)
    size = preamble.slot_size
    old, new = ((tmp_path / name).read_bytes() for name in ("s", "new"))
    second = new[preamble.slot_offset(1) : preamble.slot_offset(1) + size]
    steps = [
        (preamble.slot_offset(1), second[:100]),
        (preamble.slot_offset(1), second),
        (preamble.slot_offset(0), bytes(100)),
        (preamble.slot_offset(0), bytes(size)),
    ]
    started = threading.Event()

    def write():
        fd = os.open(file, os.O_RDWR)
        for offset, data in steps:
            os.pwrite(fd, data, offset)
            started.set()
            time.sleep(0.05)
        os.close(fd)

    thread = threading.Thread(target=write)
    thread.start()
    started.wait()
    with CheckedFile.open(file, keys.policy) as checked:
        assert checked.authentic.slot.sequence in (1, 2)
        assert not checked.authentic.interrupted
    thread.join()
    with open(file, "rb") as stream:
        assert stream.read() == new
    assert old != new


def test_a_header_that_stays_damaged_is_refused(keys, file):
    preamble = slots(file)
    with open(file, "r+b") as stream:
        stream.seek(preamble.slot_offset(1))
        stream.write(b"junk")
    with pytest.raises(FileError, match="interrupted rekey"):
        CheckedFile.open(file, keys.policy)


def test_a_writer_that_knows_no_lock_does_not_make_us_zero_the_only_header(
    keys, others, file, monkeypatch
):
    real, written = rekeying._write_slot, []

    def interfere(fd, preamble, number, data):
        real(fd, preamble, number, data)
        written.append(number)
        if len(written) == 1:
            os.pwrite(fd, b"theirs", preamble.slot_offset(number) + 64)

    monkeypatch.setattr(rekeying, "_write_slot", interfere)
    with pytest.raises(SystemEnvironmentError, match="meanwhile"):
        change(keys, file, add=[others.recipient])
    assert written == [1]
    with CheckedFile.open(file, keys.policy, repair=True) as checked:
        assert checked.authentic.slot.sequence == 1
