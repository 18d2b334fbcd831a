"""Small records of the state directory that cannot be written: the old one or the new one is there, whole.

The kernel refuses the calls (tests/failing.py), in a child for each case.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sealpoint.errors import SystemEnvironmentError
from sealpoint.format.statement import ParentRef
from sealpoint.state.chains import NoStateError, State, StateStore
from sealpoint.state.newest import Mark, Newest
from sealpoint.state.released import Released
from sealpoint.state.soft_dirty import Tracking
from tests import failing

ID = bytes(range(16))
EXCHANGE = 2


def state(number: int) -> State:
    return State(ParentRef(ID, bytes(32)), (ID, 0), workload=str(number))


def state_of(directory: str) -> int | None:
    try:
        return int(StateStore(directory).load(ParentRef(ID, bytes(32))).workload)
    except NoStateError:
        return None


def mark_of(directory: str) -> int | None:
    mark = Newest(directory).of("w")
    return None if mark is None else mark.captured


def released_of(directory: str) -> int | None:
    record = Released(directory).of(ID)
    return None if record is None else len(record.tasks)


def tracked(directory: str) -> int | None:
    text = Tracking(directory, os.getppid()).last() or Tracking(directory, os.getpid()).last()
    return int(text, 16) if text else None


# By record: how number 1 or 2 is written, how it is read, and the directory it lies in.
RECORDS = {
    "state": (lambda d, n: StateStore(d).save(state(n)), state_of, "."),
    "mark": (lambda d, n: Newest(d).note("w", Mark(ID, n, n)), mark_of, "newest"),
    "tree": (lambda d, n: Released(d).note(ID, [1, 1][:n]), released_of, "released"),
    "tracking": (lambda d, n: Tracking(d, PID).done(bytes([n])), tracked, "tracking"),
}
PID = os.getpid()
STEPS = {
    "nothing can be made durable": [("fsync", errno.EIO, {})],
    "no name can be given": [("linkat", errno.EIO, {})],
    "names cannot be exchanged": [("renameat2", errno.EIO, {"a4": EXCHANGE})],
    "no name can be changed": [("renameat2", errno.EIO, {})],
    "the file system cannot exchange names": [("renameat2", errno.EINVAL, {"a4": EXCHANGE})],
    "nothing can be removed": [("unlinkat", errno.EIO, {})],
}


def attempt(write, directory: str, step: str) -> None:
    for name, error, arguments in STEPS[step]:
        failing.install(name, error, **arguments)
    try:
        write(directory, 2)
    except SystemEnvironmentError:
        os._exit(3)


@pytest.mark.parametrize("old", [True, False], ids=["replaces", "is new"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("record", RECORDS)
def test_a_record_that_cannot_be_written_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, record: str, step: str, *, old: bool
) -> None:
    write, read, where = RECORDS[record]
    directory = str(tmp_path / "state")
    if record == "state":
        StateStore(directory).machine_key()
    if old:
        write(directory, 1)
    status = failing.in_child(lambda: attempt(write, directory, step))
    assert status in (0, 3)
    found = read(directory)
    assert found in ((2,) if status == 0 else (1, 2) if old else (None, 2))
    if "removed" not in step:
        assert list(Path(directory, where).glob(".?*")) == []


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_made_durable_with_its_name(tmp_path: Path, record: str) -> None:
    """If nothing can be made durable, nobody is told that it is written."""
    write, _, _ = RECORDS[record]
    directory = str(tmp_path / "state")
    if record == "state":
        StateStore(directory).machine_key()
    write(directory, 1)
    assert failing.in_child(lambda: attempt(write, directory, "nothing can be made durable")) == 3


@pytest.mark.parametrize("record", RECORDS)
def test_a_link_in_the_place_of_a_record_is_replaced_and_not_followed(
    tmp_path: Path, record: str
) -> None:
    write, read, where = RECORDS[record]
    directory = str(tmp_path / "state")
    write(directory, 1)
    names = [p for p in Path(directory, where).iterdir() if p.is_file() and p.name != "machine.key"]
    (name,) = names
    (tmp_path / "victim").write_text("untouched")
    name.unlink()
    name.symlink_to(tmp_path / "victim")
    write(directory, 2)
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not name.is_symlink()
    assert read(directory) == 2
